"""The response cache, seen by clients: right answers, fewer executions, Triton's counts."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as triton
from harness import Server, tensor

MODEL = """
import time
import numpy as np

class Model:
    inputs = {"X": ("FP32", [2])}
    outputs = {"Y": ("FP32", [2]), "CALLS": ("INT64", [1])}
    max_batch_size = 4
    calls = 0

    def __call__(self, inputs):
        x = inputs["X"]
        Model.calls += 1
        if (x < 0).any():
            raise ValueError("negative")
        if (x == 7).any():
            time.sleep(0.3)
        return {"Y": x * 2, "CALLS": np.full((len(x), 1), Model.calls, np.int64)}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, extra in (("plain", ""), ("kept", "cache: {ttl: 1h}")):
        version = tmp_path / name / "1"
        version.mkdir(parents=True)
        (version / "model.py").write_text(MODEL)
        if extra:
            (tmp_path / name / "policy.yaml").write_text(extra)
    asked = tmp_path / "tritons"
    (asked / "1").mkdir(parents=True)
    (asked / "1" / "model.py").write_text(MODEL)
    (asked / "config.pbtxt").write_text("response_cache { enable: true }")
    return tmp_path


def infer(client: triton.InferenceServerClient, model: str, *values: float) -> triton.InferResult:
    x = np.array([values], np.float32)
    return client.infer(model, [tensor("X", x)])


def test_answers_are_kept_where_it_was_asked_for(folder: Path) -> None:
    with Server(folder) as server, triton.InferenceServerClient(server.address) as client:
        for model, executions in (("plain", 4), ("kept", 2), ("tritons", 2)):
            for _ in range(3):
                result = infer(client, model, 1, 2)
                np.testing.assert_array_equal(result.as_numpy("Y"), [[2, 4]])
                assert result.get_response().model_version == "1"
            np.testing.assert_array_equal(infer(client, model, 2, 1).as_numpy("Y"), [[4, 2]])
            statistics = client.get_inference_statistics(model).model_stats[0]
            assert statistics.execution_count == executions
            assert statistics.inference_stats.success.count == 4
            assert statistics.inference_stats.cache_hit.count == 4 - executions
            assert statistics.inference_stats.cache_miss.count == (2 if executions == 2 else 0)
        server.counts(2, "nv_cache_num_hits_per_model", model="kept")
        server.counts(2, "nv_cache_num_misses_per_model", model="kept")
        server.counts(2, "nv_inference_count", model="kept")
        server.counts(4, "nv_inference_request_success", model="kept")
        server.counts(0, "nv_cache_num_hits_per_model", model="plain")
        server.counts(4, "nv_cache_num_entries")
        assert 0 < server.metric("nv_cache_util") < 0.1


def test_failures_are_not_kept(folder: Path) -> None:
    with Server(folder) as server, triton.InferenceServerClient(server.address) as client:
        for _ in range(2):
            with pytest.raises(triton.InferenceServerException, match="negative"):
                infer(client, "kept", -1, 0)
        server.counts(2, "nv_cache_num_misses_per_model", model="kept")
        server.counts(0, "nv_cache_num_entries")


def test_the_same_question_at_the_same_time_is_asked_once(folder: Path) -> None:
    with Server(folder) as server:
        answers = []

        def ask() -> None:
            with triton.InferenceServerClient(server.address) as client:
                answers.append(infer(client, "kept", 7, 7).as_numpy("CALLS")[0, 0])

        threads = [threading.Thread(target=ask) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert answers == [1] * 8


def test_without_memory_for_it_there_is_no_cache(folder: Path) -> None:
    with (
        Server(folder, "--response-cache-byte-size", "0") as server,
        triton.InferenceServerClient(server.address) as client,
    ):
        for _ in range(2):
            infer(client, "kept", 1, 2)
        server.counts(2, "nv_inference_count", model="kept")
        assert "nv_cache_num_entries" not in server.metrics_text()
