"""Munchausen targets: the reward is augmented by the log-probability of the action, the bootstrap is soft.

The policy is softmax(Q_target / temperature). Shapes: B batch, A actions, M target quantiles.
Vieillard, Pietquin, Geist (2020), Munchausen Reinforcement Learning.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qfleet.ops.distributions import assert_rank
from qfleet.ops.q_learning import mask_illegal, select_action_values


def scaled_log_policy(q_values_BA: Tensor, temperature: float, action_mask_BA: Tensor | None = None) -> Tensor:
    """temperature * log softmax(Q / temperature) over the legal actions; minus infinity elsewhere.

    By differences to the maximum, so that small temperatures do not overflow (appendix B.1 there). Where no action is
    legal, all count as legal: only a terminal state may be so, and its discount is 0. float [B, A] -> float [B, A].
    """
    assert_rank(q_values_BA, 2)
    if action_mask_BA is not None:
        action_mask_BA = action_mask_BA | ~action_mask_BA.any(dim=1, keepdim=True)
    legal_BA = mask_illegal(q_values_BA, action_mask_BA)
    shifted_BA = legal_BA - legal_BA.amax(dim=1, keepdim=True)
    return shifted_BA - temperature * torch.logsumexp(shifted_BA / temperature, dim=1, keepdim=True)


def munchausen_bonus(q_values_BA: Tensor, action_B: Tensor, alpha: float, temperature: float, lowest: float) -> Tensor:
    """alpha * clip(temperature * log pi(a|s), lowest, 0), to be added to the reward. float [B, A], int64 [B] -> [B]."""
    scaled_B = select_action_values(scaled_log_policy(q_values_BA, temperature), action_B)
    return alpha * scaled_B.clamp(lowest, 0.0)


def soft_value(q_values_BA: Tensor, temperature: float, action_mask_BA: Tensor | None = None) -> Tensor:
    """sum_a pi(a|s') (Q(s', a) - temperature * log pi(a|s')) over the legal actions. float [B, A] -> float [B]."""
    return soft_rows(q_values_BA, q_values_BA.unsqueeze(2), temperature, action_mask_BA).squeeze(1)


def soft_rows(
    q_values_BA: Tensor, rows_BAM: Tensor, temperature: float, action_mask_BA: Tensor | None = None
) -> Tensor:
    """The same for each value z_j of a distribution: sum_a pi(a|s') (z_j(s', a) - temperature * log pi(a|s')).

    The policy is that of `q_values_BA`. float [B, A], [B, A, M] -> float [B, M].
    """
    assert_rank(rows_BAM, 3)
    scaled_BA = scaled_log_policy(q_values_BA, temperature, action_mask_BA)
    policy_BA = (scaled_BA / temperature).exp()
    # An illegal action has probability 0, and 0 * -inf would be NaN.
    gain_BAM = rows_BAM - scaled_BA.masked_fill(policy_BA == 0.0, 0.0).unsqueeze(2)
    return (policy_BA.unsqueeze(2) * gain_BAM).sum(dim=1)
