from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest
import yaml

from headrace.errors import InvalidArgumentError
from headrace.rollout import Block, RolloutPlan, plan_from_mapping

EXAMPLE = """
candidate: 8
share: 5%
by: user_id
stop_if: {error: worse, p99: 1.2x}
alpha: 0.01
"""


def test_the_example_is_read() -> None:
    plan = plan_from_mapping("m", yaml.safe_load(EXAMPLE))
    assert plan == RolloutPlan("m", candidate=8, share=0.05, key="user_id")


def test_every_key() -> None:
    section = {
        "candidate": 3,
        "share": "12.5 %",
        "by": "tenant",
        "stop_if": {"error": "0.1%", "p99": "1.5x", "kpi.bought": "0.5%", "kpi.cost": "worse"},
        "alpha": "5%",
        "max_error_increase": "0.5%",
        "max_slow_increase": 0.02,
        "max_kpi_increase": "3%",
        "min_requests": 10,
        "min_seconds": 5,
        "auto_promote": False,
        "shadow": True,
        "tolerance": 0.5,
    }
    plan = plan_from_mapping("m", section)
    assert plan == RolloutPlan(
        model="m",
        candidate=3,
        share=0.125,
        key="tenant",
        alpha=0.05,
        error_margin=0.001,
        max_error_increase=0.005,
        latency_ratio=1.5,
        max_slow_increase=0.02,
        kpis={"bought": 0.005, "cost": 0.0},
        max_kpi_increase=0.03,
        min_requests=10,
        min_seconds=5,
        auto_promote=False,
        shadow=True,
        tolerance=0.5,
    )
    for field in fields(RolloutPlan):  # none was forgotten above
        assert getattr(plan, field.name) != field.default, field.name


@pytest.mark.parametrize("share", ["5%", "5 %", "0.05", 0.05])
def test_a_share_is_a_number_or_a_percentage(share: object) -> None:
    assert plan_from_mapping("m", {"candidate": 1, "share": share}).share == pytest.approx(0.05)


@pytest.mark.parametrize("ratio", ["1.3x", "1.3", 1.3])
def test_a_ratio_may_have_its_x(ratio: object) -> None:
    section = {"candidate": 1, "share": 0.1, "stop_if": {"p99": ratio}}
    assert plan_from_mapping("m", section).slow_after(10.0) == pytest.approx(13.0)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (
            {"shar": 1},
            "unknown key 'shar'; known: candidate, share, by, alpha, max_error_increase, "
            "max_slow_increase, max_kpi_increase, min_requests, min_seconds, auto_promote, "
            "shadow, tolerance, stop_if",
        ),
        ({7: 1}, "unknown key '7'"),
        (
            {"stop_if": {"kpi": "worse"}},
            "unknown key 'stop_if.kpi'; known: stop_if.error, stop_if.p99, stop_if.kpi.NAME",
        ),
        ({"stop_if": {"kpi.cost": "2%"}}, "kpi.cost is 0.02; it must be 0 to max_kpi_increase"),
        ({"stop_if": {"kpi.a b": "worse"}}, "kpis is 'a b'; it must be 1 to 64 letters"),
        ({"stop_if": {"kpi.cost": "bad"}}, "stop_if.kpi.cost is 'bad'; it must be .* or 'worse'"),
        ({"stop_if": "worse"}, "stop_if is 'worse'; it must be a section"),
        ({"stop_if": {"error": "better"}}, "stop_if.error is 'better'; it must be .* or 'worse'"),
        ({"stop_if": {"p99": "fast"}}, "stop_if.p99 is 'fast'; it must be a ratio"),
        ({"stop_if": {"p99": "0.9x"}}, "latency_ratio is 0.9; it must be 1 to 1000"),
        ({"share": "five"}, "share is 'five'; it must be a number such as 0.05 or a percentage"),
        ({"share": True}, "share is True"),
        ({"share": 5}, "share is 5.0; it must be above 0 and below 1"),
        ({"share": "100%"}, "share is 1.0; it must be above 0"),
        ({"share": 0}, "share is 0.0"),
        ({"share": "nan"}, "share is nan"),
        ({"candidate": "8"}, "candidate is '8'; it must be a whole number, 1 to"),
        ({"candidate": 0}, "candidate is 0"),
        ({"candidate": True}, "candidate is True"),
        ({"by": 3}, "key is 3; it must be a parameter's name"),
        ({"by": "a\nb"}, "key is 'a.nb'"),
        ({"by": "x" * 129}, "at most 128"),
        ({"alpha": 0}, "alpha is 0.0; it must be 0.000001 to 0.2"),
        ({"alpha": 0.5}, "alpha is 0.5"),
        ({"max_error_increase": 0}, "max_error_increase is 0.0; it must be 0.0001 to 0.5"),
        ({"max_slow_increase": "60%"}, "max_slow_increase is 0.6"),
        (
            {"stop_if": {"error": "2%"}},
            r"error_margin is 0.02; it must be at most max_error_increase \(0.01\)",
        ),
        ({"min_requests": 0}, "min_requests is 0; it must be a whole number, 1 to"),
        ({"min_requests": 1.5}, "min_requests is 1.5"),
        ({"min_seconds": -1}, "min_seconds is -1; it must be 0 to 31536000"),
        ({"min_seconds": "10m"}, "min_seconds is '10m'; it must be a number, 0 to"),
        ({"auto_promote": "yes"}, "auto_promote is 'yes'; it must be true or false"),
    ],
)
def test_a_wrong_section_is_refused_by_name(change: dict[Any, Any], text: str) -> None:
    with pytest.raises(InvalidArgumentError, match=text):
        plan_from_mapping("m", {"candidate": 8, "share": 0.05, **change})


@pytest.mark.parametrize("missing", ["candidate", "share"])
def test_what_has_no_default_is_required(missing: str) -> None:
    section = {"candidate": 8, "share": 0.05}
    del section[missing]
    with pytest.raises(InvalidArgumentError, match=f"rollout: '{missing}' is missing"):
        plan_from_mapping("m", section)


def test_a_section_is_a_mapping() -> None:
    with pytest.raises(InvalidArgumentError, match="must be a section"):
        plan_from_mapping("m", ["candidate"])  # type: ignore[arg-type]


def test_a_plan_needs_a_model() -> None:
    with pytest.raises(InvalidArgumentError, match="model is ''"):
        RolloutPlan("", candidate=1, share=0.5)


def test_its_judge_watches_errors_and_latency() -> None:
    plan = RolloutPlan("m", candidate=2, share=0.05, min_requests=100, min_seconds=1)
    judge = plan.judge()
    good = Block(950, 1, 50, 0)
    for look in range(100):
        verdict = judge.observe({"errors": good, "latency": good}, 0.1 * look)
        if verdict.decision != "continue":
            break
    assert verdict.decision == "promote"
    assert verdict.threshold == 200

    verdict = plan.judge().observe({"errors": good, "latency": Block(950, 5, 50, 50)}, 0.1)
    assert verdict.decision == "rollback"
    assert verdict.reason.startswith("latency")
