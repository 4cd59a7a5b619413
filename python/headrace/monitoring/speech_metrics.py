"""Metrics of speech recognition: how long people wait for text, and what it costs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prometheus_client import Metric

__all__ = ["SpeechSample", "families"]

_HISTOGRAMS = (
    (
        "headrace_speech_final_latency_seconds",
        "final_latency_ns",
        "From the end of speech to its final result, in seconds",
    ),
    (
        "headrace_speech_partial_lag_seconds",
        "partial_lag_ns",
        "From the arrival of audio to the partial result that has heard it, in seconds",
    ),
)
_COUNTERS = (
    ("headrace_speech_streams", "streams_started", "Streams of audio that were taken"),
    (
        "headrace_speech_streams_refused",
        "streams_refused",
        "Streams refused because the machine had no time for one more",
    ),
    ("headrace_speech_finals", "finals", "Final results"),
    ("headrace_speech_partials", "partials", "Partial results"),
    (
        "headrace_speech_partials_dropped",
        "partials_dropped",
        "Partial results that a newer one took the place of before they were computed",
    ),
    ("headrace_speech_audio_seconds", "audio_seconds", "Audio heard"),
    (
        "headrace_speech_busy_seconds",
        "busy_seconds",
        "Time that the recogniser's threads worked; over the audio heard, the real-time factor",
    ),
)


@dataclass(frozen=True)
class SpeechSample:
    """A recogniser's numbers at one moment, as SpeechRecognizer.statistics() answers."""

    model: str
    version: str
    statistics: Mapping[str, Any]


def families(
    samples: Sequence[SpeechSample], exported: Sequence[tuple[int, str]]
) -> Iterator[Metric]:
    """`exported`: (index of the last core bucket below a bound, the bound in seconds). Nothing
    without speech models."""
    from prometheus_client.core import (
        CounterMetricFamily,
        GaugeMetricFamily,
        HistogramMetricFamily,
    )

    if not samples:
        return
    labels = ["model", "version"]
    for name, key, text in _HISTOGRAMS:
        histogram = HistogramMetricFamily(name, text, labels=labels)
        for sample in samples:
            values = sample.statistics[key]
            buckets: list[tuple[str, float]] = []
            total, at = 0, 0
            for index, bound in exported:
                total += sum(values["buckets"][at : index + 1])
                at = index + 1
                buckets.append((bound, total))
            buckets.append(("+Inf", values["count"]))
            histogram.add_metric(
                [sample.model, sample.version], buckets, sum_value=values["sum"] / 1e9
            )
        yield histogram
    for name, key, text in _COUNTERS:
        counter = CounterMetricFamily(name, text, labels=labels)
        for sample in samples:
            counter.add_metric([sample.model, sample.version], sample.statistics[key])
        yield counter
    streams = GaugeMetricFamily(
        "headrace_speech_streams_open", "Streams of audio open now", labels=labels
    )
    factor = GaugeMetricFamily(
        "headrace_speech_real_time_factor",
        "Work over audio since the model was loaded; below 1 one thread keeps up",
        labels=labels,
    )
    for sample in samples:
        values = sample.statistics
        streams.add_metric([sample.model, sample.version], values["open_streams"])
        heard = values["audio_seconds"]
        factor.add_metric(
            [sample.model, sample.version], values["busy_seconds"] / heard if heard > 0 else 0.0
        )
    yield streams
    yield factor
