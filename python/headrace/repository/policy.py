"""ModelPolicy: what a model's `policy.yaml`, beside its config.pbtxt, asks of the server.

    # models/digits/policy.yaml
    cache: {ttl: 60s}

Each section is a frozen dataclass; an absent section is None: the server does nothing of the kind.
Times take "250ms", "2s", "5m", "1h" (a bare number: seconds), shares "5%" or 0.05, sizes "64MiB" or
bytes. docs/CONFIGURATION.md has every key.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Literal, get_args, get_type_hints

from headrace.errors import InvalidArgumentError
from headrace.repository.fallback import (
    AcceptPolicy,
    BreakerPolicy,
    FallbackStep,
    HedgePolicy,
    read_steps,
)
from headrace.repository.scan import POLICY_FILENAME, ModelEntry

__all__ = [
    "POLICY_FILENAME",
    "AcceptPolicy",
    "AdmissionPolicy",
    "BreakerPolicy",
    "CachePolicy",
    "FallbackStep",
    "HealthPolicy",
    "HedgePolicy",
    "ModelPolicy",
    "SloPolicy",
    "SwapPolicy",
    "parse_policy",
    "read_policy",
]

_MAX_BYTES = 1 << 20
_CLOSED: dict[str, Any] = {"extra": "forbid"}


def seconds(default: float) -> Any:
    return field(default=default, metadata={"unit": "seconds"})


def share(default: float) -> Any:
    return field(default=default, metadata={"unit": "share"})


def size(default: int) -> Any:
    return field(default=default, metadata={"unit": "bytes"})


@dataclass(frozen=True)
class CachePolicy:
    """`cache:`: answers of this model are kept and given again for the same input."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _CLOSED

    ttl: float = seconds(0.0)  # how long an answer is good; 0 = as long as the version
    # While less than this share of the requests finds its answer, most of them do not look.
    bypass_below: float = share(0.02)

    def __post_init__(self) -> None:
        _check("cache.ttl", self.ttl, 0, 365 * 86400)
        _check("cache.bypass_below", self.bypass_below, 0, 1)


@dataclass(frozen=True)
class SloPolicy:
    """`slo:`: what clients of this model are promised. Batch sizes and waiting follow from it and
    from what batches were seen to cost."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _CLOSED

    latency: float = seconds(0.0)  # from the request's arrival to its answer; must be given
    objective: float = share(0.99)  # of the requests

    def __post_init__(self) -> None:
        if self.latency == 0:
            raise InvalidArgumentError("slo.latency must be given, as 50ms")
        _check("slo.latency", self.latency, 1e-4, 3600)
        _check("slo.objective", self.objective, 0.5, 0.99999)


@dataclass(frozen=True)
class AdmissionPolicy:
    """`admission:`: which requests are refused because they would be late."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _CLOSED

    deadline: bool = True  # those that would miss their deadline
    slo: bool = True  # those that would miss slo.latency
    # CoDel, for requests without either: how long they may wait in a queue that stands (0: as long
    # as there is room), and in one that is but a burst; after so long a time it is none.
    queue_target: float = seconds(0.0)
    queue_interval: float = seconds(0.1)
    # As many in flight as the gradient of their latency allows.
    adaptive_concurrency: bool = False

    def __post_init__(self) -> None:
        _check("admission.queue_target", self.queue_target, 0, 3600)
        _check("admission.queue_interval", self.queue_interval, max(self.queue_target, 1e-3), 3600)


@dataclass(frozen=True)
class HealthPolicy:
    """`health:`: when an instance is sick, and how often it is rebuilt."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _CLOSED

    failures: int = 5  # batches in a row, then it is probed; 0: never
    backoff: float = seconds(1.0)  # between its rebuilds, at first;
    backoff_max: float = seconds(60.0)  # at most
    probe: float = seconds(0.0)  # an instance with nothing to do for so long is probed; 0: never

    def __post_init__(self) -> None:
        _check("health.failures", self.failures, 0, 1_000_000)
        _check("health.backoff", self.backoff, 1e-3, 86400)
        _check("health.backoff_max", self.backoff_max, self.backoff, 86400)
        _check("health.probe", self.probe, 0, 86400)


@dataclass(frozen=True)
class SwapPolicy:
    """`swap:`: how a new version takes the place of the one that serves."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _CLOSED

    # unload_first: for what does not fit into memory twice; UNAVAILABLE meanwhile.
    order: Literal["load_first", "unload_first"] = "load_first"
    keep_warm: int = 0  # versions that served before and stay loaded

    def __post_init__(self) -> None:
        _check("swap.keep_warm", self.keep_warm, 0, 100)
        if self.keep_warm > 0 and self.order == "unload_first":
            raise InvalidArgumentError(
                "swap.keep_warm and swap.order: unload_first exclude each other"
            )


@dataclass(frozen=True)
class ModelPolicy:
    __pydantic_config__: ClassVar[dict[str, Any]] = _CLOSED

    accept: AcceptPolicy | None = None
    admission: AdmissionPolicy | None = None
    breaker: BreakerPolicy | None = None
    cache: CachePolicy | None = None
    # From a request's arrival to its answer, for the fallbacks; 0: the client's deadline.
    deadline: float = seconds(0.0)
    fallback: tuple[FallbackStep, ...] = field(default=(), metadata={"read": read_steps})
    health: HealthPolicy | None = None
    hedge: HedgePolicy | None = None
    slo: SloPolicy | None = None
    swap: SwapPolicy | None = None
    # RolloutPlan's section (rollout/plan.py), which checks it.
    rollout: Mapping[str, Any] | None = None

    # Sections that take effect without loading the model's versions anew.
    LIVE: ClassVar[frozenset[str]] = frozenset({"rollout", "swap"})

    @property
    def fingerprint(self) -> str:
        """Changes with what a version is loaded by; "" for a model without such a policy."""
        built = [
            f"{f.name}={getattr(self, f.name)!r}"
            for f in fields(self)
            if f.name not in self.LIVE and getattr(self, f.name) not in (None, (), 0.0)
        ]
        return (
            hashlib.blake2b("\n".join(built).encode(), digest_size=16).hexdigest() if built else ""
        )


def read_policy(entry: ModelEntry) -> ModelPolicy:
    """The model's policy; the empty one without a file. Raises InvalidArgumentError naming file and
    key."""
    if entry.policy_path is None:
        return ModelPolicy()
    try:
        with entry.policy_path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise InvalidArgumentError(f"cannot read {entry.policy_path}: {error.strerror}") from None
    if len(data) > _MAX_BYTES:
        raise InvalidArgumentError(f"{entry.policy_path} is larger than {_MAX_BYTES} bytes")
    try:
        return parse_policy(data.decode("utf-8"))
    except UnicodeDecodeError:
        raise InvalidArgumentError(f"{entry.policy_path}: not UTF-8 text") from None
    except InvalidArgumentError as error:
        raise InvalidArgumentError(f"{entry.policy_path}: {error.details}") from None


def parse_policy(text: str) -> ModelPolicy:
    """Raises InvalidArgumentError naming the key."""
    import yaml  # type: ignore[import-untyped, unused-ignore]

    try:
        document = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InvalidArgumentError(f"not valid YAML: {error}") from None
    if document is None:
        return ModelPolicy()
    return _validated(document)


def _validated(document: Any) -> ModelPolicy:
    import pydantic

    document = _converted(ModelPolicy, document, "")
    try:
        return pydantic.TypeAdapter(ModelPolicy).validate_python(document)
    except pydantic.ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(str(part) for part in problem["loc"])
        raise InvalidArgumentError(f"{where}: {problem['msg']}") from None


def _converted(cls: Any, document: Any, prefix: str) -> Any:
    """`document` with quantities as numbers, sections first; unknown keys are errors that list the
    known ones."""
    if not isinstance(document, Mapping):
        where = prefix.rstrip(".") or "the file"
        raise InvalidArgumentError(
            f"{where}: expected `key: value` pairs, found {type(document).__name__}"
        )
    hints = get_type_hints(cls)
    known = {f.name: f for f in fields(cls)}
    result: dict[str, Any] = {}
    for key, value in document.items():
        name = str(key).replace("-", "_")
        if name not in known:
            raise InvalidArgumentError(
                f"{prefix}{key}: unknown key; known: {', '.join(sorted(known))}"
            )
        if read := known[name].metadata.get("read"):
            result[name] = read(f"{prefix}{name}", value, _seconds)
            continue
        unit = known[name].metadata.get("unit")
        section = next(
            (t for t in (hints[name], *get_args(hints[name])) if dataclasses.is_dataclass(t)), None
        )
        if unit is not None:
            value = _UNITS[unit](f"{prefix}{name}", value)
        elif section is not None and value is True:
            value = {}  # `cache: true`: the section with its defaults
        elif section is not None and value in (False, None):
            continue
        if section is not None:
            value = _converted(section, value, f"{prefix}{name}.")
        result[name] = value
    return result


_TIMES = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_SIZES = {"": 1, "B": 1}
for _power, _letter in enumerate("KMGT", start=1):
    _SIZES |= {_letter + "iB": 1024**_power, _letter + "B": 1000**_power}
_QUANTITY = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z%]*)\s*", re.ASCII)


def _quantity(key: str, value: Any, units: Mapping[str, float], example: str) -> float:
    if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    found = _QUANTITY.fullmatch(value) if isinstance(value, str) else None
    if found is None or found[2] not in units:
        raise InvalidArgumentError(f"{key} is {value!r}; expected {example}")
    return float(found[1]) * units[found[2]]


def _seconds(key: str, value: Any) -> float:
    return _quantity(key, value, {"": 1.0, **_TIMES}, 'a time as "50ms"')


def _share(key: str, value: Any) -> float:
    return _quantity(key, value, {"": 1.0, "%": 0.01}, 'a share as "5%"')


def _bytes(key: str, value: Any) -> int:
    return int(_quantity(key, value, _SIZES, 'a size as "64MiB"'))


_UNITS: Mapping[str, Callable[[str, Any], float]] = {
    "seconds": _seconds,
    "share": _share,
    "bytes": _bytes,
}


def _check(key: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise InvalidArgumentError(f"{key} is {value}; it must be {low} to {high}")
