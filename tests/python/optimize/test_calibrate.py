from __future__ import annotations

import numpy as np
import pytest

from headrace.errors import InvalidArgumentError
from headrace.optimize.calibrate import calibrate, confidences, upper_bound


def test_confidences_are_the_servers() -> None:
    value, predicted = confidences(np.array([[0.1, 0.7, 0.2], [0.5, 0.25, 0.25]]))
    assert value.tolist() == pytest.approx([0.7, 0.5])
    assert predicted.tolist() == [1, 0]
    value, _ = confidences(np.array([[1.0, 2.0, 3.0]]), activation="softmax", measure="margin")
    exps = np.exp([1.0, 2.0, 3.0])
    assert value[0] == pytest.approx((exps[2] - exps[1]) / exps.sum())
    value, predicted = confidences(np.array([[0.2], [0.9]]))
    assert value.tolist() == pytest.approx([0.8, 0.9])
    assert predicted.tolist() == [0, 1]
    assert confidences(np.array([[np.nan, 1.0]]))[0].tolist() == [0.0]


def test_the_bound_is_clopper_pearsons() -> None:
    # Known values: no error in n has 1 - delta^(1/n); R's binom.test(5, 100, conf.level = 0.9).
    assert upper_bound(0, 100, 0.05) == pytest.approx(1 - 0.05 ** (1 / 100))
    assert upper_bound(5, 100, 0.05) == pytest.approx(0.10225, abs=1e-5)
    assert upper_bound(7, 7, 0.05) == 1.0


def test_accepted_answers_keep_the_target_on_other_data() -> None:
    """The promise is 95 of 100; a model whose confidence is right, and one that boasts."""
    random = np.random.default_rng(1)
    target = 0.05
    for boast in (0.0, 0.1):
        missed = 0
        for _ in range(60):
            truth = random.uniform(0.5, 1.0, 22000)
            correct = random.uniform(size=truth.size) < truth
            claimed = np.minimum(truth + boast, 1.0).astype(np.float32)
            point, points = calibrate(claimed[:2000], correct[:2000], target_error=target)
            assert len(points) == 40
            assert points[0].coverage == 1.0
            if point is None:  # it boasts: nothing tells the good answers from the others
                continue
            taken = claimed[2000:] >= point.threshold
            assert taken.any()
            missed += (~correct[2000:][taken]).mean() > target
        assert missed <= 3


def test_what_cannot_be_promised_is_not() -> None:
    confidence = np.linspace(0.5, 1, 200, dtype=np.float32)
    point, _ = calibrate(confidence, np.arange(200) % 2 == 0, target_error=0.02)
    assert point is None
    with pytest.raises(InvalidArgumentError, match="too few"):
        calibrate(confidence[:10], np.ones(10, bool), target_error=0.02)
    with pytest.raises(InvalidArgumentError, match="target error"):
        calibrate(confidence, np.ones(200, bool), target_error=0)


def test_a_model_without_errors_accepts_all() -> None:
    confidence = np.full(2000, 0.9, np.float32)
    point, _ = calibrate(confidence, np.ones(2000, bool), target_error=0.02)
    assert point is not None
    assert point.coverage == 1.0
