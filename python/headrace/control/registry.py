"""Registry: the records of all models, and what the server is told of them: routes, readiness,
health.

Threads: every method from any thread. One lock guards the records and orders publishing; nothing
slow runs under it (publishing waits for I/O threads to leave the old table, microseconds). `turn`
gives one caller at a time the right to change a model.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from headrace import runtime
from headrace.control.fallbacks import point
from headrace.control.states import (
    IndexEntry,
    LoadedVersion,
    ModelRecord,
    ModelState,
    VersionRecord,
    VersionRoute,
)
from headrace.errors import (
    HeadraceError,
    InvalidArgumentError,
    NotFoundError,
    UnavailableError,
)

__all__ = ["Registry", "Swap", "parse_version"]

_INTEGER = re.compile(r"-?[0-9]{1,20}")
_SERVICE = "inference.GRPCInferenceService"
_SPEECH_SERVICE = "nvidia.riva.asr.RivaSpeechRecognition"


def parse_version(text: str) -> int | None:
    """A version as requests name it; None for "", any version. Errors with Triton's texts."""
    if not text:
        return None
    if _INTEGER.fullmatch(text) is None or not -(2**63) <= int(text) < 2**63:
        raise InvalidArgumentError(
            f"failed to get model version from specified version string '{text}' (details: stol), "
            "version should be an integral value > 0"
        )
    number = int(text)
    if number <= 0:
        raise InvalidArgumentError(
            f"invalid model version specified '{text}' , version should be an integral value > 0"
        )
    return number


@dataclass(frozen=True)
class Swap:
    """What is to serve of a model from now on."""

    record: ModelRecord
    fresh: Sequence[LoadedVersion]
    keep: Sequence[int]  # of what serves
    on_disk: Sequence[int] = ()


class Registry:
    def __init__(self, server: runtime.Server, *, strict_readiness: bool = True) -> None:
        self._server = server
        self._strict = strict_readiness
        self._lock = threading.RLock()
        self._models: dict[str, ModelRecord] = {}  # guarded by _lock, as is all below
        self._health: dict[str, bool] = {}
        self._speech: set[str] = set()  # models that are published as recognisers
        self._initialised = False
        self._stopping = False
        self._server.publish({}, {}, starting=True)

    # ---- looking ------------------------------------------------------------------------------

    @property
    def ready(self) -> bool:
        """What ServerReady answers."""
        with self._lock:
            if not self._initialised or self._stopping:
                return False
            # A model that serves its old versions while it reloads, or after that failed, is ready.
            return not self._strict or all(m.answers() for m in self._models.values() if m.wanted)

    def find(self, name: str, version: str = "") -> LoadedVersion:
        """The version that a request for (name, version text) goes to. Errors are ModelInfer's."""
        unknown = f"Request for unknown model: '{name}'"
        with self._lock:
            record = self._models.get(name)
            label = _labels(record).get(version) if record is not None else None
            number = label if label is not None else parse_version(version)
            if record is None:
                raise self._missing(f"{unknown} is not found")
            if number is None:
                default = record.default()
                if default is None:
                    raise self._missing(f"{unknown} has no available versions")
                return default
            row = record.versions.get(number)
            if row is None:
                raise self._missing(f"{unknown} version {number} is not found")
            if row.loaded is None:
                raise UnavailableError(f"{unknown} version {number} is not at ready state")
            return row.loaded

    def _missing(self, text: str) -> HeadraceError:
        """What the core answers, too: while the first models load, clients may try again."""
        if self._initialised:
            return NotFoundError(text)
        return UnavailableError(f"{text} yet: the server is starting")

    def ready_versions(self, name: str = "") -> list[LoadedVersion]:
        """Versions that serve, of one model or (name "") of all; by name and number."""
        with self._lock:
            return [
                loaded
                for key, record in sorted(self._models.items())
                if name in ("", key)
                for loaded in record.ready()
            ]

    def route(self, name: str) -> VersionRoute:
        with self._lock:
            record = self._models.get(name)
            return record.route if record is not None else VersionRoute()

    def set_route(self, name: str, change: Callable[[ModelRecord], VersionRoute]) -> None:
        """How the model's requests are shared out from now on. Raises NotFoundError for a model
        that is not served."""
        with self._lock:
            record = self._models.get(name)
            if record is None or not record.ready():
                raise NotFoundError(f"Request for unknown model: '{name}' is not found")
            record.route = change(record)
            self._publish()

    def rows(self, *, ready_only: bool = False) -> dict[str, list[IndexEntry]]:
        """RepositoryIndex's rows of every model that was loaded, or tried."""
        rows: dict[str, list[IndexEntry]] = {}
        with self._lock:
            for name, record in self._models.items():
                entries = [row.entry(name) for _, row in sorted(record.versions.items())]
                listed = [
                    entry
                    for entry in entries
                    if not ready_only or entry.state == ModelState.READY.value
                ]
                if not listed and record.failure and not ready_only:
                    listed = [IndexEntry(name, "", ModelState.UNAVAILABLE.value, record.failure)]
                if listed:
                    rows[name] = listed
        return rows

    def fallback_models(self) -> dict[str, list[str]]:
        """Which models the models that serve fall back to."""
        with self._lock:
            return {
                name: [step.model for row in record.ready() for step in row.policy.fallback]
                for name, record in self._models.items()
            }

    def names(self) -> list[str]:
        with self._lock:
            return sorted(self._models)

    # ---- changing -----------------------------------------------------------------------------

    @contextmanager
    def turn(self, name: str) -> Iterator[ModelRecord]:
        """The model's record, made if it is new, for this caller alone. A record that ends up with
        nothing in it is forgotten."""
        while True:
            with self._lock:
                record = self._models.setdefault(name, ModelRecord(name))
            record.lock.acquire()
            with self._lock:
                if self._models.get(name) is record:
                    break
            record.lock.release()  # forgotten while we waited
        try:
            yield record
        finally:
            with self._lock:
                empty = not record.versions and not record.failure
                if empty and self._models.get(name) is record:
                    del self._models[name]
                    self._publish()
            record.lock.release()

    def set_initialised(self) -> None:
        """The first loads are done: readiness may be announced."""
        with self._lock:
            self._initialised = True
            self._publish()

    def refresh(self) -> None:
        """Instances left or entered service: readiness and health may be others."""
        with self._lock:
            self._announce()

    def set_stopping(self) -> None:
        """Not ready from now on; swap_together() refuses."""
        with self._lock:
            self._stopping = True
            self._announce()

    @property
    def initialised(self) -> bool:
        """From here on somebody may be served."""
        return self._initialised

    @property
    def stopping(self) -> bool:
        return self._stopping

    def begin_loading(self, record: ModelRecord, numbers: Sequence[int]) -> None:
        with self._lock:
            record.wanted = True
            record.gone = False
            record.failure = ""
            for number in numbers:
                row = record.versions.get(number)
                if row is None or row.loaded is None:
                    record.versions[number] = VersionRecord(number, ModelState.LOADING)
            self._publish()

    def swap_together(self, swaps: Sequence[Swap]) -> list[list[LoadedVersion]]:
        """Puts the fresh versions in service, beside those to keep, all at one moment; answers
        those that left it, a list for each. Rows of versions that are neither in memory nor on disk
        are dropped."""
        with self._lock:
            if self._stopping:
                raise UnavailableError("Server is stopping, it loads no more models")
            retired = [self._swap(swap) for swap in swaps]
            self._publish()
        return retired

    def _swap(self, swap: Swap) -> list[LoadedVersion]:
        record = swap.record
        retired = self._take_out(record, swap.keep)
        for loaded in swap.fresh:
            record.versions[loaded.number] = VersionRecord(
                loaded.number, ModelState.READY, loaded=loaded
            )
        for number, row in list(record.versions.items()):
            if row.state is ModelState.READY:
                row.reason = ""
            elif row.state is ModelState.UNAVAILABLE and number not in swap.on_disk:
                del record.versions[number]
        record.wanted = True
        record.replacing = False
        record.failure = ""
        return retired

    def failed(
        self, record: ModelRecord, cause: str, causes: Mapping[int, str], numbers: Sequence[int]
    ) -> bool:
        """A load failed because of `cause`; `causes` by version. True if older versions still
        serve."""
        with self._lock:
            record.wanted = True
            record.replacing = False
            record.failure = cause
            for number in numbers:
                row = record.versions[number]
                own = causes.get(number, "another version of the model failed to load")
                if row.loaded is not None:
                    row.reason = f"reload failed, the version loaded before serves: {own}"
                else:
                    row.state = ModelState.UNAVAILABLE
                    row.reason = own
            self._publish()
            return bool(record.ready())

    def retire_others(
        self, record: ModelRecord, keep: Iterable[int], *, replacing: bool = False
    ) -> list[LoadedVersion]:
        """Takes the versions that are not to be kept out of service; answers them. `replacing`:
        another one is about to be loaded, until when the model is UNAVAILABLE."""
        with self._lock:
            retired = self._take_out(record, list(keep))
            if retired:
                record.replacing = replacing
                self._publish()
        return retired

    def take_out(self, record: ModelRecord, *, gone: bool = False) -> list[LoadedVersion]:
        """Takes the whole model out of service; answers what was in memory."""
        with self._lock:
            record.wanted = False
            record.gone = gone
            record.route = VersionRoute()
            record.failure = ""
            retired = self._take_out(record, ())
            if gone and not retired:
                record.versions.clear()
            self._publish()
        return retired

    def drained(self, record: ModelRecord, numbers: Sequence[int]) -> None:
        """Versions that take_out() or swap_together() answered are gone from memory."""
        with self._lock:
            for number in numbers:
                row = record.versions.get(number)
                if row is not None and row.state is ModelState.UNLOADING:
                    row.state = ModelState.UNAVAILABLE
                    row.reason = "unloaded"
            if record.gone and not record.ready() and self._models.get(record.name) is record:
                del self._models[record.name]
                self._publish()

    @staticmethod
    def _take_out(record: ModelRecord, keep: Sequence[int]) -> list[LoadedVersion]:
        retired: list[LoadedVersion] = []
        for number, row in record.versions.items():
            if number in keep:
                continue
            if row.loaded is not None:
                retired.append(row.loaded)
                row.loaded = None
                row.state = ModelState.UNLOADING
                row.reason = ""
            elif row.state is not ModelState.UNLOADING:  # it failed, or was being loaded
                row.state = ModelState.UNAVAILABLE
                row.reason = "unloaded"
        return retired

    # ---- telling the server; under _lock --------------------------------------------------------

    def _publish(self) -> None:
        point(self._models)
        self._server.publish(
            {
                name: {
                    number: row.loaded.servable if row.loaded is not None else None
                    for number, row in record.versions.items()
                }
                for name, record in self._models.items()
            },
            {name: _traffic(record) for name, record in self._models.items()},
            starting=not self._initialised,
        )
        self._publish_speech()
        self._announce()

    def _publish_speech(self) -> None:
        speech: dict[str, runtime.SpeechRecognizer] = {}
        for name, record in self._models.items():
            default = record.default()
            version = default.speech if default is not None else None
            if version is not None and version.recognizer is not None:
                speech[name] = version.recognizer
        if speech.keys() or self._speech:
            self._server.publish_speech(speech)
        self._speech = set(speech)

    def _announce(self) -> None:
        ready = self.ready
        self._server.set_ready(ready)
        health = {"": ready, _SERVICE: ready, _SPEECH_SERVICE: ready and bool(self._speech)}
        for name, record in self._models.items():
            health[name] = record.answers() and not self._stopping
        for name, serving in health.items():
            if self._health.get(name) != serving:
                self._server.set_health(name, serving)
        for name in self._health.keys() - health.keys():
            self._server.set_health(name, False)
        self._health = health


def _traffic(record: ModelRecord) -> runtime.Traffic:
    route = record.route
    shadow: dict[str, Any] = {}
    if route.shadow is not None:
        shadow = {
            "shadow": route.shadow.label,
            "shadow_share": route.shadow.share,
            "shadow_tolerance": route.shadow.tolerance,
            "shadow_tally": route.shadow.tally,
        }
    return runtime.Traffic(
        default_version=route.default,
        labels=_labels(record),
        split=route.split,
        key=route.key,
        salt=route.salt,
        fallback=route.fallback,
        replacing=record.replacing,
        **shadow,
    )


def _labels(record: ModelRecord) -> dict[str, int]:
    """What clients may say in the place of a version: "stable" is the default one, always."""
    default = record.default()
    return {**({"stable": default.number} if default is not None else {}), **record.route.labels}
