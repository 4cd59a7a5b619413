"""Loading one version: artifact -> signature -> completed configuration -> warm, started
ModelVersion.

Nothing here is published: the caller decides what to do with the result.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from headrace import runtime
from headrace.control.fallbacks import guard, hedge
from headrace.control.instances import Told
from headrace.control.loaders import LoadedModel, Loaders, OpenedModel, Source
from headrace.control.signature import (
    admission_policy,
    batch_policy,
    health_policy,
    model_spec,
    tensor_specs,
    threads_asked,
)
from headrace.control.states import LoadedVersion
from headrace.errors import HeadraceError, InvalidArgumentError
from headrace.logs import get_logger
from headrace.protocol import model_config
from headrace.repository.artifact import Artifact, find_artifact
from headrace.repository.model_config import (
    Defaults,
    complete,
    read_labels,
    unused_settings,
    validate,
)
from headrace.repository.policy import CachePolicy, ModelPolicy
from headrace.repository.scan import ModelEntry

__all__ = ["Plan", "VersionLoader", "load_callable"]

_log = get_logger("control")

# A batch that takes longer is not worth compiling a second time to compare.
_SMALL_RUN_SECONDS = 1e-3
_TIMED_RUNS = 5
_ABOUT_AS_FAST = 1.3
_REMEMBERED = 1000

Infer = Callable[[dict[str, runtime.Array]], Mapping[str, runtime.Array]]


@dataclass(frozen=True)
class Plan:
    """What the core planner gave a model."""

    instances: int
    threads: int


class VersionLoader:
    """Thread-safe; several versions may be loaded at the same time."""

    def __init__(
        self,
        loaders: Loaders,
        defaults: Defaults,
        cache: runtime.ResponseCache | None = None,
        desk: runtime.HumanDesk | None = None,
        load_threads: int = 1,
        told: Told | None = None,
    ) -> None:
        """`desk`: takes what a policy gives to people. `load_threads`: loads of low priority at a
        time, one core each. `told`: hears of sick instances."""
        self._loaders = loaders
        self._told = told
        self._desk = desk
        self._defaults = defaults
        self._cache = cache
        self._slots = threading.BoundedSemaphore(load_threads)
        # Models that need no second thread.
        self._single_thread: dict[tuple[str, Plan], None] = {}

    def load(
        self,
        entry: ModelEntry,
        number: int,
        config: model_config.ModelConfig,
        policy: ModelPolicy,
        *,
        fingerprint: str,
        plan: Plan,
        low_priority: bool = False,
    ) -> LoadedVersion:
        """Blocks until the version is warm and started. Raises HeadraceError; nothing is left
        then. `low_priority`: for others serve meanwhile."""
        started = time.monotonic()
        artifact = find_artifact(entry, number, config)
        if artifact.backend == "speech":
            return self._load_speech(
                entry, number, artifact, config, policy, fingerprint, plan, low_priority
            )
        source = Source(
            model=entry.name,
            version=number,
            artifact=artifact,
            model_path=entry.path,
            version_path=entry.path / str(number),
            config=config,
            low_priority=low_priority,
        )
        opened = self._loaders.open(source)
        defaults = self._defaults
        # Without a GPU another backend serves; PyTorch knows best what it finds.
        if artifact.backend in ("tensorrt", "pytorch"):
            defaults = replace(defaults, gpus=1)
        completed = complete(
            opened.config, entry.name, artifact, opened.inputs, opened.outputs, defaults
        )
        validate(completed)
        for text in unused_settings(completed):
            _log.warning("%s: %s", source, text)

        def warm(threads: int) -> _Warm:
            planned = Plan(plan.instances, threads)
            loaded = opened.load(completed, instances=plan.instances, threads=threads)
            return _warmed(
                completed,
                number,
                loaded,
                planned,
                opened=opened,
                entry=entry,
                policy=policy,
                low_priority=low_priority,
                told=self._told,
            )

        # What user code does holds the interpreter, or waits for something far away.
        bounded = low_priority and not opened.runs_user_code
        with self._slots if bounded else nullcontext():
            searching = (
                plan.threads > 1 and not opened.runs_user_code and not threads_asked(completed)
            )
            if searching:
                warmed = self._with_best_threads(entry.name, plan, warm)
            else:
                warmed = warm(plan.threads)
        # For whoever asks for the configuration (`headrace models`).
        completed.parameters["headrace.backend"].string_value = warmed.version.description
        if warmed.loaded.why:
            completed.parameters["headrace.why"].string_value = warmed.loaded.why
        return _started(
            completed,
            policy,
            number,
            warmed,
            entry=entry,
            fingerprint=fingerprint,
            began=started,
            cache=self._cache,
            desk=self._desk,
        )

    def _load_speech(
        self,
        entry: ModelEntry,
        number: int,
        artifact: Artifact,
        config: model_config.ModelConfig,
        policy: ModelPolicy,
        fingerprint: str,
        plan: Plan,
        low_priority: bool,
    ) -> LoadedVersion:
        from headrace.control.speech_version import load_speech_version

        with self._slots if low_priority else nullcontext():
            return load_speech_version(
                entry,
                number,
                artifact,
                config,
                policy,
                fingerprint=fingerprint,
                plan=plan,
                low_priority=low_priority,
            )

    def _with_best_threads(self, model: str, plan: Plan, warm: Callable[[int], _Warm]) -> _Warm:
        """What was found out about a model is tried first with its next version: a compilation
        less."""
        if (model, plan) in self._single_thread:
            single = warm(1)
            if single.is_small():
                return single
            single.close()
            self._single_thread.pop((model, plan), None)
        warmed = _without_needless_threads(warm(plan.threads), warm)
        if warmed.plan.threads == 1:
            self._single_thread[(model, plan)] = None
            if len(self._single_thread) > _REMEMBERED:
                self._single_thread.pop(next(iter(self._single_thread)), None)
        return warmed


def load_callable(
    config: model_config.ModelConfig,
    functions: list[Infer],
    number: int,
    told: Told | None = None,
) -> LoadedVersion:
    """A version out of Python callables, one an instance. `config` is complete."""
    began = time.monotonic()
    model = runtime.callback_model(
        functions,
        tensor_specs(config.input, config.max_batch_size),
        tensor_specs(config.output, config.max_batch_size),
    )
    policy = ModelPolicy()
    plan = Plan(len(functions), 1)
    warmed = _warmed(
        config,
        number,
        LoadedModel(model),
        plan,
        opened=None,
        entry=None,
        policy=policy,
        told=told,
    )
    return _started(
        config, policy, number, warmed, entry=None, fingerprint="", began=began, desk=None
    )


@dataclass(frozen=True)
class _Warm:
    """A version that may be started."""

    version: runtime.ModelVersion
    loaded: LoadedModel
    plan: Plan
    sample: dict[str, runtime.Array] | None  # the last that it ran; None: it ran nothing
    low_priority: bool = False

    def run_seconds(self) -> float | None:
        """How long the sample takes, the best of some runs. None without one."""
        if self.sample is None:
            return None

        def once(sample: dict[str, runtime.Array]) -> float:
            began = time.perf_counter()
            self.version.warm_up(sample, low_priority=self.low_priority)
            return (time.perf_counter() - began) / self.plan.instances

        return min(once(self.sample) for _ in range(_TIMED_RUNS))

    def is_small(self) -> bool:
        """It runs so fast that a second thread could hardly help. Closes it when it fails."""
        try:
            seconds = self.run_seconds()
        except BaseException:
            self.close()
            raise
        return seconds is not None and seconds <= _SMALL_RUN_SECONDS

    def close(self) -> None:
        self.version.close(drain=False)
        for close in self.loaded.closers:
            close()


def _without_needless_threads(planned: _Warm, warm: Callable[[int], _Warm]) -> _Warm:
    """The same with one thread an instance if that is about as fast. The workers of a runtime spin
    between runs, which costs more than a small model itself."""
    if not planned.loaded.on_cpu:
        return planned
    try:
        seconds = planned.run_seconds()
        if seconds is None or seconds > _SMALL_RUN_SECONDS:
            return planned
        single = warm(1)
    except BaseException:
        planned.close()
        raise
    try:
        single_seconds = single.run_seconds()
    except BaseException:
        planned.close()
        single.close()
        raise
    if single_seconds is not None and single_seconds <= seconds * _ABOUT_AS_FAST:
        planned.close()
        return single
    single.close()
    return planned


def _warmed(
    config: model_config.ModelConfig,
    number: int,
    loaded: LoadedModel,
    plan: Plan,
    *,
    opened: OpenedModel | None,
    entry: ModelEntry | None,
    policy: ModelPolicy,
    told: Told | None,
    low_priority: bool = False,
) -> _Warm:
    def labels(filename: str) -> Sequence[str]:
        return read_labels(entry, filename) if entry is not None else ()

    version: runtime.ModelVersion | None = None
    try:
        version = runtime.ModelVersion(
            model_spec(config, number, labels),
            loaded.model,
            policy=batch_policy(config, policy.slo),
            instances=plan.instances,
            admission=admission_policy(policy.admission),
            health=health_policy(policy.health),
            on_instance_event=partial(told, config.name, number) if told is not None else None,
        )
        path = entry.path if entry is not None else None
        sample = _warm_up(version, config, number, path, opened, low_priority)
    except BaseException:
        if version is not None:
            version.close(drain=False)
        for close in loaded.closers:
            close()
        raise
    return _Warm(version, loaded, plan, sample, low_priority)


def _started(
    config: model_config.ModelConfig,
    policy: ModelPolicy,
    number: int,
    warmed: _Warm,
    *,
    entry: ModelEntry | None,
    fingerprint: str,
    began: float,
    cache: runtime.ResponseCache | None = None,
    desk: runtime.HumanDesk | None = None,
) -> LoadedVersion:
    try:
        hedged = hedge(warmed.version, policy, warmed.plan.instances)
        cached = _cached(hedged or warmed.version, policy, config, cache)
        fallbacks = guard(cached or hedged or warmed.version, number, config, policy, desk)
        warmed.version.start()
    except BaseException:
        warmed.close()
        raise
    return LoadedVersion(
        model=config.name,
        number=number,
        fingerprint=fingerprint,
        version=warmed.version,
        hedged=hedged,
        cache=cached,
        fallbacks=fallbacks,
        policy=policy,
        config=config,
        instances=warmed.plan.instances,
        threads=warmed.plan.threads,
        load_seconds=time.monotonic() - began,
        path=entry.path / str(number) if entry is not None else None,
        on_close=warmed.loaded.closers,
        engine=warmed.loaded.engine,
        on_engine=warmed.loaded.on_engine,
        no_engine=warmed.loaded.no_engine,
    )


def _cached(
    version: runtime.Servable,
    policy: ModelPolicy,
    config: model_config.ModelConfig,
    cache: runtime.ResponseCache | None,
) -> runtime.CachedServable | None:
    """The version behind the cache; None if policy and configuration ask for none."""
    wanted = policy.cache or (CachePolicy() if config.response_cache.enable else None)
    if wanted is None:
        return None
    if cache is None:
        _log.warning(
            "model '%s' asks for the response cache, which --response-cache-byte-size 0 switches "
            "off",
            config.name,
        )
        return None
    return runtime.CachedServable(
        cache, version, ttl_s=wanted.ttl, bypass_below=wanted.bypass_below
    )


def _warm_up(
    version: runtime.ModelVersion,
    config: model_config.ModelConfig,
    number: int,
    model_path: Path | None,
    opened: OpenedModel | None,
    low_priority: bool,
) -> dict[str, runtime.Array] | None:
    """Answers the last inputs that were run, None if none were."""
    # Here: a server without models starts without NumPy.
    from headrace.control.warmup import configured_samples, default_samples

    ran: dict[str, runtime.Array] | None = None
    if config.model_warmup:
        for sample in configured_samples(config, model_path):
            try:
                for _ in range(sample.count):
                    version.warm_up(sample.inputs, low_priority=low_priority)
                    ran = sample.inputs
            except HeadraceError as error:
                raise InvalidArgumentError(
                    f"warm-up '{sample.name}' failed: {error.details}"
                ) from error
        return ran
    if opened is None or opened.runs_user_code:
        return None
    refused: HeadraceError | None = None
    for samples in default_samples(config):
        try:
            for sample in samples:
                version.warm_up(sample.inputs, low_priority=low_priority)
                ran = sample.inputs
            return ran
        except HeadraceError as error:
            if not sample.guessed:
                raise type(error)(f"warm-up with {sample.name} failed: {error.details}") from error
            refused = refused or error
    _log.info(
        "model '%s' version %d is not warmed up, it takes no zeros (%s); give it a model_warmup "
        "sample in config.pbtxt",
        config.name,
        number,
        " ".join(refused.details.split())[:200] if refused is not None else "",
    )
    return None
