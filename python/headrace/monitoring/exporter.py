"""Prometheus text on the metrics port.

Triton's `nv_inference_*` names and counting rules, so that its dashboards and rules work unchanged;
beside them mergeable latency histograms, batch sizes and the server's own counters as `headrace_*`.
docs/CONFIGURATION.md lists them.

prometheus_client does the work; it is imported by the exporter's own thread, so it costs a start
nothing. Its text writer wants counters to be called `..._total`, which Triton's are not: see
`exposition`.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, Protocol

from headrace.errors import UnavailableError, code_name
from headrace.logs import get_logger

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry, Metric

__all__ = ["MetricsServer", "ModelSample", "Source", "exposition", "make_registry"]

_log = get_logger("metrics")

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
FAILURE_REASONS = ("REJECTED", "CANCELED", "BACKEND", "OTHER")

# Exported bounds: one an octave of the core's four, 16 us to 34 s.
_FIRST_BOUND = 1 << 14
_LAST_BOUND = 1 << 35


@dataclass(frozen=True)
class ModelSample:
    """A version's numbers at one moment; `statistics` as ModelVersion.statistics() answers them."""

    model: str
    version: str
    load_seconds: float
    pending: int
    statistics: Mapping[str, Any]


class Source(Protocol):
    """What the exporter reads at every scrape."""

    def models(self) -> Sequence[ModelSample]: ...

    def server(self) -> Mapping[str, Any]:
        """As Server.statistics() answers."""

    def tls_not_after(self) -> int:
        """Seconds since 1970; 0 without TLS."""

    def ready(self) -> bool: ...


_COUNTERS = (
    ("nv_inference_count", "Number of inferences performed (does not include cached requests)"),
    ("nv_inference_exec_count", "Number of model executions performed"),
)
_DURATIONS = (
    ("nv_inference_request_duration_us", "success", "Cumulative inference request duration"),
    ("nv_inference_queue_duration_us", "queue", "Cumulative inference queuing duration"),
    (
        "nv_inference_compute_input_duration_us",
        "compute_input",
        "Cumulative compute input duration",
    ),
    (
        "nv_inference_compute_infer_duration_us",
        "compute_infer",
        "Cumulative compute infer duration",
    ),
    (
        "nv_inference_compute_output_duration_us",
        "compute_output",
        "Cumulative compute output duration",
    ),
)
_HISTOGRAMS = (
    ("headrace_request_duration_seconds", "request_ns", "Time from request to answer"),
    ("headrace_queue_duration_seconds", "queue_ns", "Time a request waited in the queue"),
    ("headrace_compute_infer_duration_seconds", "infer_ns", "Time a request's batch was executed"),
)
_SERVER_COUNTERS = (
    ("headrace_connections", "connections_total", "Connections accepted"),
    ("headrace_connections_refused", "connections_refused", "Connections refused: too many open"),
    ("headrace_calls_started", "calls_started", "gRPC calls started"),
    ("headrace_received_bytes", "bytes_received", "Bytes received by the gRPC server"),
    ("headrace_sent_bytes", "bytes_sent", "Bytes sent by the gRPC server"),
    ("headrace_tls_resumed", "tls_resumed", "TLS handshakes that resumed a session"),
)
_SERVER_GAUGES = (
    ("headrace_connections_open", "connections_open", "Connections open now"),
    ("headrace_calls_active", "calls_active", "gRPC calls running now"),
)


class _Collector:
    def __init__(self, source: Source, bounds_ns: Sequence[int], version: str) -> None:
        self._source = source
        self._version = version
        self._bounds_ns = bounds_ns
        # (index of the last core bucket below the bound, its text in seconds)
        self._exported = [
            (i, repr(bound / 1e9))
            for i, bound in enumerate(bounds_ns)
            if _FIRST_BOUND <= bound <= _LAST_BOUND and bound & (bound - 1) == 0
        ]

    def describe(self) -> Iterable[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        samples = list(self._source.models())
        yield from self._triton(samples)
        yield from self._histograms(samples)
        yield self._batches(samples)
        yield from self._server()

    def _triton(self, samples: Sequence[ModelSample]) -> Iterator[Metric]:
        from prometheus_client import Metric

        def metric(name: str, text: str, kind: str) -> Metric:
            return Metric(name, text, kind)

        success = metric(
            "nv_inference_request_success",
            "Number of successful inference requests, all batch sizes",
            "counter",
        )
        failure = metric(
            "nv_inference_request_failure",
            "Number of failed inference requests, all batch sizes",
            "counter",
        )
        counts = [metric(name, text, "counter") for name, text in _COUNTERS]
        durations = [
            (metric(name, text + " in microseconds", "counter"), key)
            for name, key, text in _DURATIONS
        ]
        pending = metric(
            "nv_inference_pending_request_count",
            "Instantaneous number of pending requests awaiting execution per-model.",
            "gauge",
        )
        load = metric("nv_model_load_duration_secs", "Model load time in seconds", "gauge")
        for sample in samples:
            labels = {"model": sample.model, "version": sample.version}
            values = sample.statistics
            success.add_sample(success.name, labels, values["success"][0])
            for reason in FAILURE_REASONS:
                failure.add_sample(
                    failure.name, labels | {"reason": reason}, values["failures"].get(reason, 0)
                )
            for family, key in zip(counts, ("inference_count", "execution_count"), strict=True):
                family.add_sample(family.name, labels, values[key])
            for family, key in durations:
                family.add_sample(family.name, labels, values[key][1] // 1000)
            pending.add_sample(pending.name, labels, sample.pending)
            load.add_sample(load.name, labels, sample.load_seconds)
        yield success
        yield failure
        yield from counts
        yield from (family for family, _ in durations)
        yield pending
        yield load

    def _histograms(self, samples: Sequence[ModelSample]) -> Iterator[Metric]:
        from prometheus_client.core import HistogramMetricFamily

        for name, key, text in _HISTOGRAMS:
            family = HistogramMetricFamily(name, text + ", in seconds", labels=["model", "version"])
            for sample in samples:
                values = sample.statistics[key]
                buckets: list[tuple[str, float]] = []
                total, at = 0, 0
                for index, bound in self._exported:
                    total += sum(values["buckets"][at : index + 1])
                    at = index + 1
                    buckets.append((bound, total))
                buckets.append(("+Inf", values["count"]))
                family.add_metric(
                    [sample.model, sample.version], buckets, sum_value=values["sum"] / 1e9
                )
            yield family

    @staticmethod
    def _batches(samples: Sequence[ModelSample]) -> Metric:
        from prometheus_client.core import HistogramMetricFamily

        family = HistogramMetricFamily(
            "headrace_batch_size",
            "Rows of the batches that were executed",
            labels=["model", "version"],
        )
        for sample in samples:
            executed = {size: row[0] for size, row in sample.statistics["batches"].items()}
            buckets = [
                (str(float(1 << k)), sum(n for size, n in executed.items() if size <= 1 << k))
                for k in range(13)
            ]
            buckets.append(("+Inf", sum(executed.values())))
            rows = sum(size * n for size, n in executed.items())
            family.add_metric([sample.model, sample.version], buckets, sum_value=rows)
        return family

    def _server(self) -> Iterator[Metric]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        values = self._source.server()
        for name, key, text in _SERVER_COUNTERS:
            yield CounterMetricFamily(name, text, value=values[key])
        calls = CounterMetricFamily(
            "headrace_calls", "gRPC calls finished, by status", labels=["code"]
        )
        for number, count in enumerate(values["calls_by_code"]):
            calls.add_metric([code_name(number)], count)
        yield calls
        exceeded = CounterMetricFamily(
            "headrace_limits_exceeded",
            "Connections and streams ended or refused because of a limit",
            labels=["reason"],
        )
        for reason, count in values["limits_exceeded"].items():
            exceeded.add_metric([reason], count)
        yield exceeded
        handshakes = CounterMetricFamily(
            "headrace_tls_handshakes", "TLS handshakes ended, by result", labels=["result"]
        )
        for result, count in values["tls_handshakes"].items():
            handshakes.add_metric([result], count)
        yield handshakes
        for name, key, text in _SERVER_GAUGES:
            yield GaugeMetricFamily(name, text, value=values[key])
        if not_after := self._source.tls_not_after():
            yield GaugeMetricFamily(
                "headrace_tls_certificate_not_after_seconds",
                "When the first of the server's certificates in use ends, in seconds since 1970",
                value=not_after,
            )
        yield GaugeMetricFamily(
            "headrace_ready", "1 when ServerReady answers true", value=int(self._source.ready())
        )
        build = GaugeMetricFamily(
            "headrace_build_info", "Always 1; the version is a label", labels=["version"]
        )
        build.add_metric([self._version], 1)
        yield build


def make_registry(source: Source, bounds_ns: Sequence[int], version: str) -> CollectorRegistry:
    """A registry of our metrics and the process's (memory, CPU seconds, open files)."""
    from prometheus_client import CollectorRegistry, ProcessCollector

    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(source, bounds_ns, version))  # type: ignore[arg-type, unused-ignore]
    ProcessCollector(registry=registry)
    return registry


def exposition(registry: CollectorRegistry) -> bytes:
    """Prometheus text 0.0.4. prometheus_client writes `# TYPE x_total counter` above every
    counter's samples; Triton's counters are called plain `x`, so their headers are put right."""
    from prometheus_client import generate_latest

    lines = generate_latest(registry).decode("utf-8").split("\n")
    for i, line in enumerate(lines):
        if line.startswith(("# HELP nv_", "# TYPE nv_")):
            mark, word, name, rest = line.split(" ", 3)
            lines[i] = f"{mark} {word} {name.removesuffix('_total')} {rest}"
    return "\n".join(lines).encode("utf-8")


class MetricsServer:
    """GET /metrics on a port of its own, from a thread of its own.

    The port is bound by the constructor, so that a start with a taken port fails at once.
    """

    def __init__(self, host: str, port: int) -> None:
        """`port` 0: any free one. Raises UnavailableError naming address and flag."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            self._socket = socket.create_server((host, port), family=family)
        except OSError as error:
            raise UnavailableError(
                f"cannot serve metrics on {host}:{port}: {error.strerror or error}; choose another "
                "--metrics-port (0 = any free one, -1 = none)"
            ) from error
        self.port: int = self._socket.getsockname()[1]
        self._thread: threading.Thread | None = None
        self._http: ThreadingHTTPServer | None = None
        self._registry: CollectorRegistry | None = None  # made by the thread, before it serves

    def start(self, source: Source, bounds_ns: Sequence[int], version: str) -> None:
        page_of = self._page

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if self.path.partition("?")[0] not in ("/metrics", "/"):
                    self.send_error(404, "metrics are at /metrics")
                    return
                try:
                    page = page_of()
                except Exception:
                    _log.exception("metrics could not be collected")
                    self.send_error(500)
                    return
                self.send_response(200)
                self.send_header("Content-Type", CONTENT_TYPE)
                self.send_header("Content-Length", str(len(page)))
                self.end_headers()
                self.wfile.write(page)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                _log.debug("%s " + format, self.address_string(), *args)

        http = ThreadingHTTPServer(self._socket.getsockname()[:2], Handler, bind_and_activate=False)
        http.daemon_threads = True
        http.socket.close()  # the one it made; ours is bound already
        http.socket = self._socket

        def serve() -> None:
            self._registry = make_registry(source, bounds_ns, version)
            http.serve_forever(poll_interval=0.1)

        self._http = http
        self._thread = threading.Thread(target=serve, name="metrics", daemon=True)
        self._thread.start()

    def _page(self) -> bytes:
        assert self._registry is not None
        return exposition(self._registry)

    def stop(self) -> None:
        if self._http is not None and self._thread is not None:
            self._http.shutdown()
            self._thread.join()
            self._http = None
        self._socket.close()
