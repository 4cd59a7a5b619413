"""Engines that are built while a fallback serves, put in service when they are ready.

An engine takes the place of its fallback as any new version does: loaded and warmed first, then
swapped; requests neither fail nor wait. If it cannot be loaded the fallback stays.

Threads: every method from any thread.
"""

from __future__ import annotations

import threading
import time
from dataclasses import replace

from headrace.control.background import Background
from headrace.control.desired import DesiredState, Wanted
from headrace.control.engine_builds import EngineBuilds, EngineJob, State
from headrace.control.registry import Registry
from headrace.control.states import LoadedVersion
from headrace.control.swapping import Swapper
from headrace.errors import HeadraceError
from headrace.logs import get_logger
from headrace.protocol import model_config

__all__ = ["EngineSwaps"]

_log = get_logger("control")


class EngineSwaps:
    def __init__(
        self,
        builds: EngineBuilds,
        registry: Registry,
        desired: DesiredState,
        swapper: Swapper,
        background: Background,
    ) -> None:
        self._builds = builds
        self._registry = registry
        self._desired = desired
        self._swapper = swapper
        self._background = background
        self._lock = threading.Lock()
        # What a job's version was loaded as, by the job's id(): files may be loaded again while
        # an engine of the same key is built. By _lock.
        self._wanted: dict[int, tuple[EngineJob, Wanted]] = {}

    def follow(self, wanted: Wanted, loaded: LoadedVersion) -> None:
        """`loaded` has begun to serve in the place of its engine, which is built from now on."""
        job = loaded.engine
        assert job is not None
        with self._lock:
            self._wanted[id(job)] = (job, wanted)

        def cancel() -> None:
            self._builds.cancel(job)
            with self._lock:
                self._wanted.pop(id(job), None)

        loaded.on_close.append(cancel)
        self._builds.start(job)

    def changed(self, job: EngineJob, state: State, text: str) -> None:
        """EngineBuilds' `changed`."""
        if state == "building":
            _log.info("%s: building its engine for %s", job, job.device.gpu)
        elif state == "failed":
            self._failed(job, text)
        elif state == "ready":
            self._background.run(f"engine-{job.model}", lambda: self._put_in_service(job))

    def _failed(self, job: EngineJob, text: str) -> None:
        _log.warning("%s stays without TensorRT: %s", job, text)
        self._builds.set_state(job, "failed", text)
        for loaded in self._registry.ready_versions(job.model):
            if loaded.engine is job:
                # A new one: others may be reading the old one.
                config = model_config.ModelConfig()
                config.CopyFrom(loaded.config)
                config.parameters["headrace.why"].string_value = f"no TensorRT engine: {text}"
                loaded.config = config

    def _put_in_service(self, job: EngineJob) -> None:
        began = time.monotonic()
        with self._registry.turn(job.model) as record:
            with self._lock:
                _, wanted = self._wanted.pop(id(job), (job, None))
            ready = record.ready()
            before = next((v for v in ready if v.engine is job), None)
            if wanted is None or before is None or self._registry.stopping:
                return  # it was unloaded, or loaded anew, meanwhile
            refined = f"{before.fingerprint}/engine"
            served = {v.number: v.fingerprint for v in ready}
            # The fallback is in another memory: nothing has to make room.
            wanted = replace(
                wanted,
                fingerprints={**served, job.version: refined},
                policy=replace(wanted.policy, swap=None),
            )
            try:
                prepared = self._swapper.prepare(record, wanted, began)
            except HeadraceError as error:
                self._failed(job, " ".join(error.details.split()))
                return
            if not all(loaded.on_engine for loaded in prepared.loaded):
                reasons = [loaded.no_engine for loaded in prepared.loaded if loaded.no_engine]
                self._swapper.discard(prepared.loaded)
                self._failed(job, *reasons[:1] or ["the engine that was built is gone"])
                return
            self._desired.refine(before.fingerprint, refined)
            self._builds.set_state(job, "serving")
            self._swapper.put_in_service([prepared])
