"""Journal: how the last rollout of each model stands, kept in a file, so that a restart neither
serves a version that was rolled back nor forgets one that is being tried.

    journal = Journal(Path("/var/lib/headrace/rollouts.json"))
    journal.put(Record(plan, stable=7, state="rolled_back", reason="...", files={7: "a", 8: "b"}))
    journal.get("digits").kept_out({7: "a", 8: "b"})    # {8}

Threads: any. The file is replaced whole; a file that cannot be read is set aside, with a log line.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from headrace.errors import HeadraceError
from headrace.logs import get_logger
from headrace.rollout.plan import RolloutPlan

__all__ = ["Journal", "Record"]

_log = get_logger("rollout")

State = Literal["running", "promoted", "rolled_back"]


@dataclass(frozen=True)
class Record:
    plan: RolloutPlan
    stable: int
    state: State
    reason: str
    files: Mapping[int, str]  # fingerprints of the two versions' files
    fallback: bool = True

    def is_about(self, candidate: int, files: Mapping[int, str]) -> bool:
        """Whether this is what became of that candidate, with the files it has now."""
        mine = self.files.get(candidate)
        return (
            self.plan.candidate == candidate and mine is not None and mine == files.get(candidate)
        )

    def kept_out(self, files: Mapping[int, str]) -> frozenset[int]:
        """Versions that are not to be loaded as the version policy says, given the files that are
        there now: what was rolled back or is being tried, and a higher stable version that a lower
        one was promoted over."""
        number = self.plan.candidate
        if self.state == "promoted":
            number = self.stable if self.stable > number else 0
        same = self.files.get(number) is not None and self.files.get(number) == files.get(number)
        return frozenset({number} if same else ())


class Journal:
    def __init__(self, path: Path | None = None) -> None:
        """`path` None: kept in memory alone."""
        self._path = path
        self._lock = threading.Lock()
        self._records: dict[str, Record] = {}  # by model; guarded by _lock
        if path is not None and path.exists():
            try:
                document = json.loads(path.read_text(encoding="utf-8"))
                for model, row in document["rollouts"].items():
                    self._records[model] = _record(row)
            except (
                OSError,
                ValueError,
                KeyError,
                TypeError,
                AttributeError,
                HeadraceError,
            ) as error:
                self._records.clear()
                aside = path.with_suffix(".unreadable")
                _log.error("%s cannot be read (%s); it is kept as %s", path, error, aside.name)
                try:
                    path.replace(aside)
                except OSError as failure:
                    _log.error("%s: %s", aside, failure.strerror)

    def get(self, model: str) -> Record | None:
        with self._lock:
            return self._records.get(model)

    def records(self) -> dict[str, Record]:
        with self._lock:
            return dict(self._records)

    def put(self, record: Record) -> None:
        """A file that cannot be written is logged; the record holds in this process."""
        with self._lock:
            self._records[record.plan.model] = record
            if self._path is None:
                return
            try:
                self._write(self._path)
            except OSError as error:
                _log.error(
                    "%s cannot be written (%s): after a restart the rollout of %s is forgotten",
                    self._path,
                    error.strerror,
                    record.plan.model,
                )

    def _write(self, path: Path) -> None:
        document = {"rollouts": {m: asdict(r) for m, r in sorted(self._records.items())}}
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        new = path.with_suffix(".new")
        with new.open("w", encoding="utf-8") as file:
            json.dump(document, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)


def _record(row: Mapping[str, Any]) -> Record:
    if row["state"] not in get_args(State):
        raise ValueError(f"state {row['state']!r}")
    return Record(
        plan=RolloutPlan(**row["plan"]),
        stable=int(row["stable"]),
        state=row["state"],
        reason=str(row["reason"]),
        files={int(number): str(text) for number, text in row["files"].items()},
        fallback=bool(row["fallback"]),
    )
