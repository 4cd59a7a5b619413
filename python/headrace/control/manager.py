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
from headrace.control.background import Background
from headrace.control.desired import DesiredState, Wanted
from headrace.control.engine_builds import EngineBuilds
from headrace.control.engine_swaps import EngineSwaps
from headrace.control.instances import InstanceWatch
from headrace.control.loaders import Loaders
from headrace.control.loading import Infer, VersionLoader, load_callable
from headrace.control.overrides import LoadOverride
from headrace.control.registry import Registry, Swap
from headrace.control.states import IndexEntry, ModelRecord, ModelState, VersionRoute, cause_text
from headrace.control.swapping import LoadEvent, Prepared, Swapper, listed
from headrace.errors import (
    AlreadyExistsError,
    HeadraceError,
    InternalError,
    InvalidArgumentError,
    NotFoundError,
    UnavailableError,
)
from headrace.logs import get_logger
from headrace.optimize.engine_cache import EngineCache
from headrace.protocol import model_config
from headrace.repository.artifact import OnnxEngine
from headrace.repository.model_config import Defaults
from headrace.repository.names import check_model_name
from headrace.repository.policy import ModelPolicy
from headrace.repository.scan import ModelEntry, find_model, scan
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


class ModelManager:
    def __init__(
        self,
        server: runtime.Server,
        options: ManagerOptions,
        *,
        on_event: Callable[[LoadEvent], None] | None = None,
    ) -> None:
        self._options = options
        self._cores = options.cores or runtime.available_cores()
        self.registry = Registry(server, strict_readiness=options.strict_readiness)
        self._instances = InstanceWatch(self.registry.refresh)
        # Takes no memory until a model uses it. None: the configuration says none.
        self.response_cache = (
            runtime.ResponseCache(options.response_cache_bytes)
            if options.response_cache_bytes > 0
            else None
        )
        self.engines = EngineBuilds(
            EngineCache(Path(options.cache_dir) / "engines") if options.cache_dir else None,
            threads=max(1, self._cores // 4),
            changed=lambda job, state, text: self._engine_swaps.changed(job, state, text),
        )
        loader = VersionLoader(
            Loaders(engine=options.onnx_engine, cache_dir=options.cache_dir, builds=self.engines),
            Defaults(
                max_batch_size=options.default_max_batch_size, onnx_engine=options.onnx_engine
            ),
            self.response_cache,
            options.desk,
            load_threads=options.load_threads or max(1, self._cores // 4),
            told=self._instances.tell,
        )
        # What is to follow a load. Rollouts sets it.
        self.on_loaded: Callable[[ModelEntry, ModelPolicy], None] = lambda entry, policy: None
        self.desired = DesiredState(options.repositories, self.registry, cores=self._cores)
        self._background = Background()  # drains and unloads
        self._swapper = Swapper(
            self.registry,
            self.desired,
            loader,
            self._background,
            at_a_time=max(2, self._cores),
            on_event=on_event,
            on_engine=lambda wanted, loaded: self._engine_swaps.follow(wanted, loaded),
        )
        self._engine_swaps = EngineSwaps(
            self.engines, self.registry, self.desired, self._swapper, self._background
        )
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
                self.desired.expect(entry)
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
            self._load(record, wanted, began)
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
        prepared: list[Prepared] = []
        with ExitStack() as turns:
            # In order, so that two who want the same models do not wait for each other.
            records = [turns.enter_context(self.registry.turn(name)) for name in chosen]
            try:
                for record in records:
                    wanted = self._look_or_fail(record, None, began)
                    prepared.append(self._swapper.prepare(record, wanted, began))
            except HeadraceError as error:
                for ready in prepared:
                    text = f"it was to change together with another model: {error.details}"
                    causes = dict.fromkeys(ready.numbers, text)
                    self._swapper.discard(ready.loaded)
                    self._swapper.bring_back(ready.record, ready.wanted, ready.gone)
                    self.registry.failed(ready.record, text, causes, ready.numbers)
                    self._swapper.event(ready.record.name, ready.numbers, "failed", began, text)
                raise
            self._swapper.put_in_service(prepared)
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
                    self._load(record, self.desired.look(name), began)
                except HeadraceError:
                    self.registry.set_route(name, lambda _: before)
                    raise
            prepare(record)
            self.registry.set_route(name, lambda _: route)

    def route_now(self, name: str, change: Callable[[ModelRecord], VersionRoute]) -> None:
        """Shares out the requests anew, over versions that serve; does not wait for a load of the
        model that is going on. What nothing holds any more is unloaded afterwards."""
        self.registry.set_route(name, change)
        self._background.run(f"settle-{name}", lambda: self._settle(name))

    def _settle(self, name: str) -> None:
        with self.registry.turn(name) as record:
            keep = self.desired.look(name).fingerprints.keys()
            # Never the last that serves, whatever has become of the repository meanwhile.
            if not any(loaded.number in keep for loaded in record.ready()):
                return
            self._swapper.retire(record, self.registry.retire_others(record, keep))
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
            self.desired.forget(name)
            if retired:
                _log.info("unloading %s %s", name, listed([v.number for v in retired]))
            self._swapper.retire(record, retired)

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
        self.engines.stop()
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
        return self._background.wait(timeout_s)

    # ---- the model's turn is held ---------------------------------------------------------------

    def _load(self, record: ModelRecord, wanted: Wanted, began: float) -> None:
        self._swapper.put_in_service([self._swapper.prepare(record, wanted, began)])

    def _look_or_fail(
        self, record: ModelRecord, override: LoadOverride | None, began: float
    ) -> Wanted:
        """_look(), and a failure is the load's."""
        name = record.name
        try:
            return self.desired.look(name, override)
        except HeadraceError as error:
            failure = InternalError(
                f"failed to load '{name}', failed to poll from model repository: {error.details}"
            )
            # A name that no repository knows leaves no trace.
            known = bool(record.versions) or not isinstance(error, NotFoundError)
            serving = known and self.registry.failed(record, cause_text(error), {}, ())
            self._swapper.log_failure(failure.details, serving)
            self._swapper.event(name, (), "failed", began, failure.details)
            raise failure from error


def _left(deadline: float) -> float:
    return max(0.0, deadline - time.monotonic())
