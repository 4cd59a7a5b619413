"""What the control plane knows of a model: plain records, changed only by ModelManager under its
lock."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headrace import errors, runtime
from headrace.protocol import model_config
from headrace.repository.policy import ModelPolicy

if TYPE_CHECKING:
    from headrace.control.engine_builds import EngineJob
    from headrace.control.fallbacks import Fallbacks
    from headrace.control.speech_version import SpeechVersion
from headrace.control.feedback import Feedback

__all__ = [
    "IndexEntry",
    "LoadedVersion",
    "ModelRecord",
    "ModelState",
    "Shadow",
    "VersionRecord",
    "VersionRoute",
    "cause_text",
]


class ModelState(str, Enum):
    """States of RepositoryIndex."""

    LOADING = "LOADING"
    READY = "READY"
    UNLOADING = "UNLOADING"
    UNAVAILABLE = "UNAVAILABLE"


@dataclass
class LoadedVersion:
    """A version in memory. Whoever takes it out of its record retires it (`close`, then drop)."""

    model: str
    number: int
    fingerprint: str  # of the files and the configuration it was loaded from
    version: runtime.ModelVersion | SpeechVersion
    hedged: runtime.Hedged | None  # these are parts of `servable`, as asked for
    cache: runtime.CachedServable | None
    fallbacks: Fallbacks  # around the version and its cache
    policy: ModelPolicy
    config: model_config.ModelConfig
    instances: int
    threads: int  # intra-op threads an instance
    load_seconds: float
    feedback: Feedback = field(default_factory=Feedback)
    path: Path | None = None  # its version folder; None for a Python callable
    on_close: list[Callable[[], None]] = field(default_factory=list)
    engine: EngineJob | None = None  # what is being built to take its place
    on_engine: bool = False  # it runs on one of TensorRT
    no_engine: str = ""  # why it is to run on one and does not
    resources: tuple[object, ...] = ()  # kept alive as long as this is (files sent with the load)

    def statistics(self) -> dict[str, Any]:
        """ModelVersion.statistics() and, as "cache", CachedServable's (None without one). As in
        Triton, what the cache answered counts as successes, with no time in the queue."""
        values = self.version.statistics()
        values["cache"] = cache = self.cache.statistics() if self.cache is not None else None
        if cache is not None:
            for key, ns in (("success", cache["hit_ns"]), ("queue", 0)):
                count, total = values[key]
                values[key] = (count + cache["hits"], total + ns)
        return values

    @property
    def speech(self) -> SpeechVersion | None:
        """The version, if it recognises speech."""
        return None if isinstance(self.version, runtime.ModelVersion) else self.version

    @property
    def servable(self) -> runtime.Servable:
        """What answers its requests: the version with what its policy puts in front of it."""
        return self.fallbacks.servable

    def close(self, *, drain: bool = True, timeout_s: float | None = None) -> bool:
        """Serves what is queued (drain) and ends the instances. True if all was served in time."""
        served = self.version.close(drain=drain, timeout_s=timeout_s)
        self.fallbacks.close()
        while self.on_close:
            self.on_close.pop()()
        return served


@dataclass
class VersionRecord:
    """One row of RepositoryIndex. `loaded` is what serves, set while READY."""

    number: int
    state: ModelState
    reason: str = ""
    loaded: LoadedVersion | None = None

    def entry(self, model: str) -> IndexEntry:
        state, reason = self.state, self.reason
        if self.loaded is not None and state is ModelState.READY:
            health = self.loaded.version.health
            if health["in_service"] == 0:
                state = ModelState.UNAVAILABLE
                reason = f"every instance is being rebuilt, after: {health['fault']}"
            elif health["in_service"] < health["instances"]:
                out = health["instances"] - health["in_service"]
                reason = (
                    f"{out} of {health['instances']} instances being rebuilt, after: "
                    f"{health['fault']}"
                )
        return IndexEntry(model, str(self.number), state.value, reason)


@dataclass(frozen=True)
class Shadow:
    """Copies of a share of what goes to the default version go to `label` too, and are compared."""

    label: str
    share: float
    tolerance: float
    tally: runtime.ShadowTally


@dataclass(frozen=True)
class VersionRoute:
    """Which versions take part and how a model's requests are shared out over them; what
    `runtime.Traffic` and the version policy are made from. The default: as the policy says, all to
    the highest."""

    default: int = 0  # answers what names no version; 0 = the highest that is ready
    labels: Mapping[str, int] = field(default_factory=dict)
    split: tuple[tuple[str, float], ...] = ()  # labels and shares
    key: str = ""  # the request parameter whose value decides
    salt: str = ""
    fallback: Mapping[str, str] = field(default_factory=dict)  # label -> label
    shadow: Shadow | None = None
    pinned: frozenset[int] = frozenset()  # loaded whatever the version policy says


@dataclass
class ModelRecord:
    """A model that was loaded, or tried, at least once."""

    name: str
    versions: dict[int, VersionRecord] = field(default_factory=dict)
    wanted: bool = False  # it is to serve: readiness waits for it
    gone: bool = False  # no longer in a repository: forget it when it has drained
    replacing: bool = False  # what served made room for what is being loaded
    failure: str = ""  # why its last load failed; "" when it did not
    route: VersionRoute = field(default_factory=VersionRoute)
    lock: threading.Lock = field(default_factory=threading.Lock)  # one load or unload at a time

    def ready(self) -> list[LoadedVersion]:
        """Versions that serve, lowest number first."""
        return [
            record.loaded
            for _, record in sorted(self.versions.items())
            if record.state is ModelState.READY and record.loaded is not None
        ]

    def answers(self) -> bool:
        """Whether a request that names no version has a chance."""
        default = self.default()
        return default is not None and default.servable.ready

    def default(self) -> LoadedVersion | None:
        """What answers requests that name no version, but for a split."""
        ready = self.ready()
        chosen = [loaded for loaded in ready if loaded.number == self.route.default]
        return chosen[0] if chosen else ready[-1] if ready else None


@dataclass(frozen=True)
class IndexEntry:
    """A row of RepositoryIndex; a model that was never loaded has a name only."""

    name: str
    version: str = ""
    state: str = ""
    reason: str = ""


_CODE_WORDS = {
    2: "Unknown",
    3: "Invalid argument",
    5: "Not found",
    6: "Already exists",
    12: "Unsupported",
    13: "Internal",
    14: "Unavailable",
}


def cause_text(error: BaseException) -> str:
    """A failure as Triton's index words it: "Internal: RuntimeError: boom"."""
    if isinstance(error, errors.HeadraceError):
        return f"{_CODE_WORDS.get(error.code, error.status.capitalize())}: {error.details}"
    return f"Internal: {type(error).__name__}: {error}"
