"""Rollouts: gives a new version a share of the requests, watches it, promotes it or takes it back.

    rollouts = Rollouts(manager)
    rollouts.start(RolloutPlan("digits", candidate=8, share=0.05))
    rollouts.status("digits")
    rollouts.promote("digits")      # or it happens by itself
    rollouts.rollback("digits")     # also after the promotion, at once: the old version is warm

What decides is `headrace.rollout.judge`; here it is fed with what the versions counted, and what it
says is done. Threads: every method from any thread; one thread watches while a rollout runs.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from headrace import runtime
from headrace.control.feedback import Outcomes
from headrace.control.manager import ModelManager
from headrace.control.states import LoadedVersion, ModelRecord, Shadow, VersionRoute
from headrace.errors import (
    FailedPreconditionError,
    HeadraceError,
    InvalidArgumentError,
    NotFoundError,
)
from headrace.logs import get_logger
from headrace.repository.policy import ModelPolicy
from headrace.repository.scan import ModelEntry
from headrace.rollout.journal import Journal, Record
from headrace.rollout.judge import Block, Judge
from headrace.rollout.plan import (
    ERRORS,
    LATENCY,
    RolloutPlan,
    kpi_indicator,
    plan_from_mapping,
)

__all__ = ["RolloutState", "Rollouts"]

_log = get_logger("rollout")

State = Literal["starting", "running", "promoted", "rolled_back", "ended"]
STABLE, CANARY = "stable", "canary"
# By the clock, never because of a failure: what the judge promises holds for looks like that.
_LOOK_SECS = 0.02
# Stable requests it takes to say what its p99 is; until then latency is not judged.
_BASELINE_REQUESTS = 200


@dataclass(frozen=True)
class RolloutState:
    """`seconds` since its start; counts since then; latencies of successes, 0 without any."""

    plan: RolloutPlan
    stable: int
    state: State
    reason: str
    seconds: float
    stable_requests: int = 0
    stable_failures: int = 0
    candidate_requests: int = 0
    candidate_failures: int = 0
    stable_p99_us: float = 0.0
    candidate_p99_us: float = 0.0
    # Of a shadow, as ShadowTally.read(); empty otherwise.
    shadow: Mapping[str, float] = field(default_factory=dict)
    # (stable, candidate) by KPI.
    kpis: Mapping[str, tuple[Outcomes, Outcomes]] = field(default_factory=dict)


@dataclass(frozen=True)
class _Counts:
    """What a version has answered: its successes by latency bucket, and its failures."""

    failures: int = 0
    buckets: tuple[int, ...] = ()

    @property
    def successes(self) -> int:
        return sum(self.buckets)

    @property
    def requests(self) -> int:
        return self.successes + self.failures

    def since(self, before: _Counts) -> _Counts:
        old = before.buckets or (0,) * len(self.buckets)
        return _Counts(
            self.failures - before.failures,
            tuple(now - then for now, then in zip(self.buckets, old, strict=True)),
        )

    def slower(self, limit: int) -> int:
        """Successes in the buckets from `limit` on."""
        return sum(self.buckets[limit:])


@dataclass
class _Watched:
    """A version and what it had answered when it was looked at last."""

    loaded: LoadedVersion
    first: _Counts
    last: _Counts
    first_outcomes: Mapping[str, Outcomes]
    last_outcomes: Mapping[str, Outcomes]

    @classmethod
    def of(cls, loaded: LoadedVersion) -> _Watched:
        counts = _read(loaded)
        outcomes = loaded.feedback.totals()
        return cls(loaded, counts, counts, outcomes, outcomes)

    def block(self) -> _Counts:
        now = _read(self.loaded)
        news = now.since(self.last)
        self.last = now
        return news

    def outcomes(self) -> Mapping[str, Outcomes]:
        """What feedback came since the last look, by KPI."""
        now = self.loaded.feedback.totals()
        news = {name: now[name] - self.last_outcomes.get(name, Outcomes()) for name in now}
        self.last_outcomes = now
        return news

    @property
    def total(self) -> _Counts:
        return self.last.since(self.first)

    def total_outcomes(self, kpi: str) -> Outcomes:
        none = Outcomes()
        return self.last_outcomes.get(kpi, none) - self.first_outcomes.get(kpi, none)


@dataclass
class _Rollout:
    plan: RolloutPlan
    stable: int
    began: float
    judge: Judge
    fallback: bool
    tally: runtime.ShadowTally = field(default_factory=runtime.ShadowTally)
    watched: dict[str, _Watched] = field(default_factory=dict)  # by label
    limit: int | None = None  # the first latency bucket that counts as slow
    files: Mapping[int, str] = field(default_factory=dict)  # fingerprints by version
    state: State = "starting"
    reason: str = ""
    ended: float | None = None


class Rollouts:
    def __init__(
        self,
        manager: ModelManager,
        journal: Journal | None = None,
        *,
        look_secs: float = _LOOK_SECS,
    ) -> None:
        self._manager = manager
        self._journal = journal or Journal()
        self._look_secs = look_secs
        self._lock = threading.RLock()
        self._rollouts: dict[str, _Rollout] = {}  # the last one of each model; guarded by _lock
        self._ended: Counter[tuple[str, str]] = Counter()  # (model, state); guarded by _lock
        self._thread: threading.Thread | None = None  # guarded by _lock
        self._stop = threading.Event()
        manager.desired.kept_out = self._kept_out
        manager.on_loaded = self._after_load

    # ---- what people ask ------------------------------------------------------------------------

    def start(self, plan: RolloutPlan, *, fallback: bool = True) -> RolloutState:
        """Returns when the candidate serves its share. With `fallback` the stable version answers
        what the candidate fails. Raises FailedPreconditionError when the model has a rollout that
        runs; NotFoundError for a model that is not served or a version that is not there;
        InvalidArgumentError when the candidate is the stable version or cannot be loaded."""
        rollout = _Rollout(plan, 0, time.monotonic(), plan.judge(), fallback)
        with self._lock:
            before = self._rollouts.get(plan.model)
            if before is not None and before.state in ("starting", "running"):
                raise FailedPreconditionError(
                    f"model '{plan.model}' has a rollout of version {before.plan.candidate} "
                    "already: promote it or roll it back first"
                )
            self._rollouts[plan.model] = rollout
        try:
            self._begin(rollout)
        except BaseException:
            with self._lock:
                if before is not None:
                    self._rollouts[plan.model] = before
                else:
                    del self._rollouts[plan.model]
            raise
        with self._lock:
            if self._thread is None and not self._stop.is_set():
                self._thread = threading.Thread(target=self._watch, name="rollouts", daemon=True)
                self._thread.start()
            return _state(rollout)

    def _begin(self, rollout: _Rollout) -> None:
        """Loads the candidate, which may take long: without the lock."""
        plan = rollout.plan
        stable = self._manager.registry.find(plan.model)
        if stable.number == plan.candidate:
            raise InvalidArgumentError(
                f"model '{plan.model}': version {plan.candidate} is the stable one already"
            )
        rollout.files = self._manager.files(plan.model)
        if plan.candidate not in rollout.files:
            raise NotFoundError(
                f"model '{plan.model}' has no version {plan.candidate} in its repository"
            )
        rollout.stable = stable.number
        self._manager.route_beside(
            plan.model,
            lambda _: (
                VersionRoute(
                    default=stable.number,
                    labels={CANARY: plan.candidate},
                    shadow=Shadow(CANARY, plan.share, plan.tolerance, rollout.tally),
                    pinned=frozenset({stable.number, plan.candidate}),
                )
                if plan.shadow
                else VersionRoute(
                    default=stable.number,
                    labels={CANARY: plan.candidate},
                    split=((CANARY, plan.share), (STABLE, 1.0 - plan.share)),
                    key=plan.key,
                    salt=f"{plan.model}/{plan.candidate}",
                    fallback={CANARY: STABLE} if rollout.fallback else {},
                    pinned=frozenset({stable.number, plan.candidate}),
                )
            ),
            lambda record: self._take_sight(rollout, record),
        )
        with self._lock:
            rollout.state = "running"
            self._note(rollout, "running")
        _log.info(
            "rollout of %s %d: %.3g %% of the requests%s; %d is stable",
            plan.model,
            plan.candidate,
            plan.share * 100,
            ", copied" if plan.shadow else "",
            stable.number,
        )

    @staticmethod
    def _take_sight(rollout: _Rollout, record: ModelRecord) -> None:
        """Before the candidate's first request: counts from here."""
        labels = {rollout.stable: STABLE, rollout.plan.candidate: CANARY}
        for loaded in record.ready():
            if loaded.number in labels:
                rollout.watched[labels[loaded.number]] = _Watched.of(loaded)
            if loaded.number == rollout.plan.candidate:
                loaded.version.require_finite_outputs(True)

    def status(self, model: str = "") -> list[RolloutState]:
        """Of one model, or of all. Raises NotFoundError for a model that never had one."""
        with self._lock:
            # Of an earlier server, as far as this one has not begun another.
            states = {
                name: RolloutState(record.plan, record.stable, record.state, record.reason, 0.0)
                for name, record in self._journal.records().items()
                if record.state != "running"
            }
            states |= {name: _state(rollout) for name, rollout in self._rollouts.items()}
            if model and model not in states:
                raise NotFoundError(f"model '{model}' has no rollout")
            return [state for name, state in sorted(states.items()) if model in ("", name)]

    def ended(self) -> dict[tuple[str, str], int]:
        """{(model, "promoted" | "rolled_back" | "ended"): how many since the start}."""
        with self._lock:
            return dict(self._ended)

    def promote(self, model: str, reason: str = "asked for") -> RolloutState:
        """The candidate is the default from now on; the version before stays loaded. Raises
        FailedPreconditionError when no rollout of the model runs."""
        with self._lock:
            rollout = self._rollouts.get(model)
            if rollout is None or rollout.state != "running":
                raise FailedPreconditionError(f"model '{model}' has no rollout that runs")
            self._promote(rollout, reason)
            return _state(rollout)

    def rollback(self, model: str, reason: str = "asked for") -> RolloutState:
        """The version before is the default from now on. Raises FailedPreconditionError when the
        model has no rollout that runs or was promoted, or that version is no longer loaded."""
        with self._lock:
            rollout = self._rollouts.get(model)
            if rollout is None or rollout.state not in ("running", "promoted"):
                raise FailedPreconditionError(
                    f"model '{model}' has no rollout to take back: none runs or was promoted"
                )
            try:
                self._manager.registry.find(model, str(rollout.stable))
            except HeadraceError as error:
                raise FailedPreconditionError(
                    f"model '{model}': version {rollout.stable} is no longer loaded, so there is "
                    "nothing to go back to; start a rollout of it instead"
                ) from error
            self._rollback(rollout, reason)
            return _state(rollout)

    # ---- what loads bring ------------------------------------------------------------------------

    def _kept_out(self, entry: ModelEntry, policy: ModelPolicy) -> frozenset[int]:
        files = entry.version_fingerprints
        record = self._journal.get(entry.name)
        numbers = record.kept_out(files) if record is not None else frozenset()
        if policy.rollout is not None:
            candidate = _plan_of(entry, policy.rollout).candidate
            if record is None or not record.is_about(candidate, files):
                numbers |= {candidate}
        return numbers

    def _after_load(self, entry: ModelEntry, policy: ModelPolicy) -> None:
        """Goes on with a rollout that an earlier server or an unload broke off; starts the one that
        policy.yaml asks for, unless it is decided."""
        model, files = entry.name, entry.version_fingerprints
        record = self._journal.get(model)
        with self._lock:
            last = self._rollouts.get(model)
            if last is not None and last.state in ("starting", "running"):
                routed = self._manager.registry.route(model).labels.get(CANARY)
                if last.state == "starting" or routed == last.plan.candidate:
                    return
                self._end(last, "ended", "the model was unloaded")
        plan: RolloutPlan | None = None
        fallback = True
        if record is not None and record.state == "running" and record.kept_out(files):
            plan, fallback = record.plan, record.fallback
        elif policy.rollout is not None:
            plan = _plan_of(entry, policy.rollout)
            decided = record is not None and record.is_about(plan.candidate, files)
            if decided or plan.candidate not in files:
                return
        if plan is None or self._manager.registry.stopping:
            return
        try:
            self.start(plan, fallback=fallback)
        except HeadraceError as error:
            _log.error("rollout of %s %d: %s", model, plan.candidate, error.details)

    def _note(
        self,
        rollout: _Rollout,
        state: Literal["running", "promoted", "rolled_back"],
        reason: str = "",
    ) -> None:
        files = {
            n: rollout.files[n]
            for n in (rollout.stable, rollout.plan.candidate)
            if n in rollout.files
        }
        self._journal.put(
            Record(rollout.plan, rollout.stable, state, reason, files, rollout.fallback)
        )

    def stop(self) -> None:
        """Decides nothing more. Idempotent."""
        self._stop.set()
        with self._lock:
            thread = self._thread
        if thread is not None:
            thread.join()

    # ---- watching -------------------------------------------------------------------------------

    def _watch(self) -> None:
        while not self._stop.wait(self._look_secs):
            with self._lock:
                running = [r for r in self._rollouts.values() if r.state == "running"]
                if not running:
                    self._thread = None
                    return
                for rollout in running:
                    try:
                        self._step(rollout)
                    except Exception:
                        _log.exception("rollout of %s; looking again", rollout.plan.model)

    def _step(self, rollout: _Rollout) -> None:
        """One look at a rollout that runs, and what follows from it."""
        blocks = self._look(rollout)
        if rollout.state != "running" or blocks is None:
            return
        verdict = rollout.judge.observe(blocks, time.monotonic() - rollout.began)
        if verdict.decision == "rollback":
            self._rollback(rollout, verdict.reason)
        elif verdict.decision == "promote":
            self._promote(rollout, verdict.reason)
        else:
            rollout.reason = verdict.reason

    def _look(self, rollout: _Rollout) -> Mapping[str, Block] | None:
        """What the two versions did since the last look. None: it cannot be compared."""
        plan = rollout.plan
        found: dict[str, LoadedVersion] = {}
        for label, number in ((STABLE, rollout.stable), (CANARY, plan.candidate)):
            try:
                found[label] = self._manager.registry.find(plan.model, str(number))
            except HeadraceError as error:
                self._end(rollout, "ended", f"version {number} is gone: {error.details}")
                return None
        fresh = False
        for label, loaded in found.items():
            known = rollout.watched.get(label)
            if known is None or known.loaded is not loaded:  # reloaded: it counts from zero
                rollout.watched[label] = _Watched.of(loaded)
                if label == CANARY:
                    loaded.version.require_finite_outputs(True)
                fresh = True
        if fresh:
            return None
        stable, canary = rollout.watched[STABLE], rollout.watched[CANARY]
        s, c = stable.block(), canary.block()
        if rollout.limit is None and stable.last.successes >= _BASELINE_REQUESTS:
            # From what came before this look counts, so that the limit does not depend on it.
            rollout.limit = _slow_from(stable.last, plan.latency_ratio)
            slow = Block(0, 0, 0, 0)
        elif rollout.limit is None:
            slow = Block(0, 0, 0, 0)
        else:
            slow = Block(s.successes, s.slower(rollout.limit), c.successes, c.slower(rollout.limit))
        blocks = {ERRORS: Block(s.requests, s.failures, c.requests, c.failures), LATENCY: slow}
        told, none = (stable.outcomes(), canary.outcomes()), Outcomes()
        for kpi in plan.kpis:
            a, b = (outcomes.get(kpi, none) for outcomes in told)
            blocks[kpi_indicator(kpi)] = Block(a.good + a.bad, a.bad, b.good + b.bad, b.bad)
        return blocks

    # ---- acting; under _lock --------------------------------------------------------------------

    def _promote(self, rollout: _Rollout, reason: str) -> None:
        plan = rollout.plan
        self._manager.route_now(
            plan.model,
            lambda _: VersionRoute(
                default=plan.candidate, pinned=frozenset({rollout.stable, plan.candidate})
            ),
        )
        self._note(rollout, "promoted", reason)
        rollout.watched[CANARY].loaded.version.require_finite_outputs(False)
        self._end(rollout, "promoted", reason)

    def _rollback(self, rollout: _Rollout, reason: str) -> None:
        # Before what nothing holds is unloaded, which asks who is kept out.
        self._note(rollout, "rolled_back", reason)
        self._manager.route_now(
            rollout.plan.model,
            lambda _: VersionRoute(default=rollout.stable, pinned=frozenset({rollout.stable})),
        )
        self._end(rollout, "rolled_back", reason)

    def _end(self, rollout: _Rollout, state: State, reason: str) -> None:
        rollout.state = state
        rollout.reason = reason
        rollout.ended = time.monotonic()
        self._ended[rollout.plan.model, state] += 1
        log = _log.warning if state != "promoted" else _log.info
        log(
            "rollout of %s %d: %s: %s",
            rollout.plan.model,
            rollout.plan.candidate,
            state.replace("_", " "),
            reason,
        )


def _plan_of(entry: ModelEntry, section: Mapping[str, Any]) -> RolloutPlan:
    """The plan of policy.yaml. Raises InvalidArgumentError naming file and key."""
    try:
        return plan_from_mapping(entry.name, section)
    except InvalidArgumentError as error:
        raise InvalidArgumentError(f"{entry.policy_path}: {error.details}") from None


def _read(loaded: LoadedVersion) -> _Counts:
    statistics = loaded.version.statistics()
    failures: Mapping[str, int] = statistics["failures"]
    # Cancelled requests say nothing about the version.
    failed = sum(count for reason, count in failures.items() if reason != "CANCELED")
    return _Counts(failed, tuple(statistics["request_ns"]["buckets"]))


def _p99_bucket(counts: _Counts) -> int:
    rest = counts.successes * 0.99
    for number, count in enumerate(counts.buckets):
        rest -= count
        if rest <= 0:
            return number
    return len(counts.buckets) - 1


def _p99_us(counts: _Counts) -> float:
    if counts.successes == 0:
        return 0.0
    bounds = runtime.histogram_bounds_ns()
    return bounds[min(_p99_bucket(counts), len(bounds) - 1)] / 1e3


def _slow_from(stable: _Counts, ratio: float) -> int:
    """The first bucket whose latencies are all above `ratio` times the stable version's p99."""
    bounds = runtime.histogram_bounds_ns()
    limit = bounds[min(_p99_bucket(stable), len(bounds) - 1)] * ratio
    return next((n + 1 for n, bound in enumerate(bounds) if bound >= limit), len(bounds))


def _state(rollout: _Rollout) -> RolloutState:
    until = rollout.ended if rollout.ended is not None else time.monotonic()
    stable = rollout.watched[STABLE].total if STABLE in rollout.watched else _Counts()
    canary = rollout.watched[CANARY].total if CANARY in rollout.watched else _Counts()
    return RolloutState(
        plan=rollout.plan,
        stable=rollout.stable,
        state=rollout.state,
        reason=rollout.reason,
        seconds=until - rollout.began,
        stable_requests=stable.requests,
        stable_failures=stable.failures,
        candidate_requests=canary.requests,
        candidate_failures=canary.failures,
        stable_p99_us=_p99_us(stable),
        candidate_p99_us=_p99_us(canary),
        shadow=rollout.tally.read() if rollout.plan.shadow else {},
        kpis={
            kpi: (
                rollout.watched[STABLE].total_outcomes(kpi),
                rollout.watched[CANARY].total_outcomes(kpi),
            )
            for kpi in rollout.plan.kpis
            if {STABLE, CANARY} <= rollout.watched.keys()
        },
    )
