"""Metrics of fallbacks, circuit breakers, hedging and tickets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prometheus_client import Metric

__all__ = ["FallbackSample", "QueueSample", "families"]

BREAKER_STATES = ("closed", "open", "half_open")


@dataclass(frozen=True)
class FallbackSample:
    """A version's fallbacks at one moment."""

    model: str
    version: str
    # (trigger, the step that answered or "doubtful" or "none", requests)
    fallbacks: Sequence[tuple[str, str, int]] = ()
    breaker: str = ""  # its state; "" = it has none
    changes: Mapping[str, int] = field(default_factory=dict)  # of the breaker, to each state
    refused: int = 0  # by the breaker
    drift: bool | None = None  # None: nobody asks
    hedges: Mapping[str, int] = field(default_factory=dict)  # as Hedged.counts() answers


@dataclass(frozen=True)
class QueueSample:
    """Tickets of a queue."""

    queue: str
    open: int
    leased: int
    oldest_seconds: float


def families(
    samples: Sequence[FallbackSample],
    queues: Sequence[QueueSample],
    events: Mapping[tuple[str, str], int],
) -> Iterator[Metric]:
    """`events`: {(queue, "filed" | "refused" | "leased" | "resolved"): tickets}."""
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    answered = CounterMetricFamily(
        "headrace_fallbacks",
        'Requests that the model did not answer well enough, by why and by who did ("doubtful": '
        'nobody better, "none": nobody)',
        labels=["model", "version", "trigger", "target"],
    )
    state = GaugeMetricFamily(
        "headrace_breaker_state", "1 for the breaker's state", labels=["model", "version", "state"]
    )
    changes = CounterMetricFamily(
        "headrace_breaker_changes",
        "How often the breaker changed to a state",
        labels=["model", "version", "state"],
    )
    refused = CounterMetricFamily(
        "headrace_breaker_refused", "Requests that the breaker refused", labels=["model", "version"]
    )
    drift = GaugeMetricFamily(
        "headrace_drift_alarm", "1 while the drift alarm is set", labels=["model", "version"]
    )
    hedges = CounterMetricFamily(
        "headrace_hedges",
        'Second attempts at requests that took long ("won": of the sent ones, those that brought '
        "the answer)",
        labels=["model", "version", "outcome"],
    )
    for sample in samples:
        labels = [sample.model, sample.version]
        for trigger, target, requests in sample.fallbacks:
            answered.add_metric([*labels, trigger, target], requests)
        if sample.drift is not None:
            drift.add_metric(labels, int(sample.drift))
        for outcome, count in sample.hedges.items():
            hedges.add_metric([*labels, outcome], count)
        if sample.breaker:
            for name in BREAKER_STATES:
                state.add_metric([*labels, name], int(name == sample.breaker))
                changes.add_metric([*labels, name], sample.changes.get(name, 0))
            refused.add_metric(labels, sample.refused)
    yield from (answered, state, changes, refused, drift, hedges)
    tickets = GaugeMetricFamily(
        "headrace_human_tickets", "Tickets that wait for a person", labels=["queue", "state"]
    )
    oldest = GaugeMetricFamily(
        "headrace_human_oldest_seconds",
        "Age of the ticket that waits longest, 0 without one",
        labels=["queue"],
    )
    happened = CounterMetricFamily(
        "headrace_human_events", "What happened to tickets", labels=["queue", "event"]
    )
    for queue in queues:
        tickets.add_metric([queue.queue, "open"], queue.open)
        tickets.add_metric([queue.queue, "leased"], queue.leased)
        oldest.add_metric([queue.queue], queue.oldest_seconds)
    for (name, event), count in sorted(events.items()):
        happened.add_metric([name, event], count)
    yield from (tickets, oldest, happened)
