"""Judge: does a candidate version do worse than the stable one? Looked at as often as one likes.

Pure decisions: counts come in, a Verdict comes out; no clock, no I/O. Not thread-safe.

    judge = Judge([Indicator("errors", tolerance=0.005), Indicator("latency")], min_seconds=60)
    verdict = judge.observe(
        {"errors": Block(475, 5, 25, 25), "latency": Block(470, 4, 0, 0)}, elapsed_s=0.1
    )
    verdict.decision, verdict.reason   # "rollback", "errors: candidate 100 % of 25, stable ..."

An indicator is a yes or no about a request: "it failed", "it took longer than a limit fixed when
the rollout began". A Block is what ended since the last look.

**The test** (rollback). Turner, Ly, Grünwald, "Generic E-variables for exact sequential k-sample
tests that allow for optional stopping" (2021/2024). Before a block is seen, an alternative
(p_a, p_b) is named, p_b > p_a + margin; a = stable, b = candidate. The block multiplies the e-value
by its likelihood under the alternative over that under (q_a, q_b), the point of the null's edge
q_b = q_a + margin nearest to the alternative (margin 0: both are the pooled rate).

The mean of that ratio is at most 1 whenever the true rates have r_b <= r_a + margin. A request of
arm x multiplies by 1 + s_x (r_x - q_x) on average, s_x = (p_x - q_x) / (q_x (1 - q_x)). As
s_a < 0 < s_b, the edge is the worst case, and along it the sum of the n_x logs is concave, with its
maximum, 0, at q, because q is chosen so that n_a s_a + n_b s_b = 0. This holds block by block for
whatever the rates are in it: they may drift together, and the shares may change.

Many alternatives run at once (`_EFFECTS`: the share of good requests that the candidate spoils) and
one that never bets, weighted by how they did. A little of the weight goes back to the start each
block (fixed share, Herbster and Warmuth 1998), so that a version that turns bad late is found, too.
The weights are set before the block is seen, so the e-value is a supermartingale (Ville): however
often one looks,

    P(an indicator's e-value ever reaches 1/a | the candidate is never worse by more than margin)
        <= a,    and a = alpha / indicators (Bonferroni) makes it alpha for the whole rollout.

**Promotion** turns the test around: the null is "worse by at least `tolerance`". The evidence
against it must reach 1/alpha in *every* indicator, after `min_requests` of the candidate and
`min_seconds`. In other words, a time-uniform (1 - alpha) upper confidence bound of the increase
must lie under `tolerance`:

    P(ever promoted | an indicator in which the candidate is always worse by tolerance or more)
        <= alpha.

It says nothing of what a version does after it was promoted.

What the caller owes: a block ends by the clock or by a number of requests, never because something
failed; whether a request goes to the candidate does not depend on how it will end; a request counts
once, and as slow already when it passes the limit (a version that hangs would else never count).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from headrace.errors import InvalidArgumentError

__all__ = ["Block", "Decision", "Indicator", "IndicatorStatus", "Judge", "Verdict"]

Decision = Literal["continue", "promote", "rollback"]

# Alternatives of the rollback test: the share of good requests that the candidate spoils, 95 % to
# 0.014 %. Increases far below the last one are not sought.
_EFFECTS = tuple(0.95 / 3**k for k in range(9))
# Alternatives of the promotion test: where in [0, tolerance) the increase lies.
_INCREASES = (0.0, 0.25, 0.5)
_IDLE_WEIGHT = 0.2  # of the alternative that never bets
_SHARE_START = 200.0  # in block k, 1 / (k + this) of the weight goes back to the start
# Beta prior of the stable version's rate, and how many of its latest requests (about) the estimate
# remembers. They steer how soon a bad version is found, not how often a good one is blamed.
_PRIOR_BAD, _PRIOR_GOOD = 0.5, 49.5
_MEMORY = 100_000.0


@dataclass(frozen=True)
class Block:
    """Requests that ended since the last look, and how many of them were bad."""

    stable_requests: int
    stable_bad: int
    candidate_requests: int
    candidate_bad: int

    def __post_init__(self) -> None:
        for arm, requests, bad in (
            ("stable", self.stable_requests, self.stable_bad),
            ("candidate", self.candidate_requests, self.candidate_bad),
        ):
            if not 0 <= bad <= requests:
                raise InvalidArgumentError(
                    f"block: {arm}_bad is {bad} of {requests} requests; "
                    f"it must be between 0 and {arm}_requests"
                )

    def __add__(self, other: Block) -> Block:
        return Block(
            self.stable_requests + other.stable_requests,
            self.stable_bad + other.stable_bad,
            self.candidate_requests + other.candidate_requests,
            self.candidate_bad + other.candidate_bad,
        )


_EMPTY = Block(0, 0, 0, 0)


@dataclass(frozen=True)
class Indicator:
    """What is compared. Rates are shares of requests, 0..1.

    `margin`: being worse by up to this is not held against the candidate. `tolerance`: it is
    promoted only when it is shown to be worse by less than this.
    """

    name: str
    margin: float = 0.0
    tolerance: float = 0.01

    def __post_init__(self) -> None:
        if not self.name:
            raise InvalidArgumentError("indicator: name is empty")
        if not 0 <= self.margin < 1:
            raise InvalidArgumentError(
                f"indicator '{self.name}': margin is {self.margin}; it must be in [0, 1)"
            )
        if not (0 < self.tolerance < 1 and self.margin <= self.tolerance):
            raise InvalidArgumentError(
                f"indicator '{self.name}': tolerance is {self.tolerance}; it must be in (0, 1) "
                f"and not below margin ({self.margin})"
            )


@dataclass(frozen=True)
class IndicatorStatus:
    """One indicator after a look: all counts since the rollout began, and the evidence.

    `log_e_value`: for "worse by more than margin"; `log_promotion_e_value`: for "worse by less than
    tolerance"; natural logarithms.
    """

    name: str
    total: Block
    log_e_value: float
    log_promotion_e_value: float

    @property
    def e_value(self) -> float:
        return _exp(self.log_e_value)

    @property
    def promotion_e_value(self) -> float:
        return _exp(self.log_promotion_e_value)


@dataclass(frozen=True)
class Verdict:
    """What to do after a look, and why.

    `e_value` is the worst indicator's; it rolls back at `threshold`, indicators / alpha.
    `promotion_e_value` is the weakest indicator's; it allows promotion at 1 / alpha. `promotable`:
    all conditions of promotion hold, also when `auto_promote` is off. e-values stop at 1e300.
    `candidate_requests`: of the indicator that has most.
    """

    decision: Decision
    reason: str
    e_value: float
    threshold: float
    promotion_e_value: float
    promotable: bool
    candidate_requests: int
    indicators: tuple[IndicatorStatus, ...]


class Judge:
    """Holds the evidence of one rollout. Deterministic: the same blocks give the same verdicts.

    `min_requests` of the candidate, in each indicator, and `min_seconds` must have passed before a
    promotion. `auto_promote` False: a promotion is only said to be possible (`promotable`), and the
    candidate is still watched. A decision stands: after "rollback" or "promote", observe() returns
    the same Verdict again.
    """

    def __init__(
        self,
        indicators: Sequence[Indicator],
        *,
        alpha: float = 0.01,
        min_requests: int = 1000,
        min_seconds: float = 0.0,
        auto_promote: bool = True,
    ) -> None:
        names = [indicator.name for indicator in indicators]
        if not names or len(set(names)) != len(names):
            raise InvalidArgumentError(
                f"judge: indicators are {names}; at least one is needed, each name once"
            )
        if not 0 < alpha < 1:
            raise InvalidArgumentError(f"judge: alpha is {alpha}; it must be in (0, 1)")
        self._evidence = {indicator.name: _Evidence(indicator) for indicator in indicators}
        self._promotion_threshold = 1 / alpha
        self._threshold = len(names) / alpha
        self._min_requests = min_requests
        self._min_seconds = min_seconds
        self._auto_promote = auto_promote
        self._final: Verdict | None = None

    def observe(self, blocks: Mapping[str, Block], elapsed_s: float) -> Verdict:
        """Takes one look: a Block an indicator, seconds since the rollout began.

        Raises InvalidArgumentError when `blocks` does not name exactly the judge's indicators.
        """
        if blocks.keys() != self._evidence.keys():
            raise InvalidArgumentError(
                f"judge: blocks for {sorted(blocks)}; the indicators are {sorted(self._evidence)}"
            )
        if self._final is not None:
            return self._final
        for name, block in blocks.items():
            self._evidence[name].observe(block)
        verdict = self._verdict(elapsed_s)
        if verdict.decision != "continue":
            self._final = verdict
        return verdict

    def _verdict(self, elapsed_s: float) -> Verdict:
        indicators = tuple(evidence.status() for evidence in self._evidence.values())
        worst = max(indicators, key=lambda status: status.log_e_value)
        weakest = min(indicators, key=lambda status: status.log_promotion_e_value)
        counts = [status.total.candidate_requests for status in indicators]
        fewest = min(counts)

        decision: Decision = "continue"
        promotable = False
        if worst.e_value >= self._threshold:
            decision = "rollback"
            why = f"{_rates(worst)}; e-value {worst.e_value:.4g}, limit {self._threshold:.4g}"
        elif fewest < self._min_requests:
            why = f"{fewest:,} of at least {self._min_requests:,} candidate requests"
        elif elapsed_s < self._min_seconds:
            why = f"{elapsed_s:.0f} s of at least {self._min_seconds:.0f} s"
        elif weakest.promotion_e_value < self._promotion_threshold:
            tolerance = self._evidence[weakest.name].indicator.tolerance
            why = (
                f"{_rates(weakest)}; not yet shown to be worse by less than {_percent(tolerance)} "
                f"(e-value {weakest.promotion_e_value:.3g}, "
                f"{self._promotion_threshold:.4g} needed)"
            )
        else:
            promotable = True
            why = "; ".join(
                f"{_rates(status)}, worse by less than "
                f"{_percent(self._evidence[status.name].indicator.tolerance)}"
                for status in indicators
            )
            if self._auto_promote:
                decision = "promote"
            else:
                why = f"ready to be promoted: {why}"
        return Verdict(
            decision=decision,
            reason=why,
            e_value=worst.e_value,
            threshold=self._threshold,
            promotion_e_value=weakest.promotion_e_value,
            promotable=promotable,
            candidate_requests=max(counts),
            indicators=indicators,
        )


class _Evidence:
    """One indicator's two e-processes."""

    def __init__(self, indicator: Indicator) -> None:
        self.indicator = indicator
        self._total = _EMPTY
        # Waits for its other arm: a block without one says nothing about a difference, but its
        # requests do, once there are some to compare them with.
        self._pending = _EMPTY
        self._past_requests = 0.0
        self._past_bad = 0.0
        self._worse = _EProcess(len(_EFFECTS))
        self._fine = _EProcess(len(_INCREASES))

    def status(self) -> IndicatorStatus:
        return IndicatorStatus(
            self.indicator.name, self._total, self._worse.log_value, self._fine.log_value
        )

    def observe(self, block: Block) -> None:
        self._total += block
        block += self._pending
        if not (block.stable_requests and block.candidate_requests):
            self._pending = block
            return
        self._pending = _EMPTY
        stable = (block.stable_requests, block.stable_bad)
        candidate = (block.candidate_requests, block.candidate_bad)
        rate = (self._past_bad + _PRIOR_BAD) / (self._past_requests + _PRIOR_BAD + _PRIOR_GOOD)
        margin, tolerance = self.indicator.margin, self.indicator.tolerance

        factors = []
        for effect in _EFFECTS:
            # An alternative needs room above the margin.
            base = min(rate, (1 - margin) * 0.999)
            worse = base + margin + effect * (1 - base - margin)
            factors.append(_log_ratio(stable, candidate, base, worse, margin))
        self._worse.multiply(factors)

        # Roles swapped: the null is "stable's rate <= candidate's - tolerance".
        factors = []
        for increase in _INCREASES:
            base = min(rate, 1 - tolerance)
            factors.append(
                _log_ratio(candidate, stable, base + increase * tolerance, base, -tolerance)
            )
        self._fine.multiply(factors)

        self._past_requests += block.stable_requests
        self._past_bad += block.stable_bad
        if self._past_requests > _MEMORY:
            self._past_bad *= _MEMORY / self._past_requests
            self._past_requests = _MEMORY


class _EProcess:
    """A product of e-variables, each the mean of several alternatives', weighted by their past."""

    def __init__(self, alternatives: int) -> None:
        each = (1 - _IDLE_WEIGHT) / alternatives
        self._start = [_IDLE_WEIGHT, *[each] * alternatives]
        self._weights = self._start
        self._blocks = 0
        self.log_value = 0.0

    def multiply(self, log_factors: Sequence[float]) -> None:
        """`log_factors`: one an alternative; each the log of an e-variable of the next block."""
        logs = (0.0, *log_factors)
        top = max(logs)
        parts = [
            weight * math.exp(log - top) for weight, log in zip(self._weights, logs, strict=True)
        ]
        total = math.fsum(parts)
        self.log_value += top + math.log(total)
        self._blocks += 1
        back = 1 / (self._blocks + _SHARE_START)
        keep = (1 - back) / total
        self._weights = [
            keep * part + back * start for part, start in zip(parts, self._start, strict=True)
        ]


def _log_ratio(
    a: tuple[int, int], b: tuple[int, int], p_a: float, p_b: float, margin: float
) -> float:
    """Log likelihood ratio of (p_a, p_b) against the nearest point with q_b = q_a + margin.

    `a`, `b`: (requests, bad), requests > 0; p_b > p_a + margin; rates in (0, 1).
    """
    (n_a, bad_a), (n_b, bad_b) = a, b
    q_a, q_b = _nearest_null(n_a, n_b, p_a, p_b, margin)
    return (
        bad_a * math.log(p_a / q_a)
        + (n_a - bad_a) * math.log1p((q_a - p_a) / (1 - q_a))
        + bad_b * math.log(p_b / q_b)
        + (n_b - bad_b) * math.log1p((q_b - p_b) / (1 - q_b))
    )


def _nearest_null(n_a: int, n_b: int, p_a: float, p_b: float, margin: float) -> tuple[float, float]:
    """(q_a, q_b), q_b = q_a + margin, with n_a s_a + n_b s_b = 0 (module docstring)."""
    if margin == 0:
        pooled = (n_a * p_a + n_b * p_b) / (n_a + n_b)
        return pooled, pooled
    # The smaller rate is the unknown, so that it keeps its digits when it is far below the margin.
    above_a, above_b = max(0.0, -margin), max(0.0, margin)

    def slope(x: float) -> float:
        q_a, q_b = x + above_a, x + above_b
        return n_a * (p_a - q_a) * q_b * (1 - q_b) + n_b * (p_b - q_b) * q_a * (1 - q_a)

    # Falling from + to - between these; Illinois' variant of the false position.
    low = max(p_a - above_a, 0.0)
    high = min(p_b - above_b, 1 - max(above_a, above_b))
    slope_low, slope_high = slope(low), slope(high)
    x, side = low, 0
    for _ in range(100):
        x = (low * slope_high - high * slope_low) / (slope_high - slope_low)
        value = slope(x)
        if value > 0:
            low, slope_low = x, value
            if side > 0:
                slope_high /= 2
            side = 1
        else:
            high, slope_high = x, value
            if side < 0:
                slope_low /= 2
            side = -1
        if high - low <= 1e-10 * high:
            break
    return x + above_a, x + above_b


def _exp(log: float) -> float:
    return math.exp(min(log, math.log(1e300)))


def _percent(rate: float) -> str:
    return f"{100 * rate:.3g} %"


def _rates(status: IndicatorStatus) -> str:
    total = status.total
    stable = total.stable_bad / total.stable_requests if total.stable_requests else 0.0
    candidate = total.candidate_bad / total.candidate_requests if total.candidate_requests else 0.0
    return (
        f"{status.name}: candidate {_percent(candidate)} of {total.candidate_requests:,}, "
        f"stable {_percent(stable)} of {total.stable_requests:,}"
    )
