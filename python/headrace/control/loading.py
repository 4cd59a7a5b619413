"""Loading one version: artifact -> signature -> completed configuration -> warm, started
ModelVersion.

Nothing here is published: the caller decides what to do with the result.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from headrace import runtime
from headrace.control.loaders import Loaders, OpenedModel, Source
from headrace.control.signature import (
    batch_policy,
    model_spec,
    tensor_specs,
)
from headrace.control.states import LoadedVersion
from headrace.errors import HeadraceError, InvalidArgumentError
from headrace.logs import get_logger
from headrace.protocol import model_config
from headrace.repository.artifact import find_artifact
from headrace.repository.model_config import (
    Defaults,
    complete,
    read_labels,
    unused_settings,
    validate,
)
from headrace.repository.scan import ModelEntry

__all__ = ["Plan", "VersionLoader", "load_callable"]

_log = get_logger("control")

Infer = Callable[[dict[str, runtime.Array]], Mapping[str, runtime.Array]]


@dataclass(frozen=True)
class Plan:
    """What the core planner gave a model."""

    instances: int
    threads: int


class VersionLoader:
    """Thread-safe; several versions may be loaded at the same time."""

    def __init__(self, loaders: Loaders, defaults: Defaults) -> None:
        self._loaders = loaders
        self._defaults = defaults

    def load(
        self,
        entry: ModelEntry,
        number: int,
        config: model_config.ModelConfig,
        *,
        fingerprint: str,
        plan: Plan,
    ) -> LoadedVersion:
        """Blocks until the version is warm and started. Raises HeadraceError; nothing is left
        then."""
        started = time.monotonic()
        artifact = find_artifact(entry, number, config)
        source = Source(
            model=entry.name,
            version=number,
            artifact=artifact,
            model_path=entry.path,
            version_path=entry.path / str(number),
            config=config,
        )
        opened = self._loaders.open(source)
        completed = complete(
            opened.config, entry.name, artifact, opened.inputs, opened.outputs, self._defaults
        )
        validate(completed)
        for text in unused_settings(completed):
            _log.warning("%s: %s", source, text)
        model, closers = opened.load(completed, instances=plan.instances, threads=plan.threads)
        return _started(
            completed,
            number,
            model,
            closers,
            opened=opened,
            entry=entry,
            fingerprint=fingerprint,
            plan=plan,
            began=started,
        )


def load_callable(
    config: model_config.ModelConfig, functions: list[Infer], number: int
) -> LoadedVersion:
    """A version out of Python callables, one an instance. `config` is complete."""
    began = time.monotonic()
    model = runtime.callback_model(
        functions,
        tensor_specs(config.input, config.max_batch_size),
        tensor_specs(config.output, config.max_batch_size),
    )
    return _started(
        config,
        number,
        model,
        [],
        opened=None,
        entry=None,
        fingerprint="",
        plan=Plan(len(functions), 1),
        began=began,
    )


def _started(
    config: model_config.ModelConfig,
    number: int,
    model: runtime.Model,
    closers: list[Callable[[], None]],
    *,
    opened: OpenedModel | None,
    entry: ModelEntry | None,
    fingerprint: str,
    plan: Plan,
    began: float,
) -> LoadedVersion:
    def labels(filename: str) -> Sequence[str]:
        return read_labels(entry, filename) if entry is not None else ()

    version: runtime.ModelVersion | None = None
    try:
        version = runtime.ModelVersion(
            model_spec(config, number, labels),
            model,
            policy=batch_policy(config),
            instances=plan.instances,
        )
        _warm_up(version, config, number, entry.path if entry is not None else None, opened)
        version.start()
    except BaseException:
        if version is not None:
            version.close(drain=False)
        for close in closers:
            close()
        raise
    return LoadedVersion(
        model=config.name,
        number=number,
        fingerprint=fingerprint,
        version=version,
        config=config,
        instances=plan.instances,
        threads=plan.threads,
        load_seconds=time.monotonic() - began,
        path=entry.path / str(number) if entry is not None else None,
        on_close=closers,
    )


def _warm_up(
    version: runtime.ModelVersion,
    config: model_config.ModelConfig,
    number: int,
    model_path: Path | None,
    opened: OpenedModel | None,
) -> None:
    # Here: a server without models starts without NumPy.
    from headrace.control.warmup import configured_samples, default_samples

    if config.model_warmup:
        for sample in configured_samples(config, model_path):
            try:
                for _ in range(sample.count):
                    version.warm_up(sample.inputs)
            except HeadraceError as error:
                raise InvalidArgumentError(
                    f"warm-up '{sample.name}' failed: {error.details}"
                ) from error
        return
    if opened is None or opened.runs_user_code:
        return
    refused: HeadraceError | None = None
    for samples in default_samples(config):
        try:
            for sample in samples:
                version.warm_up(sample.inputs)
            return
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
