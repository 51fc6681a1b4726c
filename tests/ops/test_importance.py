"""Importance weights by hand."""

from __future__ import annotations

import numpy as np
import pytest

from qfleet.ops.importance import importance_weights


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


def test_a_part_of_a_batch_is_weighed_as_in_the_whole() -> None:
    probabilities = np.array([0.5, 0.1, 0.25, 0.02])
    whole = importance_weights(probabilities, 10, 0.5)
    parts = [
        importance_weights(part, 10, 0.5, smallest_probability=0.02) for part in (probabilities[:2], probabilities[2:])
    ]
    np.testing.assert_allclose(np.concatenate(parts), whole, rtol=1e-6)
    # (10 * 0.1)^-0.5 / (10 * 0.02)^-0.5 = sqrt(0.2), not 1, though it is the largest of its part.
    np.testing.assert_allclose(parts[0][1], 0.2**0.5, rtol=1e-6)
