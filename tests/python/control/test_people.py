"""What the tests of tickets and of fallbacks (tests/e2e) do not see of people."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from headrace.control.people import People
from headrace.errors import NotFoundError
from headrace.human import NewTicket, Tensor, TicketStore

NEW = NewTicket(
    queue="nurses",
    model="triage",
    version="7",
    trigger="error",
    request_id="",
    confidence=None,
    outputs=(Tensor("label", "INT64", (1, -1)),),
)
ANSWER = (Tensor("label", "INT64", (1, 1), (3).to_bytes(8, "little")),)


def resolved_before(path: Path, days: float) -> str:
    store = TicketStore(path, clock=lambda: time.time() - days * 86400)
    ticket = store.file(NEW)
    lease = store.lease("nurses", holder="ann", seconds=60)
    assert lease is not None
    store.resolve(ticket, lease.token, ANSWER)
    store.close()
    return ticket


@pytest.mark.parametrize(("keep_days", "stays"), [(30.0, {1}), (0.0, {1, 40})])
def test_resolved_tickets_are_deleted_in_the_end(
    tmp_path: Path, keep_days: float, stays: set[float]
) -> None:
    path = tmp_path / "tickets.db"
    tickets = {days: resolved_before(path, days) for days in (1, 40)}
    people = People(path, keep_days=keep_days)
    people.start()
    people.stop()  # not before it has looked once
    store = TicketStore(path)
    for days, ticket in tickets.items():
        if days in stays:
            store.find(ticket)
        else:
            with pytest.raises(NotFoundError):
                store.find(ticket)
    store.close()
