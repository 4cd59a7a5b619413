"""A client of headrace.v1.Admin.

with AdminClient(default_admin_socket(8001)) as admin:
    admin.start("digits", 8, share=0.05)

with AdminClient.over_tls("models.example:8003", ca=pem, api_key=key) as admin:
    ...
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Protocol, TypeVar

import grpc
from google.protobuf.message import Message

from headrace.client.unary import call_unary
from headrace.protocol import admin

__all__ = ["AdminClient"]

_Response = TypeVar("_Response", bound=Message)


class HumanTensor(Protocol):
    """An output of an answer; `data` as raw_input_contents. headrace.human.Tensor is one."""

    @property
    def name(self) -> str: ...
    @property
    def datatype(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def data(self) -> bytes: ...


class AdminClient:
    """Thread-safe. `timeout_s` bounds every call; a start loads a model. Failures raise the leaf of
    `headrace.errors` for their gRPC status."""

    def __init__(
        self,
        socket: Path | str,
        *,
        timeout_s: float = 600.0,
        channel: grpc.Channel | None = None,
        api_key: str = "",
    ) -> None:
        """Through a unix socket. A `channel` goes elsewhere; `socket` is then its name in texts."""
        self._where = str(socket)
        self._timeout_s = timeout_s
        self._hint = "or say which with --grpc-port or --admin-socket"
        self._metadata = (("authorization", f"Bearer {api_key}"),) if api_key else ()
        # grpc-core would put the socket's path there, which is no host name.
        self._channel = channel or grpc.insecure_channel(
            f"unix:{socket}", options=[("grpc.default_authority", "localhost")]
        )

    @classmethod
    def over_tls(
        cls,
        address: str,
        *,
        ca: bytes | None = None,
        certificate: bytes | None = None,
        key: bytes | None = None,
        api_key: str = "",
        timeout_s: float = 600.0,
    ) -> AdminClient:
        """The server's --admin-listen. PEM; `ca` None: the system's authorities."""
        credentials = grpc.ssl_channel_credentials(ca, key, certificate)
        client = cls(
            address,
            timeout_s=timeout_s,
            channel=grpc.secure_channel(address, credentials),
            api_key=api_key,
        )
        client._hint = f"with --admin-listen {address} and a certificate that --tls-ca verifies"
        return client

    def close(self) -> None:
        self._channel.close()

    def __enter__(self) -> AdminClient:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def load_together(self, models: Iterable[str]) -> None:
        """Loads them as the repository has them; all change at one moment, or none does."""
        request = admin.LoadTogetherRequest(models=models)
        self._call("LoadTogether", request, admin.LoadTogetherResponse)

    def start(
        self,
        model: str,
        candidate: int,
        *,
        share: float = 0.0,
        key: str = "",
        alpha: float = 0.0,
        latency_ratio: float = 0.0,
        min_requests: int = 0,
        min_seconds: float = 0.0,
        manual_promotion: bool = False,
        fallback: bool = True,
        shadow: bool = False,
        tolerance: float = 0.0,
        kpis: Mapping[str, float] | None = None,
    ) -> admin.RolloutState:
        """0 stands for the server's default. `kpis`: margins by name."""
        request = admin.RolloutStartRequest(
            model=model,
            candidate=candidate,
            share=share,
            key=key,
            alpha=alpha,
            latency_ratio=latency_ratio,
            min_requests=min_requests,
            min_seconds=min_seconds,
            manual_promotion=manual_promotion,
            no_fallback=not fallback,
            shadow=shadow,
            tolerance=tolerance,
            kpis=kpis,
        )
        return self._call("RolloutStart", request, admin.RolloutState)

    def status(self, model: str = "") -> list[admin.RolloutState]:
        request = admin.RolloutStatusRequest(model=model)
        return list(self._call("RolloutStatus", request, admin.RolloutStatusResponse).rollouts)

    def promote(self, model: str) -> admin.RolloutState:
        request = admin.RolloutPromoteRequest(model=model)
        return self._call("RolloutPromote", request, admin.RolloutState)

    def rollback(self, model: str) -> admin.RolloutState:
        request = admin.RolloutRollbackRequest(model=model)
        return self._call("RolloutRollback", request, admin.RolloutState)

    def feedback(
        self, model: str, version: int, outcomes: Mapping[str, tuple[int, int]]
    ) -> dict[str, tuple[int, int]]:
        """`outcomes`: (good, bad) by KPI, counted since the last such call. Answers the totals.
        Raises NotFoundError for a version that is not loaded."""
        request = admin.FeedbackRequest(
            model=model,
            version=version,
            kpis=[admin.KpiOutcomes(name=n, good=g, bad=b) for n, (g, b) in outcomes.items()],
        )
        response = self._call("Feedback", request, admin.FeedbackResponse)
        return {total.name: (total.good, total.bad) for total in response.totals}

    def drift_alarm(self, model: str, alarm: bool, *, version: int = 0) -> list[int]:
        """Sets or clears it, of one version or (0) of all; answers which. Raises
        FailedPreconditionError for a model without fallbacks."""
        request = admin.DriftAlarmRequest(model=model, version=version, alarm=alarm)
        return list(self._call("DriftAlarm", request, admin.DriftAlarmResponse).versions)

    def human_queues(self) -> list[admin.HumanQueue]:
        request = admin.HumanStatusRequest()
        return list(self._call("HumanStatus", request, admin.HumanStatusResponse).queues)

    def human_ticket(self, ticket: str) -> admin.HumanTicket:
        request = admin.HumanStatusRequest(ticket=ticket)
        return self._call("HumanStatus", request, admin.HumanStatusResponse).ticket

    def human_lease(
        self, queue: str, *, holder: str = "", seconds: float = 300.0
    ) -> admin.HumanLeaseResponse | None:
        """None: nothing waits."""
        request = admin.HumanLeaseRequest(queue=queue, holder=holder, seconds=seconds)
        response = self._call("HumanLease", request, admin.HumanLeaseResponse)
        return response if response.token else None

    def human_resolve(
        self, ticket: str, token: str, answer: Iterable[HumanTensor]
    ) -> admin.HumanTicket:
        request = admin.HumanResolveRequest(
            ticket=ticket,
            token=token,
            answer=[
                admin.HumanTensor(name=t.name, datatype=t.datatype, shape=t.shape, data=t.data)
                for t in answer
            ],
        )
        return self._call("HumanResolve", request, admin.HumanTicket)

    def _call(self, method: str, request: Message, response: type[_Response]) -> _Response:
        return call_unary(
            self._channel,
            f"/headrace.v1.Admin/{method}",
            request,
            response,
            self._timeout_s,
            f"no server listens on {self._where}; start one with `headrace serve`, {self._hint}",
            self._metadata,
        )
