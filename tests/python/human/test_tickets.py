from __future__ import annotations

import threading
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from headrace.errors import (
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    ResourceExhaustedError,
    UnavailableError,
)
from headrace.human import NewTicket, Tensor, TicketStore
from headrace.human.answers import arrays_of, check_answer, from_json, tensors_of, to_json

NEW = NewTicket(
    queue="nurses",
    model="triage",
    version="7",
    trigger="low_confidence",
    request_id="r1",
    confidence=0.25,
    outputs=(Tensor("label", "INT64", (1, -1)),),
    inputs=(Tensor("x", "FP32", (1, 2), b"\0" * 8),),
)
ANSWER = (Tensor("label", "INT64", (1, 1), (3).to_bytes(8, "little")),)


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(tmp_path: Path, clock: Clock) -> TicketStore:
    return TicketStore(tmp_path / "tickets.db", bound=100, clock=clock)


def test_file_lease_resolve(store: TicketStore, clock: Clock) -> None:
    ticket_id = store.file(NEW)
    assert store.find(ticket_id).state == "open"
    assert store.find(ticket_id).what == NEW
    assert store.lease("doctors") is None
    lease = store.lease("nurses", holder="ada", seconds=60)
    assert lease is not None
    assert lease.ticket.id == ticket_id
    assert (lease.ticket.state, lease.ticket.holder, lease.until) == ("leased", "ada", 1060)
    assert store.lease("nurses") is None  # it is ada's
    clock.now += 10
    ticket, now = store.resolve(ticket_id, lease.token, ANSWER)
    assert (ticket.state, ticket.resolved, ticket.answer, now) == ("resolved", 1010, ANSWER, True)
    clock.now += 1000
    again, now = store.resolve(ticket_id, lease.token, ANSWER)
    assert (again, now) == (ticket, False)
    with pytest.raises(FailedPreconditionError, match="another answer"):
        store.resolve(ticket_id, lease.token, ())
    assert store.lease("nurses") is None


def test_a_lease_that_ends_gives_the_ticket_to_the_next(store: TicketStore, clock: Clock) -> None:
    first, second = store.file(NEW), store.file(NEW)
    old = store.lease("nurses", holder="ada", seconds=60)
    clock.now += 60
    new = store.lease("nurses", holder="bea", seconds=60)
    assert old is not None and new is not None
    assert old.ticket.id == new.ticket.id == first
    with pytest.raises(FailedPreconditionError, match="not leased with this token"):
        store.resolve(first, old.token, ANSWER)
    store.resolve(first, new.token, ANSWER)
    late = store.lease("nurses", seconds=60)
    assert late is not None and late.ticket.id == second
    clock.now += 61
    with pytest.raises(FailedPreconditionError, match="is over"):
        store.resolve(second, late.token, ANSWER)


@pytest.mark.parametrize("token", ["", "wrong", "ä"])
def test_only_who_holds_the_lease_resolves(store: TicketStore, token: str) -> None:
    ticket_id = store.file(NEW)
    with pytest.raises(FailedPreconditionError):
        store.resolve(ticket_id, token, ANSWER)
    store.lease("nurses")
    with pytest.raises(FailedPreconditionError):
        store.resolve(ticket_id, token, ANSWER)
    with pytest.raises(NotFoundError):
        store.resolve("nothing", token, ANSWER)


def test_queues_are_bounded_and_counted(tmp_path: Path, clock: Clock) -> None:
    store = TicketStore(tmp_path / "t.db", bound=2, clock=clock)
    store.file(NEW)
    clock.now += 5
    store.file(NEW)
    with pytest.raises(ResourceExhaustedError, match="'nurses'"):
        store.file(NEW)
    lease = store.lease("nurses")
    assert lease is not None
    (queue,) = store.queues()
    assert (queue.open, queue.leased, queue.resolved, queue.oldest_seconds) == (1, 1, 0, 5)
    store.resolve(lease.ticket.id, lease.token, ANSWER)
    store.file(NEW)
    (queue,) = store.queues()
    assert (queue.open, queue.leased, queue.resolved, queue.oldest_seconds) == (2, 0, 1, 0)
    assert store.forget_resolved(clock.now + 1) == 1
    assert store.queues()[0].resolved == 0


def test_tickets_and_leases_outlive_the_process(tmp_path: Path, clock: Clock) -> None:
    path = tmp_path / "t.db"
    store = TicketStore(path, clock=clock)
    ticket_id = store.file(NEW)
    lease = store.lease("nurses", seconds=60)
    assert lease is not None
    # Not closed, as after a crash.
    again = TicketStore(path, clock=clock)
    assert again.find(ticket_id).what == NEW
    assert again.lease("nurses") is None
    again.resolve(ticket_id, lease.token, ANSWER)
    assert TicketStore(path, clock=clock).find(ticket_id).answer == ANSWER


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="no/where"):
        TicketStore(tmp_path / "no" / "where" / "t.db")
    (tmp_path / "text").write_text("this is no data base, however long it may be" * 100)
    with pytest.raises(UnavailableError, match="text"):
        TicketStore(tmp_path / "text")


def test_many_workers_resolve_each_ticket_once(tmp_path: Path, clock: Clock) -> None:
    path = tmp_path / "t.db"
    filed = {TicketStore(path, clock=clock).file(NEW) for _ in range(1)}
    store = TicketStore(path, clock=clock)
    filed |= {store.file(NEW) for _ in range(59)}
    resolved: Counter[str] = Counter()
    lock = threading.Lock()

    def work() -> None:
        mine = TicketStore(path, clock=clock)  # as if each were a process of its own
        while (lease := mine.lease("nurses")) is not None:
            for _ in range(2):
                _, now = mine.resolve(lease.ticket.id, lease.token, ANSWER)
                with lock:
                    resolved[lease.ticket.id] += now

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert set(resolved) == filed
    assert set(resolved.values()) == {1}


def test_answers_are_what_the_ticket_asks_for() -> None:
    outputs = (Tensor("label", "INT64", (1, -1)), Tensor("why", "BYTES", (1, 1)))
    good = from_json(outputs, {"label": [1, 2], "why": [["so"]]})
    check_answer(outputs, good)
    assert to_json(good) == {"label": [[1, 2]], "why": [["so"]]}
    assert arrays_of(good)["label"].tolist() == [[1, 2]]
    with pytest.raises(InvalidArgumentError, match="no output 'lable'"):
        from_json(outputs, {"lable": [1]})
    with pytest.raises(InvalidArgumentError, match="'label'"):
        from_json(outputs, {"label": ["three"]})
    with pytest.raises(InvalidArgumentError, match="each once"):
        check_answer(outputs, good[:1])
    with pytest.raises(InvalidArgumentError, match="'label' is to be INT64"):
        check_answer(outputs, (Tensor("label", "INT32", (1, 1), b"\0" * 4), good[1]))
    with pytest.raises(InvalidArgumentError, match="'why' is to be"):
        check_answer(outputs, (good[0], Tensor("why", "BYTES", (2, 1), good[1].data)))
    with pytest.raises(InvalidArgumentError):
        check_answer(outputs, (Tensor("label", "INT64", (1, 2), b"\0" * 8), good[1]))


def test_arrays_become_tensors_and_back() -> None:
    arrays = {"x": np.arange(4, dtype=np.float32).reshape(2, 2), "t": np.array([b"a"], object)}
    back = arrays_of(tensors_of(arrays))
    assert np.array_equal(back["x"], arrays["x"])
    assert back["t"].tolist() == [b"a"]


def test_a_full_disk_is_told_and_forgotten(tmp_path: Path) -> None:
    """As SQLite sees it: no more pages. Once there is room, the same store goes on."""
    store = TicketStore(tmp_path / "tickets.db")
    new = NewTicket(
        queue="q",
        model="m",
        version="1",
        trigger="error",
        inputs=(Tensor("x", "UINT8", (100_000,), bytes(100_000)),),
    )
    store.file(new)
    store._db.execute("PRAGMA max_page_count = 30")
    for _ in range(3):
        with pytest.raises(UnavailableError, match="database or disk is full"):
            store.file(new)
    store._db.execute("PRAGMA max_page_count = 10000")
    store.file(new)
    assert [state.open for state in store.queues()] == [2]
    store.close()


def test_a_commit_that_fails_leaves_no_transaction_open(tmp_path: Path) -> None:
    store = TicketStore(tmp_path / "tickets.db")
    new = NewTicket(queue="q", model="m", version="1", trigger="error")
    # A deferred constraint fails when it is committed, and keeps the transaction.
    store._db.executescript(
        "PRAGMA foreign_keys = ON;"
        "CREATE TABLE one (id INTEGER PRIMARY KEY);"
        "CREATE TABLE two (one REFERENCES one (id) DEFERRABLE INITIALLY DEFERRED);"
        "CREATE TRIGGER spoil AFTER INSERT ON tickets BEGIN INSERT INTO two VALUES (7); END;"
    )
    for _ in range(2):
        with pytest.raises(UnavailableError, match="FOREIGN KEY"):
            store.file(new)
    store._db.execute("DROP TRIGGER spoil")
    store.file(new)
    assert [state.open for state in store.queues()] == [1]
    store.close()
