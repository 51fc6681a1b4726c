"""The actor-critic loss and its gradient in the network's output, which is logits and a value in one matrix.

Between advantages and targets (ops/returns.py) and the network's backward pass. Shapes: B batch, A actions.
Williams (1992), Mnih et al. (2016, A3C: the entropy bonus).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from qfleet.ops.q_learning import mask_illegal, select_action_values


@dataclass(frozen=True, slots=True)
class ActorCriticLoss:
    """What the loss gives: its gradient, and its parts as scalars.

    Attributes:
        gradient: float [B, A + 1], of the whole loss in the network's output.
        loss: the whole.
        policy_loss: mean of -weight * advantage * log pi(a).
        value_loss: mean of weight * (V - target)^2 / 2.
        entropy: mean of weight * entropy of the policy, in nats.
    """

    gradient: Tensor
    loss: Tensor
    policy_loss: Tensor
    value_loss: Tensor
    entropy: Tensor


def log_policy(logits_BA: Tensor, action_mask_BA: Tensor | None = None) -> Tensor:
    """log pi(a | s) = z_a - log sum_b exp z_b over the legal actions; minus infinity where illegal.

    float [B, A], bool [B, A] (True = legal) -> float [B, A].
    """
    return torch.log_softmax(mask_illegal(logits_BA, action_mask_BA), dim=1)


def entropy(log_policy_BA: Tensor) -> Tensor:
    """H = -sum_a pi(a) log pi(a), in nats; an illegal action adds nothing. float [B, A] -> float [B]."""
    return -_times_log(log_policy_BA).sum(dim=1)


@torch.no_grad()
def actor_critic_loss(
    output_BA1: Tensor,
    log_policy_BA: Tensor,
    action_B: Tensor,
    advantage_B: Tensor,
    target_B: Tensor,
    weight_B: Tensor,
    *,
    entropy_bonus: float,
    value_coefficient: float,
) -> ActorCriticLoss:
    """L = mean_b w_b (-A_b log pi(a_b) - beta H_b + kappa (V_b - G_b)^2 / 2), advantages and targets held fixed.

    Its gradient is written out, with p = pi(. | s_b):

        d(-A log p_a) / dz_i = A (p_i - [i = a]),   d(-H) / dz_i = p_i (log p_i + H),   d(V - G)^2 / 2 / dV = V - G

    Args:
        output_BA1: float [B, A + 1], logits z and the value V in the last column.
        log_policy_BA: float [B, A], `log_policy` of the logits.
        action_B: int64 [B].
        advantage_B, target_B: float [B].
        weight_B: float [B], 0 for rows that count for nothing.
        entropy_bonus: beta.
        value_coefficient: kappa.
    """
    num_rows, num_actions = log_policy_BA.shape
    assert output_BA1.shape == (num_rows, num_actions + 1), f"output {tuple(output_BA1.shape)}, {num_actions} actions"
    policy_BA, times_log_BA = log_policy_BA.exp(), _times_log(log_policy_BA)
    entropy_B = -times_log_BA.sum(dim=1)
    value_error_B = output_BA1[:, -1] - target_B
    scale_B = weight_B / num_rows

    gradient_BA1 = torch.empty_like(output_BA1)
    logits_BA = gradient_BA1[:, :-1]
    torch.mul(policy_BA, advantage_B.unsqueeze(1), out=logits_BA)
    logits_BA.scatter_add_(1, action_B.unsqueeze(1), -advantage_B.unsqueeze(1))
    if entropy_bonus:
        logits_BA.add_(torch.addcmul(times_log_BA, policy_BA, entropy_B.unsqueeze(1)), alpha=entropy_bonus)
    logits_BA.mul_(scale_B.unsqueeze(1))
    torch.mul(value_error_B, scale_B * value_coefficient, out=gradient_BA1[:, -1])

    policy_loss = -(scale_B * advantage_B * select_action_values(log_policy_BA, action_B)).sum()
    value_loss = 0.5 * (scale_B * value_error_B.square()).sum()
    mean_entropy = (scale_B * entropy_B).sum()
    loss = policy_loss - entropy_bonus * mean_entropy + value_coefficient * value_loss
    return ActorCriticLoss(gradient_BA1, loss, policy_loss, value_loss, mean_entropy)


def _times_log(log_policy_BA: Tensor) -> Tensor:
    """p log p, and 0 where p is 0."""
    return (log_policy_BA.exp() * log_policy_BA).masked_fill(log_policy_BA == -torch.inf, 0.0)
