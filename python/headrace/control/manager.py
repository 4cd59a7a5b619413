"""ModelManager: the only one that acts on the running server.

    manager = ModelManager(server, ManagerOptions(repositories=(Path("models"),)))
    failures = manager.load_initial()
    manager.load("digits")          # blocks until it serves
    manager.unload("digits")        # returns at once; requests that are running finish
    manager.stop(timeout_s=30)

A load is: look at the repository -> plan cores -> load and warm the versions that changed ->
publish a new route table -> drain and free the versions that left it. Until publishing, and for
good when any version fails, the old versions serve.

Threads: every method from any thread. Loads and unloads of one model take turns; different models
load at the same time.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from headrace import runtime
from headrace.control.fallbacks import circle
from headrace.control.instances import InstanceWatch
from headrace.control.loaders import Loaders
from headrace.control.loading import Infer, Plan, VersionLoader, load_callable
from headrace.control.memory import return_memory
from headrace.control.overrides import LoadOverride, PrivateRepository
from headrace.control.registry import Registry, Swap
from headrace.control.signature import instance_count, threads_asked
from headrace.control.states import (
    IndexEntry,
    LoadedVersion,
    ModelRecord,
    ModelState,
    VersionRoute,
    cause_text,
)
from headrace.errors import (
    AlreadyExistsError,
    HeadraceError,
    InternalError,
    InvalidArgumentError,
    NotFoundError,
    UnavailableError,
)
from headrace.logs import get_logger
from headrace.protocol import model_config
from headrace.repository.artifact import OnnxEngine
from headrace.repository.model_config import (
    Defaults,
    config_from_json,
    read_config,
    select_versions,
    validate,
)
from headrace.repository.names import check_model_name
from headrace.repository.policy import ModelPolicy, read_policy
from headrace.repository.scan import ModelEntry, find_model, scan, scan_model
from headrace.repository.watch import Watch

__all__ = ["LoadEvent", "ManagerOptions", "ModelManager"]

_log = get_logger("control")

_NOT_EXPLICIT = "explicit model load / unload is not allowed if polling is enabled"


@dataclass(frozen=True)
class ManagerOptions:
    """What the server's configuration says about models."""

    repositories: tuple[Path, ...] = ()
    mode: Literal["none", "explicit", "poll"] = "none"
    load: tuple[str, ...] = ()  # explicit mode: what to load at start; "*" = everything
    poll_secs: float = 15.0
    strict_readiness: bool = True
    cores: int = 0  # 0 = all this process may use
    load_threads: int = 0  # while models are served; 0 = a quarter of the cores
    default_max_batch_size: int = 32
    onnx_engine: OnnxEngine = "auto"
    cache_dir: str = ""
    response_cache_bytes: int = 64 << 20
    desk: runtime.HumanDesk | None = None  # takes what policies give to people


@dataclass(frozen=True)
class LoadEvent:
    """Progress of a load. `error` when it failed, `seconds` when it ended."""

    model: str
    versions: tuple[int, ...]
    kind: Literal["started", "loaded", "failed"]
    seconds: float = 0.0
    error: str = ""


@dataclass(frozen=True)
class _Wanted:
    """A model as it should be."""

    entry: ModelEntry
    config: model_config.ModelConfig
    fingerprints: Mapping[int, str]  # by version to be served
    policy: ModelPolicy
    resources: tuple[object, ...] = ()


@dataclass(frozen=True)
class _Gone:
    """A version that made room for another, as it was."""

    number: int
    fingerprint: str
    config: model_config.ModelConfig
    policy: ModelPolicy


@dataclass(frozen=True)
class _Prepared:
    """What was loaded of a model and is to be put in service."""

    record: ModelRecord
    wanted: _Wanted
    numbers: tuple[int, ...]
    loaded: list[LoadedVersion]
    gone: list[_Gone]
    began: float

    def swap(self) -> Swap:
        keep = [n for n in self.wanted.fingerprints if n not in self.numbers]
        return Swap(self.record, self.loaded, keep, self.wanted.entry.versions)


class ModelManager:
    def __init__(
        self,
        server: runtime.Server,
        options: ManagerOptions,
        *,
        on_event: Callable[[LoadEvent], None] | None = None,
    ) -> None:
        self._options = options
        self._on_event = on_event
        self._cores = options.cores or runtime.available_cores()
        self.registry = Registry(server, strict_readiness=options.strict_readiness)
        self._instances = InstanceWatch(self.registry.refresh)
        # Takes no memory until a model uses it. None: the configuration says none.
        self.response_cache = (
            runtime.ResponseCache(options.response_cache_bytes)
            if options.response_cache_bytes > 0
            else None
        )
        self._loader = VersionLoader(
            Loaders(engine=options.onnx_engine, cache_dir=options.cache_dir),
            Defaults(
                max_batch_size=options.default_max_batch_size, onnx_engine=options.onnx_engine
            ),
            self.response_cache,
            options.desk,
            load_threads=options.load_threads or max(1, self._cores // 4),
            told=self._instances.tell,
        )
        # Versions that are not there for the version policy; and what is to follow a load.
        # Rollouts sets both.
        self.kept_out: Callable[[ModelEntry, ModelPolicy], frozenset[int]]
        self.kept_out = lambda entry, policy: frozenset()
        self.on_loaded: Callable[[ModelEntry, ModelPolicy], None] = lambda entry, policy: None
        self._lock = threading.Lock()
        self._demands: dict[str, tuple[int, int]] = {}  # model -> (instances, threads); by _lock
        self._background: set[threading.Thread] = set()  # by _lock; they drain and unload
        self._watch: Watch | None = None
        self._poll_stop = threading.Event()
        self._poll_thread: threading.Thread | None = None

    def index(self, *, ready_only: bool = False) -> list[IndexEntry]:
        """RepositoryIndex: a row a version; a model that was never loaded has a row of its name."""
        rows: dict[str, list[IndexEntry]] = {}
        if not ready_only:
            try:
                found = scan(self._options.repositories)
            except HeadraceError as error:
                _log.error("repository index: %s", error)
            else:
                rows = {name: [IndexEntry(name)] for name in found.entries}
                for name, reason in found.problems.items():
                    rows[name] = [IndexEntry(name, "", ModelState.UNAVAILABLE.value, reason)]
        rows |= self.registry.rows(ready_only=ready_only)
        return [row for _, listed in sorted(rows.items()) for row in listed]

    # ---- what clients may ask -----------------------------------------------------------------

    def request_load(self, name: str, override: LoadOverride | None = None) -> None:
        """RepositoryModelLoad."""
        if self._options.mode != "explicit":
            raise UnavailableError(_NOT_EXPLICIT)
        self.load(name, override)

    def request_load_together(self, names: Sequence[str]) -> None:
        """headrace.v1.Admin's LoadTogether."""
        if self._options.mode != "explicit":
            raise UnavailableError(_NOT_EXPLICIT)
        self.load_together(names)

    def request_unload(self, name: str) -> None:
        """RepositoryModelUnload."""
        if self._options.mode != "explicit":
            raise UnavailableError(_NOT_EXPLICIT)
        self.unload(name)

    # ---- acting -------------------------------------------------------------------------------

    def load_initial(self) -> list[tuple[str, HeadraceError]]:
        """Loads what the mode says, several models at a time; answers what failed. Poll mode then
        watches the repositories."""
        try:
            failures = self._load_initial()
        finally:
            self.registry.set_initialised()
        if self._options.mode == "poll":
            self._poll_thread = threading.Thread(
                target=self._poll_forever, name="repository-poll", daemon=True
            )
            self._poll_thread.start()
        return failures

    def _load_initial(self) -> list[tuple[str, HeadraceError]]:
        found = scan(self._options.repositories)
        self._watch = Watch(found)
        failures: list[tuple[str, HeadraceError]] = []
        if self._options.mode == "explicit" and "*" not in self._options.load:
            names = sorted(set(self._options.load))
        else:
            names = sorted(found.entries)
            for name, reason in sorted(found.problems.items()):
                _log.error("model '%s' is not loaded: %s", name, reason)
                failures.append((name, InvalidArgumentError(reason)))
                with self.registry.turn(name) as record:
                    self.registry.failed(record, reason, {}, ())
        # Everybody's demand is known before the first one loads, so the cores are divided fairly.
        for name in names:
            entry = found.entries.get(name)
            if entry is not None:
                with suppress(HeadraceError):  # its load says it
                    self._wanted(entry, read_config(entry), "")
        if not names:
            return failures

        def load(name: str) -> None:
            if not self.registry.stopping:
                self.load(name)

        with ThreadPoolExecutor(min(len(names), max(2, self._cores)), "load") as pool:
            for name, future in [(name, pool.submit(load, name)) for name in names]:
                try:
                    future.result()
                except HeadraceError as error:
                    failures.append((name, error))
        return failures

    def load(self, name: str, override: LoadOverride | None = None) -> None:
        """Blocks until the model serves as its files (and `override`) say. Raises
        InvalidArgumentError when a version cannot be loaded, InternalError when the model cannot
        be found or understood, with Triton's texts and the cause; what served before keeps
        serving."""
        check_model_name(name)
        began = time.monotonic()
        with self.registry.turn(name) as record:
            wanted = self._look_or_fail(record, override, began)
            self._load_wanted(record, wanted, began)
        self.on_loaded(wanted.entry, wanted.policy)

    def load_together(self, names: Iterable[str]) -> None:
        """As load(), for several models whose requests go to what was loaded from one moment on:
        who has seen one of them changed sees all of them changed. Raises what load() does; then
        none has changed."""
        began = time.monotonic()
        chosen = sorted(set(names))
        if not chosen:
            raise InvalidArgumentError("name at least one model")
        for name in chosen:
            check_model_name(name)
        prepared: list[_Prepared] = []
        with ExitStack() as turns:
            # In order, so that two who want the same models do not wait for each other.
            records = [turns.enter_context(self.registry.turn(name)) for name in chosen]
            try:
                for record in records:
                    wanted = self._look_or_fail(record, None, began)
                    prepared.append(self._prepare(record, wanted, began))
            except HeadraceError as error:
                for ready in prepared:
                    text = f"it was to change together with another model: {error.details}"
                    causes = dict.fromkeys(ready.numbers, text)
                    self._discard(ready.loaded)
                    self._bring_back(ready.record, ready.wanted, ready.gone)
                    self.registry.failed(ready.record, text, causes, ready.numbers)
                    self._event(ready.record.name, ready.numbers, "failed", began, text)
                raise
            self._put_in_service(prepared)
        for ready in prepared:
            self.on_loaded(ready.wanted.entry, ready.wanted.policy)

    def files(self, name: str) -> Mapping[int, str]:
        """Fingerprints of the model's version directories. Raises NotFoundError for a model no
        repository has."""
        return find_model(self._options.repositories, name).version_fingerprints

    def route_beside(
        self,
        name: str,
        change: Callable[[ModelRecord], VersionRoute],
        prepare: Callable[[ModelRecord], None],
    ) -> None:
        """Loads what the new route pins beside what serves, calls `prepare`, and shares out the
        requests by the route. Raises what load() does; then nothing changed."""
        began = time.monotonic()
        with self.registry.turn(name) as record:
            before = record.route
            route = change(record)
            ready = {loaded.number for loaded in record.ready()}
            if not route.pinned <= ready:
                # As yet without requests.
                serving = record.default()
                number = serving.number if serving is not None else 0
                self.registry.set_route(
                    name, lambda _: replace(before, default=number, pinned=route.pinned | ready)
                )
                try:
                    self._load_wanted(record, self._look(name, None), began)
                except HeadraceError:
                    self.registry.set_route(name, lambda _: before)
                    raise
            prepare(record)
            self.registry.set_route(name, lambda _: route)

    def route_now(self, name: str, change: Callable[[ModelRecord], VersionRoute]) -> None:
        """Shares out the requests anew, over versions that serve; does not wait for a load of the
        model that is going on. What nothing holds any more is unloaded afterwards."""
        self.registry.set_route(name, change)
        self._in_background(f"settle-{name}", lambda: self._settle(name))

    def _settle(self, name: str) -> None:
        with self.registry.turn(name) as record:
            keep = self._look(name, None).fingerprints.keys()
            # Never the last that serves, whatever has become of the repository meanwhile.
            if not any(loaded.number in keep for loaded in record.ready()):
                return
            self._retire(record, self.registry.retire_others(record, keep))
            ready = record.ready()
            if ready and ready[-1].number == record.route.default:
                # From here on the highest is the default again, as the next version expects.
                self.registry.set_route(name, lambda r: replace(r.route, default=0))

    def unload(self, name: str, *, gone: bool = False) -> None:
        """Takes the model out of service; returns while running requests finish. Unknown or already
        unloaded models are no error. `gone`: no repository has it any more, so forget it."""
        check_model_name(name)
        if name not in self.registry.names():
            return
        with self.registry.turn(name) as record:
            retired = self.registry.take_out(record, gone=gone)
            with self._lock:
                self._demands.pop(name, None)
            if retired:
                _log.info("unloading %s %s", name, _listed([v.number for v in retired]))
            self._retire(record, retired)

    def add_callable(
        self, config: model_config.ModelConfig, functions: Sequence[Infer], version: int = 1
    ) -> None:
        """Serves Python callables, one an instance, under `config`, which is complete."""
        check_model_name(config.name)
        with self.registry.turn(config.name) as record:
            if any(loaded.number == version for loaded in record.ready()):
                raise AlreadyExistsError(
                    f"model '{config.name}' version {version} is served already"
                )
            loaded = load_callable(config, list(functions), version, self._instances.tell)
            others = [v.number for v in record.ready()]
            self.registry.swap_together([Swap(record, [loaded], others, (version,))])

    def poll_once(self) -> None:
        """One look at the repositories: loads what is new or changed, unloads what is gone. A
        directory is acted on once two looks in a row agree about it: before, somebody is still
        writing it."""
        if self._watch is None:
            return
        changes = self._watch.observe(scan(self._options.repositories))
        for name in changes.removed:
            self.unload(name, gone=True)
        for name in (*changes.added, *changes.modified):
            if self.registry.stopping:
                return
            with suppress(HeadraceError):  # logged; tried again when its files change again
                self.load(name)

    def _poll_forever(self) -> None:
        while not self._poll_stop.wait(self._options.poll_secs):
            try:
                self.poll_once()
            except HeadraceError as error:
                _log.error("poll: %s", error)
            except Exception:
                _log.exception("poll: unexpected error; trying again")

    def begin_stop(self) -> None:
        """Not ready from now on; nothing new is put in service."""
        self.registry.set_stopping()
        self._poll_stop.set()

    def stop(self, timeout_s: float = 30.0) -> bool:
        """Ends every version, serving what is queued. True if all was served in time.
        Idempotent."""
        deadline = time.monotonic() + timeout_s
        self.begin_stop()
        if self._poll_thread is not None:
            self._poll_thread.join(timeout_s)
        served = True
        for name in self.registry.names():
            with self.registry.turn(name) as record:
                retired = self.registry.take_out(record)
                for loaded in retired:
                    served = loaded.close(timeout_s=_left(deadline)) and served
                self.registry.drained(record, [loaded.number for loaded in retired])
        drained = self.wait_drained(_left(deadline))
        self._instances.stop()
        return drained and served

    def wait_drained(self, timeout_s: float | None = None) -> bool:
        """Waits until every version that was taken out of service is gone and its memory given
        back."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        with self._lock:
            threads = list(self._background)
        for thread in threads:
            thread.join(None if deadline is None else _left(deadline))
        return not any(thread.is_alive() for thread in threads)

    # ---- a load, step by step; the model's turn is held ------------------------------------------

    def _look(self, name: str, override: LoadOverride | None) -> _Wanted:
        """The model as the repository (or the request) has it now."""
        if override is None:
            entry = find_model(self._options.repositories, name)
            return self._wanted(entry, read_config(entry), "")
        config = config_from_json(override.config_json)
        if not override.files:
            entry = find_model(self._options.repositories, name)
            return self._wanted(entry, config, override.fingerprint)
        files = PrivateRepository(name, override.files)
        entry = scan_model(files.root / name)
        return self._wanted(entry, config, override.fingerprint, (files,))

    def _look_or_fail(
        self, record: ModelRecord, override: LoadOverride | None, began: float
    ) -> _Wanted:
        """_look(), and a failure is the load's."""
        name = record.name
        try:
            return self._look(name, override)
        except HeadraceError as error:
            failure = InternalError(
                f"failed to load '{name}', failed to poll from model repository: {error.details}"
            )
            # A name that no repository knows leaves no trace.
            known = bool(record.versions) or not isinstance(error, NotFoundError)
            serving = known and self.registry.failed(record, cause_text(error), {}, ())
            self._log_failure(failure.details, serving)
            self._event(name, (), "failed", began, failure.details)
            raise failure from error

    def _wanted(
        self,
        entry: ModelEntry,
        config: model_config.ModelConfig,
        tag: str,
        resources: tuple[object, ...] = (),
    ) -> _Wanted:
        validate(config)
        policy = read_policy(entry)
        if way := circle(entry.name, policy, self.registry.fallback_models()):
            raise InvalidArgumentError(
                f"model '{entry.name}': fallback goes in a circle: {' -> '.join(way)}"
            )
        route = self.registry.route(entry.name)
        allowed = set(entry.versions) - self.kept_out(entry, policy)
        try:
            selected = set(select_versions(config, allowed, entry.name))
        except InvalidArgumentError:  # nothing is left: what is kept out is better than nothing
            selected = set(select_versions(config, entry.versions, entry.name))
        # What the model falls back to is kept loaded.
        steps = {step.version for step in policy.fallback}
        needed = selected | ((route.pinned | steps) & set(entry.versions))
        demand = (instance_count(config) * len(needed), threads_asked(config))
        numbers = sorted(needed | self._kept_warm(entry.name, policy, allowed, max(selected)))
        with self._lock:
            self._demands[entry.name] = demand
        settings = f"{entry.path}/{entry.config_fingerprint}/{tag}/{policy.fingerprint}"
        fingerprints = {n: f"{settings}/{entry.version_fingerprints[n]}" for n in numbers}
        return _Wanted(entry, config, fingerprints, policy, resources)

    def _kept_warm(
        self, name: str, policy: ModelPolicy, allowed: set[int], newest: int
    ) -> set[int]:
        """Versions that serve and stay loaded when the newest takes their place."""
        count = policy.swap.keep_warm if policy.swap is not None else 0
        served = {v.number for v in self.registry.ready_versions(name)} if count > 0 else set()
        return set(sorted(n for n in served & allowed if n < newest)[-count:]) if served else set()

    def _plan(self, name: str, config: model_config.ModelConfig) -> Plan:
        """Threads an instance of this model, beside every other model that is served or asked
        for."""
        with self._lock:
            demands = [(model, *demand) for model, demand in sorted(self._demands.items())]
        planned = {model: threads for model, _, threads in runtime.plan_cores(self._cores, demands)}
        return Plan(instance_count(config), planned.get(name, 1))

    def _load_wanted(self, record: ModelRecord, wanted: _Wanted, began: float) -> None:
        self._put_in_service([self._prepare(record, wanted, began)])

    def _prepare(self, record: ModelRecord, wanted: _Wanted, began: float) -> _Prepared:
        """Loads what has changed; nothing gets requests yet. Raises InvalidArgumentError; nothing
        is left then."""
        name = record.name
        for folder, reason in wanted.entry.ignored.items():
            _log.warning("model '%s': folder '%s' is ignored: %s", name, folder, reason)
        served = {v.number: v.fingerprint for v in record.ready()}
        numbers = tuple(n for n, key in wanted.fingerprints.items() if served.get(n) != key)
        self.registry.begin_loading(record, numbers)
        if numbers:
            self._event(name, numbers, "started", began)
            _log.info("loading %s %s", name, _listed(numbers))
        gone = self._make_room(record, wanted, numbers)
        loaded, causes = self._load_versions(wanted, numbers)
        if causes:
            text = "".join(
                f"version {n} is at UNAVAILABLE state: {cause};"
                for n, cause in sorted(causes.items())
            )
            text = f"load failed for model '{name}': {text}\n"
            self._discard(loaded)
            self._bring_back(record, wanted, gone)
            serving = self.registry.failed(record, next(iter(causes.values())), causes, numbers)
            self._log_failure(text, serving)
            self._event(name, numbers, "failed", began, text)
            raise InvalidArgumentError(text)
        return _Prepared(record, wanted, numbers, loaded, gone, began)

    def _make_room(
        self, record: ModelRecord, wanted: _Wanted, numbers: Sequence[int]
    ) -> list[_Gone]:
        """With swap.order unload_first: what the new versions take the place of is drained and
        freed now."""
        swap = wanted.policy.swap
        if not numbers or swap is None or swap.order != "unload_first":
            return []
        keep = [n for n in wanted.fingerprints if n not in numbers]
        retired = self.registry.retire_others(record, keep, replacing=True)
        gone = [_Gone(v.number, v.fingerprint, v.config, v.policy) for v in retired]
        while retired:
            retired.pop().close()
        self.registry.drained(record, [version.number for version in gone])
        if gone:
            return_memory()
            _log.info("unloaded %s %s", record.name, _listed([version.number for version in gone]))
            self.registry.begin_loading(record, numbers)  # the row may be that of one that is gone
        return gone

    def _bring_back(self, record: ModelRecord, wanted: _Wanted, gone: Sequence[_Gone]) -> None:
        """Loads again what made room for versions that could not be loaded, if its files are still
        there."""
        if not gone or self.registry.stopping:
            return
        back: list[LoadedVersion] = []
        for version in gone:
            before = replace(
                wanted,
                config=version.config,
                policy=version.policy,
                fingerprints={version.number: version.fingerprint},
            )
            loaded, causes = self._load_versions(before, (version.number,))
            back += loaded
            for number, cause in causes.items():
                _log.error("%s version %d cannot be loaded again: %s", record.name, number, cause)
        keep = [loaded.number for loaded in record.ready()]
        try:
            self.registry.swap_together([Swap(record, back, keep, wanted.entry.versions)])
        except HeadraceError as error:
            _log.error("%s: %s", record.name, error.details)
            self._discard(back)

    def _put_in_service(self, prepared: Sequence[_Prepared]) -> None:
        """All at once, instead of what served."""
        try:
            retired = self.registry.swap_together([ready.swap() for ready in prepared])
        except HeadraceError:
            for ready in prepared:
                self._discard(ready.loaded)
            raise
        for ready, old in zip(prepared, retired, strict=True):
            for version in ready.loaded:
                _log_loaded(version)
            self._event(ready.record.name, ready.numbers, "loaded", ready.began)
            self._retire(ready.record, old)

    def _load_versions(
        self, wanted: _Wanted, numbers: Sequence[int]
    ) -> tuple[list[LoadedVersion], dict[int, str]]:
        """What was loaded, and why the rest was not."""
        plan = self._plan(wanted.entry.name, wanted.config)

        def load(number: int) -> LoadedVersion | str:
            try:
                version = self._loader.load(
                    wanted.entry,
                    number,
                    wanted.config,
                    wanted.policy,
                    fingerprint=wanted.fingerprints[number],
                    plan=plan,
                    low_priority=self.registry.initialised,
                )
            except Exception as error:
                if not isinstance(error, HeadraceError):
                    _log.exception("model '%s' version %d", wanted.entry.name, number)
                return cause_text(error)
            version.resources = wanted.resources
            return version

        if len(numbers) > 1:
            with ThreadPoolExecutor(min(len(numbers), max(2, self._cores)), "load") as pool:
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
    def _discard(loaded: list[LoadedVersion]) -> None:
        """Ends versions that were never put in service."""
        while loaded:
            loaded.pop().close(drain=False)
        return_memory()

    def _retire(self, record: ModelRecord, retired: list[LoadedVersion]) -> None:
        """Drains and frees, on a thread of its own: a running request may take long."""
        if not retired:
            return

        def drain() -> None:
            numbers = [loaded.number for loaded in retired]
            while retired:
                retired.pop().close()
            self.registry.drained(record, numbers)
            return_memory()
            _log.info("unloaded %s %s", record.name, _listed(numbers))

        self._in_background(f"drain-{record.name}", drain)

    def _in_background(self, name: str, work: Callable[[], None]) -> None:
        def run() -> None:
            try:
                work()
            except HeadraceError as error:
                _log.error("%s: %s", name, error.details)
            except Exception:
                _log.exception("%s", name)
            finally:
                with self._lock:
                    self._background.discard(threading.current_thread())

        thread = threading.Thread(target=run, name=name, daemon=True)
        with self._lock:
            self._background.add(thread)
        thread.start()

    # ---- telling people -------------------------------------------------------------------------

    def _event(
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
    def _log_failure(text: str, serving: bool) -> None:
        _log.error(
            "%s%s", text.rstrip("\n;"), "; what was loaded before keeps serving" if serving else ""
        )


def _left(deadline: float) -> float:
    return max(0.0, deadline - time.monotonic())


def _listed(numbers: Sequence[int]) -> str:
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
