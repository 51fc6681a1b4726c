"""What return distributions of all kinds share: the row of an action, its transpose, the action to bootstrap from.

The learner computes them between a sample from replay and the gradient. Shapes: B batch, A actions, N atoms or
quantiles of one action. Bellemare et al. (2017); van Hasselt et al. (2016, double).
"""

from __future__ import annotations

from torch import Tensor

from qfleet.ops.q_learning import mask_illegal


def select_action_rows(rows_BAN: Tensor, action_B: Tensor) -> Tensor:
    """Z(s, a) of the actions taken. float [B, A, N], int64 [B] -> float [B, N]."""
    assert_rank(rows_BAN, 3)
    assert_rank(action_B, 1)
    index_B1N = action_B.reshape(-1, 1, 1).expand(-1, 1, rows_BAN.shape[2])
    return rows_BAN.gather(1, index_B1N).squeeze(1)


def scatter_action_rows(gradient_BN: Tensor, action_B: Tensor, num_actions: int) -> Tensor:
    """The gradient in Z(s, a) of the actions taken, and 0 for the others: float [B, N], int64 [B] -> float [B, A, N].

    The transpose of `select_action_rows`.
    """
    assert_rank(gradient_BN, 2)
    assert_rank(action_B, 1)
    batch, num_atoms = gradient_BN.shape
    zeros_BAN = gradient_BN.new_zeros(batch, num_actions, num_atoms)
    index_B1N = action_B.reshape(-1, 1, 1).expand(-1, 1, num_atoms)
    return zeros_BAN.scatter_(1, index_B1N, gradient_BN.unsqueeze(1))


def best_action(q_values_BA: Tensor, action_mask_BA: Tensor | None = None) -> Tensor:
    """argmax_a Q(s, a) over the legal actions; action 0 where none is legal, which only a terminal state may have.

    float [B, A], bool [B, A] -> int64 [B].
    """
    assert_rank(q_values_BA, 2)
    return mask_illegal(q_values_BA, action_mask_BA).argmax(dim=1)


def bootstrapped_rows(reward_B: Tensor, discount_B: Tensor, next_rows_BN: Tensor) -> Tensor:
    """R + discount * z for each value z of the next distribution. float [B], [B], [B, N] -> float [B, N]."""
    assert_rank(reward_B, 1)
    assert_rank(discount_B, 1)
    assert_rank(next_rows_BN, 2)
    return reward_B.unsqueeze(1) + discount_B.unsqueeze(1) * next_rows_BN


def assert_rank(value: Tensor, rank: int) -> None:
    """[B, 1] beside [B] would broadcast to [B, B] in silence."""
    assert value.dim() == rank, f"expected rank {rank}, got shape {tuple(value.shape)}"
