"""Return distributions as N values, each of which is to be the quantile of one fraction tau; QR-DQN and IQN learn them.

The learner computes them between a sample from replay and the gradient. Shapes: B batch, N quantiles, M target values.
Dabney et al. (2018a), Distributional RL with Quantile Regression; (2018b), Implicit Quantile Networks.
"""

from __future__ import annotations

import torch
from torch import Tensor

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
    error_BNM = target_BM.unsqueeze(1) - values_BN.unsqueeze(2)
    fractions_BN1 = fractions_BN.unsqueeze(2)
    weight_BNM = torch.where(error_BNM < 0, 1.0 - fractions_BN1, fractions_BN1)
    size_BNM = error_BNM.abs()
    if kappa > 0.0:
        slope_BNM = error_BNM.clamp(-kappa, kappa) / kappa
        # Huber by its slope s = clip(u) / kappa: s (u - clip(u) / 2).
        losses_BNM = slope_BNM * error_BNM - (0.5 * kappa) * slope_BNM.square()
    else:
        slope_BNM, losses_BNM = error_BNM.sign(), size_BNM
    losses_B = (weight_BNM * losses_BNM).mean(dim=2).sum(dim=1)
    gradient_BN = -(weight_BNM * slope_BNM).mean(dim=2)
    return losses_B, gradient_BN, size_BNM.mean(dim=(1, 2))
