"""Several models change at one moment, or none of them does."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from headrace.client.admin import AdminClient
from headrace.control.manager import ModelManager
from headrace.errors import (
    HeadraceError,
    InternalError,
    InvalidArgumentError,
    UnavailableError,
)


@pytest.fixture
def ones() -> np.ndarray:
    return np.ones((1, 4), np.float32)


def first(client, model: str, x: np.ndarray) -> float:
    return float(client.infer(model, {"x": x})["y"][0, 0])


def test_who_has_seen_one_change_sees_all_changed(repository, start_server, connect, ones) -> None:
    names = ("a", "b")
    for name in names:
        repository.add(name, 1.0, 1)
    server = start_server(load_model=names)
    stop = threading.Event()
    wrong: list[str] = []
    seen: set[int] = set()

    def ask(order: tuple[str, ...]) -> None:
        client = connect(server)
        newest = 0
        while not stop.is_set():
            for name in order:
                try:
                    answer = client.infer(name, {"x": ones})
                    number = int(answer["y"][0, 0]) - 1
                except HeadraceError as error:
                    wrong.append(str(error))
                    return
                if number < newest:
                    wrong.append(f"{name} is {number} after {newest}")
                newest = max(newest, number)
                seen.add(number)

    callers = [threading.Thread(target=ask, args=(o,)) for o in (names, names[::-1]) * 2]
    for caller in callers:
        caller.start()
    try:
        for number in range(2, 12):
            for name in names:
                repository.add(name, number, number)
            server.manager.load_together(names)
            client = connect(server)
            assert [first(client, name, ones) for name in names] == [number + 1] * 2
    finally:
        stop.set()
        for caller in callers:
            caller.join()
    assert wrong == []
    assert len(seen) > 1
    assert server.manager.wait_drained(60)


def test_one_that_fails_changes_none(repository, start_server, connect, ones) -> None:
    for name in ("a", "b", "c"):
        repository.add(name, 1.0, 1)
    server = start_server(load_model=("a", "b"))
    client = connect(server)
    repository.add("a", 2.0, 2)
    repository.put("b/2/model.onnx", b"nothing")
    for names in (("a", "b"), ("b", "a"), ("c", "a", "b")):
        with pytest.raises(InvalidArgumentError, match="load failed for model 'b'"):
            server.manager.load_together(names)
        assert first(client, "a", ones) == 2
        assert first(client, "b", ones) == 2
    with pytest.raises(HeadraceError):
        first(client, "c", ones)
    index = {(row.name, row.version): row for row in server.manager.index()}
    assert index["a", "2"].state == "UNAVAILABLE"
    assert "another model" in index["a", "2"].reason
    assert index["a", "1"].state == "READY"

    with pytest.raises(InternalError, match="nobody"):
        server.manager.load_together(("a", "nobody"))
    with pytest.raises(InvalidArgumentError):
        server.manager.load_together(())

    repository.add("b", 3.0, 2)
    server.manager.load_together(("a", "b", "c"))
    assert [first(client, name, ones) for name in ("a", "b", "c")] == [3, 4, 2]


def test_two_who_want_the_same_models_take_turns(repository, start_server) -> None:
    for name in ("a", "b"):
        repository.add(name, 1.0, 1)
    server = start_server(load_model=())
    manager: ModelManager = server.manager
    failures: list[BaseException] = []

    def load(names: tuple[str, ...]) -> None:
        try:
            for _ in range(3):
                manager.load_together(names)
        except BaseException as error:
            failures.append(error)

    callers = [threading.Thread(target=load, args=(n,)) for n in (("a", "b"), ("b", "a"))]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert failures == []
    assert manager.registry.ready


def test_the_admin_rpc(repository, start_server, connect, ones, tmp_path) -> None:
    for name in ("a", "b"):
        repository.add(name, 1.0, 1)
    socket = tmp_path / "admin.sock"
    server = start_server(load_model=("a",), admin_socket=str(socket))
    with AdminClient(socket) as admin:
        admin.load_together(["a", "b"])
        client = connect(server)
        assert first(client, "b", ones) == 2
        with pytest.raises(InternalError, match="nobody"):
            admin.load_together(["a", "nobody"])
        with pytest.raises(InvalidArgumentError, match="at least one"):
            admin.load_together([])


def test_not_while_the_repository_is_polled(repository, start_server, tmp_path) -> None:
    repository.add("a", 1.0, 1)
    socket = tmp_path / "admin.sock"
    start_server(model_control_mode="poll", load_model=(), admin_socket=str(socket))
    with (
        AdminClient(socket) as admin,
        pytest.raises(UnavailableError, match="not allowed"),
    ):
        admin.load_together(["a"])
