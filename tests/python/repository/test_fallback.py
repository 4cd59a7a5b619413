from __future__ import annotations

import pytest

from headrace.errors import InvalidArgumentError
from headrace.repository.fallback import FallbackStep
from headrace.repository.policy import parse_policy

EXAMPLE = """
accept: {output: probs, confidence: 0.8, activation: softmax}
breaker: {failure_rate: 30%, open: 2s}
deadline: 200ms
fallback:
  - {version: 6, timeout: 50ms}
  - {model: other, when: [error, deadline]}
  - {rule: {label: [0.1, 0.9]}, when: [error]}
  - {human: {queue: nurses, wait: 2s, payload: true}}
"""


def test_the_example() -> None:
    policy = parse_policy(EXAMPLE)
    assert policy.accept is not None and policy.breaker is not None
    assert (policy.accept.output, policy.accept.confidence) == ("probs", 0.8)
    assert (policy.breaker.failure_rate, policy.breaker.open) == (0.3, 2.0)
    assert policy.deadline == 0.2
    assert policy.fallback == (
        FallbackStep(version=6, timeout=0.05),
        FallbackStep(model="other", when=("error", "deadline")),
        FallbackStep(rule={"label": [0.1, 0.9]}, when=("error",)),
        FallbackStep(queue="nurses", wait=2.0, payload=True),
    )
    assert [step.name for step in policy.fallback] == ["version:6", "other", "rule", "human:nurses"]


def test_a_policy_without_it_has_none_of_it() -> None:
    policy = parse_policy("cache: true")
    assert (policy.accept, policy.breaker, policy.fallback, policy.deadline) == (None, None, (), 0)
    assert parse_policy("").fingerprint == ""


def test_every_section_changes_the_fingerprint() -> None:
    texts = [
        "",
        "accept: {output: probs, confidence: 0.8}",
        "breaker: true",
        "deadline: 1s",
        "fallback: [{version: 6}]",
        "fallback: [{version: 5}]",
    ]
    assert len({parse_policy(text).fingerprint for text in texts}) == len(texts)


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("fallback: {version: 6}", "fallback: expected a list"),
        ("fallback: [6]", r"fallback\[0\]"),
        ("fallback: [{}]", r"fallback\[0\]: expected exactly one"),
        ("fallback: [{version: 6, model: m}]", r"fallback\[0\]: expected exactly one"),
        ("fallback: [{version: 0}]", r"fallback\[0\]\.version"),
        ("fallback: [{version: true}]", r"fallback\[0\]\.version"),
        ("fallback: [{model: ../x}]", "x"),
        ("fallback: [{version: 6}, {rule: {}}]", r"fallback\[1\]\.rule"),
        ("fallback: [{rule: {y: 1}, timeout: 1s}]", r"fallback\[0\]\.timeout: unknown key"),
        ("fallback: [{version: 6, timeout: -1}]", r"fallback\[0\]\.timeout"),
        ("fallback: [{version: 6, when: [eror]}]", r"fallback\[0\]\.when: 'eror' is no trigger"),
        ("fallback: [{version: 6, when: []}]", r"fallback\[0\]\.when"),
        ("fallback: [{human: nurses}]", r"fallback\[0\]\.human"),
        ("fallback: [{human: {queue: 'a b'}}]", r"fallback\[0\]\.human\.queue"),
        ("fallback: [{human: {queue: a, wait: x}}]", r"fallback\[0\]\.human\.wait"),
        ("fallback: [{human: {queue: a, payload: 1}}]", r"fallback\[0\]\.human\.payload"),
        ("fallback: [{human: {queue: a, lease: 1}}]", r"fallback\[0\]\.human\.lease: unknown key"),
        ("accept: {confidence: 0.5}", "accept.output"),
        ("accept: {output: y}", "accept.confidence"),
        ("accept: {output: y, confidence: 1.5}", "accept.confidence"),
        ("accept: {output: y, confidence: 0.5, activation: tanh}", "accept.activation"),
        ("breaker: {failure_rate: 0}", "breaker.failure_rate"),
        ("breaker: {open: 10s, open_max: 5s}", "breaker.open_max"),
        ("breaker: {probes: 0}", "breaker.probes"),
    ],
)
def test_what_is_wrong_is_named(text: str, key: str) -> None:
    with pytest.raises(InvalidArgumentError, match=key):
        parse_policy(text)
