"""The response cache's metrics, with Triton's names where it has them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prometheus_client import Metric

    from headrace.monitoring.exporter import ModelSample

__all__ = ["families"]

# name, key of CachedServable.statistics(), divisor, text
_PER_MODEL = (
    ("nv_cache_num_hits_per_model", "hits", 1, "Number of cache hits per model"),
    ("nv_cache_num_misses_per_model", "misses", 1, "Number of cache misses per model"),
    (
        "nv_cache_hit_duration_per_model",
        "hit_ns",
        1000,
        "Total cache hit duration per model, in microseconds",
    ),
    (
        "nv_cache_miss_duration_per_model",
        "miss_ns",
        1000,
        "Total cache miss (insert+lookup) duration per model, in microseconds",
    ),
    (
        "headrace_cache_bypassed",
        "bypassed",
        1,
        "Requests that did not look into the cache because too few found their answer",
    ),
)


def families(samples: Sequence[ModelSample], cache: Mapping[str, Any]) -> Iterator[Metric]:
    """`cache`: as ResponseCache.statistics() answers, with `capacity`; empty: there is none."""
    from prometheus_client import Metric
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    cached = [(s, s.statistics["cache"]) for s in samples if s.statistics.get("cache")]
    for name, key, divisor, text in _PER_MODEL:
        family = Metric(name, text, "counter")
        for sample, values in cached:
            labels = {"model": sample.model, "version": sample.version}
            family.add_sample(
                name if name.startswith("nv_") else name + "_total", labels, values[key] // divisor
            )
        yield family
    if not cache:
        return
    used = cache["bytes"] / cache["capacity"] if cache["capacity"] else 0.0
    yield GaugeMetricFamily("nv_cache_util", "Cache utilization [0.0 - 1.0]", value=used)
    yield GaugeMetricFamily(
        "nv_cache_num_entries", "Number of responses stored in the cache", value=cache["entries"]
    )
    yield GaugeMetricFamily(
        "headrace_cache_bytes", "Bytes of questions and answers in the cache", value=cache["bytes"]
    )
    yield CounterMetricFamily(
        "headrace_cache_evictions",
        "Answers that left the cache to make room",
        value=cache["evictions"],
    )
