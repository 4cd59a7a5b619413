"""headrace.v1.Admin, over a listener of its own: rollouts, tickets, loads of several models."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from google.protobuf.message import DecodeError, Message

from headrace.control.human_service import HumanService
from headrace.errors import InvalidArgumentError, UnavailableError
from headrace.protocol import admin
from headrace.repository.names import check_model_name
from headrace.rollout.plan import RolloutPlan

if TYPE_CHECKING:
    from headrace import runtime
    from headrace.control.people import People
    from headrace.control.rollouts import Rollouts, RolloutState

__all__ = ["AdminService"]

_PATH = "/headrace.v1.Admin/"
_Request = TypeVar("_Request", bound=Message)


class AdminService:
    def __init__(
        self,
        rollouts: Rollouts,
        people: People | None = None,
        load_together: Callable[[Sequence[str]], None] | None = None,
    ) -> None:
        self._rollouts = rollouts
        self._load_together = load_together
        self._human = HumanService(people)

    def add_to(self, server: runtime.Server) -> None:
        """Registers every method. Before the server starts."""
        self._add(server, "LoadTogether", admin.LoadTogetherRequest, self.load_together)
        self._add(server, "RolloutStart", admin.RolloutStartRequest, self.start)
        self._add(server, "RolloutStatus", admin.RolloutStatusRequest, self.status)
        self._add(server, "RolloutPromote", admin.RolloutPromoteRequest, self.promote)
        self._add(server, "RolloutRollback", admin.RolloutRollbackRequest, self.rollback)
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
    )
