"""A2C: advantage actor-critic from short rollouts; pushed to a parameter server as it comes it is A3C.

Mnih et al. (2016): n-step returns, entropy bonus, a torso that policy and value share. Advantages by GAE (Schulman et
al. 2016), of which n-step returns are the case lambda = 1. The equations are in ops/returns.py and ops/actor_critic.py.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from qfleet.algos.base import (
    EpochsConfig,
    LearnsFrom,
    LossOutput,
    Minibatch,
    PolicyAlgorithm,
    PolicyConfig,
    rollout_rows,
)
from qfleet.config import Fraction
from qfleet.networks.flat import FlatNetwork
from qfleet.ops.actor_critic import actor_critic_loss, log_policy
from qfleet.ops.returns import gae
from qfleet.types import RolloutBatch, Trajectories


class Config(PolicyConfig, EpochsConfig):
    """The [algo] section of an A2C recipe.

    Attributes:
        trace_lambda: lambda of GAE; 1 is the return to the rollout's end, 0 the one-step advantage.
        normalize_advantage: give the advantages of each rollout mean 0 and standard deviation 1.
    """

    name: str = "a2c"
    trace_lambda: Fraction = 1.0
    normalize_advantage: bool = False


class Algorithm(PolicyAlgorithm):
    """Advantage actor-critic.

    Args:
        config: the [algo] section.
    """

    learns_from: LearnsFrom = "rollouts"

    def __init__(self, config: Config) -> None:
        self.config = config

    def prepare(self, trajectories: Trajectories) -> RolloutBatch:
        """Advantages, and the returns that the value is to learn: advantage + value."""
        advantage = gae(trajectories.reward, trajectories.discount, trajectories.value, self.config.trace_lambda)
        target = advantage + trajectories.value[:-1]
        if self.config.normalize_advantage:
            valid = advantage[trajectories.valid]
            advantage = (advantage - valid.mean()) / (valid.std() + np.float32(1e-8))
        return rollout_rows(trajectories, target, advantage)

    @torch.no_grad()
    def loss(self, output: Tensor, minibatch: Minibatch) -> tuple[Tensor, LossOutput]:
        """The actor-critic loss and its gradient in the network's output, float [B, A + 1]."""
        assert minibatch.advantage is not None
        out = actor_critic_loss(
            output,
            log_policy(output[:, :-1], minibatch.action_mask),
            minibatch.action,
            minibatch.advantage,
            minibatch.target,
            minibatch.weight,
            entropy_bonus=self.config.entropy_bonus,
            value_coefficient=self.config.value_coefficient,
        )
        extras = {"policy_loss": out.policy_loss, "value_loss": out.value_loss, "entropy": out.entropy}
        return out.gradient, LossOutput(out.loss, output[:, -1].mean(), extras=extras)

    def backpropagate(self, online: FlatNetwork, minibatch: Minibatch) -> LossOutput:
        """Fill online.gradient with the gradient of `loss` on a minibatch."""
        return online.backpropagate(minibatch.obs, lambda output: self.loss(output, minibatch))
