"""Feedback: how a version's answers turned out, counted by whoever sees it.

    feedback = Feedback()
    feedback.record({"conversion": Outcomes(good=41, bad=3)})
    feedback.totals()["conversion"].bad

An outcome is a yes or no about a request that the version answered ("the customer bought", "the
label was right"), told as often as the caller likes and as late as it must be.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass

from headrace.errors import InvalidArgumentError, ResourceExhaustedError
from headrace.rollout.plan import KPI_NAME

__all__ = ["Feedback", "Outcomes"]

_MOST_AT_ONCE = 10**9
_MOST_KPIS = 32


@dataclass(frozen=True)
class Outcomes:
    good: int = 0
    bad: int = 0

    def __add__(self, other: Outcomes) -> Outcomes:
        return Outcomes(self.good + other.good, self.bad + other.bad)

    def __sub__(self, other: Outcomes) -> Outcomes:
        return Outcomes(self.good - other.good, self.bad - other.bad)


class Feedback:
    """Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._totals: dict[str, Outcomes] = {}  # guarded by _lock

    def record(self, outcomes: Mapping[str, Outcomes]) -> dict[str, Outcomes]:
        """Adds them, all or none; answers the totals. Raises InvalidArgumentError naming the KPI,
        ResourceExhaustedError for too many names."""
        for name, counted in outcomes.items():
            if not KPI_NAME.fullmatch(name):
                raise InvalidArgumentError(
                    f"feedback: '{name[:80]}' is no name of a KPI: 1 to 64 letters, digits, '_', "
                    "'-' and '.'"
                )
            for field, count in (("good", counted.good), ("bad", counted.bad)):
                if not 0 <= count <= _MOST_AT_ONCE:
                    raise InvalidArgumentError(
                        f"feedback: {name}: {field} is {count}; it must be 0 to {_MOST_AT_ONCE}"
                    )
        with self._lock:
            if len(self._totals.keys() | outcomes.keys()) > _MOST_KPIS:
                raise ResourceExhaustedError(f"feedback: a version has at most {_MOST_KPIS} KPIs")
            for name, counted in outcomes.items():
                self._totals[name] = self._totals.get(name, Outcomes()) + counted
            return dict(self._totals)

    def totals(self) -> dict[str, Outcomes]:
        """By the KPI's name."""
        with self._lock:
            return dict(self._totals)
