"""HumanLease, HumanResolve and HumanStatus of headrace.v1.Admin."""

from __future__ import annotations

from collections.abc import Iterable

from headrace.control.people import People
from headrace.errors import FailedPreconditionError, InvalidArgumentError
from headrace.human import Tensor, Ticket
from headrace.protocol import admin

__all__ = ["HumanService"]

_DEFAULT_LEASE = 300.0
_MOST_NAME = 128


class HumanService:
    def __init__(self, people: People | None) -> None:
        """None: every method is refused."""
        self._known = people

    @property
    def _people(self) -> People:
        if self._known is None:
            raise FailedPreconditionError("this server keeps no tickets (--tickets FILE)")
        return self._known

    def lease(self, request: admin.HumanLeaseRequest) -> admin.HumanLeaseResponse:
        if not request.queue:
            raise InvalidArgumentError("name a queue")
        if len(request.holder) > _MOST_NAME:
            raise InvalidArgumentError(f"a holder's name has at most {_MOST_NAME} characters")
        seconds = request.seconds or _DEFAULT_LEASE
        if not 1 <= seconds <= 86400:
            raise InvalidArgumentError("a lease lasts 1 to 86400 seconds")
        lease = self._people.lease(request.queue, holder=request.holder, seconds=seconds)
        if lease is None:
            return admin.HumanLeaseResponse()
        return admin.HumanLeaseResponse(
            ticket=_message(lease.ticket), token=lease.token, until=lease.until
        )

    def resolve(self, request: admin.HumanResolveRequest) -> admin.HumanTicket:
        answer = [Tensor(t.name, t.datatype, tuple(t.shape), t.data) for t in request.answer]
        return _message(self._people.resolve(request.ticket, request.token, answer))

    def status(self, request: admin.HumanStatusRequest) -> admin.HumanStatusResponse:
        people = self._people
        if request.ticket:
            return admin.HumanStatusResponse(ticket=_message(people.store.find(request.ticket)))
        return admin.HumanStatusResponse(
            queues=[
                admin.HumanQueue(
                    queue=q.queue,
                    open=q.open,
                    leased=q.leased,
                    resolved=q.resolved,
                    oldest_seconds=q.oldest_seconds,
                )
                for q in people.queues()
            ]
        )


def _tensors(tensors: Iterable[Tensor]) -> list[admin.HumanTensor]:
    return [
        admin.HumanTensor(name=t.name, datatype=t.datatype, shape=t.shape, data=t.data)
        for t in tensors
    ]


def _message(ticket: Ticket) -> admin.HumanTicket:
    what = ticket.what
    return admin.HumanTicket(
        id=ticket.id,
        queue=what.queue,
        created=ticket.created,
        state=ticket.state,
        model=what.model,
        version=what.version,
        trigger=what.trigger,
        request_id=what.request_id,
        confidence=what.confidence,
        outputs=_tensors(what.outputs),
        inputs=_tensors(what.inputs),
        suggestion=_tensors(what.suggestion),
        holder=ticket.holder,
        resolved=ticket.resolved or 0.0,
        answer=_tensors(ticket.answer),
    )
