"""Readings: what monitoring reads of the running server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from headrace import runtime
from headrace.control.engine_builds import EngineBuilds
from headrace.control.people import People
from headrace.control.registry import Registry
from headrace.control.rollouts import Rollouts
from headrace.control.states import LoadedVersion, VersionRoute
from headrace.monitoring.exporter import ModelSample, RolloutSample, VersionSample
from headrace.monitoring.fallback_metrics import FallbackSample, QueueSample
from headrace.monitoring.speech_metrics import SpeechSample
from headrace.monitoring.tracing import TraceExporter

__all__ = ["Readings", "traffic"]


class Readings:
    """A monitoring.exporter.Source. Any thread."""

    def __init__(
        self,
        core: runtime.Server,
        registry: Registry,
        rollouts: Rollouts,
        cache: runtime.ResponseCache | None = None,
        exporter: TraceExporter | None = None,
        people: People | None = None,
        engines: EngineBuilds | None = None,
    ) -> None:
        self._engines = engines
        self._core = core
        self._registry = registry
        self._rollouts = rollouts
        self._cache = cache
        self._exporter = exporter
        self._people = people

    def models(self) -> Sequence[ModelSample]:
        return [
            ModelSample(
                model=loaded.model,
                version=str(loaded.number),
                load_seconds=loaded.load_seconds,
                pending=loaded.version.pending,
                statistics=loaded.statistics(),
                slo=(slo.latency, slo.objective) if (slo := loaded.policy.slo) else None,
            )
            for loaded in self._registry.ready_versions()
            if loaded.speech is None
        ]

    def speech(self) -> Sequence[SpeechSample]:
        return [
            SpeechSample(loaded.model, str(loaded.number), loaded.speech.speech())
            for loaded in self._registry.ready_versions()
            if loaded.speech is not None
        ]

    def versions(self) -> Sequence[VersionSample]:
        samples: list[VersionSample] = []
        engines = self._engines.states() if self._engines is not None else {}
        for model, rows in sorted(self._registry.rows().items()):
            ready = {str(loaded.number): loaded for loaded in self._registry.ready_versions(model)}
            parts = traffic(self._registry.route(model), list(ready.values()))
            for row in rows:
                loaded = ready.get(row.version)
                arm, share = parts.get(loaded.number, ("", 0.0)) if loaded else ("", 0.0)
                samples.append(
                    VersionSample(
                        model=model,
                        version=row.version,
                        state=row.state,
                        reason=row.reason,
                        arm=arm,
                        share=share,
                        instances=loaded.instances if loaded else 0,
                        threads=loaded.threads if loaded else 0,
                        engine=_engine(loaded, engines) if loaded else "",
                    )
                )
        return samples

    def rollouts(self) -> Sequence[RolloutSample]:
        return [
            RolloutSample(
                model=state.plan.model,
                stable=state.stable,
                candidate=state.plan.candidate,
                share=state.plan.share,
                state=state.state,
                reason=state.reason,
                seconds=state.seconds,
                stable_requests=state.stable_requests,
                stable_failures=state.stable_failures,
                candidate_requests=state.candidate_requests,
                candidate_failures=state.candidate_failures,
            )
            for state in self._rollouts.status()
        ]

    def rollouts_ended(self) -> Mapping[tuple[str, str], int]:
        return self._rollouts.ended()

    def traces(self) -> Mapping[str, int] | None:
        if self._exporter is None:
            return None
        return {
            "exported": self._exporter.exported,
            "full": self._exporter.dropped_full,
            "export": self._exporter.dropped_export,
        }

    def server(self) -> Mapping[str, Any]:
        return self._core.statistics()

    def fallbacks(self) -> Sequence[FallbackSample]:
        samples: list[FallbackSample] = []
        for loaded in self._registry.ready_versions():
            chain, breaker = loaded.fallbacks.chain, loaded.fallbacks.breaker
            if chain is None and breaker is None and loaded.hedged is None:
                continue
            samples.append(
                FallbackSample(
                    model=loaded.model,
                    version=str(loaded.number),
                    fallbacks=chain.counts() if chain is not None else (),
                    breaker=breaker.state if breaker is not None else "",
                    changes=breaker.changes() if breaker is not None else {},
                    refused=breaker.refused if breaker is not None else 0,
                    drift=chain.drift if chain is not None else None,
                    hedges=loaded.hedged.counts() if loaded.hedged is not None else {},
                )
            )
        return samples

    def tickets(self) -> Sequence[QueueSample]:
        if self._people is None:
            return []
        return [
            QueueSample(q.queue, q.open, q.leased, q.oldest_seconds) for q in self._people.queues()
        ]

    def ticket_events(self) -> Mapping[tuple[str, str], int]:
        return self._people.counts() if self._people is not None else {}

    def cache(self) -> Mapping[str, Any]:
        cache = self._cache
        return {**cache.statistics(), "capacity": cache.capacity} if cache is not None else {}

    def tls_not_after(self) -> int:
        return self._core.tls_not_after

    def ready(self) -> bool:
        return self._registry.ready


def _engine(loaded: LoadedVersion, builds: Mapping[tuple[str, int], str]) -> str:
    """The state of its engine; "" when it is to have none."""
    if loaded.engine is not None:
        return builds.get((loaded.model, loaded.number), "")
    return "serving" if loaded.on_engine else "failed" if loaded.no_engine else ""


def traffic(route: VersionRoute, ready: Sequence[LoadedVersion]) -> dict[int, tuple[str, float]]:
    """{version: (arm, its share of the requests that name no version)} of versions that have a
    label; `ready` lowest number first."""
    if not ready:
        return {}
    numbers = {loaded.number for loaded in ready}
    default = route.default if route.default in numbers else ready[-1].number
    labels = {"stable": default, **route.labels}
    parts = {number: (label, 0.0) for label, number in labels.items() if number in numbers}
    split = [(label, weight) for label, weight in route.split if labels.get(label) in numbers]
    total = sum(weight for _, weight in split)
    if total <= 0:
        parts[default] = ("stable", 1.0)
    for label, weight in split:
        parts[labels[label]] = (label, weight / total)
    return parts
