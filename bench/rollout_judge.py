"""The rollout's judge in simulated rollouts: false rollbacks, and how soon bad versions go.

    python bench/rollout_judge.py             # the tables of docs/ROLLOUT.md; a few minutes
    python bench/rollout_judge.py --runs 100

Seeds are fixed: the same figures on every machine.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from headrace.rollout import Block, Indicator, Judge

# What each of a plan's two indicators may spend of alpha = 0.01. Null experiments get all of it.
ONE_OF_TWO = 0.005
NEVER = 10**12

# (look, requests of the arm) -> share of bad ones
Rate = Callable[[int], float]


@dataclass(frozen=True)
class Scenario:
    """`stable`, `candidate`: rate of bad requests, by look."""

    name: str
    stable: Rate
    candidate: Rate
    share: float = 0.05
    requests: int = 500  # of both arms, a look
    looks: int = 100


@dataclass(frozen=True)
class Outcome:
    decision: str
    candidate_requests: int
    looks: int


def always(rate: float) -> Rate:
    return lambda look: rate


def storm(look: int) -> float:
    """Something both versions depend on is down for a while."""
    return 0.8 if 40 <= look < 60 else 0.01


def turning_bad(turn: int) -> Rate:
    return lambda look: 1.0 if look >= turn else 0.01


def simulate(
    scenario: Scenario, seed: int, alpha: float, tolerance: float, min_requests: int
) -> Outcome:
    rng = np.random.default_rng(seed)
    judge = Judge(
        [Indicator("errors", tolerance=tolerance)], alpha=alpha, min_requests=min_requests
    )
    for look in range(scenario.looks):
        candidate = int(rng.binomial(scenario.requests, scenario.share))
        stable = scenario.requests - candidate
        block = Block(
            stable,
            int(rng.binomial(stable, scenario.stable(look))),
            candidate,
            int(rng.binomial(candidate, scenario.candidate(look))),
        )
        verdict = judge.observe({"errors": block}, elapsed_s=0.0)
        if verdict.decision != "continue":
            return Outcome(verdict.decision, verdict.candidate_requests, look + 1)
    return Outcome("continue", verdict.candidate_requests, scenario.looks)


def print_nulls(runs: int) -> None:
    print("| stable | candidate | share | runs | looks | rolled back |")
    print("|--|--|--|--|--|--|")
    scenarios = [
        Scenario(f"{rate:.1%} | the same | {share:.0%}", always(rate), always(rate), share)
        for rate in (0.0, 0.001, 0.01, 0.2)
        for share in (0.01, 0.05, 0.5)
    ]
    scenarios.append(Scenario("1.0% | 0.5% | 5%", always(0.01), always(0.005)))
    scenarios.append(Scenario("1.0%, 80% in looks 40 to 59 | the same | 5%", storm, storm))
    for number, scenario in enumerate(scenarios):
        outcomes = [simulate(scenario, 1000 * number + i, 0.01, 0.01, NEVER) for i in range(runs)]
        back = sum(outcome.decision == "rollback" for outcome in outcomes)
        print(f"| {scenario.name} | {runs} | {scenario.looks} | {back} |", flush=True)


def print_detections(runs: int) -> None:
    print("| stable | candidate | share | requests a look | median | 95 % | most | missed |")
    print("|--|--|--|--|--|--|--|--|")
    rows = [
        (0.001, 1.0, 0.05, 20, 200),
        (0.001, 1.0, 0.05, 100, 100),
        (0.001, 1.0, 0.05, 500, 20),
        (0.001, 1.0, 0.01, 100, 200),
        (0.001, 1.0, 0.5, 100, 20),
        (0.01, 1.0, 0.05, 100, 100),
        (0.001, 0.5, 0.05, 100, 100),
        (0.001, 0.1, 0.05, 100, 300),
        (0.01, 0.1, 0.05, 100, 300),
        (0.01, 0.05, 0.05, 500, 200),
        (0.01, 0.02, 0.05, 500, 1000),
        (0.001, 0.002, 0.05, 5000, 1000),
    ]
    for number, (stable, candidate, share, requests, looks) in enumerate(rows):
        scenario = Scenario("", always(stable), always(candidate), share, requests, looks)
        outcomes = [
            simulate(scenario, 100_000 + 1000 * number + i, ONE_OF_TWO, 0.01, NEVER)
            for i in range(runs)
        ]
        found = [o.candidate_requests for o in outcomes if o.decision == "rollback"]
        median, most = np.quantile(found, [0.5, 0.95], method="higher")
        print(
            f"| {stable:.1%} | {candidate:.1%} | {share:.0%} | {requests:,} "
            f"| {median:,} | {most:,} | {max(found):,} | {runs - len(found)} |",
            flush=True,
        )


def print_latencies(runs: int) -> None:
    """Log-normal latencies (sigma 0.5), limit 1.2 x the stable version's p99, 5 % share."""
    print("| candidate takes | stable slow | candidate slow | median | 95 % | most | missed |")
    print("|--|--|--|--|--|--|--|")
    normal, sigma = NormalDist(), 0.5
    limit = normal.inv_cdf(0.99) + math.log(1.2) / sigma
    stable = 1 - normal.cdf(limit)
    for number, (factor, looks) in enumerate([(10.0, 50), (2.0, 200), (1.5, 500), (1.2, 2000)]):
        candidate = 1 - normal.cdf(limit - math.log(factor) / sigma)
        scenario = Scenario("", always(stable), always(candidate), requests=100, looks=looks)
        outcomes = [
            simulate(scenario, 400_000 + 1000 * number + i, ONE_OF_TWO, 0.01, NEVER)
            for i in range(runs)
        ]
        found = [o.candidate_requests for o in outcomes if o.decision == "rollback"]
        median, most = np.quantile(found, [0.5, 0.95], method="higher")
        print(
            f"| x {factor:g} | {stable:.2%} | {candidate:.1%} "
            f"| {median:,} | {most:,} | {max(found):,} | {runs - len(found)} |",
            flush=True,
        )


def print_late(runs: int) -> None:
    print("| looks before it turns bad | looks after, median | most |")
    print("|--|--|--|")
    for turn in (100, 1000):
        scenario = Scenario("", always(0.01), turning_bad(turn), requests=100, looks=turn + 200)
        outcomes = [simulate(scenario, 300_000 + i, ONE_OF_TWO, 0.01, NEVER) for i in range(runs)]
        after = [o.looks - turn for o in outcomes if o.decision == "rollback"]
        print(f"| {turn} | {int(np.median(after))} | {max(after)} |", flush=True)


def print_promotions(runs: int) -> None:
    print("| stable | candidate | tolerance | promoted | rolled back | median | 95 % |")
    print("|--|--|--|--|--|--|--|")
    rows = [
        (0.0, 0.0, 0.01, 100),
        (0.001, 0.001, 0.01, 200),
        (0.01, 0.01, 0.01, 1000),
        (0.01, 0.005, 0.01, 1000),
        (0.01, 0.01, 0.005, 1000),
        (0.01, 0.02, 0.01, 1000),
    ]
    for number, (stable, candidate, tolerance, looks) in enumerate(rows):
        scenario = Scenario("", always(stable), always(candidate), looks=looks)
        outcomes = [
            simulate(scenario, 200_000 + 1000 * number + i, ONE_OF_TWO * 2, tolerance, 1000)
            for i in range(runs)
        ]
        counts = [o.candidate_requests for o in outcomes if o.decision == "promote"]
        back = sum(outcome.decision == "rollback" for outcome in outcomes)
        quantiles = ["", ""]
        if counts:
            quantiles = [f"{q:,}" for q in np.quantile(counts, [0.5, 0.95], method="higher")]
        print(
            f"| {stable:.1%} | {candidate:.1%} | {tolerance:.1%} | {len(counts)} of {runs} "
            f"| {back} | {quantiles[0]} | {quantiles[1]} |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=300, help="simulated rollouts a row")
    runs = parser.parse_args().runs
    print("No worse: how many runs were rolled back (alpha = 0.01 permits 1 %)\n")
    print_nulls(runs)
    print("\nWorse: candidate requests until it was rolled back\n")
    print_detections(runs)
    print("\nSlower: candidate requests until it was rolled back (100 requests a look)\n")
    print_latencies(min(runs, 100))
    print(
        "\nGood at first, then fails always (5 % share, 100 requests a look): looks to rollback\n"
    )
    print_late(min(runs, 50))
    print("\nPromotion: candidate requests until it was promoted (at least 1,000)\n")
    print_promotions(min(runs, 100))


if __name__ == "__main__":
    main()
