"""Overload is an answer, given early: what cannot be done in time is refused and told when to come
back; latency budgets and quotas with real clients."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from harness import (
    Server,
    eventually,
    identity_config,
    infer_request,
    raw_input,
    write_identity,
    write_model,
)

Start = Callable[..., Server]

EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED
# 100 ms a batch, whatever its size; on demand it does not end until the gate is there.
SLOW = """
import time
from pathlib import Path

FOLDER = Path(__file__).parent.parent


class Model:
    def __call__(self, inputs):
        time.sleep(0.1)
        while (FOLDER / "hold").exists():
            time.sleep(0.005)
        return {"Y": inputs["X"]}
"""


def request() -> Any:
    ones = np.ones((1, 2), np.int32)
    return infer_request(
        "slow", inputs=[raw_input("X", "INT32", [1, 2])], raw_input_contents=[ones.tobytes()]
    )


def slow_server(start: Start, repository: Path, policy: str = "") -> tuple[Server, Path]:
    """A server whose model's cost is known, and the file that holds the model up."""
    config = identity_config("INT32", max_batch_size=4)
    folder = write_model(repository, "slow", config, {"model.py": SLOW}).parent
    if policy:
        (folder / "policy.yaml").write_text(policy)
    server = start()
    for _ in range(17):
        server.stub.ModelInfer(request())
    return server, folder / "hold"


def pile_up(server: Server, hold: Path, count: int) -> list[Any]:
    hold.touch()
    calls = [server.stub.ModelInfer.future(request()) for _ in range(count)]
    eventually(lambda: server.pending("slow") >= count - 4, "they wait")
    return calls


def pushback_ms(error: pytest.ExceptionInfo[grpc.RpcError]) -> int:
    return int(dict(error.value.trailing_metadata())["grpc-retry-pushback-ms"])


def refused(server: Server, reason: str) -> float:
    return server.metric("headrace_admission_refused_total", model="slow", reason=reason)


def test_what_would_miss_its_deadline_is_refused(start: Start, repository: Path) -> None:
    server, hold = slow_server(start, repository)

    def hopeless() -> grpc.StatusCode:
        with pytest.raises(grpc.RpcError) as failed:
            server.stub.ModelInfer(request(), timeout=0.02)
        code: grpc.StatusCode = failed.value.code()
        return code

    # Alone, even a hopeless request is tried: the model may have become faster. (The instance may
    # not have gone to sleep yet.)
    eventually(lambda: hopeless() == grpc.StatusCode.DEADLINE_EXCEEDED, "it is tried")
    server.stub.ModelInfer(request())
    before = refused(server, "deadline")

    calls = pile_up(server, hold, 120)  # 30 batches: three seconds at least
    with pytest.raises(grpc.RpcError) as error:
        server.stub.ModelInfer(request(), timeout=2)
    assert error.value.code() == EXHAUSTED
    assert "the model is overloaded: this request would take " in error.value.details()
    assert "its deadline is in " in error.value.details()
    assert 1 <= pushback_ms(error) <= 15_000
    assert refused(server, "deadline") == before + 1
    assert server.metric("headrace_estimated_wait_seconds", model="slow") > 2
    assert server.metric("headrace_batch_cost_fixed_seconds", model="slow") >= 0
    patient = server.stub.ModelInfer.future(request(), timeout=600)
    without = server.stub.ModelInfer.future(request())
    eventually(lambda: server.pending("slow") >= 118, "both wait, too")
    hold.unlink()
    for call in [*calls, patient, without]:
        assert call.result(timeout=60).raw_output_contents


def test_without_admission_they_wait_until_they_are_late(start: Start, repository: Path) -> None:
    server, hold = slow_server(start, repository, "admission: {deadline: false}")
    calls = pile_up(server, hold, 120)
    with pytest.raises(grpc.RpcError) as error:
        server.stub.ModelInfer(request(), timeout=0.5)
    assert error.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    assert refused(server, "deadline") == 0
    hold.unlink()
    for call in calls:
        call.result(timeout=60)


def test_a_latency_budget_is_everybodys_deadline(start: Start, repository: Path) -> None:
    server, hold = slow_server(start, repository, "slo: {latency: 2s, objective: 99%}")
    labels = {"model": "slow"}
    good = server.metric("headrace_slo_good_total", **labels)
    assert 0 < good <= 17
    server.counts(17, "headrace_slo_requests_total", **labels)
    server.counts(2, "headrace_slo_latency_seconds", **labels)
    assert server.metric("headrace_slo_objective", **labels) == pytest.approx(0.99)
    hold.touch()
    calls = [server.stub.ModelInfer.future(request()) for _ in range(160)]
    eventually(lambda: refused(server, "slo") > 0, "some would be late")
    hold.unlink()
    codes = [call.code() for call in calls]
    assert set(codes) <= {grpc.StatusCode.OK, EXHAUSTED}
    assert codes.count(EXHAUSTED) == refused(server, "slo")
    assert codes.count(grpc.StatusCode.OK) > 0
    server.counts(17 + 160, "headrace_slo_requests_total", **labels)


def test_codel_for_calls_without_a_deadline(start: Start, repository: Path) -> None:
    policy = "admission: {queue_target: 200ms, queue_interval: 1s}"
    server, hold = slow_server(start, repository, policy)
    hold.touch()
    calls = [server.stub.ModelInfer.future(request()) for _ in range(160)]
    eventually(lambda: refused(server, "queue") > 0, "some would wait for more than a second")
    hold.unlink()
    codes = [call.code() for call in calls]
    assert codes.count(EXHAUSTED) == refused(server, "queue")
    assert codes.count(grpc.StatusCode.OK) == 160 - codes.count(EXHAUSTED) > 0


def test_quotas_of_callers(tmp_path: Path) -> None:
    repository = tmp_path / "models"
    repository.mkdir()
    write_identity(repository, "identity", "INT32")
    digest = hashlib.sha256(b"key-q").hexdigest()
    file = tmp_path / "auth.yaml"
    file.write_text(
        f"""
anonymous: [probe, metadata, infer]
members:
  - {{name: job, rights: [infer], keys: ["sha256:{digest}"], quota: {{rate: 0.001, burst: 3}}}}
"""
    )
    with Server(repository, "--auth-file", str(file)) as server:
        ones = np.ones((1, 2), np.int32)
        one = infer_request(
            "identity",
            inputs=[raw_input("X", "INT32", [1, 2])],
            raw_input_contents=[ones.tobytes()],
            id="i",
        )
        key = [("x-api-key", "key-q")]
        server.stub.ModelInfer(one, metadata=key)
        # Each request of a stream counts.
        answers = list(server.stub.ModelStreamInfer(iter([one] * 4), metadata=key))
        assert [bool(answer.error_message) for answer in answers] == [False, False, True, True]
        assert answers[2].error_message == "the quota of 'job' is used up"
        assert answers[2].infer_response.id == "i"
        with pytest.raises(grpc.RpcError) as error:
            server.stub.ModelInfer(one, metadata=key)
        assert error.value.code() == EXHAUSTED
        assert error.value.details() == "the quota of 'job' is used up"
        assert 900_000 < pushback_ms(error) <= 1_000_000
        for _ in range(5):
            server.stub.ModelInfer(one)
        server.counts(3, "headrace_quota_refused_total")


def test_no_more_in_flight_than_latency_allows(start: Start, repository: Path) -> None:
    server, hold = slow_server(start, repository, "admission: {adaptive_concurrency: true}")
    limit = int(server.metric("headrace_concurrency_limit", model="slow"))
    assert limit == 32  # nothing has waited yet
    calls = pile_up(server, hold, limit)
    eventually(lambda: server.pending("slow") >= limit - 4, "they wait")
    with pytest.raises(grpc.RpcError) as error:
        server.stub.ModelInfer(request())
    assert error.value.code() == EXHAUSTED
    assert "32 requests are in flight, which its latency allows" in error.value.details()
    assert pushback_ms(error) >= 1
    assert refused(server, "concurrency") == 1
    hold.unlink()
    for call in calls:
        assert call.result(timeout=60).raw_output_contents
