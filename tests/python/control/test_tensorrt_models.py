"""`backend: "tensorrt"`: built while another serves, swapped in; what goes wrong is told.

On stand-ins for TensorRT (standin_tensorrt.py): this machine may have no GPU."""

from __future__ import annotations

import os
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper
from standin_tensorrt import StandInRuntime, engine_of, standin_builder

from headrace.control import engine_builds, tensorrt_models
from headrace.control.engine_builds import Device, EngineBuilds, EngineJob, key_of
from headrace.control.tensorrt_models import engine_spec
from headrace.errors import HeadraceError, InvalidArgumentError
from headrace.optimize.engine_cache import EngineCache
from headrace.optimize.engines import EngineSpec
from headrace.repository.model_config import parse_config

TENSORRT = 'backend: "tensorrt" max_batch_size: 4'


def eventually(condition: Callable[[], Any], what: str) -> Any:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(0.01)
    raise AssertionError(f"never happened: {what}")


def why(client: Any, model: str = "m") -> str:
    return client.model_config(model).parameters["headrace.why"].string_value


def runs_on(client: Any, model: str = "m") -> str:
    return client.model_config(model).parameters["headrace.backend"].string_value


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def began(builder: Path) -> int:
    """The builder's process, once it is at work."""
    eventually((builder / "pid").exists, "it began")
    return int((builder / "pid").read_text())


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> type[StandInRuntime]:
    class Mine(StandInRuntime):
        pass

    monkeypatch.setattr(tensorrt_models, "TensorRt", Mine)
    return Mine


@pytest.fixture
def builder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device) -> Path:
    """The folder of the stand-in builder."""
    folder = tmp_path / "builder"
    folder.mkdir()
    monkeypatch.setattr(engine_builds, "_COMMAND", tuple(standin_builder(folder)))
    return folder


def builds(folder: Path) -> int:
    path = folder / "builds"
    return len(path.read_text()) if path.exists() else 0


def state(server: Any, model: str = "m", version: int = 1) -> str:
    found = server.manager.engines.state(model, version)
    return found[0] if found is not None else ""


@pytest.fixture
def serve(repository, start_server, connect):
    def start(config: str = TENSORRT, **settings: Any) -> tuple[Any, Any]:
        repository.add("m", 1)
        repository.put("m/config.pbtxt", config)
        server = start_server(load_model=("m",), **settings)
        return server, connect(server)

    return start


def answer(client: Any, model: str = "m") -> float:
    return float(client.infer(model, {"x": np.ones((1, 4), np.float32)})["y"][0, 0])


# ---- without TensorRT


def test_without_the_library_another_backend_serves(serve) -> None:
    """The real door to TensorRT, whose library is not there (or whose GPU is not)."""
    try:
        found = tensorrt_models.TensorRt().device()
    except HeadraceError:
        pass
    else:
        pytest.skip(f"there is {found}")
    _, client = serve(TENSORRT + " instance_group { count: 1 kind: KIND_GPU }")
    assert answer(client) == 2
    assert "OpenVINO" in runs_on(client)
    assert why(client).startswith("no TensorRT engine: ")
    assert "TensorRT" in why(client)
    assert client.model_config("m").platform == "tensorrt_plan"


def test_without_a_gpu_another_backend_serves(serve, device, builder) -> None:
    device.gpu = ""
    server, client = serve()
    assert answer(client) == 2
    assert "no CUDA device" in why(client)
    assert state(server) == ""
    assert builds(builder) == 0


def test_a_plan_alone_needs_a_gpu(repository, start_server, connect, device) -> None:
    device.gpu = ""
    path = repository.put("m/1/model.plan", b"an engine")
    client = connect(start_server())
    with pytest.raises(InvalidArgumentError) as caught:
        client.load("m")
    assert f"{path} cannot be executed: no CUDA device" in caught.value.details
    assert "model.onnx" in caught.value.details


# ---- built, swapped in


def test_the_fallback_serves_until_the_engine_is_ready(serve, builder, tmp_path) -> None:
    (builder / "hold").touch()
    server, client = serve(cache_dir=str(tmp_path / "cache"))
    assert "OpenVINO" in runs_on(client)
    assert why(client) == "until its engine for Stand-in GPU is built"
    eventually(lambda: state(server) == "building", "it is built")
    assert answer(client) == 2

    failures: list[BaseException] = []
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            try:
                assert answer(client) == 2
            except BaseException as error:
                failures.append(error)
                return

    asking = threading.Thread(target=ask)
    asking.start()
    (builder / "go").touch()
    eventually(lambda: "stand-in" in runs_on(client), "the engine serves")
    stop.set()
    asking.join()
    assert failures == []
    assert state(server) == "serving"
    assert why(client) == "the engine for Stand-in GPU was built from model.onnx"

    # It is the same version of the same files: nothing to load.
    before = server.manager.registry.find("m")
    client.load("m")
    assert server.manager.registry.find("m") is before
    assert builds(builder) == 1


def test_an_engine_that_is_there_is_used_at_once(serve, start_server, builder, tmp_path) -> None:
    cache = str(tmp_path / "cache")
    _, client = serve(cache_dir=cache)
    eventually(lambda: "stand-in" in runs_on(client), "the engine serves")
    again = start_server(load_model=("m",), cache_dir=cache)
    assert "stand-in" in again.manager.registry.find("m").version.description
    assert builds(builder) == 1
    # Damaged, it is built again.
    (plan,) = (tmp_path / "cache" / "engines").glob("*.plan")
    plan.write_bytes(b"damaged")
    third = start_server(load_model=("m",), cache_dir=cache)
    eventually(lambda: state(third) == "serving", "the engine serves")
    assert builds(builder) == 2


def test_other_versions_stay_as_they_are(repository, start_server, builder) -> None:
    (builder / "hold").touch()
    repository.add("m", 1, version=1)
    repository.add("m", 2, version=2)
    repository.put("m/config.pbtxt", TENSORRT + " version_policy { all {} }")
    server = start_server(load_model=("m",))
    (builder / "go").touch()
    for version in (1, 2):
        eventually(lambda v=version: state(server, "m", v) == "serving", f"version {version}")
    eventually(
        lambda: all(
            "stand-in" in v.version.description for v in server.manager.registry.ready_versions("m")
        ),
        "both serve",
    )
    assert builds(builder) == 2


def test_it_builds_what_the_configuration_says(serve, builder) -> None:
    server, _ = serve(
        'backend: "tensorrt" max_batch_size: 16 dynamic_batching { preferred_batch_size: [4, 8] }'
    )
    eventually(lambda: state(server) == "serving", "the engine serves")
    request = (builder / "request").read_text()
    assert '"batch_sizes": [1, 4, 8, 16]' in request
    assert '"runtime": "tensorrt"' in request


def test_the_real_builder_builds(serve, device, repository, monkeypatch) -> None:
    """TensorRT-RTX in a process of its own; only what executes its engine is a stand-in."""
    trt = pytest.importorskip("tensorrt_rtx", reason="needs pip install tensorrt-rtx (1 GB)")
    version = ".".join(trt.__version__.split(".")[:3])
    loaded: list[int] = []

    class Mine(device):  # type: ignore[misc, valid-type]
        def device(self) -> Device:
            return Device("tensorrt_rtx", version, self.gpu, "8.6")

        def load(self, path: Path) -> Any:
            loaded.append(path.stat().st_size)
            return self.model_of(repository.root / "m/1/model.onnx")

    monkeypatch.setattr(tensorrt_models, "TensorRt", Mine)
    server, client = serve()
    eventually(lambda: state(server) == "serving", "the engine serves")
    eventually(lambda: "stand-in" in runs_on(client), "the engine serves")
    assert answer(client) == 2
    (size,) = set(loaded)
    assert size > 1000
    # And an operator that TensorRT lacks.
    graph = helper.make_graph(
        [helper.make_node("Inverse", ["x"], ["y"], domain="com.microsoft", name="turned")],
        "inverse",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (2, 2))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (2, 2))],
    )
    opsets = [helper.make_opsetid("", 13), helper.make_opsetid("com.microsoft", 1)]
    odd = helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()
    repository.put("odd/1/model.onnx", odd)
    repository.put("odd/config.pbtxt", 'backend: "tensorrt"')
    client.load("odd")
    eventually(lambda: state(server, "odd") == "failed", "it fails")
    eventually(lambda: "node 'turned' (Inverse)" in why(client, "odd"), "it is told")
    x = np.array([[2, 0], [0, 4]], np.float32)
    assert client.infer("odd", {"x": x})["y"].tolist() == [[0.5, 0], [0, 0.25]]


def test_the_metric(serve, builder) -> None:
    (builder / "hold").touch()
    server, client = serve(metrics_port=0)
    began(builder)

    def scraped() -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{server.metrics_port}/metrics") as page:
            return str(page.read().decode())

    labels = 'model="m",state="%s",version="1"'
    assert f"headrace_engine_state{{{labels % 'building'}}} 1.0" in scraped()
    (builder / "go").touch()
    wanted = f"headrace_engine_state{{{labels % 'serving'}}} 1.0"
    eventually(lambda: wanted in scraped(), "it serves")
    # Whatever became of an earlier load.
    client.unload("m")
    (builder / "go").unlink()
    client.load("m")
    assert builds(builder) == 1
    assert wanted in scraped()


# ---- what goes wrong


@pytest.mark.parametrize(
    ("what", "text", "tries"),
    [
        ("refuse", "node 'n' (Odd): there is no such operator", 1),
        ("crash", "the builder ended with signal 11: about to crash", 2),
        ("silent", "the builder ended with status 3: it said nothing", 2),
        ("version", "install that version of it", 1),
    ],
)
def test_without_an_engine_the_fallback_stays(
    serve, builder, what: str, text: str, tries: int
) -> None:
    (builder / what).write_text("10.9.0.34")
    server, client = serve()
    eventually(lambda: state(server) == "failed", "it fails")
    eventually(lambda: text in why(client), f"{text} is told")
    assert answer(client) == 2
    assert "OpenVINO" in runs_on(client)
    # What the builder said of the same files it would say again.
    client.unload("m")
    client.load("m")
    eventually(lambda: text in why(client), f"{text} is told again")
    assert builds(builder) == tries


def test_a_full_gpu_keeps_the_engine(serve, start_server, device, builder, tmp_path) -> None:
    device.full = True
    cache = str(tmp_path / "cache")
    server, client = serve(cache_dir=cache)
    eventually(lambda: "no device memory" in why(client), "it is told")
    assert state(server) == "failed"
    assert "OpenVINO" in runs_on(client)
    # The next load finds it, and still no memory; then there is some.
    client.unload("m")
    client.load("m")
    assert "no device memory" in why(client)
    assert answer(client) == 2
    device.full = False
    client.unload("m")
    client.load("m")
    assert "stand-in" in runs_on(client)
    assert builds(builder) == 1


def test_a_file_that_changes_meanwhile_is_not_kept_as_what_it_was(
    serve, repository, builder, tmp_path
) -> None:
    (builder / "hold").touch()
    server, client = serve(cache_dir=str(tmp_path / "cache"))
    began(builder)
    repository.add("m", 5)
    (builder / "go").touch()
    eventually(lambda: state(server) == "failed", "it fails")
    eventually(lambda: "its file changed while its engine was built" in why(client), "it is told")
    assert answer(client) == 2
    assert list((tmp_path / "cache" / "engines").glob("*.plan")) == []
    client.load("m")
    eventually(lambda: "stand-in" in runs_on(client), "the engine serves")
    assert answer(client) == 6


def test_a_builder_that_is_stuck_is_ended(builder, repository, device, tmp_path) -> None:
    (builder / "hold").touch()
    told = threading.Event()
    builds_of = EngineBuilds(
        EngineCache(tmp_path / "cache"),
        threads=1,
        changed=lambda job, state, text: told.set() if state == "failed" else None,
        command=standin_builder(builder),
        silence_s=0.5,
    )
    spec = EngineSpec((1,))
    onnx = repository.add("m", 1)
    job = EngineJob("m", 1, onnx, spec, device().device(), key_of(onnx, spec, device().device()))
    builds_of.start(job)
    assert told.wait(60)
    assert builds_of.wait("m", 1, 60)
    text = "the builder made no progress for 0.5 s and was ended"
    assert builds_of.state("m", 1) == ("failed", text)
    assert builds_of.failure(job.key) == ""  # another time it may get through
    builds_of.stop()


def test_an_engine_that_does_not_load_leaves_the_fallback(serve, device, builder) -> None:
    device.refuses = True
    server, client = serve()
    eventually(lambda: state(server) == "failed", "it fails")
    assert answer(client) == 2
    eventually(lambda: "is no engine for this TensorRT and GPU" in why(client), "it is told")
    (row,) = client.index()
    assert row.state == "READY"
    assert builds(builder) == 1


def test_an_engine_of_another_gpu_is_built_again(serve, start_server, device, builder, tmp_path):
    """As a TensorRT of the same version may refuse an engine of a GPU of the same name."""
    cache = str(tmp_path / "cache")
    first, _ = serve(cache_dir=cache)
    eventually(lambda: state(first) == "serving", "the engine serves")
    (plan,) = (tmp_path / "cache" / "engines").glob("*.plan")
    other = engine_of("Another GPU 8.0", plan)
    EngineCache(plan.parent).keep(plan.stem.split("-")[0], other, {})
    second = start_server(load_model=("m",), cache_dir=cache)
    eventually(lambda: state(second) == "serving", "the engine serves")
    assert builds(builder) == 2


@pytest.mark.parametrize("content", ["an engine of another version", ""])
def test_a_plan_that_does_not_fit_is_built_again(serve, repository, builder, content: str) -> None:
    repository.put("m/1/model.plan", content or engine_of("Another GPU 8.0", Path("m")))
    server, client = serve()
    eventually(lambda: state(server) == "serving", "the engine serves")
    assert answer(client) == 2
    assert builds(builder) == 1


def test_a_plan_that_fits_is_taken(repository, serve, builder) -> None:
    onnx = repository.add("m", 1)
    repository.put("m/1/model.plan", engine_of("Stand-in GPU 9.0", onnx))
    _, client = serve()
    assert answer(client) == 2
    assert "stand-in" in runs_on(client)
    assert why(client) == "its own plan"
    assert builds(builder) == 0


def test_a_plan_that_does_not_fit_is_refused_without_an_onnx_file(
    repository, start_server, connect, device
) -> None:
    path = repository.put("m/1/model.plan", engine_of("Another GPU 8.0", Path("m")))
    client = connect(start_server())
    with pytest.raises(InvalidArgumentError) as caught:
        client.load("m")
    assert f"{path} cannot be executed" in caught.value.details
    assert "is no engine for this TensorRT and GPU" in caught.value.details


def test_an_onnx_file_that_nobody_reads_is_refused(
    repository, start_server, connect, builder
) -> None:
    repository.put("m/1/model.onnx", b"\x00garbage" * 10)
    repository.put("m/config.pbtxt", TENSORRT)
    client = connect(start_server())
    with pytest.raises(InvalidArgumentError, match="headrace build --place"):
        client.load("m")
    assert builds(builder) == 0


# ---- ended


def test_unloading_ends_the_build(serve, builder) -> None:
    (builder / "hold").touch()
    server, client = serve()
    pid = began(builder)
    client.unload("m")
    eventually(lambda: gone(pid), "the builder ended")
    assert server.manager.engines.wait("m", 1, 60)
    assert state(server) == "cancelled"
    # And another load begins another one.
    (builder / "go").touch()
    client.load("m")
    eventually(lambda: state(server) == "serving", "the engine serves")
    assert builds(builder) == 2


def test_stopping_ends_the_build(serve, builder) -> None:
    (builder / "hold").touch()
    server, _ = serve()
    pid = began(builder)
    assert server.stop(grace_s=60)
    eventually(lambda: gone(pid), "the builder ended")


def test_new_files_end_the_build_of_the_old(serve, repository, builder) -> None:
    (builder / "hold").touch()
    _, client = serve()
    pid = began(builder)
    repository.add("m", 5)
    (builder / "go").touch()
    client.load("m")
    eventually(lambda: gone(pid), "the builder ended")
    eventually(lambda: "stand-in" in runs_on(client), "the engine serves")
    assert answer(client) == 6


def test_a_reload_ends_the_build_and_stopping_that_of_the_reload(
    serve, repository, builder
) -> None:
    """Neither waits for a builder to finish."""
    (builder / "hold").touch()
    server, client = serve()
    first = began(builder)
    repository.add("m", 5)
    client.load("m")
    eventually(lambda: gone(first), "the builder of the old ended")
    eventually(lambda: builds(builder) == 2, "the next one began")
    eventually(lambda: began(builder) != first, "the next one is at work")
    second = began(builder)
    repository.add("m", 6)
    client.load("m")
    assert answer(client) == 7
    assert server.stop(grace_s=60)
    eventually(lambda: gone(second), "the builder of the reload ended")
    assert server.manager.engines.wait("m", 1, 60)


def test_a_reload_that_needs_the_same_engine_gets_it(serve, repository, builder) -> None:
    (builder / "hold").touch()
    server, client = serve()
    began(builder)
    repository.put("m/config.pbtxt", TENSORRT + ' parameters { key: "note" }')
    client.load("m")
    assert "note" in client.model_config("m").parameters
    (builder / "go").touch()
    eventually(lambda: "stand-in" in runs_on(client), "the engine serves")
    assert "note" in client.model_config("m").parameters
    assert state(server) == "serving"


def test_stopping_ends_what_waits_for_its_turn(repository, start_server, builder) -> None:
    (builder / "hold").touch()
    for model in ("m", "n"):
        repository.add(model, 1)
        repository.put(f"{model}/config.pbtxt", TENSORRT)
    server = start_server(load_model=("m",))
    began(builder)
    server.manager.load("n")
    assert state(server, "n") == "waiting"
    assert server.stop(grace_s=60)
    assert server.manager.engines.wait("n", 1, 60)


def test_what_made_room_and_came_back_gets_its_engine(repository, serve, builder) -> None:
    (builder / "hold").touch()
    repository.put("m/policy.yaml", "swap: {order: unload_first}")
    server, client = serve()
    first = began(builder)
    repository.put("m/2/model.onnx", b"broken")
    with pytest.raises(InvalidArgumentError):
        client.load("m")
    eventually(lambda: gone(first), "the builder ended")
    assert answer(client) == 2
    (builder / "go").touch()
    eventually(lambda: "stand-in" in runs_on(client), "the engine serves")
    assert answer(client) == 2
    assert state(server) == "serving"


def test_loads_and_unloads_at_any_moment(serve, repository, builder) -> None:
    """Whatever state the engine is in when its version goes, the next one ends in service, and no
    process is left."""
    server, client = serve()
    states = set()
    for cycle in range(12):
        moment = ("waiting", "building", "ready", "serving")[cycle % 4]
        repository.add("m", cycle + 2)  # another model: another engine
        client.load("m")
        eventually(lambda at=moment: state(server) in (at, "serving"), "it is so far")
        states.add(state(server))
        if cycle % 3 == 0:
            client.unload("m")
            client.load("m")
        assert answer(client) == cycle + 3
    eventually(lambda: state(server) == "serving", "the engine serves")
    eventually(lambda: "stand-in" in runs_on(client), "the engine serves")
    assert answer(client) == 14
    assert "serving" in states
    assert server.stop(grace_s=60)
    assert server.manager.engines.wait("m", 1, 60)


# ---- the spec


@pytest.mark.parametrize(
    ("config", "sizes"),
    [
        ("max_batch_size: 0", ()),
        ("max_batch_size: 1", (1,)),
        ("max_batch_size: 8", (1, 8)),
        ("max_batch_size: 8 dynamic_batching { preferred_batch_size: [4, 16] }", (1, 4, 8)),
        (
            "max_batch_size: 99 dynamic_batching { preferred_batch_size: "
            "[2, 3, 4, 5, 6, 7, 8, 9, 10] }",
            (1, 2, 3, 4, 5, 6, 7, 99),
        ),
    ],
)
def test_batch_sizes_of_profiles(config: str, sizes: tuple[int, ...]) -> None:
    assert engine_spec(parse_config(config, "here"), None).batch_sizes == sizes


def test_free_dimensions() -> None:
    key = 'parameters { key: "engine_free_dims" value { string_value: "%s" } }'
    assert engine_spec(parse_config(key % "2,16,32", "here"), None).free == (2, 16, 32)
    for wrong in ("", "1,2", "a,b,c", "5,4,3"):
        with pytest.raises(InvalidArgumentError):
            engine_spec(parse_config(key % wrong, "here"), None)
