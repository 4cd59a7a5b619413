"""TicketStore: what waits for a person, in one SQLite file that outlives the server.

    store = TicketStore("tickets.db")
    ticket = store.file(NewTicket(queue="nurses", model="triage", version="7", trigger="error"))
    lease = store.lease("nurses", holder="ada", seconds=300)
    store.resolve(lease.ticket.id, lease.token, [Tensor("label", "INT64", (1,), b"...")])

A ticket is open, leased or resolved. A lease that ends gives the ticket to the next who asks;
oldest first. Only who holds the lease resolves, once; the same answer again changes nothing.
Threads: every method from any; one connection under one lock. Durable: a commit is on the disk
(WAL, synchronous FULL) before a method returns. Errors: ResourceExhaustedError for a queue that is
full, NotFoundError, FailedPreconditionError for a lease that is somebody else's or over,
UnavailableError when the file cannot be written.
"""

from __future__ import annotations

import json
import secrets
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headrace.errors import (
    FailedPreconditionError,
    NotFoundError,
    ResourceExhaustedError,
    UnavailableError,
)

__all__ = ["Lease", "NewTicket", "QueueState", "Tensor", "Ticket", "TicketStore"]

_SCHEMA = """
CREATE TABLE IF NOT EXISTS tickets (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    queue TEXT NOT NULL,
    created REAL NOT NULL,
    ticket TEXT NOT NULL,
    inputs BLOB NOT NULL,
    suggestion BLOB NOT NULL,
    holder TEXT NOT NULL DEFAULT '',
    token TEXT NOT NULL DEFAULT '',
    leased_until REAL NOT NULL DEFAULT 0,
    resolved REAL,
    answer BLOB
);
CREATE INDEX IF NOT EXISTS waiting ON tickets (queue, number) WHERE resolved IS NULL;
"""
_COLUMNS = "id, queue, created, ticket, inputs, suggestion, holder, leased_until, resolved, answer"


@dataclass(frozen=True)
class Tensor:
    """`data` in wire form."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: bytes = b""


@dataclass(frozen=True)
class NewTicket:
    queue: str
    model: str
    version: str
    trigger: str
    request_id: str = ""
    confidence: float | None = None
    # What an answer is to have, without data; -1 = any size.
    outputs: tuple[Tensor, ...] = ()
    # What the policy lets the ticket keep.
    inputs: tuple[Tensor, ...] = ()
    suggestion: tuple[Tensor, ...] = ()


@dataclass(frozen=True)
class Ticket:
    id: str
    created: float  # seconds since 1970
    what: NewTicket
    state: str  # "open", "leased", "resolved"
    holder: str = ""
    resolved: float | None = None
    answer: tuple[Tensor, ...] = ()


@dataclass(frozen=True)
class Lease:
    ticket: Ticket
    token: str  # resolves
    until: float  # seconds since 1970


@dataclass(frozen=True)
class QueueState:
    queue: str
    open: int
    leased: int
    resolved: int
    oldest_seconds: float  # that of the ticket which waits longest; 0 = none does


class TicketStore:
    def __init__(
        self, path: str | Path, *, bound: int = 10_000, clock: Callable[[], float] = time.time
    ) -> None:
        """`bound`: of the tickets of a queue that are not resolved. ":memory:" keeps nothing.
        Raises UnavailableError naming the file."""
        self._path = str(path)
        self._bound = bound
        self._clock = clock
        self._lock = threading.Lock()
        with self._errors():
            self._db = sqlite3.connect(self._path, check_same_thread=False, isolation_level=None)
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = FULL")
            self._db.execute("PRAGMA busy_timeout = 5000")
            self._db.executescript(_SCHEMA)

    def close(self) -> None:
        with self._lock:
            self._db.close()

    def file(self, new: NewTicket) -> str:
        """The new ticket's id."""
        ticket_id = secrets.token_hex(8)
        with self._transaction() as db:
            (waiting,) = db.execute(
                "SELECT count(*) FROM tickets WHERE queue = ? AND resolved IS NULL", (new.queue,)
            ).fetchone()
            if waiting >= self._bound:
                raise ResourceExhaustedError(
                    f"queue '{new.queue}' has {waiting} tickets, more than it may have"
                )
            about = {
                "model": new.model,
                "version": new.version,
                "trigger": new.trigger,
                "request_id": new.request_id,
                "confidence": new.confidence,
                "outputs": [[t.name, t.datatype, list(t.shape)] for t in new.outputs],
            }
            db.execute(
                "INSERT INTO tickets (id, queue, created, ticket, inputs, suggestion)"
                " VALUES (?, ?, ?, ?, ?, ?)",
                (
                    ticket_id,
                    new.queue,
                    self._clock(),
                    json.dumps(about),
                    _packed(new.inputs),
                    _packed(new.suggestion),
                ),
            )
        return ticket_id

    def lease(self, queue: str, *, holder: str = "", seconds: float = 300.0) -> Lease | None:
        """The ticket that waits longest, for `seconds`. None: nothing waits."""
        now = self._clock()
        token = secrets.token_hex(16)
        with self._transaction() as db:
            row = db.execute(
                f"SELECT {_COLUMNS} FROM tickets WHERE queue = ? AND resolved IS NULL"
                " AND leased_until <= ? ORDER BY number LIMIT 1",
                (queue, now),
            ).fetchone()
            if row is None:
                return None
            until = now + seconds
            db.execute(
                "UPDATE tickets SET holder = ?, token = ?, leased_until = ? WHERE id = ?",
                (holder, token, until, row[0]),
            )
            row = db.execute(f"SELECT {_COLUMNS} FROM tickets WHERE id = ?", (row[0],)).fetchone()
        return Lease(_ticket(row, now), token, until)

    def resolve(self, ticket_id: str, token: str, answer: Sequence[Tensor]) -> tuple[Ticket, bool]:
        """The ticket, and whether this call has resolved it (False: it had been, so)."""
        now = self._clock()
        packed = _packed(answer)
        with self._transaction() as db:
            row = db.execute(
                "SELECT token, leased_until, resolved, answer FROM tickets WHERE id = ?",
                (ticket_id,),
            ).fetchone()
            if row is None:
                raise NotFoundError(f"no ticket '{ticket_id}'")
            held, leased_until, resolved, before = row
            if not held or not secrets.compare_digest(held.encode(), token.encode()):
                raise FailedPreconditionError(f"ticket '{ticket_id}' is not leased with this token")
            if resolved is not None and before != packed:
                raise FailedPreconditionError(f"ticket '{ticket_id}' has another answer already")
            if resolved is None:
                if leased_until <= now:
                    raise FailedPreconditionError(f"the lease of ticket '{ticket_id}' is over")
                db.execute(
                    "UPDATE tickets SET resolved = ?, answer = ? WHERE id = ?",
                    (now, packed, ticket_id),
                )
            found = db.execute(
                f"SELECT {_COLUMNS} FROM tickets WHERE id = ?", (ticket_id,)
            ).fetchone()
        return _ticket(found, now), resolved is None

    def find(self, ticket_id: str) -> Ticket:
        with self._lock, self._errors():
            row = self._db.execute(
                f"SELECT {_COLUMNS} FROM tickets WHERE id = ?", (ticket_id,)
            ).fetchone()
        if row is None:
            raise NotFoundError(f"no ticket '{ticket_id}'")
        return _ticket(row, self._clock())

    def queues(self) -> list[QueueState]:
        now = self._clock()
        with self._lock, self._errors():
            rows = self._db.execute(
                "SELECT queue, sum(resolved IS NULL AND leased_until <= ?),"
                " sum(resolved IS NULL AND leased_until > ?), sum(resolved IS NOT NULL),"
                " min(CASE WHEN resolved IS NULL THEN created END)"
                " FROM tickets GROUP BY queue ORDER BY queue",
                (now, now),
            ).fetchall()
        return [
            QueueState(name, waiting, leased, resolved, max(0.0, now - oldest) if oldest else 0.0)
            for name, waiting, leased, resolved, oldest in rows
        ]

    def forget_resolved(self, before: float) -> int:
        """Deletes tickets that were resolved before a time; how many."""
        with self._transaction() as db:
            return db.execute("DELETE FROM tickets WHERE resolved < ?", (before,)).rowcount

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock, self._errors():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
                self._db.execute("COMMIT")
            except BaseException:
                # A full disk has ended the transaction by itself; a failed COMMIT may not have.
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise UnavailableError(f"tickets in {self._path}: {error}") from error


def _packed(tensors: Sequence[Tensor]) -> bytes:
    """A line of JSON, then the bytes of one tensor after the other."""
    head = [[t.name, t.datatype, list(t.shape), len(t.data)] for t in tensors]
    return json.dumps(head).encode() + b"\n" + b"".join(t.data for t in tensors)


def _unpacked(packed: bytes | None) -> tuple[Tensor, ...]:
    if packed is None:
        return ()
    line, _, data = packed.partition(b"\n")
    tensors: list[Tensor] = []
    at = 0
    for name, datatype, shape, size in json.loads(line):
        tensors.append(Tensor(name, datatype, tuple(shape), data[at : at + size]))
        at += size
    return tuple(tensors)


def _ticket(row: Any, now: float) -> Ticket:
    ticket_id, queue, created, about, inputs, suggestion, holder, until, resolved, answer = row
    about = json.loads(about)
    outputs = tuple(Tensor(n, d, tuple(s)) for n, d, s in about.pop("outputs"))
    state = "resolved" if resolved is not None else "leased" if until > now else "open"
    return Ticket(
        id=ticket_id,
        created=created,
        what=NewTicket(
            queue=queue,
            outputs=outputs,
            inputs=_unpacked(inputs),
            suggestion=_unpacked(suggestion),
            **about,
        ),
        state=state,
        holder=holder if state != "open" else "",
        resolved=resolved,
        answer=_unpacked(answer),
    )
