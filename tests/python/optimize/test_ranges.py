from __future__ import annotations

import numpy as np
import pytest

from headrace.errors import InvalidArgumentError
from headrace.optimize import ranges
from headrace.optimize.ranges import Histogram


def histogram_of(*parts: ranges.Array) -> Histogram:
    histogram = Histogram()
    for part in parts:
        histogram.add(part)
    return histogram


def test_a_histogram_does_not_depend_on_the_order_of_its_parts() -> None:
    random = np.random.default_rng(1)
    small, large = random.normal(size=5000), random.normal(size=5000) * 37
    one, other = histogram_of(small, large), histogram_of(large, small)
    assert one.largest == other.largest == np.abs(large).max().astype(np.float32)
    assert one.counts.sum() == other.counts.sum() == 10000
    for share in (50, 90, 99, 99.9):
        wanted = np.percentile(np.abs(np.concatenate([small, large])), share)
        for histogram in (one, other):
            # Doubling merges bins, so the edges are a bin apart.
            assert ranges.percentile(histogram, share) == pytest.approx(
                wanted, rel=0.01, abs=2 * histogram.width
            )


def test_minmax_is_exact_and_signs_do_not_count() -> None:
    assert ranges.minmax(histogram_of(np.array([0.5, -7.25, 3.0]))) == 7.25
    assert ranges.percentile(histogram_of(np.array([0.5, -7.25, 3.0])), 100) == 7.25


def test_zeros_have_no_scale_until_something_comes() -> None:
    zeros = histogram_of(np.zeros(10), np.zeros((0,)))
    for method in ranges.METHODS:
        assert ranges.threshold(zeros, method) == 0
    zeros.add(np.array([2.0]))
    assert ranges.minmax(zeros) == 2.0


def test_mse_is_that_of_a_search_on_the_values_themselves() -> None:
    random = np.random.default_rng(2)
    # Most are small and finely spread, few are large: clipping the few pays.
    values = np.concatenate([random.normal(size=200_000), random.uniform(20, 40, size=3)])
    found = ranges.mse(histogram_of(values))
    candidates = np.abs(values).max() * np.linspace(1 / 8, 1, 120)

    def error(threshold: float) -> float:
        scale = threshold / 127
        q = np.clip(np.rint(values / scale), -127, 127) * scale
        return float(np.square(values - q).sum())

    best = min(error(candidate) for candidate in candidates)
    assert error(found) <= best * 1.02
    assert found < 40
    assert error(found) < 0.9 * error(float(np.abs(values).max()))


def test_nothing_is_clipped_where_values_are_spread_evenly() -> None:
    values = np.random.default_rng(3).uniform(-5, 5, size=100_000)
    histogram = histogram_of(values)
    assert ranges.mse(histogram) > 4.9
    assert ranges.entropy(histogram) > 4.9


def test_entropy_cuts_a_far_tail() -> None:
    random = np.random.default_rng(4)
    values = np.concatenate([random.normal(size=500_000), [1000.0]])
    assert ranges.entropy(histogram_of(values)) < 150


@pytest.mark.parametrize("method", ranges.METHODS)
def test_no_method_exceeds_what_was_seen(method: str) -> None:
    random = np.random.default_rng(5)
    for scale in (1e-20, 1.0, 1e20):
        histogram = histogram_of(random.normal(size=1000) * scale, random.normal(size=10) * scale)
        assert 0 < ranges.threshold(histogram, method) <= histogram.largest


def test_wrong_input_is_told() -> None:
    with pytest.raises(InvalidArgumentError, match="NaN or infinity"):
        histogram_of(np.array([1.0, np.nan]))
    with pytest.raises(InvalidArgumentError, match="say auto, minmax, percentile, mse, entropy"):
        ranges.threshold(histogram_of(np.ones(3)), "best")
    with pytest.raises(InvalidArgumentError, match=r"percentile is 0.99; expected 50 to 100"):
        ranges.percentile(histogram_of(np.ones(3)), 0.99)
