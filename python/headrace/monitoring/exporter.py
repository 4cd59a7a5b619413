"""Prometheus text on the metrics port.

Triton's `nv_inference_*` names and counting rules, so that its dashboards and rules work unchanged;
beside them mergeable latency histograms, batch sizes and the server's own counters as `headrace_*`.
docs/CONFIGURATION.md lists them.

prometheus_client does the work; it is imported by the exporter's own thread, so it costs a start
nothing. Its text writer wants counters to be called `..._total`, which Triton's are not: see
`exposition`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from headrace.errors import code_name
from headrace.monitoring import cache_metrics, fallback_metrics, speech_metrics
from headrace.monitoring.fallback_metrics import FallbackSample, QueueSample
from headrace.monitoring.speech_metrics import SpeechSample

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry, Metric

__all__ = [
    "ModelSample",
    "RolloutSample",
    "Source",
    "VersionSample",
    "exposition",
    "make_registry",
]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
ROLLOUT_OUTCOMES = ("promoted", "rolled_back", "ended")
UNLOADED = "unloaded"  # the index's reason for versions that were there and are not wanted now
FAILURE_REASONS = ("REJECTED", "CANCELED", "BACKEND", "OTHER")

# Exported bounds: one an octave of the core's four, 16 us to 34 s.
_FIRST_BOUND = 1 << 14
_LAST_BOUND = 1 << 35


@dataclass(frozen=True)
class ModelSample:
    """A version's numbers at one moment; `statistics` as LoadedVersion.statistics() answers."""

    model: str
    version: str
    load_seconds: float
    pending: int
    statistics: Mapping[str, Any]
    slo: tuple[float, float] | None = None  # (seconds, share of the requests to keep them)


@dataclass(frozen=True)
class VersionSample:
    """A row of the repository's index that names a version, and the part it has in the traffic."""

    model: str
    version: str
    state: str  # LOADING, READY, UNLOADING, UNAVAILABLE
    reason: str = ""
    arm: str = ""  # the label whose traffic it has: "stable", "canary"; "" = only by its number
    share: float = 0.0  # of the requests that name no version
    instances: int = 0
    threads: int = 0  # an instance
    engine: str = ""  # how far the TensorRT engine is that was not there when it was loaded


@dataclass(frozen=True)
class RolloutSample:
    """A model's last rollout; counts and latencies since its start."""

    model: str
    stable: int
    candidate: int
    share: float
    state: str  # starting, running, promoted, rolled_back, ended
    reason: str
    seconds: float
    stable_requests: int
    stable_failures: int
    candidate_requests: int
    candidate_failures: int


class Source(Protocol):
    """What the exporter reads at every scrape."""

    def models(self) -> Sequence[ModelSample]: ...

    def speech(self) -> Sequence[SpeechSample]: ...

    def versions(self) -> Sequence[VersionSample]: ...

    def rollouts(self) -> Sequence[RolloutSample]: ...

    def rollouts_ended(self) -> Mapping[tuple[str, str], int]:
        """(model, promoted | rolled_back | ended) -> how many since the start."""

    def traces(self) -> Mapping[str, int] | None:
        """exported, full, export: traced requests; None when nothing is traced."""

    def server(self) -> Mapping[str, Any]:
        """As Server.statistics() answers."""

    def fallbacks(self) -> Sequence[FallbackSample]:
        """Of versions that have a chain, a breaker or hedging."""

    def tickets(self) -> Sequence[QueueSample]: ...

    def ticket_events(self) -> Mapping[tuple[str, str], int]:
        """{(queue, "filed" | "refused" | "leased" | "resolved"): tickets}."""

    def cache(self) -> Mapping[str, Any]:
        """As ResponseCache.statistics() answers, with `capacity`; empty without a cache."""

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
_ADMISSION_GAUGES = (
    (
        "headrace_estimated_wait_seconds",
        "estimated_wait_ns",
        1e-9,
        "How long a request of the lowest priority would wait in the queue",
    ),
    (
        "headrace_estimate_correction",
        "correction",
        1.0,
        "What estimated waits are multiplied with; above 1 when requests waited longer",
    ),
    (
        "headrace_batch_cost_fixed_seconds",
        "batch_fixed_ns",
        1e-9,
        "What a batch costs whatever its size, as learned",
    ),
    (
        "headrace_batch_cost_row_seconds",
        "batch_row_ns",
        1e-9,
        "What each row of a batch adds, as learned",
    ),
    (
        "headrace_batch_cost_p95_seconds",
        "batch_p95_ns",
        1e-9,
        "95th percentile of the time of the largest batch",
    ),
    ("headrace_batch_limit_rows", "batch_limit", 1.0, "Rows of the largest batch"),
    (
        "headrace_concurrency_limit",
        "concurrency_limit",
        1.0,
        "Requests that may be in flight by the gradient of their latency; 0: no such limit",
    ),
)
_SERVER_COUNTERS = (
    ("headrace_connections", "connections_total", "Connections accepted"),
    ("headrace_connections_refused", "connections_refused", "Connections refused: too many open"),
    ("headrace_calls_started", "calls_started", "gRPC calls started"),
    (
        "headrace_quota_refused",
        "quota_refused",
        "Calls and requests refused because their caller's quota was used up",
    ),
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
        yield from self._overload(samples)
        yield from self._instances(samples)
        yield from self._versions()
        yield from cache_metrics.families(samples, self._source.cache())
        yield from fallback_metrics.families(
            self._source.fallbacks(), self._source.tickets(), self._source.ticket_events()
        )
        yield from speech_metrics.families(self._source.speech(), self._exported)
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

    @staticmethod
    def _overload(samples: Sequence[ModelSample]) -> Iterator[Metric]:
        """Admission, what it goes by, and what became of latency budgets."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        labels = ["model", "version"]
        refused = CounterMetricFamily(
            "headrace_admission_refused",
            "Requests refused because they would have been late",
            labels=[*labels, "reason"],
        )
        gauges = [
            (GaugeMetricFamily(name, text, labels=labels), key, unit)
            for name, key, unit, text in _ADMISSION_GAUGES
        ]
        for sample in samples:
            values = sample.statistics["admission"]
            at = [sample.model, sample.version]
            for reason, count in values["refused"].items():
                refused.add_metric([*at, reason], count)
            for family, key, unit in gauges:
                family.add_metric(at, values[key] * unit)
        yield refused
        yield from (family for family, _, _ in gauges)

        requests = CounterMetricFamily(
            "headrace_slo_requests", "Requests that the model's SLO is about", labels=labels
        )
        good = CounterMetricFamily(
            "headrace_slo_good", "Requests answered within the SLO's latency", labels=labels
        )
        latency = GaugeMetricFamily(
            "headrace_slo_latency_seconds", "The SLO's latency", labels=labels
        )
        objective = GaugeMetricFamily(
            "headrace_slo_objective", "Share of the requests to be good, 0 to 1", labels=labels
        )
        for sample in samples:
            if sample.slo is None:
                continue
            at = [sample.model, sample.version]
            requests.add_metric(at, sample.statistics["slo"][0])
            good.add_metric(at, sample.statistics["slo"][1])
            latency.add_metric(at, sample.slo[0])
            objective.add_metric(at, sample.slo[1])
        yield from (requests, good, latency, objective)

    @staticmethod
    def _instances(samples: Sequence[ModelSample]) -> Iterator[Metric]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        labels = ["model", "version"]
        serving = GaugeMetricFamily(
            "headrace_instances_in_service",
            "Instances that serve; the others are sick and being rebuilt",
            labels=labels,
        )
        quarantines = CounterMetricFamily(
            "headrace_instance_quarantines",
            "How often an instance left service because it was sick",
            labels=labels,
        )
        for sample in samples:
            health = sample.statistics["health"]
            serving.add_metric([sample.model, sample.version], health["in_service"])
            quarantines.add_metric([sample.model, sample.version], health["quarantines"])
        yield from (serving, quarantines)

    def _versions(self) -> Iterator[Metric]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        versions = list(self._source.versions())
        states = GaugeMetricFamily(
            "headrace_model_state",
            "Always 1; the version's state in the repository's index is a label",
            labels=["model", "version", "state"],
        )
        shares = GaugeMetricFamily(
            "headrace_traffic_share",
            "Share of the requests without a version that goes to this one, 0 to 1",
            labels=["model", "version", "arm"],
        )
        engines = GaugeMetricFamily(
            "headrace_engine_state",
            "Always 1; a label says how far the TensorRT engine of a version is",
            labels=["model", "version", "state"],
        )
        for row in versions:
            if row.engine:
                engines.add_metric([row.model, row.version, row.engine], 1)
            if row.reason != UNLOADED:
                states.add_metric([row.model, row.version, row.state], 1)
            if row.state == "READY":
                shares.add_metric([row.model, row.version, row.arm], row.share)
        yield states
        yield shares
        if engines.samples:
            yield engines
        running = GaugeMetricFamily(
            "headrace_rollout_running",
            "1 while the model's rollout of this candidate runs",
            labels=["model", "stable", "candidate"],
        )
        for rollout in self._source.rollouts():
            running.add_metric(
                [rollout.model, str(rollout.stable), str(rollout.candidate)],
                int(rollout.state == "running"),
            )
        yield running
        ended = CounterMetricFamily(
            "headrace_rollouts_ended",
            "Rollouts that ended, by outcome: promoted, rolled_back, ended (a version was gone)",
            labels=["model", "outcome"],
        )
        counts = self._source.rollouts_ended()
        # Zeros too: Prometheus sees no increase in a series that begins with 1.
        models = {row.model for row in versions} | {model for model, _ in counts}
        for model in sorted(models):
            for outcome in ROLLOUT_OUTCOMES:
                ended.add_metric([model, outcome], counts.get((model, outcome), 0))
        yield ended

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
        traces = self._source.traces()
        if traces is not None:
            yield CounterMetricFamily(
                "headrace_traces_exported",
                "Traced requests that the collector has",
                value=traces["exported"],
            )
            dropped = CounterMetricFamily(
                "headrace_traces_dropped",
                "Traced requests that the collector has not, by reason",
                labels=["reason"],
            )
            for reason in ("full", "export"):
                dropped.add_metric([reason], traces[reason])
            yield dropped
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
