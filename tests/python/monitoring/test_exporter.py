"""The metrics page: valid Prometheus text, Triton's names and counting rules."""

from __future__ import annotations

import threading
import urllib.error
import urllib.request
from collections.abc import Iterator

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from headrace.app import Server
from headrace.client import Client
from headrace.config import ServerConfig
from headrace.errors import InternalError, UnavailableError

TRITON = {
    "nv_inference_request_success": "counter",
    "nv_inference_request_failure": "counter",
    "nv_inference_count": "counter",
    "nv_inference_exec_count": "counter",
    "nv_inference_request_duration_us": "counter",
    "nv_inference_queue_duration_us": "counter",
    "nv_inference_compute_input_duration_us": "counter",
    "nv_inference_compute_infer_duration_us": "counter",
    "nv_inference_compute_output_duration_us": "counter",
    "nv_inference_pending_request_count": "gauge",
    "nv_model_load_duration_secs": "gauge",
}


@pytest.fixture
def server() -> Iterator[Server]:
    config = ServerConfig(host="127.0.0.1", grpc_port=0, metrics_port=0, cache_dir="")
    with Server(config) as server:
        yield server


def scrape(server: Server) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{server.metrics_port}/metrics") as response:
        assert response.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        return response.read().decode()


def values(text: str, model: str = "m") -> dict[str, float]:
    """{name{label=value}: value} of one model. The parser calls every counter `..._total`; that is
    taken off those of Triton again."""
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.labels.get("model") == model:
                rest = {k: v for k, v in sample.labels.items() if k not in ("model", "version")}
                name = sample.name
                if name.startswith("nv_"):
                    name = name.removesuffix("_total")
                found[name + "".join(f"{{{k}={v}}}" for k, v in rest.items())] = sample.value
    return found


def add_echo(server: Server, fn=lambda inputs: {"y": inputs["x"]}, **options) -> None:
    tensor = ("FP32", [2])
    server.add_callable("m", fn, {"x": tensor}, {"y": tensor}, max_batch_size=8, **options)


def test_names_are_tritons_and_every_line_is_valid(server) -> None:
    add_echo(server)
    text = scrape(server)
    types = {}
    for line in text.splitlines():
        if line.startswith("# TYPE "):
            _, _, name, kind = line.split(" ")
            assert name not in types, "one family, one header"
            types[name] = kind
    assert {name: types.get(name) for name in TRITON} == TRITON
    assert "nv_inference_count{" in text
    assert "nv_inference_count_total" not in text
    samples = set(values(text))
    for name in TRITON:
        assert name in samples or f"{name}{{reason=BACKEND}}" in samples
    assert {"headrace_build_info", "headrace_ready", "process_resident_memory_bytes"} <= set(types)
    assert text.endswith("\n")


def test_a_batch_of_eight_is_one_request_eight_inferences_one_execution(server) -> None:
    add_echo(server)
    with Client(server.address) as client:
        client.infer("m", {"x": np.zeros((8, 2), np.float32)})
    now = values(scrape(server))
    assert now["nv_inference_request_success"] == 1
    assert now["nv_inference_count"] == 8
    assert now["nv_inference_exec_count"] == 1
    assert now["headrace_batch_size_count"] == 1
    assert now["headrace_batch_size_sum"] == 8
    assert now["headrace_batch_size_bucket{le=4.0}"] == 0
    assert now["headrace_batch_size_bucket{le=8.0}"] == 1
    assert now["nv_inference_pending_request_count"] == 0
    assert now["nv_inference_request_duration_us"] >= now["nv_inference_compute_infer_duration_us"]


def test_requests_that_wait_are_pending_and_merge_into_one_execution(server) -> None:
    entered, leave = threading.Semaphore(0), threading.Semaphore(0)

    def gated(inputs):
        entered.release()
        assert leave.acquire(timeout=30)
        return {"y": inputs["x"]}

    add_echo(server, gated)

    def ask() -> None:
        with Client(server.address) as client:
            client.infer("m", {"x": np.zeros((1, 2), np.float32)})

    threads = [threading.Thread(target=ask) for _ in range(3)]
    threads[0].start()
    assert entered.acquire(timeout=30)
    for thread in threads[1:]:
        thread.start()
    while values(scrape(server))["nv_inference_pending_request_count"] < 2:
        pass  # the other two are on their way; the test's timeout bounds this
    leave.release(2)
    for thread in threads:
        thread.join()
    now = values(scrape(server))
    assert now["nv_inference_request_success"] == 3
    assert now["nv_inference_count"] == 3
    assert now["nv_inference_exec_count"] == 2
    assert now["nv_inference_pending_request_count"] == 0


def test_failures_have_reasons(server) -> None:
    def broken(inputs):
        raise ValueError("no")

    add_echo(server, broken)
    with Client(server.address) as client, pytest.raises(InternalError):
        client.infer("m", {"x": np.zeros((1, 2), np.float32)})
    now = values(scrape(server))
    assert now["nv_inference_request_failure{reason=BACKEND}"] == 1
    assert now["nv_inference_request_failure{reason=REJECTED}"] == 0
    assert now["nv_inference_request_success"] == 0


def test_histograms_are_cumulative_and_agree_with_the_counters(server) -> None:
    add_echo(server)
    with Client(server.address) as client:
        for _ in range(50):
            client.infer("m", {"x": np.zeros((1, 2), np.float32)})
    text = scrape(server)
    now = values(text)
    for name in ("request", "queue", "compute_infer"):
        family = f"headrace_{name}_duration_seconds"
        buckets = [
            (float(key.split("le=")[1].rstrip("}")), value)
            for key, value in now.items()
            if key.startswith(family + "_bucket")
        ]
        bounds = [bound for bound, _ in buckets]
        counts = [count for _, count in buckets]
        assert bounds == sorted(bounds)
        assert len(bounds) == 23
        assert (bounds[0], bounds[-2]) == (2**14 / 1e9, 2**35 / 1e9)
        assert counts == sorted(counts)
        assert counts[-1] == now[family + "_count"] == 50
        seconds = now[f"nv_inference_{name}_duration_us"] / 1e6
        assert now[family + "_sum"] == pytest.approx(seconds, rel=0.05, abs=1e-4)


def test_calls_by_status(server) -> None:
    with Client(server.address) as client, pytest.raises(Exception, match="is not found"):
        client.model_metadata("nobody")
    calls = {
        sample.labels["code"]: sample.value
        for family in text_string_to_metric_families(scrape(server))
        for sample in family.samples
        if sample.name == "headrace_calls_total"
    }
    assert calls["NOT_FOUND"] == 1
    assert len(calls) == 17


def test_other_paths_and_a_taken_port(server) -> None:
    url = f"http://127.0.0.1:{server.metrics_port}"
    with pytest.raises(urllib.error.HTTPError, match="404"):
        urllib.request.urlopen(url + "/elsewhere")
    taken = ServerConfig(
        host="127.0.0.1", grpc_port=0, metrics_port=server.metrics_port, cache_dir=""
    )
    with pytest.raises(UnavailableError, match=f"127.0.0.1:{server.metrics_port}.*--metrics-port"):
        Server(taken).start()
