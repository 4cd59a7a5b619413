"""Fallbacks: what a version's policy puts in front of it, and where its steps lead at the moment.

A version is published as FallbackChain(Guarded(version)), as far as its policy asks for either. A
step to another version leads to that version behind its own breaker, without its chain; a step to
another model to whatever answers requests for it. Where to is told by `point` at every publishing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from headrace import runtime
from headrace.control.signature import datatype_name
from headrace.errors import InvalidArgumentError
from headrace.protocol import model_config
from headrace.repository.fallback import BreakerPolicy, FallbackStep
from headrace.repository.policy import ModelPolicy

if TYPE_CHECKING:
    from headrace.control.states import ModelRecord

__all__ = ["Fallbacks", "circle", "guard", "hedge", "point"]


@dataclass(frozen=True)
class Fallbacks:
    """Of one version: the parts that change or are looked at while it serves."""

    servable: runtime.Servable  # what is published
    guarded: runtime.Servable  # the version behind its breaker, if it has one
    breaker: runtime.Guarded | None = None
    chain: runtime.FallbackChain | None = None
    links: tuple[tuple[FallbackStep, runtime.Link], ...] = field(default=())

    def close(self) -> None:
        """Leads nowhere any more, so that nothing is kept."""
        for _, link in self.links:
            link.point_to(None)


def guard(
    version: runtime.Servable,
    number: int,
    config: model_config.ModelConfig,
    policy: ModelPolicy,
    desk: runtime.HumanDesk | None,
) -> Fallbacks:
    """Raises InvalidArgumentError naming the key of the policy that the model does not suit."""
    breaker: runtime.Guarded | None = None
    # With fallbacks, a version that fails is better left alone; without, that is for people to say.
    options = policy.breaker or (BreakerPolicy() if policy.fallback else None)
    if options is not None:
        breaker = runtime.Guarded(
            version,
            failure_rate=options.failure_rate,
            min_requests=options.min_requests,
            consecutive=options.consecutive,
            window_s=options.window,
            open_s=options.open,
            open_max_s=options.open_max,
            probes=options.probes,
        )
    guarded = breaker or version
    if not policy.fallback and policy.accept is None and not policy.deadline:
        return Fallbacks(guarded, guarded, breaker)
    steps: list[runtime.ChainStep] = []
    links: list[tuple[FallbackStep, runtime.Link]] = []
    for i, step in enumerate(policy.fallback):
        if step.model == config.name:
            raise InvalidArgumentError(
                f"fallback[{i}].model: a model's other answers are its versions', as {{version: 6}}"
            )
        if step.rule is not None:
            rows = _rows(f"fallback[{i}].rule", step.rule, config)
            steps.append(runtime.ChainStep.rule(step.name, version, rows, on=step.when))
        elif step.queue:
            if desk is None:
                raise InvalidArgumentError(
                    f"fallback[{i}].human: this server keeps no tickets (--tickets FILE)"
                )
            steps.append(
                runtime.ChainStep.person(
                    step.name,
                    desk,
                    step.queue,
                    wait_s=step.wait,
                    payload=step.payload,
                    on=step.when,
                )
            )
        else:
            link = runtime.Link()
            links.append((step, link))
            name = step.model or f"{config.name}/{step.version}"
            steps.append(runtime.ChainStep.model(name, link, on=step.when, timeout_s=step.timeout))
    accept = policy.accept
    chain = runtime.FallbackChain(
        guarded,
        f"{config.name}/{number}",
        steps,
        accept=runtime.Accept(
            accept.output,
            accept.confidence,
            activation=accept.activation,
            measure=accept.measure,
        )
        if accept is not None
        else None,
        budget_s=policy.deadline,
    )
    return Fallbacks(chain, guarded, breaker, chain, tuple(links))


def hedge(version: runtime.Servable, policy: ModelPolicy, instances: int) -> runtime.Hedged | None:
    """None if the policy asks for none. Raises InvalidArgumentError where there is no second
    instance to ask."""
    if policy.hedge is None:
        return None
    if instances < 2:
        raise InvalidArgumentError(
            "hedge: the model has one instance, so nobody could be asked again; give it an "
            "instance_group with a count of 2 or more"
        )
    return runtime.Hedged(version, after_s=policy.hedge.after, budget=policy.hedge.budget)


def point(records: Mapping[str, ModelRecord]) -> None:
    """Leads every step of every version that serves to where it leads now."""
    for record in records.values():
        numbers = {loaded.number: loaded for loaded in record.ready()}
        for loaded in numbers.values():
            for step, link in loaded.fallbacks.links:
                if step.model:
                    other = records.get(step.model)
                    default = other.default() if other is not None else None
                    link.point_to(default.servable if default is not None else None)
                else:
                    target = numbers.get(step.version)
                    link.point_to(
                        target.fallbacks.guarded
                        if target is not None and target is not loaded
                        else None
                    )


def circle(model: str, policy: ModelPolicy, others: Mapping[str, Iterable[str]]) -> list[str]:
    """The models on a way from `model` over fallbacks back to it; empty without one. `others`: the
    models that each model falls back to."""

    def way(name: str, seen: tuple[str, ...]) -> list[str]:
        nexts = [step.model for step in policy.fallback] if name == model else others.get(name, ())
        for following in nexts:
            if following == model:
                return [*seen, name, model]
            if following and following not in seen and (found := way(following, (*seen, name))):
                return found
        return []

    return way(model, ())


def _rows(
    key: str, rule: Mapping[str, Any], config: model_config.ModelConfig
) -> dict[str, runtime.Array]:
    import numpy as np  # here: a server without models starts without NumPy

    from headrace import datatypes

    outputs = {output.name: output for output in config.output}
    rows: dict[str, runtime.Array] = {}
    for name, values in rule.items():
        if name not in outputs:
            known = ", ".join(sorted(outputs))
            raise InvalidArgumentError(f"{key}.{name}: the model has no such output, only {known}")
        datatype = datatype_name(outputs[name].data_type)
        try:
            rows[name] = np.array(values, dtype=datatypes.dtype_of(datatype))
        except (TypeError, ValueError, OverflowError) as error:
            raise InvalidArgumentError(f"{key}.{name}: not {datatype}: {error}") from None
    return rows
