"""Rollouts decided: what the user asks (`plan`), whether a candidate does worse (`judge`). Pure."""

from headrace.rollout.judge import Block, Decision, Indicator, IndicatorStatus, Judge, Verdict
from headrace.rollout.plan import ERRORS, LATENCY, RolloutPlan, plan_from_mapping

__all__ = [
    "ERRORS",
    "LATENCY",
    "Block",
    "Decision",
    "Indicator",
    "IndicatorStatus",
    "Judge",
    "RolloutPlan",
    "Verdict",
    "plan_from_mapping",
]
