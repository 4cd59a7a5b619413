from __future__ import annotations

import numpy as np
import pytest

from headrace.optimize import smooth


def test_weights_are_symmetric_and_a_scale_a_channel() -> None:
    weights = np.random.default_rng(1).normal(size=(5, 3, 4)).astype(np.float32)
    weights[:, 2] = 0  # a channel without weights
    for bits, limit in ((8, 127), (7, 63)):
        q, scales = smooth.quantize_weights(weights, 1, bits)
        assert q.dtype == np.int8
        assert scales.shape == (3,)
        assert scales.dtype == np.float32
        assert np.abs(q[:, :2]).max(axis=(0, 2)).tolist() == [limit, limit]
        assert not q[:, 2].any()
        assert (scales > 0).all()
        error = np.abs(q * scales[None, :, None] - weights).max(axis=(0, 2))
        assert (error <= scales / 2 * 1.0001).all()


def test_factors_are_the_papers() -> None:
    x_max, w_max = np.array([1.0, 100.0, 4.0]), np.array([1.0, 1.0, 0.25])
    s = smooth.factors(x_max, w_max, 0.5)
    ratio = np.sqrt(x_max / w_max)
    assert s / s[0] == pytest.approx(ratio / ratio[0], rel=1e-5)
    assert np.log(s).mean() == pytest.approx(0, abs=1e-6)


def test_channels_that_are_always_zero_keep_their_scale() -> None:
    s = smooth.factors(np.array([0.0, 9.0, 9.0]), np.array([1.0, 0.0, 1.0]), 0.5)
    assert s[:2].tolist() == [1, 1]
    assert smooth.factors(np.zeros(2), np.ones(2), 0.5).tolist() == [1, 1]


def outliers() -> tuple[smooth.Array, smooth.Array]:
    random = np.random.default_rng(2)
    rows = random.normal(size=(64, 48)).astype(np.float32)
    rows[:, [3, 17]] *= 60
    weights = random.normal(size=(48, 24)).astype(np.float32)
    weights[[3, 17]] /= 60
    return rows, weights


def test_outliers_are_smoothed_and_the_product_stays() -> None:
    rows, weights = outliers()
    found = smooth.choose(rows, np.abs(rows).max(axis=0), weights)
    assert found is not None
    assert found.error_after < found.error_before / 8
    s = found.divide_by
    assert (rows / s) @ (weights * s[:, None]) == pytest.approx(rows @ weights, rel=1e-3, abs=1e-3)
    assert found.error_before == pytest.approx(
        smooth.product_error(rows, weights, float(np.abs(rows).max()), 8)
    )


def test_nothing_is_done_where_nothing_is_gained() -> None:
    random = np.random.default_rng(3)
    rows = random.uniform(-1, 1, size=(64, 48)).astype(np.float32)
    rows[0] = 1
    weights = random.choice([-1, 1], size=(48, 24)).astype(np.float32)
    assert smooth.choose(rows, np.abs(rows).max(axis=0), weights) is None
    asked = smooth.choose(rows, np.abs(rows).max(axis=0), weights, strengths=(0.5,))
    assert asked is not None
    assert asked.strength == 0.5
