from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.errors import InvalidArgumentError
from headrace.rollout import Block, Indicator, Judge, Verdict
from headrace.rollout.judge import _Evidence, _log_ratio, _nearest_null

NEVER = 10**12
RUNS = 300


def one(block: Block) -> dict[str, Block]:
    return {"errors": block}


def simulate(
    rng: np.random.Generator,
    stable: float,
    candidate: float,
    *,
    share: float = 0.05,
    looks: list[int],
    alpha: float = 0.01,
    indicator: Indicator | None = None,
    min_requests: int = NEVER,
) -> Verdict:
    """One rollout, each look of so many requests of both arms, until it is decided."""
    judge = Judge([indicator or Indicator("errors")], alpha=alpha, min_requests=min_requests)
    for requests in looks:
        b = int(rng.binomial(requests, share))
        a = requests - b
        bad = rng.binomial([a, b], [stable, candidate])
        verdict = judge.observe(one(Block(a, int(bad[0]), b, int(bad[1]))), 0.0)
        if verdict.decision != "continue":
            break
    return verdict


def rolled_back(stable: float, candidate: float, share: float, runs: int = RUNS) -> int:
    rng = np.random.default_rng(7)
    back = 0
    for _ in range(runs):
        # Few looks, so that this stays fast, but of all sizes; bench/rollout_judge.py takes more.
        looks = [int(size) for size in np.exp(rng.uniform(math.log(20), math.log(5000), 8))]
        verdict = simulate(rng, stable, candidate, share=share, looks=looks)
        back += verdict.decision == "rollback"
    return back


# The promise: a good candidate stays.


@pytest.mark.parametrize("share", [0.01, 0.05, 0.5])
@pytest.mark.parametrize("rate", [0.0, 0.001, 0.01, 0.2])
def test_an_equal_candidate_is_rolled_back_in_at_most_one_run_of_a_hundred(
    rate: float, share: float
) -> None:
    assert rolled_back(rate, rate, share) <= RUNS // 100


@pytest.mark.parametrize(("stable", "candidate"), [(0.2, 0.1), (0.01, 0.0), (1.0, 0.5)])
def test_a_better_candidate_is_rolled_back_in_at_most_one_run_of_a_hundred(
    stable: float, candidate: float
) -> None:
    assert rolled_back(stable, candidate, 0.05) <= RUNS // 100


rates = st.floats(1e-6, 1 - 1e-6)
sizes = st.integers(1, 4)


@given(sizes, sizes, rates, rates, rates, st.floats(-0.99, 0.99))
@settings(max_examples=150, deadline=None)
def test_under_the_null_a_block_does_not_raise_the_e_value_on_average(
    n_a: int, n_b: int, first: float, second: float, true: float, margin: float
) -> None:
    """Exact: every outcome of the block, weighted by its probability at the edge of the null."""
    p_a, p_b = min(first, second), max(first, second)
    if p_b <= p_a + margin + 1e-9:
        return
    least, most = max(0.0, -margin), min(1.0, 1 - margin)
    true_a = least + true * (most - least)
    true_b = min(1.0, max(0.0, true_a + margin))
    mean = 0.0
    for bad_a, bad_b in itertools.product(range(n_a + 1), range(n_b + 1)):
        chance = (
            math.comb(n_a, bad_a) * true_a**bad_a * (1 - true_a) ** (n_a - bad_a)
            * math.comb(n_b, bad_b) * true_b**bad_b * (1 - true_b) ** (n_b - bad_b)
        )  # fmt: skip
        mean += chance * math.exp(_log_ratio((n_a, bad_a), (n_b, bad_b), p_a, p_b, margin))
    assert mean <= 1 + 1e-6


@given(st.integers(1, 10**6), st.integers(1, 10**6), rates, rates, st.floats(-0.99, 0.99))
@settings(max_examples=200, deadline=None)
def test_the_nearest_point_of_the_null_lies_between_the_alternatives(
    n_a: int, n_b: int, first: float, second: float, margin: float
) -> None:
    p_a, p_b = min(first, second), max(first, second)
    if p_b <= p_a + margin + 1e-9:
        return
    q_a, q_b = _nearest_null(n_a, n_b, p_a, p_b, margin)
    assert q_b - q_a == pytest.approx(margin, abs=1e-12)
    assert 0 < q_a < 1
    assert 0 < q_b < 1
    assert p_a <= q_a * (1 + 1e-9)
    assert q_b <= p_b * (1 + 1e-9)


@pytest.mark.parametrize("margin", [0.0, 0.1])
def test_under_the_null_the_whole_process_does_not_rise_on_average(margin: float) -> None:
    """Exact, over all outcomes of three blocks: weights and estimates may use the past, no more."""
    shape, rate = (2, 1), 0.3
    outcomes = list(itertools.product(range(shape[0] + 1), range(shape[1] + 1)))
    worse, fine = 0.0, 0.0
    for path in itertools.product(outcomes, repeat=3):
        for edge, which in ((margin, "worse"), (0.2, "fine")):
            evidence = _Evidence(Indicator("errors", margin=margin, tolerance=0.2))
            chance = 1.0
            for bad_a, bad_b in path:
                chance *= math.comb(2, bad_a) * rate**bad_a * (1 - rate) ** (2 - bad_a)
                chance *= rate + edge if bad_b else 1 - rate - edge
                evidence.observe(Block(2, bad_a, 1, bad_b))
            status = evidence.status()
            if which == "worse":
                worse += chance * status.e_value
            else:
                fine += chance * status.promotion_e_value
    assert worse <= 1 + 1e-9
    assert fine <= 1 + 1e-9
    assert min(worse, fine) > 0.5  # and it does bet


# Bad candidates go, soon.


def detections(
    stable: float, candidate: float, looks: list[int], runs: int, share: float = 0.05
) -> list[int]:
    """Candidate requests until the rollback, sorted; each of a plan's two indicators has half of
    alpha."""
    rng = np.random.default_rng(11)
    counts = []
    for _ in range(runs):
        verdict = simulate(rng, stable, candidate, share=share, looks=looks, alpha=0.005)
        assert verdict.decision == "rollback"
        counts.append(verdict.candidate_requests)
    return sorted(counts)


def test_a_candidate_that_always_fails_goes_within_20_requests() -> None:
    """5,000 requests a second, a look every 20 ms."""
    assert detections(0.001, 1.0, [100] * 50, RUNS)[-1] <= 20
    assert detections(0.01, 1.0, [100] * 50, RUNS)[-1] <= 20


def test_one_look_is_enough_for_a_candidate_that_always_fails() -> None:
    judge = Judge([Indicator("errors")], alpha=0.005)
    verdict = judge.observe(one(Block(475, 0, 25, 25)), 0.1)
    assert verdict.decision == "rollback"
    assert verdict.reason == (
        "errors: candidate 100 % of 25, stable 0 % of 475; "
        f"e-value {verdict.e_value:.4g}, limit 200"
    )


def test_half_failing_and_five_times_the_errors_are_found() -> None:
    assert detections(0.001, 0.5, [100] * 100, 100)[-1] <= 40
    found = detections(0.01, 0.05, [500] * 100, 60)
    assert found[30] <= 400
    assert found[-1] <= 1000


def test_twice_the_errors_are_found() -> None:
    found = detections(0.01, 0.02, [2000] * 150, 20)
    assert found[10] <= 4000


def test_a_candidate_that_turns_bad_late_is_found() -> None:
    judge = Judge([Indicator("errors")], alpha=0.005, min_requests=NEVER)
    for _ in range(1500):
        assert judge.observe(one(Block(95, 1, 5, 0)), 0.0).decision == "continue"
    after = 1
    while judge.observe(one(Block(95, 1, 5, 5)), 0.0).decision != "rollback":
        after += 1
    assert after <= 4


def test_a_trouble_of_both_versions_is_not_the_candidates() -> None:
    rng = np.random.default_rng(3)
    judge = Judge([Indicator("errors")], min_requests=NEVER)
    for look in range(200):
        rate = 0.9 if 50 <= look < 100 else 0.005
        bad = rng.binomial([475, 25], rate)
        verdict = judge.observe(one(Block(475, int(bad[0]), 25, int(bad[1]))), 0.0)
        assert verdict.decision == "continue"
    # It is still able to see.
    assert judge.observe(one(Block(475, 2, 25, 25)), 0.0).decision == "rollback"


def test_a_margin_permits_what_it_says() -> None:
    rng = np.random.default_rng(5)
    indicator = Indicator("errors", margin=0.02, tolerance=0.03)
    for _ in range(60):
        verdict = simulate(rng, 0.01, 0.03, looks=[2000] * 20, indicator=indicator)
        assert verdict.decision == "continue"
    verdict = simulate(rng, 0.01, 0.1, looks=[2000] * 20, indicator=indicator)
    assert verdict.decision == "rollback"


def test_two_indicators_each_have_half_of_alpha() -> None:
    judge = Judge([Indicator("errors"), Indicator("latency")], alpha=0.01)
    good, slow = Block(475, 1, 25, 0), Block(475, 3, 25, 20)
    verdict = judge.observe({"errors": good, "latency": slow}, 0.1)
    assert verdict.threshold == 200
    assert verdict.decision == "rollback"
    assert verdict.reason.startswith(
        "latency: candidate 80 % of 25, stable 0.632 % of 475; e-value"
    )
    assert [status.name for status in verdict.indicators] == ["errors", "latency"]
    assert verdict.indicators[0].e_value < 2


def slow_blocks(rng: np.random.Generator, factor: float, looks: int) -> list[Block]:
    """Log-normal latencies, the candidate's `factor` times as long; slow = over 1.2 x the p99."""
    limit = 1.2 * math.exp(0.5 * 2.326)
    latencies = np.exp(0.5 * rng.standard_normal((looks, 500)))
    latencies[:, 475:] *= factor
    slow = latencies > limit
    return [Block(475, int(row[:475].sum()), 25, int(row[475:].sum())) for row in slow]


def test_a_slow_candidate_is_found_by_the_same_test() -> None:
    rng = np.random.default_rng(19)
    wanted = {10.0: 50, 2.0: 250}  # times slower, most candidate requests
    for factor, most in wanted.items():
        for _ in range(30):
            judge = Judge([Indicator("latency")], alpha=0.005, min_requests=NEVER)
            for block in slow_blocks(rng, factor, 40):
                verdict = judge.observe({"latency": block}, 0.0)
                if verdict.decision == "rollback":
                    break
            assert verdict.decision == "rollback"
            assert verdict.candidate_requests <= most
    back = 0
    for _ in range(RUNS):
        judge = Judge([Indicator("latency")], min_requests=NEVER)
        for block in slow_blocks(rng, 1.0, 8):
            verdict = judge.observe({"latency": block}, 0.0)
        back += verdict.decision == "rollback"
    assert back <= RUNS // 100


# Promotion.


def test_a_good_candidate_is_promoted_when_the_evidence_and_the_minima_are_there() -> None:
    judge = Judge([Indicator("errors")], min_requests=1000, min_seconds=10)
    reasons = []
    for look in range(200):
        verdict = judge.observe(one(Block(950, 1, 50, 0)), look * 0.25)
        reasons.append(verdict.reason)
        if verdict.decision != "continue":
            break
    assert verdict.decision == "promote"
    assert verdict.promotable
    assert look == 40  # 2,050 requests, 10 s
    assert verdict.reason == (
        "errors: candidate 0 % of 2,050, stable 0.105 % of 38,950, worse by less than 1 %"
    )
    assert reasons[0] == "50 of at least 1,000 candidate requests"
    assert reasons[30] == "8 s of at least 10 s"


def test_a_candidate_worse_by_the_tolerance_is_not_promoted() -> None:
    rng = np.random.default_rng(13)
    indicator = Indicator("errors", margin=0.01, tolerance=0.01)  # never rolled back, then
    promoted = 0
    for _ in range(RUNS):
        verdict = simulate(rng, 0.01, 0.02, looks=[4000] * 8, indicator=indicator, min_requests=100)
        promoted += verdict.decision == "promote"
    assert promoted <= RUNS // 100


def test_an_equal_candidate_is_promoted() -> None:
    rng = np.random.default_rng(17)
    promoted = 0
    for _ in range(40):
        verdict = simulate(rng, 0.01, 0.01, looks=[2000] * 60, min_requests=1000)
        promoted += verdict.decision == "promote"
    assert promoted >= 39


def test_without_auto_promote_it_is_only_said() -> None:
    judge = Judge([Indicator("errors")], min_requests=100, auto_promote=False)
    for _ in range(30):
        verdict = judge.observe(one(Block(950, 0, 50, 0)), 60.0)
    assert verdict.decision == "continue"
    assert verdict.promotable
    assert verdict.reason.startswith("ready to be promoted: errors: ")
    # and it is still watched
    assert judge.observe(one(Block(950, 0, 50, 50)), 61.0).decision == "rollback"


def test_every_indicator_must_allow_the_promotion() -> None:
    judge = Judge([Indicator("errors"), Indicator("latency")], min_requests=100)
    for _ in range(40):
        verdict = judge.observe({"errors": Block(950, 0, 50, 0), "latency": Block(0, 0, 0, 0)}, 1.0)
        assert verdict.decision == "continue"
    assert verdict.reason == "0 of at least 100 candidate requests"
    assert verdict.candidate_requests == 2000


# Ranges and bookkeeping.


counts = st.integers(0, 10**9)


@st.composite
def blocks(draw: st.DrawFn) -> Block:
    stable, candidate = draw(counts), draw(counts)
    return Block(stable, draw(st.integers(0, stable)), candidate, draw(st.integers(0, candidate)))


@given(st.lists(blocks(), max_size=12), st.sampled_from([0.0, 1e-6, 0.3]))
@settings(max_examples=40, deadline=None)
def test_any_counts_give_a_verdict(history: list[Block], margin: float) -> None:
    judge = Judge([Indicator("errors", margin=margin, tolerance=0.4)])
    twin = Judge([Indicator("errors", margin=margin, tolerance=0.4)])
    decided: Verdict | None = None
    for block in history:
        verdict = judge.observe(one(block), 0.0)
        assert verdict == twin.observe(one(block), 0.0)
        assert 0 <= verdict.e_value <= 1.000001e300
        assert 0 <= verdict.promotion_e_value <= 1.000001e300
        assert math.isfinite(verdict.indicators[0].log_e_value)
        assert math.isfinite(verdict.indicators[0].log_promotion_e_value)
        assert (verdict.decision == "rollback") == (verdict.e_value >= verdict.threshold)
        if decided is not None:
            assert verdict == decided  # a decision stands
        elif verdict.decision != "continue":
            decided = verdict


@given(st.integers(1, 2000), st.integers(2, 500), st.data())
@settings(max_examples=40, deadline=None)
def test_a_first_block_with_more_candidate_failures_is_more_evidence(
    stable: int, candidate: int, data: st.DataObject
) -> None:
    stable_bad = data.draw(st.integers(0, stable))
    bad = data.draw(st.integers(0, candidate - 1))

    def log_e_value(candidate_bad: int) -> tuple[float, float]:
        evidence = _Evidence(Indicator("errors"))
        evidence.observe(Block(stable, stable_bad, candidate, candidate_bad))
        status = evidence.status()
        return status.log_e_value, status.log_promotion_e_value

    less, more = log_e_value(bad), log_e_value(bad + 1)
    assert more[0] > less[0]
    assert more[1] <= less[1]  # when all bets are lost, what never bet is left


def test_a_block_without_one_arm_waits_for_it() -> None:
    whole, parts = (_Evidence(Indicator("errors")) for _ in range(2))
    whole.observe(Block(300, 2, 2, 1))
    parts.observe(Block(100, 1, 0, 0))
    assert parts.status().log_e_value == 0
    assert parts.status().total == Block(100, 1, 0, 0)
    parts.observe(Block(200, 1, 0, 0))
    parts.observe(Block(0, 0, 2, 1))
    assert parts.status() == whole.status()


def test_no_requests_no_evidence() -> None:
    judge = Judge([Indicator("errors")], min_requests=1)
    for elapsed in (0.0, 1e9):
        verdict = judge.observe(one(Block(0, 0, 0, 0)), elapsed)
        assert (verdict.decision, verdict.e_value, verdict.promotion_e_value) == ("continue", 1, 1)
    # All of the traffic on the candidate: nothing to compare it with.
    verdict = judge.observe(one(Block(0, 0, 10**6, 10**6)), 1e9)
    assert (verdict.decision, verdict.e_value) == ("continue", 1)


def test_values_are_frozen() -> None:
    verdict = Judge([Indicator("errors")]).observe(one(Block(1, 0, 1, 0)), 0.0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        verdict.decision = "promote"  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError):
        Block(1, 0, 1, 0).stable_bad = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Block(1, 2, 0, 0), "stable_bad is 2 of 1 requests"),
        (lambda: Block(1, 0, 3, -1), "candidate_bad is -1 of 3"),
        (lambda: Block(-1, 0, 0, 0), "stable_bad is 0 of -1"),
        (lambda: Indicator(""), "name is empty"),
        (lambda: Indicator("e", margin=-0.1), r"'e': margin is -0.1; it must be in \[0, 1\)"),
        (lambda: Indicator("e", margin=float("nan")), "margin is nan"),
        (lambda: Indicator("e", tolerance=0.0), "tolerance is 0.0"),
        (lambda: Indicator("e", margin=0.2, tolerance=0.1), "not below margin"),
        (lambda: Judge([]), "at least one"),
        (lambda: Judge([Indicator("e"), Indicator("e")]), "each name once"),
        (lambda: Judge([Indicator("e")], alpha=0), "alpha is 0"),
        (
            lambda: Judge([Indicator("e")]).observe({"f": Block(0, 0, 0, 0)}, 0.0),
            r"blocks for \['f'\]; the indicators are \['e'\]",
        ),
    ],
)
def test_nonsense_is_refused(make, text: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(InvalidArgumentError, match=text):
        make()
