from __future__ import annotations

import math

from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.optimize.sensitivity import choose, rank

EFFECTS = {"a": 0.01, "b": 0.04, "c": 0.002, "d": 0.04, "e": 0.03}


def independent(effects: dict[str, float]):  # type: ignore[no-untyped-def]
    """Errors of layers that do not know of each other add up as squares."""
    return lambda in_float: math.sqrt(
        sum(e * e for name, e in effects.items() if name not in in_float)
    )


def test_the_worst_come_first_and_equals_in_their_order() -> None:
    assert rank(EFFECTS) == ["b", "d", "e", "a", "c"]


def test_all_are_quantised_where_the_budget_allows() -> None:
    choice = choose(rank(EFFECTS), independent(EFFECTS), 0.1)
    assert choice.in_float == ()
    assert choice.measurements == 1
    assert choice.error == independent(EFFECTS)(frozenset())


def test_as_few_as_needed_are_put_back() -> None:
    choice = choose(rank(EFFECTS), independent(EFFECTS), 0.035)
    assert choice.in_float == ("b", "d")
    assert choice.reached


def test_layers_whose_errors_cancel_are_tried_again() -> None:
    effects = dict.fromkeys("abcdef", 0.03) | {"g": 0.02}

    def measure(in_float: frozenset[str]) -> float:
        if "a" in in_float and "c" in in_float:
            return independent(effects)(in_float - {"b"} | {"b"})
        return 0.5

    choice = choose(rank(effects), measure, 0.05)
    assert {"a", "c"} <= set(choice.in_float)
    assert measure(frozenset(choice.in_float)) == choice.error <= 0.05

    def only_a_counts(in_float: frozenset[str]) -> float:
        return 0.0 if "c" in in_float else 0.5

    assert choose(rank(effects), only_a_counts, 0.05).in_float == ("c",)


def test_a_budget_that_cannot_be_met_is_told_with_what_could() -> None:
    choice = choose(rank(EFFECTS), independent(EFFECTS), 0.001)
    assert not choice.reached
    assert choice.error == 0.002
    assert choice.in_float == ("b", "d", "e", "a", "c")
    assert not choose(["one"], lambda in_float: 0.5, 0.1).reached


@settings(max_examples=50)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=40), st.floats(1e-6, 2))
def test_what_is_chosen_was_measured_and_keeps_the_budget(
    errors: list[float], budget: float
) -> None:
    effects = {str(at): error for at, error in enumerate(errors)}
    asked: list[frozenset[str]] = []

    def measure(in_float: frozenset[str]) -> float:
        asked.append(in_float)
        return float(independent(effects)(in_float))

    choice = choose(rank(effects), measure, budget)
    assert choice.measurements == len(asked) <= 2 + math.ceil(math.log2(len(effects) + 1)) + 6
    if choice.reached:
        assert frozenset(choice.in_float) in asked
        assert independent(effects)(frozenset(choice.in_float)) == choice.error <= budget
        # Not one layer more than needed, of the ranking.
        if choice.in_float:
            assert independent(effects)(frozenset(choice.in_float[:-1])) > budget
    else:
        assert min(effects.values()) > budget
