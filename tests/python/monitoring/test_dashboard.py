"""The numbers of the page: what they are, and that looking is cheap however many look."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headrace import runtime
from headrace.app import Server
from headrace.client import Client
from headrace.config import ServerConfig
from headrace.control.readings import Readings, traffic
from headrace.control.states import VersionRoute
from headrace.errors import InternalError
from headrace.monitoring.dashboard import Dashboard
from headrace.monitoring.exporter import make_registry
from headrace.rollout.plan import RolloutPlan

SECRET = "4111111111111111"


class Counting(Readings):
    collections = 0

    def models(self) -> Sequence[Any]:
        self.collections += 1
        return super().models()


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def server() -> Iterator[Server]:
    config = ServerConfig(host="127.0.0.1", grpc_port=0, metrics_port=0, cache_dir="")
    with Server(config) as server:
        yield server


def dashboard(server: Server, clock: Clock | None = None) -> tuple[Dashboard, Counting]:
    source = Counting(server._core, server.manager.registry, server.rollouts)
    bounds = runtime.histogram_bounds_ns()
    made = Dashboard(
        source, make_registry(source, bounds, "1.2.3"), bounds, "1.2.3", clock=clock or Clock()
    )
    source.collections = 0
    return made, source


def add_echo(server: Server, fn=lambda inputs: {"y": inputs["x"]}) -> None:
    tensor = ("BYTES", [1])
    server.add_callable("m", fn, {"x": tensor}, {"y": tensor}, max_batch_size=8)


def ask(server: Server, rows: int = 1) -> None:
    with Client(server.address) as client:
        client.infer("m", {"x": np.full((rows, 1), SECRET.encode(), object)})


def test_numbers_and_never_payloads(server) -> None:
    def picky(inputs):
        if len(inputs["x"]) == 3:
            raise ValueError(f"cannot take {inputs['x'][0, 0]!r}")
        return {"y": inputs["x"]}

    add_echo(server, picky)
    ask(server)
    ask(server, rows=4)
    with pytest.raises(InternalError, match=SECRET):
        ask(server, rows=3)
    text = dashboard(server)[0].state().decode()
    assert SECRET not in text
    state = json.loads(text)
    (model,) = state["models"]
    (version,) = model["versions"]
    assert (model["name"], model["rollout"]) == ("m", None)
    assert (version["state"], version["arm"], version["share"]) == ("READY", "stable", 1.0)
    assert version["success"] == 2
    assert version["failures"]["BACKEND"] == 1
    assert version["batches"] == [[1, 1], [4, 1]]
    assert version["request"]["count"] == sum(n for _, n in version["request"]["buckets"]) == 2
    assert state["server"] == {"ready": True, "version": "1.2.3"}
    assert state["metrics"]["headrace_ready"] == [[{}, 1.0]]
    assert not [name for name in state["metrics"] if name.startswith("nv_inference")]


def test_nothing_is_collected_before_somebody_looks_and_once_for_all_who_do(server) -> None:
    clock = Clock()
    board, source = dashboard(server, clock)
    assert source.collections == 0
    answers: list[bytes] = []
    threads = [threading.Thread(target=lambda: answers.append(board.state())) for _ in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(answers)) == 1
    once = source.collections
    assert once > 0
    clock.now += 0.5
    board.state()
    assert source.collections == once
    clock.now += 0.5
    board.state()
    assert source.collections == 2 * once


def test_a_model_that_failed_to_load_is_there_with_its_reason(tmp_path: Path) -> None:
    broken = tmp_path / "broken" / "1"
    broken.mkdir(parents=True)
    (broken / "model.py").write_text("raise RuntimeError('no vocabulary')")
    config = ServerConfig(
        model_repository=(tmp_path,),
        host="127.0.0.1",
        grpc_port=0,
        metrics_port=0,
        cache_dir="",
        exit_on_error=False,
    )
    with Server(config) as server:
        state = json.loads(dashboard(server)[0].state())
    ((model,),) = (state["models"],)
    (version,) = model["versions"]
    assert version["state"] == "UNAVAILABLE"
    assert "no vocabulary" in version["reason"]
    assert "success" not in version
    assert state["server"]["ready"] is False


MODEL = """
class Model:
    inputs = {"x": ("FP32", [1])}
    outputs = {"y": ("FP32", [1])}
    max_batch_size = 8

    def __call__(self, inputs):
        return {"y": inputs["x"]}
"""


def test_shares_and_the_end_of_a_rollout(tmp_path: Path) -> None:
    repository = tmp_path / "models"
    for version in (1, 2):
        folder = repository / "m" / str(version)
        folder.mkdir(parents=True)
        (folder / "model.py").write_text(MODEL)
    (repository / "m" / "config.pbtxt").write_text("version_policy { specific { versions: [1] } }")
    config = ServerConfig(
        model_repository=(repository,), host="127.0.0.1", grpc_port=0, metrics_port=0, cache_dir=""
    )
    with Server(config) as server:
        board, _ = dashboard(server, clock := Clock())
        server.rollouts.start(RolloutPlan("m", candidate=2, share=0.25, auto_promote=False))
        (model,) = json.loads(board.state())["models"]
        arms = {v["version"]: (v["arm"], v["share"]) for v in model["versions"]}
        assert arms == {"1": ("stable", 0.75), "2": ("canary", 0.25)}
        assert model["rollout"]["state"] == "running"
        server.rollouts.rollback("m")
        clock.now += 10
        state = json.loads(board.state())
        (model,) = state["models"]
        assert model["versions"][0]["share"] == 1.0
        assert model["rollout"]["state"] == "rolled_back"
        ended = state["metrics"]["headrace_rollouts_ended_total"]
        assert {labels["outcome"]: n for labels, n in ended} == {
            "promoted": 0,
            "rolled_back": 1,
            "ended": 0,
        }


def test_traffic_of_versions_that_are_not_there() -> None:
    assert traffic(VersionRoute(split=(("canary", 1.0),)), []) == {}
