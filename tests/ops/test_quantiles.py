"""The quantile Huber loss: by hand, against a plain double loop and autograd, and beside rlax's numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qfleet.ops.quantiles import midpoints, quantile_huber

VALUES, TARGET = torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 4.0]])
FRACTIONS = torch.tensor([[0.25, 0.75]])


def test_midpoints_by_hand() -> None:
    np.testing.assert_allclose(midpoints(4), [0.125, 0.375, 0.625, 0.875])


# Errors u = target - value: (-1, 3) and (-2, 2); weights tau, or 1 - tau where u < 0: (0.75, 0.25) and (0.25, 0.75).
@pytest.mark.parametrize(
    ("kappa", "loss", "gradient"),
    [
        # |u|: (0.75 * 1 + 0.25 * 3) / 2 + (0.25 * 2 + 0.75 * 2) / 2 = 0.75 + 1; slopes are signs:
        # -(-0.75 + 0.25) / 2, -(-0.25 + 0.75) / 2.
        (0.0, 1.75, [0.25, -0.25]),
        # L(u) = 0.5, 2.5; 1.5, 1.5: (0.375 + 0.625) / 2 + (0.375 + 1.125) / 2 = 0.5 + 0.75; slopes as above.
        (1.0, 1.25, [0.25, -0.25]),
        # L(u) = 0.25, 2; 1, 1: (0.1875 + 0.5) / 2 + (0.25 + 0.75) / 2; slopes -0.5, 1; -1, 1: -(-0.375 + 0.25) / 2.
        (2.0, 0.84375, [0.0625, -0.25]),
    ],
)
def test_by_hand(kappa: float, loss: float, gradient: list[float]) -> None:
    losses, slopes, size = quantile_huber(VALUES, FRACTIONS, TARGET, kappa)
    assert losses.tolist() == [loss]
    assert slopes.tolist() == [gradient]
    assert size.tolist() == [(1 + 3 + 2 + 2) / 4]


@settings(max_examples=60)
@given(st.integers(0, 2**32 - 1), st.integers(1, 7), st.integers(1, 7), st.sampled_from([0.0, 0.01, 0.5, 1.0, 3.0]))
def test_equals_a_plain_double_loop_and_autograd(seed: int, num_values: int, num_targets: int, kappa: float) -> None:
    generator = np.random.default_rng(seed)
    values, target = generator.normal(0, 2, (3, num_values)), generator.normal(0, 2, (3, num_targets))
    fractions = generator.random((3, num_values))
    expected, sizes = [], []
    leaf = torch.from_numpy(values).requires_grad_()
    for row in range(3):
        total, size = torch.zeros((), dtype=torch.float64), 0.0
        for i in range(num_values):
            for j in range(num_targets):
                error = float(target[row, j]) - leaf[row, i]
                weight = abs(fractions[row, i] - float(error.item() < 0))
                if kappa == 0.0:
                    cost = error.abs()
                elif abs(error.item()) <= kappa:
                    cost = 0.5 * error**2 / kappa
                else:
                    cost = error.abs() - 0.5 * kappa
                total = total + weight * cost / num_targets
                size += abs(error.item()) / (num_values * num_targets)
        expected.append(total)
        sizes.append(size)
    stacked = torch.stack(expected)
    stacked.sum().backward()
    losses, gradient, mean_size = quantile_huber(
        leaf.detach(), torch.from_numpy(fractions), torch.from_numpy(target), kappa
    )
    np.testing.assert_allclose(losses, stacked.detach(), rtol=1e-9)
    np.testing.assert_allclose(gradient, leaf.grad, rtol=1e-7, atol=1e-12)
    np.testing.assert_allclose(mean_size, sizes, rtol=1e-9)


def test_one_row_of_fractions_serves_all() -> None:
    generator = torch.Generator().manual_seed(1)
    values, target = torch.randn(4, 3, generator=generator), torch.randn(4, 5, generator=generator)
    fractions = midpoints(3).unsqueeze(0)
    one = quantile_huber(values, fractions, target, 1.0)
    each = quantile_huber(values, fractions.expand(4, 3), target, 1.0)
    for left, right in zip(one, each, strict=True):
        torch.testing.assert_close(left, right)


@pytest.mark.parametrize(
    ("kappa", "loss", "gradient"),
    [
        (0.0, 1.6666665, [0.3333333, 0.25, -0.0833334]),
        (0.5, 0.6891667, [0.0875, 0.0875, -0.0416667]),
        (1.0, 1.1375, [0.1708333, 0.1125, -0.0833334]),
        (2.0, 1.5254166, [0.15, 0.075, -0.0833334]),
    ],
)
def test_beside_rlax(kappa: float, loss: float, gradient: list[float]) -> None:
    # rlax 0.1.9, jax 0.10.2: quantile_regression_loss((0.1, 0.7, 2), (1/6, 1/2, 5/6), (0, 0.5, 3.5, -1), kappa) and
    # its gradient. Theirs is not divided by kappa.
    values, target = torch.tensor([[0.1, 0.7, 2.0]]), torch.tensor([[0.0, 0.5, 3.5, -1.0]])
    losses, slopes, _ = quantile_huber(values, midpoints(3).unsqueeze(0), target, kappa)
    scale = kappa if kappa > 0 else 1.0
    assert scale * losses.item() == pytest.approx(loss, rel=1e-5)
    assert (scale * slopes[0]).tolist() == pytest.approx(gradient, rel=1e-5)


def test_the_minimum_is_at_the_quantiles_for_small_kappa_only() -> None:
    # Half of the outcomes are 0, half 1. Without smoothing the slope at fractions below 1/2 is 0 at 0, that above at 1:
    # at 0.3 below, (0.25 * 1 - 0.75 * 1) / 2 pulls down to 0. With kappa = 1 the minimum is the expectile: at value
    # tau the slopes tau (1 - tau) and (1 - tau) tau are equal.
    outcomes, fractions = torch.tensor([[0.0, 1.0]]), torch.tensor([[0.25, 0.75]])
    _, sharp, _ = quantile_huber(torch.tensor([[0.3, 0.7]]), fractions, outcomes, 0.0)
    np.testing.assert_allclose(sharp, [[0.25, -0.25]])
    _, smooth, _ = quantile_huber(fractions, fractions, outcomes, 1.0)
    np.testing.assert_allclose(smooth, [[0.0, 0.0]], atol=1e-7)
