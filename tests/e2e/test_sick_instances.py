"""Instances that turn sick: they are replaced, and readiness tells the truth meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton
from grpc_health.v1 import health_pb2, health_pb2_grpc
from harness import Server, eventually, tensor, write_model
from tritonclient.utils import InferenceServerException

CONFIG = """
max_batch_size: 4
input [{{ name: "X", data_type: TYPE_FP32, dims: [2] }}]
output [{{ name: "Y", data_type: TYPE_FP32, dims: [2] }}]
instance_group [{{ count: {instances} }}]
dynamic_batching {{}}
"""
WARM_UP = """
model_warmup [{ name: "zeros", batch_size: 1, inputs: [{
  key: "X", value: { data_type: TYPE_FP32, dims: [2], zero_data: true } }] }]
"""
# A negative number makes the instance sick for good; a huge one fails alone. No new one can be made
# while the file `broken` is there.
MODEL = """
import pathlib

FOLDER = pathlib.Path({folder!r})

def note(text):
    with (FOLDER / "notes").open("a") as file:
        file.write(text + "\\n")

class Model:
    def __init__(self, context):
        if (FOLDER / "broken").exists():
            raise RuntimeError("no device")
        note("made")
        self.sick = False

    def __call__(self, inputs):
        x = inputs["X"]
        self.sick = self.sick or bool((x < 0).any())
        if self.sick:
            raise RuntimeError("lost the device")
        if (x > 1e6).any():
            raise ValueError("poison")
        return {{"Y": x}}

    def close(self):
        note("closed")
"""
HEALTH = "health: {failures: 3, backoff: 20ms, backoff_max: 50ms}\n"
POISON = np.full((1, 2), 1e7, np.float32)
SICKENING = np.full((1, 2), -1, np.float32)
Start = Callable[..., Server]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "state"
    made.mkdir()
    return made


def model(
    repository: Path, folder: Path, *, instances: int = 1, warm: bool = True, policy: str = HEALTH
) -> None:
    config = CONFIG.format(instances=instances) + (WARM_UP if warm else "")
    write_model(repository, "m", config, {"model.py": MODEL.format(folder=str(folder))})
    (repository / "m" / "policy.yaml").write_text(policy)


def notes(folder: Path) -> list[str]:
    return (folder / "notes").read_text().split()


def fails(server: Server, x: np.ndarray[Any, Any]) -> InferenceServerException:
    with pytest.raises(InferenceServerException) as caught:
        server.client.infer("m", [tensor("X", x)])
    return caught.value


def in_service(server: Server) -> float:
    return server.metric("headrace_instances_in_service", model="m", version="1")


def quarantines(server: Server) -> float:
    return server.metric("headrace_instance_quarantines_total", model="m", version="1")


def test_one_of_two_is_replaced_under_load(repository: Path, start: Start, folder: Path) -> None:
    model(repository, folder, instances=2)
    server = start()
    stop = threading.Event()
    answered = [0, 0, 0]
    failures: list[str] = []

    def load(client_number: int) -> None:
        with triton.InferenceServerClient(server.address) as client:
            i = 0
            while not stop.is_set():
                i += 1
                x = np.full((1, 2), i % 1000, np.float32)
                try:
                    y = client.infer("m", [tensor("X", x)]).as_numpy("Y")
                except InferenceServerException as error:
                    failures.append(str(error))
                else:
                    assert np.array_equal(x, y)
                    answered[client_number] += 1

    clients = [threading.Thread(target=load, args=(n,)) for n in range(len(answered))]
    for client in clients:
        client.start()
    try:
        eventually(lambda: all(n > 10 for n in answered), "load")
        (folder / "broken").touch()
        fails(server, SICKENING)
        eventually(lambda: in_service(server) == 1, "one instance leaves service")
        before = list(answered)
        known = len(failures)
        eventually(
            lambda: all(n > b + 20 for n, b in zip(answered, before, strict=True)),
            "the other one serves on",
        )
        assert len(failures) == known, failures[known:]
        assert server.client.is_model_ready("m")
        assert server.client.is_server_ready()
        (row,) = server.client.get_model_repository_index().models
        assert row.state == "READY"
        assert row.reason.startswith("1 of 2 instances being rebuilt, after: ")
        (folder / "broken").unlink()
        eventually(lambda: in_service(server) == 2, "a new instance serves")
    finally:
        stop.set()
        for client in clients:
            client.join()
    # Batches of four at most, of which three failed.
    assert len(failures) <= 12
    assert all("lost the device" in failure for failure in failures)
    assert quarantines(server) == 1
    assert notes(folder) == ["made", "made", "closed", "made"]
    log = server.log()
    assert "failed again and again, and when it was probed: it is rebuilt; 1 in service" in log
    assert "cannot be rebuilt, it is tried again; 1 in service" in log
    assert "no device" in log
    assert "was rebuilt and serves again; 2 in service" in log


def test_without_an_instance_the_server_says_so(
    repository: Path, start: Start, folder: Path
) -> None:
    model(repository, folder)
    server = start()
    status = health_pb2.HealthCheckResponse
    stub = health_pb2_grpc.HealthStub(server.channel)
    watches = {
        name: stub.Watch(health_pb2.HealthCheckRequest(service=name), timeout=120)
        for name in ("", "m")
    }
    for watch in watches.values():
        assert next(watch).status == status.SERVING
    (folder / "broken").touch()
    for _ in range(3):
        assert fails(server, SICKENING).status() == "StatusCode.INTERNAL"
    for watch in watches.values():
        assert next(watch).status == status.NOT_SERVING
    assert not server.client.is_model_ready("m")
    assert not server.client.is_model_ready("m", "1")
    assert not server.client.is_server_ready()
    assert server.client.is_server_live()
    error = fails(server, np.ones((1, 2), np.float32))
    assert error.status() == "StatusCode.UNAVAILABLE"
    assert "model 'm', version 1: every instance is being rebuilt, after: " in error.message()
    assert "lost the device" in error.message()
    (row,) = server.client.get_model_repository_index().models
    assert row.state == "UNAVAILABLE"
    assert row.reason.startswith("every instance is being rebuilt, after: ")
    server.counts(0, "headrace_ready")
    assert in_service(server) == 0

    (folder / "broken").unlink()
    for watch in watches.values():
        assert next(watch).status == status.SERVING
        watch.cancel()
    assert server.client.is_model_ready("m")
    assert server.client.is_server_ready()
    x = np.ones((1, 2), np.float32)
    assert np.array_equal(server.infer("m", x), x)
    assert notes(folder) == ["made", "closed", "made"]


def test_bad_requests_take_nothing_out_of_service(
    repository: Path, start: Start, folder: Path
) -> None:
    model(repository, folder)
    server = start()
    for _ in range(50):
        assert "poison" in fails(server, POISON).message()
    assert server.client.is_model_ready("m")
    assert quarantines(server) == 0
    assert notes(folder) == ["made"]


def test_without_a_sample_zeros_are_tried(repository: Path, start: Start, folder: Path) -> None:
    model(repository, folder, warm=False)
    server = start()
    for _ in range(3):
        assert "lost the device" in fails(server, SICKENING).message()
    eventually(lambda: quarantines(server) == 1 and in_service(server) == 1, "a new instance")
    x = np.ones((1, 2), np.float32)
    assert np.array_equal(server.infer("m", x), x)
    for _ in range(20):
        assert "poison" in fails(server, POISON).message()
    assert quarantines(server) == 1


def test_a_fallback_answers_meanwhile(repository: Path, start: Start, folder: Path) -> None:
    model(repository, folder, policy=HEALTH + "fallback: [{rule: {Y: [7, 7]}}]\n")
    server = start()
    (folder / "broken").touch()
    for _ in range(3):
        assert server.infer("m", SICKENING)[0, 0] == 7
    eventually(lambda: in_service(server) == 0, "the instance leaves service")
    assert server.infer("m", np.ones((1, 2), np.float32))[0, 0] == 7
    assert server.client.is_model_ready("m")
    assert server.client.is_server_ready()
    (folder / "broken").unlink()
    eventually(lambda: in_service(server) == 1, "a new instance serves")
    assert server.infer("m", np.ones((1, 2), np.float32))[0, 0] == 1
