"""What loading, reloading and unloading do to clients: real server, real models."""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np
import pytest

from headrace.app import Server
from headrace.client import Client
from headrace.errors import (
    HeadraceError,
    InternalError,
    InvalidArgumentError,
    NotFoundError,
    UnavailableError,
)

BROKEN = b"this is no model"
Connect = Callable[[Server], Client]


def states(client: Client) -> dict[tuple[str, str], str]:
    return {(e.name, e.version): e.state for e in client.index()}


def reasons(client: Client) -> dict[tuple[str, str], str]:
    return {(e.name, e.version): e.reason for e in client.index()}


def first(client: Client, name: str, x: np.ndarray, version: str = "") -> float:
    return float(client.infer(name, {"x": x}, version=version)["y"][0, 0])


def test_explicit_load_serves_and_unload_ends_it(repository, start_server, connect, ones) -> None:
    repository.add("a", 1)
    server = start_server()
    client = connect(server)
    assert states(client) == {("a", ""): ""}
    assert client.server_ready()
    assert not client.model_ready("a")

    client.load("a")
    assert states(client) == {("a", "1"): "READY"}
    assert client.model_ready("a")
    assert first(client, "a", ones) == 2

    client.unload("a")
    assert not client.model_ready("a")
    assert client.server_ready()
    with pytest.raises(
        NotFoundError, match="Request for unknown model: 'a' has no available versions"
    ):
        first(client, "a", ones)
    with pytest.raises(UnavailableError, match="'a' version 1 is not at ready state"):
        first(client, "a", ones, "1")
    assert server.manager.wait_drained(30)
    assert states(client) == {("a", "1"): "UNAVAILABLE"}
    assert reasons(client) == {("a", "1"): "unloaded"}

    client.unload("a")
    client.unload("never-heard-of")
    client.load("a")
    assert first(client, "a", ones) == 2


def test_reload_takes_up_changed_files_and_leaves_unchanged_versions_alone(
    repository, start_server, connect, ones
) -> None:
    repository.put("a/config.pbtxt", "version_policy { all {} }")
    repository.add("a", 1, version=1)
    repository.add("a", 2, version=2)
    server = start_server(load_model=("a",))
    client = connect(server)
    kept = {v.number: v.version for v in server.manager.registry.ready_versions("a")}
    assert first(client, "a", ones) == 3
    assert first(client, "a", ones, "1") == 2

    client.load("a")
    assert {v.number: v.version for v in server.manager.registry.ready_versions("a")} == kept

    repository.add("a", 20, version=2)
    repository.add("a", 3, version=3)
    client.load("a")
    now = {v.number: v.version for v in server.manager.registry.ready_versions("a")}
    assert now[1] is kept[1]
    assert now[2] is not kept[2]
    assert [first(client, "a", ones, v) for v in ("1", "2", "3", "")] == [2, 21, 4, 4]


def test_a_version_that_fails_aborts_the_load_and_the_old_set_serves(
    repository, start_server, connect, ones
) -> None:
    repository.put("a/config.pbtxt", "version_policy { all {} }")
    repository.add("a", 1, version=1)
    server = start_server(load_model=("a",))
    client = connect(server)

    repository.add("a", 2, version=2)
    repository.put("a/3/model.onnx", BROKEN)
    with pytest.raises(
        InvalidArgumentError,
        match=r"^load failed for model 'a': version 3 is at UNAVAILABLE state: .*model\.onnx",
    ):
        client.load("a")
    assert states(client) == {
        ("a", "1"): "READY",
        ("a", "2"): "UNAVAILABLE",
        ("a", "3"): "UNAVAILABLE",
    }
    assert first(client, "a", ones) == 2
    assert client.server_ready(), "the model still serves"

    repository.put("a/1/model.onnx", BROKEN)
    with pytest.raises(InvalidArgumentError, match="version 1 is at UNAVAILABLE state"):
        client.load("a")
    assert first(client, "a", ones) == 2
    assert "reload failed" in reasons(client)["a", "1"]

    repository.add("a", 10, version=1)
    repository.add("a", 30, version=3)
    client.load("a")
    assert [first(client, "a", ones, v) for v in ("1", "2", "3")] == [11, 3, 31]
    assert set(reasons(client).values()) == {""}


def test_a_first_load_that_fails_leaves_the_server_not_ready_until_unload(
    repository, start_server, connect, ones
) -> None:
    repository.put("bad/1/model.onnx", BROKEN)
    repository.add("good", 1)
    server = start_server(load_model=("good",))
    client = connect(server)
    with pytest.raises(InvalidArgumentError, match="load failed for model 'bad'"):
        client.load("bad")
    assert not client.server_ready()
    assert first(client, "good", ones) == 2
    assert reasons(client)["bad", "1"] != ""
    client.unload("bad")
    assert client.server_ready()


def test_without_strict_readiness_a_broken_model_does_not_matter(
    repository, start_server, connect
) -> None:
    repository.put("bad/1/model.onnx", BROKEN)
    client = connect(start_server(strict_readiness=False))
    with pytest.raises(InvalidArgumentError):
        client.load("bad")
    assert client.server_ready()


@pytest.mark.parametrize(
    ("name", "code", "text"),
    [
        ("nobody", 13, "failed to load 'nobody', failed to poll from model repository: "),
        ("../models/a", 3, "must not contain path traversal characters"),
        ("", 3, "Model name cannot be empty. Please enter a valid name to deploy."),
        ("empty", 13, "failed to load 'empty', failed to poll from model repository: "),
        ("typo", 13, r"config.pbtxt:1"),
    ],
)
def test_what_cannot_be_found_or_understood(
    repository, start_server, connect, name: str, code: int, text: str
) -> None:
    repository.add("a", 1)
    (repository.root / "empty").mkdir()
    repository.put("typo/config.pbtxt", "max_batch_sizes: 3")
    repository.add("typo", 1)
    client = connect(start_server())
    with pytest.raises(HeadraceError) as caught:
        client.load(name)
    assert caught.value.code == code
    assert text in caught.value.details
    assert not client.model_ready("a")


def test_loading_an_unknown_name_leaves_no_trace(repository, start_server, connect) -> None:
    client = connect(start_server())
    for i in range(20):
        with pytest.raises(InternalError):
            client.load(f"ghost{i}")
    assert client.index() == []
    assert client.server_ready()


@pytest.mark.parametrize("mode", ["none", "poll"])
def test_clients_may_load_in_explicit_mode_only(
    repository, start_server, connect, mode: str
) -> None:
    repository.add("a", 1)
    client = connect(start_server(model_control_mode=mode))
    assert client.model_ready("a")
    for call in (client.load, client.unload):
        with pytest.raises(UnavailableError) as caught:
            call("a")
        assert caught.value.details == (
            "explicit model load / unload is not allowed if polling is enabled"
        )
    assert client.model_ready("a")


def test_star_loads_everything(repository, start_server, connect) -> None:
    repository.add("a", 1)
    repository.add("b", 1)
    assert set(states(connect(start_server(load_model=("*",)))).values()) == {"READY"}


def test_a_broken_model_ends_the_start_unless_told_otherwise(
    repository, start_server, connect
) -> None:
    repository.put("bad/1/model.onnx", BROKEN)
    repository.add("good", 1)
    with pytest.raises(InvalidArgumentError, match="model 'bad' could not be loaded"):
        start_server(model_control_mode="none")
    client = connect(start_server(model_control_mode="none", exit_on_error=False))
    assert client.model_ready("good")
    assert not client.server_ready()


def test_a_name_in_two_repositories(repository, start_server, connect, tmp_path) -> None:
    repository.add("a", 1)
    repository.add("b", 1)
    other = tmp_path / "other"
    (other / "a" / "1").mkdir(parents=True)
    server = start_server(
        model_repository=(repository.root, other), model_control_mode="none", exit_on_error=False
    )
    client = connect(server)
    assert reasons(client) == {
        ("a", ""): "model appears in two or more repositories",
        ("b", "1"): "",
    }


def test_poll_mode_follows_the_repository(repository, start_server, connect, ones) -> None:
    repository.add("a", 1)
    repository.add("b", 5)
    # The interval is never reached: the test looks itself. Two looks settle a change.
    server = start_server(model_control_mode="poll", repository_poll_secs=3600.0)
    client = connect(server)
    assert first(client, "a", ones) == 2

    repository.add("a", 7)
    repository.add("c", 9)
    (repository.root / "b" / "1" / "model.onnx").unlink()
    (repository.root / "b" / "1").rmdir()
    (repository.root / "b").rmdir()
    server.manager.poll_once()
    server.manager.poll_once()
    assert first(client, "a", ones) == 8
    assert first(client, "c", ones) == 10
    assert server.manager.wait_drained(30)
    assert states(client) == {("a", "1"): "READY", ("c", "1"): "READY"}
    with pytest.raises(NotFoundError):
        first(client, "b", ones)

    repository.put("a/1/model.onnx", BROKEN)
    server.manager.poll_once()
    server.manager.poll_once()
    assert first(client, "a", ones) == 8, "what was loaded serves on"
    repository.add("a", 11)
    server.manager.poll_once()
    server.manager.poll_once()
    assert first(client, "a", ones) == 12


def test_no_request_fails_while_versions_are_swapped_under_it(
    repository, start_server, connect, ones
) -> None:
    repository.add("a", 0, version=1)
    server = start_server(load_model=("a",))
    stop = threading.Event()
    answers: list[list[float]] = [[], [], []]
    failures: list[BaseException] = []

    def ask(index: int) -> None:
        client = connect(server)
        while not stop.is_set():
            try:
                answers[index].append(first(client, "a", ones))
            except BaseException as error:
                failures.append(error)
                return

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(len(answers))]
    for thread in threads:
        thread.start()
    admin = connect(server)
    for number in range(1, 11):
        repository.add("a", number, version=number)
        admin.load("a")
        assert first(admin, "a", ones) == number + 1, "a load that returned is what serves"
    stop.set()
    for thread in threads:
        thread.join()
    assert failures == []
    for seen in answers:
        assert seen == sorted(seen), "no client ever goes back to an older version"
        assert seen


def test_loads_and_unloads_of_one_model_take_turns(repository, start_server, connect, ones) -> None:
    repository.add("a", 1)
    server = start_server()
    errors: list[BaseException] = []

    def churn(load: bool) -> None:
        client = connect(server)
        for _ in range(10):
            try:
                if load:
                    client.load("a")
                else:
                    client.unload("a")
            except BaseException as error:
                errors.append(error)

    threads = [threading.Thread(target=churn, args=(i % 2 == 0,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    client = connect(server)
    client.load("a")
    assert first(client, "a", ones) == 2
    assert server.manager.wait_drained(30)
    assert states(client) == {("a", "1"): "READY"}


def test_sent_files_replace_the_repository_and_vanish_with_the_version(
    repository, start_server, connect, ones, make_model, tmp_path, monkeypatch
) -> None:
    private = tmp_path / "private"
    private.mkdir()
    monkeypatch.setenv("TMPDIR", str(private))
    monkeypatch.setattr("tempfile.tempdir", None)
    repository.add("a", 1)
    server = start_server(load_model=("a",))
    client = connect(server)

    client.load("a", config='{"max_batch_size": 4}', files={"7/model.onnx": make_model(100)})
    assert first(client, "a", ones) == 101
    assert {v for (_, v), s in states(client).items() if s == "READY"} == {"7"}
    assert client.model_config("a").max_batch_size == 4
    assert len(list(private.iterdir())) == 1

    client.load("new", config="{}", files={"1/model.onnx": make_model(5)})
    assert first(client, "new", ones) == 6

    client.load("a")
    assert first(client, "a", ones) == 2
    client.unload("new")
    assert server.manager.wait_drained(30)
    assert list(private.iterdir()) == []


def test_a_sent_configuration_replaces_config_pbtxt(repository, start_server, connect) -> None:
    repository.put("a/config.pbtxt", "max_batch_size: 16")
    repository.add("a", 1)
    client = connect(start_server(load_model=("a",)))
    assert client.model_config("a").max_batch_size == 16
    client.load("a", config='{"maxBatchSize": 2}')
    assert client.model_config("a").max_batch_size == 2
    client.load("a")
    assert client.model_config("a").max_batch_size == 16


@pytest.mark.parametrize(
    ("config", "files", "code", "text"),
    [
        ("{}", {"../../x": b""}, 3, "file:../../x"),
        ("{}", {"1/../../x": b""}, 3, "file:1/../../x"),
        ("{}", {"/etc/passwd": b""}, 3, "file:/etc/passwd"),
        ("{}", {"x/model.onnx": b""}, 3, "file:x/model.onnx"),
        ("{}", {"1": b""}, 3, "'file:1'"),
        (
            None,
            {"1/model.onnx": b"x"},
            13,
            "failed to load 'a', failed to poll from model repository",
        ),
        ("{not json", {}, 13, "failed to load 'a', failed to poll from model repository"),
    ],
)
def test_bad_load_parameters(
    repository, start_server, connect, config, files, code: int, text: str
) -> None:
    repository.add("a", 1)
    client = connect(start_server(load_model=("a",)))
    with pytest.raises(HeadraceError) as caught:
        client.load("a", config=config, files=files)
    assert caught.value.code == code
    assert text in caught.value.details
    assert client.model_ready("a")


def test_stop_serves_what_is_running_and_refuses_the_rest(start_server, connect) -> None:
    entered, leave = threading.Event(), threading.Event()

    def slow(inputs):
        entered.set()
        assert leave.wait(30)
        return {"y": inputs["x"]}

    server = start_server()
    server.add_callable("slow", slow, {"x": ("FP32", [4])}, {"y": ("FP32", [4])})
    client = connect(server)
    answers = []
    asker = threading.Thread(
        target=lambda: answers.append(client.infer("slow", {"x": np.ones(4, np.float32)}))
    )
    asker.start()
    assert entered.wait(30)
    stopped = []
    stopper = threading.Thread(target=lambda: stopped.append(server.stop(grace_s=30)))
    stopper.start()
    while server.ready:
        pass
    leave.set()
    stopper.join()
    asker.join()
    assert stopped == [True]
    assert answers[0]["y"].tolist() == [1, 1, 1, 1]


def test_cores_are_divided_and_a_configuration_decides_for_itself(
    repository, start_server, connect
) -> None:
    repository.add("a", 1)
    repository.add("b", 1)
    repository.put(
        "b/config.pbtxt",
        """
        instance_group { count: 2 kind: KIND_CPU }
        parameters { key: "INFERENCE_NUM_THREADS" value { string_value: "3" } }
        """,
    )
    server = start_server(model_control_mode="none", cores=8)
    plans = {v.model: (v.instances, v.threads) for v in server.manager.registry.ready_versions()}
    assert plans["b"] == (2, 3)
    assert plans["a"][0] == 1
    assert 1 <= plans["a"][1] <= 8
