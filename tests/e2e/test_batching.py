"""Concurrent requests share batches, and each gets the answer to its own rows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc as triton
from harness import Server, eventually, many, occupy, tensor, write_gated

Start = Callable[..., Server]


def own_client(server: Server, model: str, array: np.ndarray[Any, Any]) -> Callable[[], Any]:
    def call() -> Any:
        with triton.InferenceServerClient(server.address) as client:
            return client.infer(model, [tensor("X", array)]).as_numpy("Y")

    return call


def test_sixteen_clients_share_batches(start: Start, repository: Path) -> None:
    gate = write_gated(repository, "gated", max_batch_size=8)
    server = start()
    first = occupy(server, gate)
    rows = [np.full((1, 4), i, np.int32) + np.arange(4, dtype=np.int32) for i in range(16)]
    with many([own_client(server, "gated", row) for row in rows]) as answers:
        eventually(lambda: server.pending("gated") == 16, "16 requests in the queue")
        gate.touch()
    for row, answer in zip(rows, answers, strict=True):
        np.testing.assert_array_equal(answer, row)
    first.result(timeout=30)
    stats = server.statistics("gated")
    assert stats.inference_stats.success.count == 17
    assert stats.inference_count == 17
    assert stats.execution_count == 3  # the first, then twice eight of what had queued up
    assert {b.batch_size: b.compute_infer.count for b in stats.batch_stats} == {1: 1, 8: 2}


def test_requests_of_several_rows_are_never_split(start: Start, repository: Path) -> None:
    gate = write_gated(repository, "gated", max_batch_size=8)
    server = start()
    first = occupy(server, gate)
    sizes = [1, 3, 4, 5, 2, 8, 1]
    arrays = [np.arange(n * 2, dtype=np.int32).reshape(n, 2) + 100 * n for n in sizes]
    with many([own_client(server, "gated", a) for a in arrays]) as answers:
        eventually(lambda: server.pending("gated") == 7, "7 requests in the queue")
        gate.touch()
    for array, answer in zip(arrays, answers, strict=True):
        np.testing.assert_array_equal(answer, array)
    first.result(timeout=30)
    stats = server.statistics("gated")
    assert stats.inference_count == 1 + sum(sizes)
    assert max(b.batch_size for b in stats.batch_stats) <= 8


def test_other_shapes_do_not_share_a_batch(start: Start, repository: Path) -> None:
    gate = write_gated(repository, "gated", max_batch_size=8)
    server = start()
    first = occupy(server, gate)
    arrays = [np.full((1, 1 + i % 2), i, np.int32) for i in range(9)]
    with many([own_client(server, "gated", a) for a in arrays]) as answers:
        eventually(lambda: server.pending("gated") == 9, "9 requests in the queue")
        gate.touch()
    for array, answer in zip(arrays, answers, strict=True):
        np.testing.assert_array_equal(answer, array)
    first.result(timeout=30)


def test_without_dynamic_batching_requests_run_one_by_one(start: Start, repository: Path) -> None:
    gate = write_gated(repository, "gated", max_batch_size=8, more="")
    server = start()
    first = occupy(server, gate)
    arrays = [np.full((1, 2), i, np.int32) for i in range(5)]
    with many([own_client(server, "gated", a) for a in arrays]) as answers:
        eventually(lambda: server.pending("gated") == 5, "5 requests in the queue")
        gate.touch()
    for array, answer in zip(arrays, answers, strict=True):
        np.testing.assert_array_equal(answer, array)
    first.result(timeout=30)
    assert server.statistics("gated").execution_count == 6


def test_every_client_gets_its_own_rows_under_load(server: Server) -> None:
    def client(index: int) -> Callable[[], int]:
        def call() -> int:
            random = np.random.default_rng(index)
            with triton.InferenceServerClient(server.address) as own:
                for _ in range(40):
                    a = random.normal(size=(random.integers(1, 9), 16)).astype(np.float32)
                    b = random.normal(size=a.shape).astype(np.float32)
                    got = own.infer("sum", [tensor("A", a), tensor("B", b)]).as_numpy("SUM")
                    np.testing.assert_array_equal(got, a + b)
            return index

        return call

    with many([client(i) for i in range(16)]) as answers:
        pass
    assert answers == list(range(16))
