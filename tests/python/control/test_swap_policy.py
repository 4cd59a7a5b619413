"""policy.yaml `swap:`: in which order versions change places, and which stay loaded."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

from headrace.errors import HeadraceError, InvalidArgumentError, UnavailableError
from headrace.repository.policy import parse_policy

MODEL = """
    import time
    from pathlib import Path

    class Model:
        inputs = {{"x": ("FP32", [4])}}
        outputs = {{"y": ("FP32", [4])}}
        max_batch_size = 8

        def __init__(self, context):
            folder = Path({folder!r})
            (folder / f"loading-{{context.version}}").touch()
            if {broken}:
                raise RuntimeError("broken")
            while not (folder / f"go-{{context.version}}").exists():
                time.sleep(0.01)

        def __call__(self, inputs):
            return {{"y": inputs["x"] + {addend}}}

        def close(self):
            (Path({folder!r}) / "closed-{addend}").touch()
"""


@pytest.fixture
def ones() -> np.ndarray:
    return np.ones((1, 4), np.float32)


def first(client, model: str, x: np.ndarray, version: str = "") -> float:
    return float(client.infer(model, {"x": x}, version=version)["y"][0, 0])


def await_file(path: Path) -> None:
    ever = threading.Event()
    for _ in range(6000):
        if path.exists():
            return
        ever.wait(0.01)
    raise AssertionError(f"{path} does not come")


def put(repository, folder: Path, version: int, *, broken: bool = False) -> None:
    text = MODEL.format(folder=str(folder), broken=broken, addend=version)
    repository.put(f"m/{version}/model.py", text)


def test_unload_first_frees_the_old_version_before_it_loads_the_new_one(
    repository, start_server, connect, ones, tmp_path
) -> None:
    put(repository, tmp_path, 1)
    repository.put("m/policy.yaml", "swap: {order: unload_first}")
    (tmp_path / "go-1").touch()
    server = start_server(load_model=("m",))
    client = connect(server)
    assert first(client, "m", ones) == 2

    put(repository, tmp_path, 2)
    loading = threading.Thread(target=server.manager.load, args=("m",))
    loading.start()
    try:
        await_file(tmp_path / "loading-2")
        assert (tmp_path / "closed-1").exists()
        with pytest.raises(UnavailableError, match="is being replaced"):
            first(client, "m", ones)
        with pytest.raises(UnavailableError, match="not at ready state"):
            first(client, "m", ones, "2")
        assert not server.manager.registry.ready
    finally:
        (tmp_path / "go-2").touch()
        loading.join()
    assert first(client, "m", ones) == 3
    assert server.manager.registry.ready


def test_unload_first_loads_the_old_version_again_when_the_new_one_fails(
    repository, start_server, connect, ones, tmp_path
) -> None:
    put(repository, tmp_path, 1)
    repository.put("m/policy.yaml", "swap: {order: unload_first}")
    repository.add("other", 1.0)
    (tmp_path / "go-1").touch()
    server = start_server(load_model=("m", "other"))
    client = connect(server)
    put(repository, tmp_path, 2, broken=True)
    with pytest.raises(InvalidArgumentError, match="broken"):
        server.manager.load("m")
    assert (tmp_path / "closed-1").exists(), "it made room"
    assert first(client, "m", ones) == 2
    rows = {row.version: row for row in server.manager.index() if row.name == "m"}
    assert rows["1"].state == "READY"
    assert rows["2"].state == "UNAVAILABLE"
    assert "broken" in rows["2"].reason

    # And when another model of the same moment fails.
    put(repository, tmp_path, 2)
    (tmp_path / "go-2").touch()
    repository.put("other/2/model.onnx", b"nothing")
    with pytest.raises(InvalidArgumentError, match="other"):
        server.manager.load_together(("m", "other"))
    assert first(client, "m", ones) == 2
    assert first(client, "other", ones) == 2

    server.manager.load("m")
    assert first(client, "m", ones) == 3


def test_unload_first_with_files_that_are_gone_says_what_is_left(
    repository, start_server, connect, ones, tmp_path
) -> None:
    put(repository, tmp_path, 1)
    repository.put("m/policy.yaml", "swap: {order: unload_first}")
    (tmp_path / "go-1").touch()
    server = start_server(load_model=("m",))
    put(repository, tmp_path, 1, broken=True)  # in the place of the one that serves
    with pytest.raises(InvalidArgumentError, match="broken"):
        server.manager.load("m")
    with pytest.raises(HeadraceError):
        first(connect(server), "m", ones)
    (row,) = [row for row in server.manager.index() if row.name == "m"]
    assert row.state == "UNAVAILABLE"
    assert "broken" in row.reason


def test_versions_that_are_kept_warm_serve_again_without_a_load(
    repository, start_server, connect, ones
) -> None:
    repository.add("a", 1.0, 1)
    repository.put("a/policy.yaml", "swap: {keep_warm: 1}")
    server = start_server(load_model=("a",))
    client = connect(server)
    kept = {}
    for number in (2, 3, 4):
        repository.add("a", number, number)
        server.manager.load("a")
        assert server.manager.wait_drained(60)
        kept = {v.number: v for v in server.manager.registry.ready_versions("a")}
        assert sorted(kept) == [number - 1, number]
        assert first(client, "a", ones) == number + 1
        assert first(client, "a", ones, str(number - 1)) == number

    # Back: the newest is taken away.
    for file in (repository.root / "a" / "4").iterdir():
        file.unlink()
    (repository.root / "a" / "4").rmdir()
    server.manager.load("a")
    assert first(client, "a", ones) == 4
    (back,) = server.manager.registry.ready_versions("a")
    assert back.version is kept[3].version


def test_the_section() -> None:
    policy = parse_policy("swap: {order: unload_first}")
    assert policy.swap is not None
    assert policy.swap.order == "unload_first"
    assert policy.fingerprint == "", "it asks for no other version"
    for text in (
        "swap: {order: sideways}",
        "swap: {keep_warm: -1}",
        "swap: {order: unload_first, keep_warm: 1}",
        "swap: {keep: 1}",
    ):
        with pytest.raises(InvalidArgumentError, match="swap"):
            parse_policy(text)
