"""Which confidence an answer needs so that accepted answers are wrong at most so often.

Selective classification (Geifman and El-Yaniv 2017, "Selective Classification for Deep Neural
Networks"): of a grid of thresholds, the one that accepts most among those whose error rate has a
Clopper-Pearson upper bound within the target. The bounds share `delta` between them, so with
probability 1 - delta over the labelled sample, the true error rate of what is accepted is within
the target, for inputs from where the sample is from. Pure.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from headrace.errors import InvalidArgumentError

__all__ = ["Point", "calibrate", "confidences", "upper_bound"]

Array = npt.NDArray[Any]
GRID = 40
_FEWEST = 50


@dataclass(frozen=True)
class Point:
    """What a threshold gives, on the sample."""

    threshold: float
    coverage: float  # share of the sample that is accepted
    error: float  # of what is accepted
    bound: float  # upper confidence bound of that error


def confidences(
    outputs: Array, *, activation: str = "none", measure: str = "probability"
) -> tuple[Array, Array]:
    """(confidence, predicted class) of each row, as the server computes them (core/confidence.h).
    One number a row: the probability of class 1 of two."""
    rows = np.asarray(outputs, np.float64).reshape(len(outputs), -1)
    if rows.shape[1] == 0:
        raise InvalidArgumentError("the output has no numbers")
    if activation == "sigmoid" or (activation == "softmax" and rows.shape[1] == 1):
        rows = 1 / (1 + np.exp(-rows))
    elif activation == "softmax":
        rows = np.exp(rows - rows.max(axis=1, keepdims=True))
        rows /= rows.sum(axis=1, keepdims=True)
    if rows.shape[1] == 1:
        rows = np.concatenate([1 - rows, rows], axis=1)
    ordered = np.sort(rows, axis=1)
    values = ordered[:, -1] - ordered[:, -2] if measure == "margin" else ordered[:, -1]
    # The server compares 32-bit numbers.
    return np.nan_to_num(values, nan=0.0).astype(np.float32), rows.argmax(axis=1)


def upper_bound(errors: int, count: int, delta: float) -> float:
    """Clopper-Pearson: the largest error rate p with P(at most `errors` of `count`) >= delta."""
    if errors >= count:
        return 1.0
    k = np.arange(errors + 1)
    log_choose = np.array(
        [math.lgamma(count + 1) - math.lgamma(i + 1) - math.lgamma(count - i + 1) for i in k]
    )

    def at_most(p: float) -> float:
        logs = log_choose + k * math.log(p) + (count - k) * math.log1p(-p)
        top = logs.max()
        return float(math.exp(top) * np.exp(logs - top).sum())

    low, high = errors / count, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        if at_most(middle) >= delta:
            low = middle
        else:
            high = middle
    return high


def calibrate(
    confidence: Array, correct: Array, *, target_error: float, delta: float = 0.05
) -> tuple[Point | None, Sequence[Point]]:
    """The point to use, None when no threshold keeps the target; and the whole grid, from the one
    that accepts all on. Raises InvalidArgumentError for a sample that is too small to tell."""
    if not 0 < target_error < 1:
        raise InvalidArgumentError(f"the target error is {target_error}; expected as 0.02")
    count = len(confidence)
    if count < _FEWEST:
        raise InvalidArgumentError(f"{count} labelled rows are too few; {_FEWEST} at least")
    order = np.argsort(-confidence, kind="stable")
    ranked, wrong = confidence[order], np.cumsum(~np.asarray(correct, bool)[order])
    points: list[Point] = []
    for share in np.linspace(1.0, 1.0 / GRID, GRID):
        threshold = ranked[max(1, math.ceil(share * count)) - 1]
        accepted = int(np.searchsorted(-ranked, -threshold, side="right"))  # equals, too
        errors = int(wrong[accepted - 1])
        points.append(
            Point(
                threshold=float(threshold),
                coverage=accepted / count,
                error=errors / accepted,
                bound=upper_bound(errors, accepted, delta / GRID),
            )
        )
    kept = [p for p in points if p.bound <= target_error and 0 < p.threshold <= 1]
    return (max(kept, key=lambda p: p.coverage) if kept else None), points
