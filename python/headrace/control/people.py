"""People: files what fallback chains leave for a person, and brings answers to who still waits.

Threads: `start` makes one, which files; the rest any. Nothing here runs on an I/O thread: chains
leave cases in a bounded queue of the core's, and go on when a ticket is on the disk.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from headrace import runtime
from headrace.errors import HeadraceError
from headrace.human import Lease, NewTicket, QueueState, Tensor, Ticket, TicketStore
from headrace.logs import get_logger

__all__ = ["People"]

_log = get_logger("human")

_MOST_LEASE = 86400.0
_LEAST_LEASE = 1.0
# How often cases are let go of whose requests have been answered.
_SWEEP_SECS = 1.0
# How often resolved tickets are looked through for old ones.
_FORGET_SECS = 3600.0


class People:
    def __init__(self, path: str | Path, *, bound: int = 10_000, keep_days: float = 30.0) -> None:
        """Resolved tickets are deleted after `keep_days`; 0 = never. Raises UnavailableError naming
        the file."""
        self._keep_days = keep_days
        self._forget_at = 0.0
        self.store = TicketStore(path, bound=bound)
        self.desk = runtime.HumanDesk()
        self._lock = threading.Lock()
        # Tickets whose requests wait: (case, until when); guarded by _lock.
        self._awaited: dict[str, tuple[runtime.Case, float]] = {}
        self._counts: Counter[tuple[str, str]] = Counter()  # (queue, event); guarded by _lock
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="human-desk", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self.desk.close()
        if self._thread.is_alive():
            self._thread.join()
        self.store.close()

    def lease(self, queue: str, *, holder: str, seconds: float) -> Lease | None:
        lease = self.store.lease(
            queue, holder=holder, seconds=min(max(seconds, _LEAST_LEASE), _MOST_LEASE)
        )
        if lease is not None:
            self._count(queue, "leased")
        return lease

    def resolve(self, ticket_id: str, token: str, answer: Sequence[Tensor]) -> Ticket:
        """Raises InvalidArgumentError naming the output that is not what the ticket asks for."""
        from headrace.human.answers import arrays_of, check_answer  # NumPy, only with tickets

        check_answer(self.store.find(ticket_id).what.outputs, answer)
        ticket, now = self.store.resolve(ticket_id, token, answer)
        with self._lock:
            awaited = self._awaited.pop(ticket_id, None)
        if now:
            self._count(ticket.what.queue, "resolved")
        if awaited is not None:
            awaited[0].resolve(arrays_of(answer))
        return ticket

    def queues(self) -> list[QueueState]:
        return self.store.queues()

    def counts(self) -> dict[tuple[str, str], int]:
        """{(queue, "filed" | "refused" | "leased" | "resolved"): how many since the start}."""
        with self._lock:
            return dict(self._counts)

    def _count(self, queue: str, event: str) -> None:
        with self._lock:
            self._counts[queue, event] += 1

    def _run(self) -> None:
        while True:
            case = self.desk.next(_SWEEP_SECS)
            self._sweep()
            if case is not None:
                self._file(case)
            elif self._stopping.is_set():
                return

    def _sweep(self) -> None:
        now = time.monotonic()
        if self._keep_days > 0 and now >= self._forget_at:
            self._forget_at = now + _FORGET_SECS
            try:
                self.store.forget_resolved(time.time() - self._keep_days * 86400)
            except HeadraceError as error:
                _log.error("old tickets are not deleted: %s", error.details)
        with self._lock:
            for ticket_id in [t for t, (_, until) in self._awaited.items() if until <= now]:
                del self._awaited[ticket_id]

    def _file(self, case: runtime.Case) -> None:
        from headrace.human.answers import tensors_of

        try:
            ticket_id = self.store.file(
                NewTicket(
                    queue=case.queue,
                    model=case.model,
                    version=case.version,
                    trigger=case.trigger,
                    request_id=case.request_id,
                    confidence=case.confidence,
                    outputs=tuple(Tensor(n, d, tuple(dims)) for n, d, dims in case.outputs),
                    inputs=tensors_of(case.inputs()),
                    suggestion=tensors_of(case.suggestion()),
                )
            )
        except HeadraceError as error:
            self._count(case.queue, "refused")
            _log.warning("a ticket for '%s' was not filed: %s", case.queue, error.details)
            case.refused(error.details)
            return
        except Exception:
            self._count(case.queue, "refused")
            _log.exception("a ticket for '%s' was not filed", case.queue)
            case.refused("the ticket could not be written")
            return
        self._count(case.queue, "filed")
        if case.awaited and case.wait_s > 0:
            with self._lock:
                self._awaited[ticket_id] = (case, time.monotonic() + case.wait_s + _SWEEP_SECS)
        case.filed(ticket_id)
