"""The client's own books: what was asked, and the one thing that became of it.

    ledger = Ledger()
    with Load(ledger, [server.address], connections=4, in_flight=8) as load:
        load.more(100)
        ...                                   # the fault
    ledger.check({"OK", "UNAVAILABLE"})

Every request has a number, which is its id and is in its input. Models of `probe.py` answer with
the number, their version and a sum over the whole input, so that an answer to another request, an
answer to none, an answer of a version that the response does not name and a torn one are all seen.
"""

from __future__ import annotations

import itertools
import random
import sqlite3
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from harness import Server, infer_request, raw_input

# How much later than its deadline a call may end in a client whose machine is busy.
PATIENCE_S = 30.0
FACTORS = (31, 7, 3)  # of the sum that answers carry; the fourth is the version


@dataclass
class Entry:
    number: int
    op: int  # see probe.py
    argument: int
    salt: int
    began: float
    timeout_s: float | None
    outcome: str = ""  # "OK", a status code's name, or what is wrong with the answer
    details: str = ""
    ended: float = 0.0
    version: int = 0
    parameters: dict[str, Any] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        return self.ended - self.began

    def input(self) -> np.ndarray[Any, Any]:
        return np.array([[self.number, self.op, self.argument, self.salt]], np.int64)


class Ledger:
    """Threads: any."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._numbers = itertools.count(1)
        self._random = random.Random(7)
        self.entries: dict[int, Entry] = {}
        self.problems: list[str] = []

    # --- writing ---

    def sent(self, op: int = 0, argument: int = 0, timeout_s: float | None = None) -> Entry:
        with self._lock:
            salt = self._random.randrange(1 << 31)
            entry = Entry(next(self._numbers), op, argument, salt, time.monotonic(), timeout_s)
            self.entries[entry.number] = entry
        return entry

    def _end(self, entry: Entry, outcome: str, details: str = "") -> None:
        now = time.monotonic()
        with self._lock:
            if entry.outcome:
                self.problems.append(f"request {entry.number}: {entry.outcome}, then {outcome}")
                return
            entry.outcome, entry.details, entry.ended = outcome, details, now
            if outcome.startswith("wrong"):
                self.problems.append(f"request {entry.number}: {outcome}")
            if entry.timeout_s is not None and entry.seconds > entry.timeout_s + PATIENCE_S:
                self.problems.append(
                    f"request {entry.number}: {outcome} {entry.seconds:.1f} s after it was sent "
                    f"with {entry.timeout_s} s"
                )

    def answered(self, entry: Entry, response: Any) -> None:
        entry.version = int(response.model_version)
        entry.parameters = {
            key: getattr(value, value.WhichOneof("parameter_choice"))
            for key, value in response.parameters.items()
        }
        self._end(entry, wrong(entry, response) or "OK")

    def failed(self, entry: Entry, error: Any) -> None:
        self._end(entry, error.code().name, error.details() or "")

    def problem(self, what: str) -> None:
        with self._lock:
            self.problems.append(what)

    # --- reading ---

    def ended(self) -> list[Entry]:
        with self._lock:
            return [entry for entry in self.entries.values() if entry.outcome]

    def outcomes(self, where: Callable[[Entry], bool] = lambda _: True) -> Counter[str]:
        return Counter(entry.outcome for entry in self.ended() if where(entry))

    def ok(self) -> int:
        return self.outcomes()["OK"]

    def milliseconds(
        self, share: float, where: Callable[[Entry], bool] = lambda entry: entry.outcome == "OK"
    ) -> float:
        """The quantile of how long calls took."""
        taken = sorted(entry.seconds * 1e3 for entry in self.ended() if where(entry))
        return round(taken[min(len(taken) - 1, int(share * len(taken)))], 1) if taken else 0.0

    def check(self, allowed: Iterable[str] = ("OK",)) -> None:
        """Each request has one outcome, an allowed one; no answer is wrong or late."""
        open_ = [entry.number for entry in self.entries.values() if not entry.outcome]
        assert not open_, f"never answered: {open_[:10]} ... of {len(self.entries)}"
        assert not self.problems, self.problems[:10]
        seen = self.outcomes()
        surprising = {
            outcome: next(e.details for e in self.entries.values() if e.outcome == outcome)
            for outcome in set(seen) - set(allowed)
        }
        assert not surprising, f"{surprising}, of {seen}"
        assert seen["OK"] > 0, seen

    def check_with(self, server: Server, model: str, more: int = 0) -> None:
        """The server counts what the ledger has: answers, and `more` that the test asked for
        without it."""
        stats = [
            one.inference_stats for one in server.client.get_inference_statistics(model).model_stats
        ]
        answered = sum(one.success.count for one in stats)
        assert answered == self.ok() + more, (answered, self.outcomes())
        refused = sum(one.fail.count for one in stats)
        failed = len(self.entries) - self.ok()
        assert refused == failed, (refused, self.outcomes())


def wrong(entry: Entry, response: Any) -> str:
    """What is wrong with an answer; "" when nothing is."""
    if response.id != str(entry.number):
        return f"wrong: the answer to request {response.id!r}"
    if len(response.raw_output_contents) != 1 or len(response.raw_output_contents[0]) != 24:
        return "wrong: not one output of three numbers"
    number, version, total = np.frombuffer(response.raw_output_contents[0], np.int64).tolist()
    if number != entry.number:
        return f"wrong: the output of request {number}"
    # Answers of a fallback name the model that was asked for.
    if "hr.fallback" not in response.parameters and str(version) != response.model_version:
        return f"wrong: the output of version {version} under the name of {response.model_version}"
    if total != int(entry.input()[0] @ np.array([*FACTORS, version])):
        return f"wrong: not the sum of its input: {total}"
    return ""


def request_of(entry: Entry, model: str, version: str = "") -> Any:
    return infer_request(
        model,
        model_version=version,
        id=str(entry.number),
        inputs=[raw_input("X", "INT64", [1, 4])],
        raw_input_contents=[entry.input().tobytes()],
    )


def ask(
    ledger: Ledger,
    stub: Any,
    *,
    model: str = "probe",
    op: int = 0,
    argument: int = 0,
    timeout_s: float | None = None,
    version: str = "",
) -> Entry:
    """One call, waited for."""
    entry = ledger.sent(op, argument, timeout_s)
    try:
        response = stub.ModelInfer(request_of(entry, model, version), timeout=timeout_s)
    except grpc.RpcError as error:
        ledger.failed(entry, error)
    else:
        ledger.answered(entry, response)
    return entry


def _copied(file: Path, folder: str) -> sqlite3.Connection:
    for suffix in ("", "-wal"):
        source = file.with_name(file.name + suffix)
        if source.exists():
            (Path(folder) / source.name).write_bytes(source.read_bytes())
    return sqlite3.connect(Path(folder) / file.name)


def check_tickets(ledger: Ledger, file: Path) -> int:
    """Each ticket that a client was told of is in the file, once, and is its request's; how many
    are there."""
    # A copy: the file may be on a disk that only its server sees.
    with tempfile.TemporaryDirectory() as folder, closing(_copied(file, folder)) as store:
        assert store.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        rows = store.execute(
            "SELECT id, json_extract(ticket, '$.request_id') FROM tickets"
        ).fetchall()
    found = dict(rows)
    assert len(found) == len(rows)
    for entry in ledger.ended():
        told = entry.parameters.get("hr.ticket")
        if told is not None:
            assert found.get(told) == str(entry.number), f"ticket {told} is lost"
    return len(rows)
