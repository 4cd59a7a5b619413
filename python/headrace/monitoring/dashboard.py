"""Dashboard: the page at / and the numbers it polls.

The page (dashboard.html) is one file without anything from elsewhere. It computes rates and
percentiles from cumulative counters, as Prometheus does, so the server keeps no history and does
nothing while nobody looks. However many look, the numbers are collected once a `_FRESH_S`.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

    from headrace.monitoring.exporter import ModelSample, Source

__all__ = ["Dashboard", "state_of"]

_PAGE = Path(__file__).with_name("dashboard.html")
_FRESH_S = 0.8  # the page asks once a second
# What a version's own numbers say already.
_OF_VERSIONS = ("nv_inference_", "nv_model_")
_HISTOGRAMS = (("request", "request_ns"), ("queue", "queue_ns"), ("infer", "infer_ns"))


class Dashboard:
    """Any thread."""

    def __init__(
        self,
        source: Source,
        registry: CollectorRegistry,
        bounds_ns: Sequence[int],
        version: str,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.page: bytes = _PAGE.read_bytes()
        self.page_headers: dict[str, str] = {
            "Content-Type": "text/html; charset=utf-8",
            "Content-Security-Policy": content_security_policy(self.page.decode()),
        }
        self._source = source
        self._registry = registry
        self._bounds_ns = bounds_ns
        self._version = version
        self._clock = clock
        self._lock = threading.Lock()
        self._state = b""  # guarded by _lock, as is the next
        self._state_at = float("-inf")

    def state(self) -> bytes:
        """JSON, at most `_FRESH_S` old. Many who ask at once wait for one collection."""
        with self._lock:
            now = self._clock()
            if now - self._state_at >= _FRESH_S:
                state = state_of(self._source, self._registry, self._bounds_ns)
                state["server"]["version"] = self._version
                state["seconds"] = now
                state["time"] = time.time()
                self._state = json.dumps(state, separators=(",", ":")).encode()
                self._state_at = now
            return self._state


def content_security_policy(page: str) -> str:
    """Allows the page's own inline style and script, by their digests, and to ask its server."""

    def digests(tag: str) -> str:
        blocks: Iterable[str] = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        hashes = (base64.b64encode(hashlib.sha256(b.encode()).digest()).decode() for b in blocks)
        return " ".join(f"'sha256-{digest}'" for digest in hashes)

    return (
        f"default-src 'none'; script-src {digests('script')}; style-src {digests('style')}; "
        "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    )


def state_of(
    source: Source, registry: CollectorRegistry, bounds_ns: Sequence[int]
) -> dict[str, Any]:
    """What the page shows. Counters are cumulative; histograms are [[bucket, count], ...] without
    the empty ones, bucket n ending at bounds_us[n]."""
    samples = {(s.model, s.version): s for s in source.models()}
    models: dict[str, dict[str, Any]] = {}
    for row in source.versions():
        model = models.setdefault(row.model, {"name": row.model, "versions": [], "rollout": None})
        version: dict[str, Any] = {
            "version": row.version,
            "state": row.state,
            "reason": row.reason,
            "arm": row.arm,
            "share": row.share,
            "instances": row.instances,
            "threads": row.threads,
        }
        sample = samples.get((row.model, row.version))
        if sample is not None:
            version |= _numbers(sample)
        model["versions"].append(version)
    for rollout in source.rollouts():
        if rollout.model in models:
            models[rollout.model]["rollout"] = dict(vars(rollout))
    return {
        "server": {"ready": source.ready()},
        "bounds_us": [bound / 1e3 for bound in bounds_ns],
        "models": list(models.values()),
        "metrics": _metrics(registry),
    }


def _numbers(sample: ModelSample) -> dict[str, Any]:
    values = sample.statistics
    numbers: dict[str, Any] = {
        "pending": sample.pending,
        "load_seconds": sample.load_seconds,
        "success": values["success"][0],
        "failures": values["failures"],
        "inferences": values["inference_count"],
        "executions": values["execution_count"],
        "batches": sorted((int(size), row[0]) for size, row in values["batches"].items()),
    }
    for name, key in _HISTOGRAMS:
        histogram: Mapping[str, Any] = values[key]
        numbers[name] = {
            "count": histogram["count"],
            "sum_us": histogram["sum"] / 1e3,
            "buckets": [[n, count] for n, count in enumerate(histogram["buckets"]) if count],
        }
    return numbers


def _metrics(registry: CollectorRegistry) -> dict[str, list[tuple[dict[str, str], float]]]:
    """{name: [(labels, value)]} of what /metrics has beside the versions' numbers."""
    found: dict[str, list[tuple[dict[str, str], float]]] = {}
    for family in registry.collect():
        if family.type == "histogram" or family.name.startswith(_OF_VERSIONS):
            continue
        for sample in family.samples:
            found.setdefault(sample.name, []).append((dict(sample.labels), sample.value))
    return found
