"""What a model should be: its files, its configuration and policy, the versions to be served, and
the threads that it may have beside the other models.

    desired = DesiredState(repositories, registry, cores=2)
    wanted = desired.look("digits")             # Wanted: fingerprints by version, config, policy
    plan = desired.plan("digits", wanted.config)

Threads: every method from any thread.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from headrace import runtime
from headrace.control.fallbacks import circle
from headrace.control.loading import Plan
from headrace.control.overrides import LoadOverride, PrivateRepository
from headrace.control.registry import Registry
from headrace.control.signature import instance_count, threads_asked
from headrace.errors import HeadraceError, InvalidArgumentError
from headrace.protocol import model_config
from headrace.repository.model_config import (
    config_from_json,
    read_config,
    select_versions,
    validate,
)
from headrace.repository.policy import ModelPolicy, read_policy
from headrace.repository.scan import ModelEntry, find_model, scan_model

__all__ = ["DesiredState", "Wanted"]

_REMEMBERED = 1000


@dataclass(frozen=True)
class Wanted:
    """A model as it should be."""

    entry: ModelEntry
    config: model_config.ModelConfig
    fingerprints: Mapping[int, str]  # by version to be served
    policy: ModelPolicy
    resources: tuple[object, ...] = ()


class DesiredState:
    def __init__(self, repositories: tuple[Path, ...], registry: Registry, *, cores: int) -> None:
        self._repositories = repositories
        self._registry = registry
        self._cores = cores
        # Versions that are not there for the version policy. Rollouts sets it.
        self.kept_out: Callable[[ModelEntry, ModelPolicy], frozenset[int]]
        self.kept_out = lambda entry, policy: frozenset()
        self._lock = threading.Lock()
        self._demands: dict[str, tuple[int, int]] = {}  # model -> (instances, threads); by _lock
        self._refined: dict[str, str] = {}  # fingerprints; by _lock

    def expect(self, entry: ModelEntry) -> None:
        """This model will be loaded: its cores are counted from now on."""
        with suppress(HeadraceError):  # its load says it
            self._wanted(entry, read_config(entry), "")

    def forget(self, name: str) -> None:
        """It is not served any more: others may have its cores."""
        with self._lock:
            self._demands.pop(name, None)

    def refine(self, fingerprint: str, refined: str) -> None:
        """What was loaded as `fingerprint` is served, from the same files, as `refined` now."""
        with self._lock:
            self._refined[fingerprint] = refined
            if len(self._refined) > _REMEMBERED:
                del self._refined[next(iter(self._refined))]

    def plan(self, name: str, config: model_config.ModelConfig) -> Plan:
        """Threads an instance of this model, beside every other model that is served or asked
        for."""
        with self._lock:
            demands = [(model, *demand) for model, demand in sorted(self._demands.items())]
        planned = {model: threads for model, _, threads in runtime.plan_cores(self._cores, demands)}
        return Plan(instance_count(config), planned.get(name, 1))

    def look(self, name: str, override: LoadOverride | None = None) -> Wanted:
        """The model as the repository (or the request) has it now. Raises NotFoundError,
        InvalidArgumentError."""
        if override is None:
            entry = find_model(self._repositories, name)
            return self._wanted(entry, read_config(entry), "")
        config = config_from_json(override.config_json)
        if not override.files:
            entry = find_model(self._repositories, name)
            return self._wanted(entry, config, override.fingerprint)
        files = PrivateRepository(name, override.files)
        entry = scan_model(files.root / name)
        return self._wanted(entry, config, override.fingerprint, (files,))

    def _wanted(
        self,
        entry: ModelEntry,
        config: model_config.ModelConfig,
        tag: str,
        resources: tuple[object, ...] = (),
    ) -> Wanted:
        validate(config)
        policy = read_policy(entry)
        if way := circle(entry.name, policy, self._registry.fallback_models()):
            raise InvalidArgumentError(
                f"model '{entry.name}': fallback goes in a circle: {' -> '.join(way)}"
            )
        route = self._registry.route(entry.name)
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
            refined = dict(self._refined)
        settings = f"{entry.path}/{entry.config_fingerprint}/{tag}/{policy.fingerprint}"
        fingerprints = {n: f"{settings}/{entry.version_fingerprints[n]}" for n in numbers}
        fingerprints = {n: refined.get(key, key) for n, key in fingerprints.items()}
        return Wanted(entry, config, fingerprints, policy, resources)

    def _kept_warm(
        self, name: str, policy: ModelPolicy, allowed: set[int], newest: int
    ) -> set[int]:
        """Versions that serve and stay loaded when the newest takes their place."""
        count = policy.swap.keep_warm if policy.swap is not None else 0
        served = {v.number for v in self._registry.ready_versions(name)} if count > 0 else set()
        return set(sorted(n for n in served & allowed if n < newest)[-count:]) if served else set()
