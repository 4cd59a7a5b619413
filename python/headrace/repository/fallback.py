"""`accept:`, `breaker:` and `fallback:` of a model's policy.yaml: who answers what the model does
not, or not well enough.

    accept: {output: probs, confidence: 0.8}
    fallback:
      - {version: 6}
      - {model: digits_small, when: [error, deadline]}
      - {rule: {probs: [0.1, 0.1]}}
      - {human: {queue: nurses, wait: 0s}}
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from headrace.errors import InvalidArgumentError
from headrace.repository.names import check_model_name

__all__ = ["TRIGGERS", "AcceptPolicy", "BreakerPolicy", "FallbackStep", "HedgePolicy", "read_steps"]

TRIGGERS = (
    "invalid_input",
    "low_confidence",
    "error",
    "overload",
    "circuit_open",
    "deadline",
    "drift",
)
_CLOSED: dict[str, Any] = {"extra": "forbid"}
_QUEUE = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_MOST_STEPS = 16


@dataclass(frozen=True)
class AcceptPolicy:
    """`accept:`: which answers are sure enough."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _CLOSED

    output: str = ""  # of the model, a row a request of its batch; must be given
    confidence: float = 0.0  # from this on an answer is accepted; must be given
    activation: Literal["none", "softmax", "sigmoid"] = "none"  # what makes it probabilities
    measure: Literal["probability", "margin"] = "probability"

    def __post_init__(self) -> None:
        if not self.output:
            raise InvalidArgumentError("accept.output must be given")
        if not 0 < self.confidence <= 1:
            raise InvalidArgumentError(
                f"accept.confidence is {self.confidence}; it must be above 0, at most 1 "
                "(`headrace calibrate` finds one)"
            )


@dataclass(frozen=True)
class HedgePolicy:
    """`hedge:`: a request whose answer takes long is given to a second instance, too."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _CLOSED

    # How long an answer may take until then; 0: the 95th percentile of recent ones.
    after: float = field(default=0.0, metadata={"unit": "seconds"})
    budget: float = field(default=0.05, metadata={"unit": "share"})  # of the requests, at most

    def __post_init__(self) -> None:
        if self.after != 0 and not 1e-3 <= self.after <= 3600:
            raise InvalidArgumentError(
                f"hedge.after is {self.after}; it must be 0 or 0.001 to 3600 seconds"
            )
        if not 0.001 <= self.budget <= 1:
            raise InvalidArgumentError(f"hedge.budget is {self.budget}; it must be 0.001 to 1")


@dataclass(frozen=True)
class BreakerPolicy:
    """`breaker:`: when a version that fails much is left alone for a while."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _CLOSED

    failure_rate: float = field(default=0.5, metadata={"unit": "share"})
    min_requests: int = 20
    consecutive: int = 0  # failures in a row that open it, too; 0 = none
    window: float = field(default=10.0, metadata={"unit": "seconds"})
    open: float = field(default=5.0, metadata={"unit": "seconds"})
    open_max: float = field(default=60.0, metadata={"unit": "seconds"})
    probes: int = 3

    def __post_init__(self) -> None:
        for key, low, high in (
            ("failure_rate", 0.001, 1),
            ("min_requests", 1, 1_000_000),
            ("consecutive", 0, 1_000_000),
            ("window", 0.1, 3600),
            ("open", 0.001, 3600),
            ("open_max", self.open, 86400),
            ("probes", 1, 1000),
        ):
            value = getattr(self, key)
            if not low <= value <= high:
                raise InvalidArgumentError(f"breaker.{key} is {value}; it must be {low} to {high}")


@dataclass(frozen=True)
class FallbackStep:
    """One of `fallback:`; exactly one of version, model, rule and queue is set."""

    version: int = 0  # of the same model
    model: str = ""  # its default version, with its own policy
    rule: Mapping[str, Any] | None = None  # a row of each output
    queue: str = ""  # of people
    wait: float = 0.0  # for a person
    payload: bool = False  # the ticket keeps the request's inputs
    timeout: float = 0.0  # of a try at a version or a model; 0 = what the deadline leaves
    when: tuple[str, ...] | None = None  # None: every trigger but invalid_input

    @property
    def name(self) -> str:
        """As `hr.answered_by` and the metrics call it."""
        if self.rule is not None:
            return "rule"
        if self.queue:
            return f"human:{self.queue}"
        return self.model or f"version:{self.version}"


def read_steps(
    key: str, document: Any, seconds: Callable[[str, Any], float]
) -> tuple[FallbackStep, ...]:
    """Raises InvalidArgumentError naming the step."""
    if not isinstance(document, list):
        raise InvalidArgumentError(f"{key}: expected a list of steps as `- version: 6`")
    if len(document) > _MOST_STEPS:
        raise InvalidArgumentError(f"{key}: more than {_MOST_STEPS} steps")
    return tuple(_step(f"{key}[{i}]", step, seconds) for i, step in enumerate(document))


def _step(key: str, document: Any, seconds: Callable[[str, Any], float]) -> FallbackStep:
    kinds = ("version", "model", "rule", "human")
    if not isinstance(document, Mapping):
        raise InvalidArgumentError(f"{key}: expected one of {', '.join(kinds)}, as {{version: 6}}")
    chosen = [kind for kind in kinds if kind in document]
    if len(chosen) != 1:
        raise InvalidArgumentError(f"{key}: expected exactly one of {', '.join(kinds)}")
    kind = chosen[0]
    value = document[kind]
    allowed = {kind, "when"} | ({"timeout"} if kind in ("version", "model") else set())
    _only(key, document, allowed)
    fields: dict[str, Any] = {"when": _triggers(f"{key}.when", document.get("when"))}
    if "timeout" in document:
        fields["timeout"] = _bounded(f"{key}.timeout", document["timeout"], seconds)
    if kind == "version":
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise InvalidArgumentError(f"{key}.version is {value!r}; expected a number from 1 on")
        fields["version"] = value
    elif kind == "model":
        if not isinstance(value, str):
            raise InvalidArgumentError(f"{key}.model is {value!r}; expected a model's name")
        check_model_name(value)
        fields["model"] = value
    elif kind == "rule":
        if not isinstance(value, Mapping) or not value:
            raise InvalidArgumentError(f"{key}.rule: expected {{output: values}}")
        fields["rule"] = {str(name): values for name, values in value.items()}
    else:
        if not isinstance(value, Mapping):
            raise InvalidArgumentError(f"{key}.human: expected {{queue: name}}")
        _only(f"{key}.human", value, {"queue", "wait", "payload"})
        queue, payload = value.get("queue"), value.get("payload", False)
        if not isinstance(queue, str) or _QUEUE.fullmatch(queue) is None:
            raise InvalidArgumentError(
                f"{key}.human.queue is {queue!r}; expected 1 to 64 letters, digits, _ . or -"
            )
        if not isinstance(payload, bool):
            raise InvalidArgumentError(f"{key}.human.payload is {payload!r}; expected true, false")
        wait = _bounded(f"{key}.human.wait", value.get("wait", 0), seconds)
        fields |= {"queue": queue, "wait": wait, "payload": payload}
    return FallbackStep(**fields)


def _only(key: str, document: Mapping[Any, Any], allowed: set[str]) -> None:
    for name in document:
        if name not in allowed:
            known = ", ".join(sorted(allowed))
            raise InvalidArgumentError(f"{key}.{name}: unknown key; known: {known}")


def _bounded(key: str, value: Any, seconds: Callable[[str, Any], float]) -> float:
    time = seconds(key, value)
    if not 0 <= time <= 86400:
        raise InvalidArgumentError(f"{key} is {time}; it must be 0 to 86400 seconds")
    return time


def _triggers(key: str, value: Any) -> tuple[str, ...] | None:
    if value is None:
        return None
    if not isinstance(value, list) or not value:
        raise InvalidArgumentError(f"{key}: expected a list of {', '.join(TRIGGERS)}")
    for trigger in value:
        if trigger not in TRIGGERS:
            raise InvalidArgumentError(
                f"{key}: {trigger!r} is no trigger; known: {', '.join(TRIGGERS)}"
            )
    return tuple(value)
