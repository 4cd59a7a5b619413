"""Outcomes that others counted: added up, and refused whole when something is wrong."""

from __future__ import annotations

import pytest

from headrace.control.feedback import Feedback, Outcomes
from headrace.errors import InvalidArgumentError, ResourceExhaustedError


def test_outcomes_add_up() -> None:
    feedback = Feedback()
    assert feedback.totals() == {}
    feedback.record({"bought": Outcomes(3, 1)})
    totals = feedback.record({"bought": Outcomes(0, 2), "label-ok": Outcomes(1)})
    assert totals == {"bought": Outcomes(3, 3), "label-ok": Outcomes(1, 0)}
    assert feedback.totals() == totals


@pytest.mark.parametrize(
    ("outcomes", "text"),
    [
        ({"good": Outcomes(1), "": Outcomes(1)}, "'' is no name of a KPI"),
        ({"good": Outcomes(1), "a b": Outcomes(1)}, "'a b' is no name of a KPI"),
        ({"good": Outcomes(1), "x" * 65: Outcomes(1)}, "is no name of a KPI"),
        ({"good": Outcomes(1), "k": Outcomes(-1)}, "k: good is -1"),
        ({"good": Outcomes(1), "k": Outcomes(0, 10**9 + 1)}, "k: bad is 1000000001"),
    ],
)
def test_all_or_none(outcomes: dict[str, Outcomes], text: str) -> None:
    feedback = Feedback()
    with pytest.raises(InvalidArgumentError) as error:
        feedback.record(outcomes)
    assert text in error.value.details
    assert feedback.totals() == {}


def test_names_are_bounded() -> None:
    feedback = Feedback()
    for number in range(32):
        feedback.record({f"kpi{number}": Outcomes(1)})
    feedback.record({"kpi0": Outcomes(1)})
    with pytest.raises(ResourceExhaustedError):
        feedback.record({"one-more": Outcomes(1)})
