"""Which layers stay in float so that a model keeps its accuracy budget. Pure: what is measured is
a function of the caller's.

Layers are ranked by what quantising each alone does to the answers. The worst are put back to
float until the whole model is within the budget: how many it takes is found by bisection, as each
measurement runs the model over data. Then those that were put back are tried again in INT8, the
least harmful first: errors of layers may cancel, and the ranking is of each alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

__all__ = ["Choice", "choose", "rank"]


@dataclass(frozen=True)
class Choice:
    """`in_float`: worst first. `error` is that of the model as chosen, measured. `reached` is False
    when even one quantised layer is over the budget: then everything is in float, and `error` the
    least that was measured."""

    in_float: tuple[str, ...]
    error: float
    reached: bool
    measurements: int


def rank(effects: Mapping[str, float]) -> list[str]:
    """Worst first; of equals the first given."""
    return sorted(effects, key=lambda name: -effects[name])


def choose(
    ranked: list[str],
    measure: Callable[[frozenset[str]], float],
    budget: float,
    *,
    retries: int = 6,
) -> Choice:
    """`measure(in_float)` is the model's error with those layers in float and the others quantised.
    It is called at most 2 + log2(len(ranked)) + `retries` times, never with all in float."""
    count = 0
    least = float("inf")

    def within(names: frozenset[str]) -> float | None:
        nonlocal count, least
        count += 1
        error = measure(names)
        least = min(least, error)
        return error if error <= budget else None

    error = within(frozenset())
    if error is not None:
        return Choice((), error, True, count)
    # `high` layers in float are enough, `low` are not.
    low, high, best = 0, len(ranked), None
    while high - low > 1:
        middle = (low + high) // 2
        error = within(frozenset(ranked[:middle]))
        if error is None:
            low = middle
        else:
            high, best = middle, error
    if best is None:
        return Choice(tuple(ranked), least, False, count)
    chosen = frozenset(ranked[:high])
    # The last one was needed, as `low` showed.
    for name in ranked[max(0, high - 1 - retries) : high - 1][::-1]:
        error = within(chosen - {name})
        if error is not None:
            chosen, best = chosen - {name}, error
    return Choice(tuple(n for n in ranked if n in chosen), best, True, count)
