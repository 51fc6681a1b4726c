"""Importance weights by hand."""

from __future__ import annotations

import numpy as np
import pytest

from qfleet.ops.importance import global_scale, importance_weights


def test_weights_by_hand() -> None:
    # N = 4, P = 1/2, 1/4, 1/8, so N P = 2, 1, 1/2. Exponent 1: 1/2, 1, 2; over the largest, 2: 1/4, 1/2, 1.
    probabilities = np.array([0.5, 0.25, 0.125])
    np.testing.assert_allclose(importance_weights(probabilities, 4, 1.0), [0.25, 0.5, 1.0])
    # Exponent 1/2: 2^-1/2, 1, 2^1/2; over 2^1/2: 1/2, 2^-1/2, 1.
    np.testing.assert_allclose(importance_weights(probabilities, 4, 0.5), [0.5, 0.5**0.5, 1.0], rtol=1e-6)


def test_exponent_zero_corrects_nothing() -> None:
    weights = importance_weights(np.array([0.9, 1e-6]), 99, 0.0)
    np.testing.assert_array_equal(weights, [1.0, 1.0])
    assert weights.dtype == np.float32


def test_full_correction_makes_a_biased_draw_unbiased() -> None:
    # Drawing i with chance P(i) and weighting by w_i gives each i the same share: P(i) w_i is constant.
    probabilities = np.array([0.1, 0.2, 0.3, 0.4])
    np.testing.assert_allclose(probabilities * importance_weights(probabilities, 4, 1.0), 0.1, rtol=1e-6)


def test_a_column_is_refused() -> None:
    with pytest.raises(AssertionError):
        importance_weights(np.array([[0.5], [0.5]]), 2, 1.0)


def test_ranks_share_the_largest_weight() -> None:
    # Smallest probabilities 0.02 (rank 0) and 0.08 (rank 1), beta 0.5. Over both batches the largest weight is that of
    # 0.02; the one of 0.08 weighs (0.08 / 0.02)^-0.5 = 0.5 beside it, and was 1 in its own batch.
    smallest = np.array([0.02, 0.08])
    assert global_scale(smallest, 0, 0.5) == 1.0
    assert global_scale(smallest, 1, 0.5) == pytest.approx(0.5)
    assert global_scale(smallest, 1, 0.0) == 1.0, "no correction"
    assert global_scale(np.array([0.3]), 0, 1.0) == 1.0, "alone, exactly one"
