"""Deadlines, cancellation, queue limits and shutdown: every call gets one answer, the right one."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
from harness import (
    Server,
    eventually,
    infer_request,
    many,
    occupy,
    raw_input,
    tensor,
    write_gated,
    write_identity,
)
from tritonclient.grpc import service_pb2
from tritonclient.utils import InferenceServerException

Start = Callable[..., Server]
ONE = np.ones((1, 2), np.int32)


def raw_request(model: str) -> object:
    return infer_request(
        model, inputs=[raw_input("X", "INT32", [1, 2])], raw_input_contents=[ONE.tobytes()]
    )


def test_a_deadline_in_the_queue_costs_no_execution(start: Start, repository: Path) -> None:
    gate = write_gated(repository, "gated")
    server = start()
    first = occupy(server, gate)
    with many([lambda: server.infer("gated", ONE)]) as answers:
        eventually(lambda: server.pending("gated") == 1, "one waits")
        with pytest.raises(InferenceServerException) as error:
            server.infer("gated", ONE, client_timeout=0.2)
        assert error.value.status() == "StatusCode.DEADLINE_EXCEEDED"
        # The server drops it too, while its only instance is still busy.
        eventually(lambda: server.pending("gated") == 1, "the expired request left the queue")
        gate.touch()
    first.result(timeout=30)
    np.testing.assert_array_equal(answers[0], ONE)
    assert server.statistics("gated").inference_count == 2


def test_a_cancelled_request_leaves_the_queue(start: Start, repository: Path) -> None:
    gate = write_gated(repository, "gated")
    server = start()
    calls = [occupy(server, gate)]
    calls += [server.stub.ModelInfer.future(raw_request("gated")) for _ in range(3)]
    eventually(lambda: server.pending("gated") == 3, "three wait")
    calls[2].cancel()
    calls[3].cancel()
    # On the same connection, so the server has read the cancellations once it answers this.
    assert server.stub.ServerLive(service_pb2.ServerLiveRequest()).live
    gate.touch()
    for call in calls[:2]:
        assert call.result(timeout=30).raw_output_contents[0] == ONE.tobytes()
    for call in calls[2:]:
        with pytest.raises(grpc.FutureCancelledError):
            call.result()
    eventually(lambda: server.pending("gated") == 0, "the queue is empty")
    assert server.statistics("gated").inference_count == 2
    server.counts(2, "nv_inference_request_failure", model="gated", reason="CANCELED")


def test_tritonclient_cancels(start: Start, repository: Path) -> None:
    gate = write_gated(repository, "gated")
    server = start()
    told: list[object] = []
    answered = threading.Event()

    def callback(result: object, error: object) -> None:
        told.append(error)
        answered.set()

    context = server.client.async_infer("gated", [tensor("X", ONE)], callback)
    context.cancel()
    assert answered.wait(30)
    gate.touch()
    assert "StatusCode.CANCELLED" in str(told[0])
    np.testing.assert_array_equal(server.infer("gated", ONE), ONE)


def test_the_queue_has_a_bound(start: Start, repository: Path) -> None:
    policy = "dynamic_batching { default_queue_policy { max_queue_size: 2 } }"
    gate = write_gated(repository, "gated", more=policy)
    server = start()
    # One executes, two wait; whoever comes when two wait is refused at once.
    calls = [occupy(server, gate)]
    calls += [server.stub.ModelInfer.future(raw_request("gated")) for _ in range(2)]
    eventually(lambda: server.pending("gated") == 2, "the queue is full")
    with pytest.raises(grpc.RpcError) as error:
        server.stub.ModelInfer(raw_request("gated"))
    assert error.value.code() == grpc.StatusCode.UNAVAILABLE
    assert "Exceeds maximum queue size" in error.value.details()
    gate.touch()
    for call in calls:
        assert call.result(timeout=30).raw_output_contents[0] == ONE.tobytes()
    assert server.metric("nv_inference_request_failure", model="gated", reason="REJECTED") >= 1


def test_queue_timeout_while_the_instance_is_busy(start: Start, repository: Path) -> None:
    policy = "dynamic_batching { default_queue_policy { allow_timeout_override: true } }"
    gate = write_gated(repository, "gated", more=policy)
    server = start()
    running = occupy(server, gate)
    second = server.stub.ModelInfer.future(raw_request("gated"))
    eventually(lambda: server.pending("gated") == 1, "one waits")
    with pytest.raises(InferenceServerException) as error:
        server.infer("gated", ONE, timeout=20_000)  # microseconds
    assert error.value.status() == "StatusCode.UNAVAILABLE"
    assert "Request timeout expired" in error.value.message()
    gate.touch()
    assert running.exception() is None
    assert second.exception() is None


def test_sigterm_finishes_what_runs_and_what_waits(start: Start, repository: Path) -> None:
    gate = write_gated(repository, "gated", max_batch_size=2)
    server = start()
    calls = [occupy(server, gate)]
    calls += [server.stub.ModelInfer.future(raw_request("gated")) for _ in range(4)]
    eventually(lambda: server.pending("gated") == 4, "four wait")
    server.terminate()
    eventually(lambda: refused(server), "the server takes no more calls")
    gate.touch()
    for call in calls:
        assert call.result(timeout=30).raw_output_contents[0] == ONE.tobytes()
    assert server.process.wait(timeout=30) == 0


def refused(server: Server) -> bool:
    try:
        with triton.InferenceServerClient(server.address) as client:
            client.infer("gated", [tensor("X", ONE)], client_timeout=1)
    except InferenceServerException:
        return True
    return False


def test_sigterm_under_load(start: Start, repository: Path) -> None:
    write_identity(repository, "identity", "INT32")
    server = start()
    outcomes: list[str] = []
    served = threading.Event()

    def client() -> None:
        with triton.InferenceServerClient(server.address) as own:
            while True:
                try:
                    got = own.infer("identity", [tensor("X", ONE)]).as_numpy("Y")
                    outcomes.append("right" if np.array_equal(got, ONE) else "wrong")
                    if len(outcomes) > 200:
                        served.set()
                except InferenceServerException as error:
                    outcomes.append(str(error.status()))
                    return

    with many([client] * 8):
        assert served.wait(30)
        server.terminate()
    assert server.process.wait(timeout=30) == 0
    # Each of the eight ends with one refusal; no running call is lost.
    assert set(outcomes) == {"right", "StatusCode.UNAVAILABLE"}
    assert outcomes.count("StatusCode.UNAVAILABLE") == 8


def test_a_second_signal_ends_it_at_once(start: Start, repository: Path) -> None:
    gate = write_gated(repository, "gated")
    server = start()
    server.checked = False
    call = occupy(server, gate)
    server.terminate()
    eventually(lambda: "stopping" in server.log(), "it waits for the running request")
    server.terminate()
    assert server.process.wait(timeout=10) > 0  # an exit status, not a crash
    assert call.exception() is not None


def test_a_model_that_never_answers_does_not_hold_the_server(
    start: Start, repository: Path
) -> None:
    gate = write_gated(repository, "gated")
    server = start("--exit-timeout-secs", "1")
    server.checked = False
    calls = [occupy(server, gate)]
    calls += [server.stub.ModelInfer.future(raw_request("gated")) for _ in range(2)]
    eventually(lambda: server.pending("gated") == 2, "two wait")
    server.terminate()
    assert server.process.wait(timeout=30) >= 0, f"ended by a signal:\n{server.log()}"
    for call in calls:
        assert call.exception().code() == grpc.StatusCode.UNAVAILABLE


def test_an_exception_in_a_model_is_answered(start: Start, repository: Path) -> None:
    from harness import identity_config, write_model

    code = "def infer(inputs):\n    raise ValueError('no such digit')\n"
    write_model(repository, "bad", identity_config("INT32"), {"model.py": code})
    server = start()
    for _ in range(3):
        with pytest.raises(InferenceServerException) as error:
            server.infer("bad", ONE)
        assert error.value.status() == "StatusCode.INTERNAL"
        assert "no such digit" in error.value.message()
    server.counts(3, "nv_inference_request_failure", model="bad", reason="BACKEND")
    assert server.statistics("bad").inference_stats.fail.count == 3


def test_the_port_is_taken(start: Start, repository: Path) -> None:
    write_identity(repository, "identity", "INT32")
    first = start()
    second = Server(repository, "--grpc-port", str(first.port), ready=False)
    assert second.process.wait(timeout=30) != 0
    assert str(first.port) in second.log()
    first.still_answers()


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_memory_is_flat_over_200_load_and_unload_cycles(start: Start, repository: Path) -> None:
    from harness import onnx_model, write_model
    from onnx import TensorProto

    shape = ["batch", 64]
    model = onnx_model("Relu", {"X": (TensorProto.FLOAT, shape)}, {"Y": (TensorProto.FLOAT, shape)})
    write_model(repository, "cycled", "", {"model.onnx": model})
    server = start("--model-control-mode", "explicit")
    array = np.ones((4, 64), np.float32)

    def cycle() -> None:
        server.client.load_model("cycled")
        np.testing.assert_array_equal(server.infer("cycled", array), array)
        server.client.unload_model("cycled")

    for _ in range(40):  # until allocators and caches have their size
        cycle()
    before = server.rss_kib()
    for _ in range(200):
        cycle()
    grown = server.rss_kib() - before
    assert grown < 8 * 1024, f"{grown} KiB more after 200 cycles ({before} KiB before)"
