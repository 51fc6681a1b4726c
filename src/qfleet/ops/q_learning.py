"""One-step and n-step Q-learning targets and errors.

The learner computes them between a sample from replay and the gradient. Shapes: B batch, A actions.
Watkins and Dayan (1992); van Hasselt et al. (2016, double); Mnih et al. (2015, the clipped error).
"""

from __future__ import annotations

import torch
from torch import Tensor


def select_action_values(q_values_BA: Tensor, action_B: Tensor) -> Tensor:
    """Q(s, a) of the actions taken. float [B, A], int64 [B] -> float [B]."""
    _assert_rank(q_values_BA, 2)
    _assert_rank(action_B, 1)
    return q_values_BA.gather(1, action_B.unsqueeze(1)).squeeze(1)


def mask_illegal(q_values_BA: Tensor, action_mask_BA: Tensor | None) -> Tensor:
    """Q-values with illegal actions at minus infinity. mask: bool [B, A], True = legal; None changes nothing."""
    if action_mask_BA is None:
        return q_values_BA
    return q_values_BA.masked_fill(~action_mask_BA, -torch.inf)


def max_value(next_q_values_BA: Tensor, next_action_mask_BA: Tensor | None = None) -> Tensor:
    """max_a Q(s', a) over the legal actions; 0 where none is legal. float [B, A] -> float [B]."""
    _assert_rank(next_q_values_BA, 2)
    value_B = mask_illegal(next_q_values_BA, next_action_mask_BA).amax(dim=1)
    if next_action_mask_BA is None:
        return value_B
    # Only a terminal state may have no legal action. Its value meets a discount of 0, and 0 * -inf would be NaN.
    return value_B.masked_fill(~next_action_mask_BA.any(dim=1), 0.0)


def double_q_value(
    next_q_target_BA: Tensor, next_q_online_BA: Tensor, next_action_mask_BA: Tensor | None = None
) -> Tensor:
    """Q_target(s', argmax_a Q_online(s', a)): one network chooses, the other one values.

    van Hasselt, Guez, Silver (2016), equation 4. float [B, A] twice -> float [B].
    """
    _assert_rank(next_q_target_BA, 2)
    _assert_rank(next_q_online_BA, 2)
    best_B = mask_illegal(next_q_online_BA, next_action_mask_BA).argmax(dim=1)
    return select_action_values(next_q_target_BA, best_B)


def bootstrapped_target(reward_B: Tensor, discount_B: Tensor, next_value_B: Tensor) -> Tensor:
    """G = R + discount * V(s'), where discount is gamma^k after k steps and 0 after a termination.

    float [B] each -> float [B].
    """
    _assert_rank(reward_B, 1)
    _assert_rank(discount_B, 1)
    _assert_rank(next_value_B, 1)
    return torch.addcmul(reward_B, discount_B, next_value_B)


def huber(error: Tensor, delta: float) -> Tensor:
    """0.5 e^2 for |e| <= delta, delta (|e| - 0.5 delta) beyond (Huber 1964). Elementwise."""
    clipped = huber_gradient(error, delta)
    return clipped * (error - 0.5 * clipped)


def half_square(error: Tensor) -> Tensor:
    """0.5 e^2, so that its gradient is the error itself. Elementwise."""
    return 0.5 * error.square()


def huber_gradient(error: Tensor, delta: float) -> Tensor:
    """d huber / d e = e clipped to [-delta, delta]. Elementwise."""
    return error.clamp(-delta, delta)


def scatter_to_actions(gradient_B: Tensor, action_B: Tensor, num_actions: int) -> Tensor:
    """The gradient in Q(s, a) of the actions taken, and 0 for the others: float [B], int64 [B] -> float [B, A].

    The transpose of `select_action_values`.
    """
    _assert_rank(gradient_B, 1)
    zeros_BA = gradient_B.new_zeros(len(gradient_B), num_actions)
    return zeros_BA.scatter_(1, action_B.unsqueeze(1), gradient_B.unsqueeze(1))


def _assert_rank(value: Tensor, rank: int) -> None:
    assert value.dim() == rank, f"expected rank {rank}, got shape {tuple(value.shape)}"
