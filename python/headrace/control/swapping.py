"""A load, step by step: load the versions that changed -> make room where that is asked for ->
publish -> drain and free what left. Until publishing, and for good when a version fails, the old
ones serve.

    prepared = swapper.prepare(record, wanted, began)     # loaded and warm, without requests
    swapper.put_in_service([prepared])                    # several: at one moment

Threads: the turn of every record (Registry.turn) is held by the caller.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Literal

from headrace.control.background import Background
from headrace.control.desired import DesiredState, Wanted
from headrace.control.loading import VersionLoader
from headrace.control.memory import return_memory
from headrace.control.registry import Registry, Swap
from headrace.control.states import LoadedVersion, ModelRecord, cause_text
from headrace.errors import HeadraceError, InvalidArgumentError
from headrace.logs import get_logger
from headrace.protocol import model_config
from headrace.repository.policy import ModelPolicy

__all__ = ["LoadEvent", "Prepared", "Swapper", "listed"]

_log = get_logger("control")


@dataclass(frozen=True)
class LoadEvent:
    """Progress of a load. `error` when it failed, `seconds` when it ended."""

    model: str
    versions: tuple[int, ...]
    kind: Literal["started", "loaded", "failed"]
    seconds: float = 0.0
    error: str = ""


@dataclass(frozen=True)
class _Gone:
    """A version that made room for another, as it was."""

    number: int
    fingerprint: str
    config: model_config.ModelConfig
    policy: ModelPolicy


@dataclass(frozen=True)
class Prepared:
    """What was loaded of a model and is to be put in service."""

    record: ModelRecord
    wanted: Wanted
    numbers: tuple[int, ...]
    loaded: list[LoadedVersion]
    gone: list[_Gone]
    began: float

    def swap(self) -> Swap:
        keep = [n for n in self.wanted.fingerprints if n not in self.numbers]
        return Swap(self.record, self.loaded, keep, self.wanted.entry.versions)


class Swapper:
    def __init__(
        self,
        registry: Registry,
        desired: DesiredState,
        loader: VersionLoader,
        background: Background,
        *,
        at_a_time: int,
        on_event: Callable[[LoadEvent], None] | None,
        on_engine: Callable[[Wanted, LoadedVersion], None] = lambda wanted, loaded: None,
    ) -> None:
        """`at_a_time`: versions of one model that load at the same time. `on_engine`: hears of
        versions that serve until their engine is built."""
        self._on_engine = on_engine
        self._registry = registry
        self._desired = desired
        self._loader = loader
        self._background = background
        self._at_a_time = at_a_time
        self._on_event = on_event

    def prepare(self, record: ModelRecord, wanted: Wanted, began: float) -> Prepared:
        """Loads what has changed; nothing gets requests yet. Raises InvalidArgumentError; nothing
        is left then."""
        name = record.name
        for folder, reason in wanted.entry.ignored.items():
            _log.warning("model '%s': folder '%s' is ignored: %s", name, folder, reason)
        served = {v.number: v.fingerprint for v in record.ready()}
        numbers = tuple(n for n, key in wanted.fingerprints.items() if served.get(n) != key)
        self._registry.begin_loading(record, numbers)
        if numbers:
            self.event(name, numbers, "started", began)
            _log.info("loading %s %s", name, listed(numbers))
        gone = self._make_room(record, wanted, numbers)
        loaded, causes = self._load_versions(wanted, numbers)
        if causes:
            text = "".join(
                f"version {n} is at UNAVAILABLE state: {cause};"
                for n, cause in sorted(causes.items())
            )
            text = f"load failed for model '{name}': {text}\n"
            self.discard(loaded)
            self.bring_back(record, wanted, gone)
            serving = self._registry.failed(record, next(iter(causes.values())), causes, numbers)
            self.log_failure(text, serving)
            self.event(name, numbers, "failed", began, text)
            raise InvalidArgumentError(text)
        return Prepared(record, wanted, numbers, loaded, gone, began)

    def _make_room(
        self, record: ModelRecord, wanted: Wanted, numbers: Sequence[int]
    ) -> list[_Gone]:
        """With swap.order unload_first: what the new versions take the place of is drained and
        freed now."""
        swap = wanted.policy.swap
        if not numbers or swap is None or swap.order != "unload_first":
            return []
        keep = [n for n in wanted.fingerprints if n not in numbers]
        retired = self._registry.retire_others(record, keep, replacing=True)
        gone = [_Gone(v.number, v.fingerprint, v.config, v.policy) for v in retired]
        while retired:
            retired.pop().close()
        self._registry.drained(record, [version.number for version in gone])
        if gone:
            return_memory()
            _log.info("unloaded %s %s", record.name, listed([version.number for version in gone]))
            self._registry.begin_loading(record, numbers)  # the row may be that of one that is gone
        return gone

    def bring_back(self, record: ModelRecord, wanted: Wanted, gone: Sequence[_Gone]) -> None:
        """Loads again what made room for versions that could not be loaded, if its files are still
        there."""
        if not gone or self._registry.stopping:
            return
        back: list[LoadedVersion] = []
        waiting: list[tuple[Wanted, LoadedVersion]] = []  # for their engines
        for version in gone:
            before = replace(
                wanted,
                config=version.config,
                policy=version.policy,
                fingerprints={version.number: version.fingerprint},
            )
            loaded, causes = self._load_versions(before, (version.number,))
            back += loaded
            waiting += [(before, one) for one in loaded if one.engine is not None]
            for number, cause in causes.items():
                _log.error("%s version %d cannot be loaded again: %s", record.name, number, cause)
        keep = [loaded.number for loaded in record.ready()]
        try:
            self._registry.swap_together([Swap(record, back, keep, wanted.entry.versions)])
        except HeadraceError as error:
            _log.error("%s: %s", record.name, error.details)
            self.discard(back)
            return
        for before, one in waiting:
            self._on_engine(before, one)

    def put_in_service(self, prepared: Sequence[Prepared]) -> None:
        """All at once, instead of what served."""
        try:
            retired = self._registry.swap_together([ready.swap() for ready in prepared])
        except HeadraceError:
            for ready in prepared:
                self.discard(ready.loaded)
            raise
        for ready, old in zip(prepared, retired, strict=True):
            for version in ready.loaded:
                _log_loaded(version)
                if version.engine is not None:
                    self._on_engine(ready.wanted, version)
            self.event(ready.record.name, ready.numbers, "loaded", ready.began)
            self.retire(ready.record, old)

    def _load_versions(
        self, wanted: Wanted, numbers: Sequence[int]
    ) -> tuple[list[LoadedVersion], dict[int, str]]:
        """What was loaded, and why the rest was not."""
        plan = self._desired.plan(wanted.entry.name, wanted.config)

        def load(number: int) -> LoadedVersion | str:
            try:
                version = self._loader.load(
                    wanted.entry,
                    number,
                    wanted.config,
                    wanted.policy,
                    fingerprint=wanted.fingerprints[number],
                    plan=plan,
                    low_priority=self._registry.initialised,
                )
            except Exception as error:
                if not isinstance(error, HeadraceError):
                    _log.exception("model '%s' version %d", wanted.entry.name, number)
                return cause_text(error)
            version.resources = wanted.resources
            return version

        if len(numbers) > 1:
            with ThreadPoolExecutor(min(len(numbers), self._at_a_time), "load") as pool:
                results = list(pool.map(load, numbers))
        else:
            results = [load(number) for number in numbers]
        loaded = [result for result in results if isinstance(result, LoadedVersion)]
        causes = {
            number: result
            for number, result in zip(numbers, results, strict=True)
            if isinstance(result, str)
        }
        return loaded, causes

    @staticmethod
    def discard(loaded: list[LoadedVersion]) -> None:
        """Ends versions that were never put in service."""
        while loaded:
            loaded.pop().close(drain=False)
        return_memory()

    def retire(self, record: ModelRecord, retired: list[LoadedVersion]) -> None:
        """Drains and frees, on a thread of its own: a running request may take long."""
        if not retired:
            return

        def drain() -> None:
            numbers = [loaded.number for loaded in retired]
            while retired:
                retired.pop().close()
            self._registry.drained(record, numbers)
            return_memory()
            _log.info("unloaded %s %s", record.name, listed(numbers))

        self._background.run(f"drain-{record.name}", drain)

    def event(
        self,
        name: str,
        numbers: Sequence[int],
        kind: Literal["started", "loaded", "failed"],
        began: float,
        error: str = "",
    ) -> None:
        if self._on_event is not None:
            seconds = time.monotonic() - began
            self._on_event(LoadEvent(name, tuple(numbers), kind, seconds, error))

    @staticmethod
    def log_failure(text: str, serving: bool) -> None:
        _log.error(
            "%s%s", text.rstrip("\n;"), "; what was loaded before keeps serving" if serving else ""
        )


def listed(numbers: Sequence[int]) -> str:
    """ "version 3", "versions 1, 2"."""
    return f"version{'s' if len(numbers) != 1 else ''} {', '.join(map(str, sorted(numbers)))}"


def _log_loaded(loaded: LoadedVersion) -> None:
    size = loaded.config.max_batch_size
    _log.info(
        "loaded %s version %d in %.0f ms: %s, %s",
        loaded.model,
        loaded.number,
        loaded.load_seconds * 1e3,
        loaded.version.description,
        f"batches up to {size}" if size > 0 else "no batching",
        extra={
            "fields": {
                "model": loaded.model,
                "version": loaded.number,
                "load_ms": round(loaded.load_seconds * 1e3),
                "instances": loaded.instances,
                "threads": loaded.threads,
            }
        },
    )
