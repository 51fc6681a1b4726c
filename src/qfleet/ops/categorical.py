"""Categorical return distributions: probabilities of N fixed, evenly spaced returns (atoms), as C51 learns them.

The learner computes them between a sample from replay and the gradient. Shapes: B batch, A actions, N atoms.
Bellemare, Dabney, Munos (2017), A Distributional Perspective on Reinforcement Learning.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qfleet.ops.distributions import assert_rank


def expected_values(logits_BAN: Tensor, atoms_N: Tensor) -> Tensor:
    """Q(s, a) = sum_i z_i softmax(logits)_i. float [B, A, N], [N] -> float [B, A]."""
    assert_rank(logits_BAN, 3)
    assert_rank(atoms_N, 1)
    return logits_BAN.softmax(dim=2) @ atoms_N


def project(values_BN: Tensor, probabilities_BN: Tensor, atoms_N: Tensor) -> Tensor:
    """The distribution with the given values, moved onto the atoms: each value's probability to its two neighbours.

    Bellemare et al. (2017), equation 7 and algorithm 1: a value beyond the ends counts as the end; the nearer
    neighbour gets the larger part, in proportion, so that a mean inside the ends is kept.

    Args:
        values_BN: float [B, M], where the probability is: R + discount * atom.
        probabilities_BN: float [B, M].
        atoms_N: float [N], evenly spaced, ascending, N at least 2.

    Returns:
        float [B, N]; rows sum to what those of `probabilities_BN` do.
    """
    assert_rank(values_BN, 2)
    assert_rank(probabilities_BN, 2)
    assert_rank(atoms_N, 1)
    last = len(atoms_N) - 1
    spacing = (atoms_N[last] - atoms_N[0]) / last
    position_BN = ((values_BN - atoms_N[0]) / spacing).clamp(0, last)
    # The neighbour below is never the last atom, so that the one above exists; a value on the last atom goes there
    # with a part of 1.
    below_BN = position_BN.floor().clamp_max(last - 1)
    part_above_BN = (position_BN - below_BN) * probabilities_BN
    index_BN = below_BN.nan_to_num(0.0).long()  # what is NaN stays NaN by its part, and is reported as divergence
    projected_BN = torch.zeros(len(values_BN), last + 1, dtype=values_BN.dtype, device=values_BN.device)
    projected_BN.scatter_add_(1, index_BN, probabilities_BN - part_above_BN)
    return projected_BN.scatter_add_(1, index_BN + 1, part_above_BN)


def cross_entropy(logits_BN: Tensor, target_BN: Tensor) -> Tensor:
    """- sum_i target_i log softmax(logits)_i. float [B, N] twice -> float [B]."""
    assert_rank(logits_BN, 2)
    assert_rank(target_BN, 2)
    return -(target_BN * logits_BN.log_softmax(dim=1)).sum(dim=1)


def cross_entropy_gradient(logits_BN: Tensor, target_BN: Tensor) -> Tensor:
    """d cross_entropy / d logits = softmax(logits) - target, for targets that sum to 1. float [B, N]."""
    return logits_BN.softmax(dim=1) - target_BN


def entropy(probabilities_BN: Tensor) -> Tensor:
    """- sum_i p_i log p_i, where 0 log 0 is 0: cross_entropy - entropy(target) is the KL divergence. -> float [B]."""
    assert_rank(probabilities_BN, 2)
    terms_BN: Tensor = torch.special.xlogy(probabilities_BN, probabilities_BN)
    return -terms_BN.sum(dim=1)
