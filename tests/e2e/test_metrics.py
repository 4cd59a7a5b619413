"""The metrics page: Triton's names and its counting rules."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from harness import Server, eventually, many, occupy, write_gated, write_identity
from prometheus_client.parser import text_string_to_metric_families
from tritonclient.utils import InferenceServerException

Start = Callable[..., Server]

COUNTERS = [
    "nv_inference_request_success",
    "nv_inference_count",
    "nv_inference_exec_count",
    "nv_inference_request_duration_us",
    "nv_inference_queue_duration_us",
    "nv_inference_compute_input_duration_us",
    "nv_inference_compute_infer_duration_us",
    "nv_inference_compute_output_duration_us",
]


def counts(server: Server, model: str) -> tuple[float, float, float]:
    labels = {"model": model, "version": "1"}
    return (
        server.metric("nv_inference_request_success", **labels),
        server.metric("nv_inference_count", **labels),
        server.metric("nv_inference_exec_count", **labels),
    )


def test_one_request_of_eight_rows(start: Start, repository: Path) -> None:
    write_identity(repository, "identity", "INT32")
    server = start()
    server.infer("identity", np.ones((8, 3), np.int32))
    assert counts(server, "identity") == (1, 8, 1)


def test_two_requests_in_one_batch(start: Start, repository: Path) -> None:
    gate = write_gated(repository, "gated", max_batch_size=8)
    server = start()
    one = np.ones((1, 3), np.int32)
    first = occupy(server, gate)
    with many([lambda: server.infer("gated", one) for _ in range(2)]):
        eventually(lambda: server.pending("gated") == 2, "two wait")
        gate.touch()
    first.result(timeout=30)
    # One alone, then two in one batch.
    assert counts(server, "gated") == (3, 3, 2)
    assert server.pending("gated") == 0


def test_every_counter_is_there_and_the_page_parses(start: Start, repository: Path) -> None:
    write_identity(repository, "identity", "INT32")
    server = start()
    server.infer("identity", np.ones((2, 3), np.int32))
    for name in COUNTERS:
        assert server.metric(name, model="identity", version="1") > 0, name
    families = {f.name: f for f in text_string_to_metric_families(server.metrics_text())}
    histograms = [n for n, f in families.items() if f.type == "histogram"]
    assert histograms, "there are latency histograms"
    for name in histograms:
        for sample in families[name].samples:
            if sample.labels.get("model") == "identity" and sample.name.endswith("_count"):
                assert sample.value == 1, sample


def test_a_malformed_request_counts_as_no_inference(start: Start, repository: Path) -> None:
    write_identity(repository, "identity", "INT32", dims="4")
    server = start()
    with pytest.raises(InferenceServerException):
        server.infer("identity", np.ones((1, 3), np.int32))
    assert counts(server, "identity") == (0, 0, 0)


def test_statistics_and_metrics_agree(start: Start, repository: Path) -> None:
    write_identity(repository, "identity", "INT32")
    server = start()
    for rows in (1, 2, 5):
        server.infer("identity", np.ones((rows, 3), np.int32))
    stats = server.statistics("identity")
    assert counts(server, "identity") == (3, 8, 3)
    assert stats.inference_stats.success.count == 3
    assert stats.inference_count == 8
    assert stats.execution_count == 3
    assert {b.batch_size: b.compute_infer.count for b in stats.batch_stats} == {1: 1, 2: 1, 5: 1}
    assert stats.inference_stats.queue.count == 3
    assert stats.inference_stats.compute_infer.count == 3
    assert stats.last_inference > 0
