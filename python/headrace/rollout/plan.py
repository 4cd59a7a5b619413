"""RolloutPlan: what the user asks of a rollout, checked whole before anything starts.

plan = RolloutPlan("m", candidate=8, share=0.05)
plan = plan_from_mapping("m", {"candidate": 8, "share": "5%", "stop_if": {"p99": "1.2x"}})
judge = plan.judge()
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from headrace.errors import InvalidArgumentError
from headrace.rollout.judge import Indicator, Judge

__all__ = ["ERRORS", "KPI_NAME", "LATENCY", "RolloutPlan", "kpi_indicator", "plan_from_mapping"]

# Names of the judge's indicators.
ERRORS = "errors"
LATENCY = "latency"

KPI_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_MOST_KPIS = 8
_MOST_KEY_LENGTH = 128
_MOST_REQUESTS = 10**12
_MOST_SECONDS = 365 * 24 * 3600


def kpi_indicator(name: str) -> str:
    """The judge's name for a KPI."""
    return f"kpi.{name}"


@dataclass(frozen=True)
class RolloutPlan:
    """Frozen. Raises InvalidArgumentError naming field and limits when a value makes no sense.

    Rates and shares are 0..1, times seconds. What each does: docs/ROLLOUT.md.
    """

    model: str
    candidate: int  # version number
    share: float  # of the model's requests that go to the candidate
    key: str = ""  # the request parameter that keeps a user on one side; "": each request by itself
    alpha: float = 0.01  # chance that a candidate that is no worse is rolled back all the same
    error_margin: float = 0.0  # a rise of the error rate up to this does not roll back
    max_error_increase: float = 0.01  # promote only when the rise is shown to be smaller
    latency_ratio: float = 1.2  # a request is slow after this many times the stable version's p99
    max_slow_increase: float = 0.01  # promote only when the share of slow ones rises by less
    min_requests: int = 1000  # of the candidate, before it can be promoted
    min_seconds: float = 60.0  # before it can be promoted
    auto_promote: bool = True  # False: stay until someone promotes
    # The share is copied to the candidate instead of given to it: clients get nothing of it, its
    # answers are compared with theirs. Never promoted by itself.
    shadow: bool = False
    # Indicators from feedback, by name, and the rise of each one's share of bad outcomes that does
    # not roll back.
    kpis: Mapping[str, float] = field(default_factory=dict)
    max_kpi_increase: float = 0.01  # promote only when that rise is shown to be smaller
    tolerance: float = 1e-3  # of a shadow's FP32 and FP64 outputs, relative to max(1, |value|)

    def __post_init__(self) -> None:
        if not isinstance(self.model, str) or not self.model:
            raise _wrong("model", self.model, "a model's name")
        _whole("candidate", self.candidate, 1, 2**63 - 1)
        if self.shadow:
            _number("share", self.share, "above 0, at most 1 (or 100%)", lambda v: 0 < v <= 1)
        else:
            _number(
                "share", self.share, "above 0 and below 1 (or 0% and 100%)", lambda v: 0 < v < 1
            )
        if (
            not isinstance(self.key, str)
            or len(self.key) > _MOST_KEY_LENGTH
            or not (self.key.isascii() and self.key.isprintable())
        ):
            raise _wrong(
                "key",
                self.key,
                f"a parameter's name of at most {_MOST_KEY_LENGTH} printable ASCII characters, "
                "or empty",
            )
        _number("alpha", self.alpha, "0.000001 to 0.2", lambda v: 1e-6 <= v <= 0.2)
        _number("error_margin", self.error_margin, "0 to 0.5", lambda v: 0 <= v <= 0.5)
        for name in ("max_error_increase", "max_slow_increase", "max_kpi_increase"):
            _number(name, getattr(self, name), "0.0001 to 0.5", lambda v: 1e-4 <= v <= 0.5)
        if self.error_margin > self.max_error_increase:
            raise _wrong(
                "error_margin",
                self.error_margin,
                f"at most max_error_increase ({self.max_error_increase})",
            )
        self._check_kpis()
        _number("latency_ratio", self.latency_ratio, "1 to 1000", lambda v: 1 <= v <= 1000)
        _whole("min_requests", self.min_requests, 1, _MOST_REQUESTS)
        _number(
            "min_seconds",
            self.min_seconds,
            f"0 to {_MOST_SECONDS}",
            lambda v: 0 <= v <= _MOST_SECONDS,
        )
        for name in ("auto_promote", "shadow"):
            if not isinstance(getattr(self, name), bool):
                raise _wrong(name, getattr(self, name), "true or false")
        _number("tolerance", self.tolerance, "0 to 1000", lambda v: 0 <= v <= 1000)

    def _check_kpis(self) -> None:
        if not isinstance(self.kpis, Mapping) or len(self.kpis) > _MOST_KPIS:
            raise _wrong("kpis", self.kpis, f"at most {_MOST_KPIS} names with their margins")
        for name, margin in self.kpis.items():
            if not isinstance(name, str) or not KPI_NAME.fullmatch(name):
                raise _wrong("kpis", name, "1 to 64 letters, digits, '_', '-' and '.'")
            _number(
                f"kpi.{name}",
                margin,
                f"0 to max_kpi_increase ({self.max_kpi_increase})",
                lambda v: 0 <= v <= self.max_kpi_increase,
            )

    def slow_after(self, stable_p99: float) -> float:
        """The limit past which a request counts as slow, in the unit of `stable_p99`."""
        return self.latency_ratio * stable_p99

    def judge(self) -> Judge:
        """A new judge of this rollout, with the indicators ERRORS and LATENCY, and one a KPI."""
        return Judge(
            [
                Indicator(ERRORS, margin=self.error_margin, tolerance=self.max_error_increase),
                Indicator(LATENCY, tolerance=self.max_slow_increase),
                *(
                    Indicator(kpi_indicator(name), margin=margin, tolerance=self.max_kpi_increase)
                    for name, margin in self.kpis.items()
                ),
            ],
            alpha=self.alpha,
            min_requests=self.min_requests,
            min_seconds=self.min_seconds,
            auto_promote=self.auto_promote and not self.shadow,
        )


# Keys of the `rollout:` section that are a field by another name or in percent.
_FIELDS: dict[str, tuple[str, bool]] = {
    # key: (field, may be a percentage)
    "candidate": ("candidate", False),
    "share": ("share", True),
    "by": ("key", False),
    "alpha": ("alpha", True),
    "max_error_increase": ("max_error_increase", True),
    "max_slow_increase": ("max_slow_increase", True),
    "max_kpi_increase": ("max_kpi_increase", True),
    "min_requests": ("min_requests", False),
    "min_seconds": ("min_seconds", False),
    "auto_promote": ("auto_promote", False),
    "shadow": ("shadow", False),
    "tolerance": ("tolerance", False),
}
_STOP_IF = ("error", "p99")


def plan_from_mapping(model: str, section: Mapping[str, Any]) -> RolloutPlan:
    """The plan of a model's `rollout:` section in YAML.

        candidate: 8              # required, as is share
        share: 5%                 # or 0.05
        by: user_id               # RolloutPlan.key
        stop_if: {error: worse, p99: 1.2x, kpi.conversion: worse}
        alpha: 0.01
        max_error_increase: 0.5%

    `stop_if.error`: `worse`, or the rise that is allowed ("0.1%"). `stop_if.p99`: the ratio, "1.2x"
    or 1.2. `stop_if.kpi.NAME`: as `error`. The other keys are RolloutPlan's fields. Raises
    InvalidArgumentError for an unknown key, listing the known ones, and for a value that makes no
    sense.
    """
    if not isinstance(section, Mapping):
        raise InvalidArgumentError(
            f"rollout: is {section!r}; it must be a section with 'candidate' and 'share'"
        )
    _known("", section, (*_FIELDS, "stop_if"))
    values: dict[str, Any] = {}
    for key, value in section.items():
        if key == "stop_if":
            continue
        field, percentage = _FIELDS[key]
        values[field] = _rate(key, value) if percentage else value
    for key in ("candidate", "share"):
        if key not in values:
            raise InvalidArgumentError(f"rollout: '{key}' is missing")

    stop_if = section.get("stop_if", {})
    if not isinstance(stop_if, Mapping):
        raise _wrong("stop_if", stop_if, "a section with " + " or ".join(map(repr, _STOP_IF)))
    kpis = {k: v for k, v in stop_if.items() if isinstance(k, str) and k.startswith("kpi.")}
    _known("stop_if.", [k for k in stop_if if k not in kpis], (*_STOP_IF, "kpi.NAME"))
    values["kpis"] = {
        key.removeprefix("kpi."): (
            0.0 if value == "worse" else _rate(f"stop_if.{key}", value, " or 'worse'")
        )
        for key, value in kpis.items()
    }
    if "error" in stop_if and stop_if["error"] != "worse":
        values["error_margin"] = _rate("stop_if.error", stop_if["error"], " or 'worse'")
    if "p99" in stop_if:
        values["latency_ratio"] = _ratio("stop_if.p99", stop_if["p99"])
    return RolloutPlan(model, **values)


def _known(prefix: str, section: Iterable[object], keys: Iterable[str]) -> None:
    known = list(keys)
    for key in section:
        if key not in known:
            listed = ", ".join(prefix + name for name in known)
            raise InvalidArgumentError(f"rollout: unknown key '{prefix}{key}'; known: {listed}")


def _rate(key: str, value: object, otherwise: str = "") -> float:
    """0.05 or "5%"."""
    if isinstance(value, str):
        text = value.strip()
        try:
            return float(text[:-1]) / 100 if text.endswith("%") else float(text)
        except ValueError:
            pass
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    raise _wrong(key, value, f"a number such as 0.05 or a percentage such as 5%{otherwise}")


def _ratio(key: str, value: object) -> float:
    """1.2 or "1.2x"."""
    if isinstance(value, str):
        try:
            return float(value.strip().removesuffix("x"))
        except ValueError:
            pass
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    raise _wrong(key, value, "a ratio such as 1.2x")


def _number(field: str, value: object, limits: str, fits: Callable[[float], bool]) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise _wrong(field, value, f"a number, {limits}")
    if not fits(value):
        raise _wrong(field, value, limits)


def _whole(field: str, value: object, least: int, most: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise _wrong(field, value, f"a whole number, {least} to {most}")


def _wrong(field: str, value: object, wanted: str) -> InvalidArgumentError:
    return InvalidArgumentError(f"rollout: {field} is {value!r}; it must be {wanted}")
