"""Return distributions as N values, each of which is to be the quantile of one fraction tau; QR-DQN and IQN learn them.

The learner computes them between a sample from replay and the gradient. Shapes: B batch, N quantiles, M target values.
Dabney et al. (2018a), Distributional RL with Quantile Regression; (2018b), Implicit Quantile Networks.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from qfleet.ops.distributions import assert_rank


def midpoints(num_quantiles: int) -> Tensor:
    """tau_i = (2 i + 1) / (2 N), i from 0: the fractions whose N values are nearest to a distribution in Wasserstein-1.

    Dabney et al. (2018a), lemma 2. -> float32 [N].
    """
    return (torch.arange(num_quantiles, dtype=torch.float32) + 0.5) / num_quantiles


def quantile_huber(
    values_BN: Tensor, fractions_BN: Tensor, target_BM: Tensor, kappa: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The quantile Huber loss, its gradient in the values, and the mean error.

    With u = target_j - value_i: loss = sum_i mean_j |tau_i - 1{u < 0}| L(u), L(u) = huber(u, kappa) / kappa, or |u| for
    kappa = 0, where the minimum is at the quantiles themselves. Dabney et al. (2018b), equations 3 and 4.

    Args:
        values_BN: float [B, N], of the actions taken.
        fractions_BN: float [B, N] or [1, N], the tau of each.
        target_BM: float [B, M], samples or quantiles of the target.
        kappa: up to where an error counts as its square.

    Returns:
        Losses float [B]; d loss / d value float [B, N]; mean over i and j of |u|, float [B].
    """
    assert_rank(values_BN, 2)
    assert_rank(fractions_BN, 2)
    assert_rank(target_BM, 2)
    # Sums over j of a function of t_j - x come from counts and sums of the sorted targets above and below x: B N log M
    # instead of B N M, in float64, for differences of sums of squares are small beside them.
    targets = _SortedTargets(target_BM)
    values, fractions = values_BN.double(), fractions_BN.double()
    above, below = targets.above(values), targets.below(values)
    if kappa > 0.0:
        # clip(u, 0, kappa) = max(u, 0) - max(u - kappa, 0), and half the squares of these for its integral.
        far_above, far_below = targets.above(values + kappa), targets.below(values - kappa)
        pull_up, pull_down = (
            (above.distance - far_above.distance) / kappa,
            (below.distance - far_below.distance) / kappa,
        )
        cost_above = 0.5 * (above.squares - far_above.squares) / kappa
        cost_below = 0.5 * (below.squares - far_below.squares) / kappa
    else:
        pull_up, pull_down, cost_above, cost_below = above.number, below.number, above.distance, below.distance
    num_targets, dtype = target_BM.shape[1], values_BN.dtype
    losses_B = (fractions * cost_above + (1.0 - fractions) * cost_below).sum(dim=1) / num_targets
    gradient_BN = ((1.0 - fractions) * pull_down - fractions * pull_up) / num_targets
    sizes_B = (above.distance + below.distance).mean(dim=1) / num_targets
    return losses_B.to(dtype), gradient_BN.to(dtype), sizes_B.to(dtype)


class _Side(NamedTuple):
    """Of the targets on one side of each x, float64 [B, N]: how many, their distances from x, the squares of these."""

    number: Tensor
    distance: Tensor
    squares: Tensor


class _SortedTargets:
    """The targets of each row in order, with the sums of those before each."""

    def __init__(self, target_BM: Tensor) -> None:
        self._sorted = target_BM.double().sort(dim=1).values
        self._sums = nn.functional.pad(self._sorted.cumsum(dim=1), (1, 0))
        self._squares = nn.functional.pad(self._sorted.square().cumsum(dim=1), (1, 0))

    def below(self, x_BN: Tensor) -> _Side:
        """Of those with t < x."""
        index = torch.searchsorted(self._sorted, x_BN)
        return _side(index.double(), self._sums.gather(1, index), self._squares.gather(1, index), x_BN, 1.0)

    def above(self, x_BN: Tensor) -> _Side:
        """Of those with t > x."""
        index = torch.searchsorted(self._sorted, x_BN, right=True)
        count = self._sorted.shape[1] - index.double()
        sums = self._sums[:, -1:] - self._sums.gather(1, index)
        squares = self._squares[:, -1:] - self._squares.gather(1, index)
        return _side(count, sums, squares, x_BN, -1.0)


def _side(count: Tensor, sums: Tensor, squares: Tensor, x_BN: Tensor, sign: float) -> _Side:
    """From sums of t and t^2: of sign * (x - t), and of (x - t)^2."""
    return _Side(count, sign * (count * x_BN - sums), squares - 2.0 * x_BN * sums + count * x_BN.square())
