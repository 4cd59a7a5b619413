"""headrace.v1.Admin, over a listener of its own: rollouts, feedback, tickets, loads of several
models."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from google.protobuf.message import DecodeError, Message

from headrace.control.feedback import Outcomes
from headrace.control.human_service import HumanService
from headrace.errors import (
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    UnavailableError,
)
from headrace.protocol import admin
from headrace.repository.names import check_model_name
from headrace.rollout.plan import RolloutPlan

if TYPE_CHECKING:
    from headrace import runtime
    from headrace.control.people import People
    from headrace.control.registry import Registry
    from headrace.control.rollouts import Rollouts, RolloutState
    from headrace.control.states import LoadedVersion

__all__ = ["AdminService"]

_PATH = "/headrace.v1.Admin/"
_Request = TypeVar("_Request", bound=Message)


class AdminService:
    def __init__(
        self,
        rollouts: Rollouts,
        registry: Registry,
        people: People | None = None,
        load_together: Callable[[Sequence[str]], None] | None = None,
    ) -> None:
        self._rollouts = rollouts
        self._registry = registry
        self._load_together = load_together
        self._human = HumanService(people)

    def add_to(self, server: runtime.Server) -> None:
        """Registers every method. Before the server starts."""
        self._add(server, "LoadTogether", admin.LoadTogetherRequest, self.load_together)
        self._add(server, "RolloutStart", admin.RolloutStartRequest, self.start)
        self._add(server, "RolloutStatus", admin.RolloutStatusRequest, self.status)
        self._add(server, "RolloutPromote", admin.RolloutPromoteRequest, self.promote)
        self._add(server, "RolloutRollback", admin.RolloutRollbackRequest, self.rollback)
        self._add(server, "Feedback", admin.FeedbackRequest, self.feedback)
        self._add(server, "DriftAlarm", admin.DriftAlarmRequest, self.drift_alarm)
        self._add(server, "HumanLease", admin.HumanLeaseRequest, self._human.lease)
        self._add(server, "HumanResolve", admin.HumanResolveRequest, self._human.resolve)
        self._add(server, "HumanStatus", admin.HumanStatusRequest, self._human.status)

    @staticmethod
    def _add(
        server: runtime.Server,
        method: str,
        request_class: type[_Request],
        answer: Callable[[_Request], Message],
    ) -> None:
        def handler(message: bytes, _: runtime.ServerCall) -> bytes:
            request = request_class()
            try:
                request.ParseFromString(message)
            except DecodeError as error:
                raise InvalidArgumentError(f"not a {request_class.DESCRIPTOR.name}") from error
            return answer(request).SerializeToString()

        # A start loads a model.
        server.add_method(_PATH + method, handler, pool="blocking")

    def load_together(self, request: admin.LoadTogetherRequest) -> admin.LoadTogetherResponse:
        if self._load_together is None:
            raise UnavailableError("this server loads no models")
        self._load_together(request.models)
        return admin.LoadTogetherResponse()

    def start(self, request: admin.RolloutStartRequest) -> admin.RolloutState:
        check_model_name(request.model)
        wanted: dict[str, Any] = {
            "share": 0.05,
            "key": request.key,
            "auto_promote": not request.manual_promotion,
            "shadow": request.shadow,
        }
        for name in ("share", "alpha", "latency_ratio", "min_requests", "min_seconds", "tolerance"):
            value = getattr(request, name)
            if value:  # 0 stands for the default
                wanted[name] = value
        wanted["kpis"] = dict(request.kpis)
        plan = RolloutPlan(model=request.model, candidate=request.candidate, **wanted)
        return _message(self._rollouts.start(plan, fallback=not request.no_fallback))

    def status(self, request: admin.RolloutStatusRequest) -> admin.RolloutStatusResponse:
        return admin.RolloutStatusResponse(
            rollouts=[_message(state) for state in self._rollouts.status(request.model)]
        )

    def promote(self, request: admin.RolloutPromoteRequest) -> admin.RolloutState:
        return _message(self._rollouts.promote(request.model))

    def rollback(self, request: admin.RolloutRollbackRequest) -> admin.RolloutState:
        return _message(self._rollouts.rollback(request.model))

    def feedback(self, request: admin.FeedbackRequest) -> admin.FeedbackResponse:
        outcomes: dict[str, Outcomes] = {}
        for kpi in request.kpis:
            outcomes[kpi.name] = outcomes.get(kpi.name, Outcomes()) + Outcomes(kpi.good, kpi.bad)
        if not outcomes:
            raise InvalidArgumentError("feedback: no KPIs; give each one's good and bad outcomes")
        (loaded,) = self._loaded(request.model, request.version)
        return admin.FeedbackResponse(
            totals=[
                admin.KpiOutcomes(name=name, good=total.good, bad=total.bad)
                for name, total in sorted(loaded.feedback.record(outcomes).items())
            ]
        )

    def drift_alarm(self, request: admin.DriftAlarmRequest) -> admin.DriftAlarmResponse:
        found = self._loaded(request.model, request.version or None)
        chains = [(v.number, v.fallbacks.chain) for v in found if v.fallbacks.chain is not None]
        if not chains:
            raise FailedPreconditionError(
                f"model '{request.model}' has no fallbacks, which is what the alarm is for; give "
                "its policy.yaml a `fallback`"
            )
        for _, chain in chains:
            chain.drift = request.alarm
        return admin.DriftAlarmResponse(versions=[number for number, _ in chains])

    def _loaded(self, model: str, number: int | None) -> list[LoadedVersion]:
        """One version, or (None) all of the model's; never none."""
        check_model_name(model)
        found = [
            loaded
            for loaded in self._registry.ready_versions(model)
            if number is None or loaded.number == number
        ]
        if not found:
            which = "" if number is None else f", version {number}"
            raise NotFoundError(f"model '{model}'{which}, is not loaded")
        return found


def _message(state: RolloutState) -> admin.RolloutState:
    return admin.RolloutState(
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
        stable_p99_us=state.stable_p99_us,
        candidate_p99_us=state.candidate_p99_us,
        shadow=state.plan.shadow,
        compared=int(state.shadow.get("compared", 0)),
        different=int(state.shadow.get("different", 0)),
        dropped=int(state.shadow.get("dropped", 0)),
        largest_difference=state.shadow.get("largest_difference", 0.0),
        kpis=[
            admin.RolloutKpi(
                name=name,
                stable_good=stable.good,
                stable_bad=stable.bad,
                candidate_good=candidate.good,
                candidate_bad=candidate.bad,
            )
            for name, (stable, candidate) in sorted(state.kpis.items())
        ],
    )
