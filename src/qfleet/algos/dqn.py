"""DQN: Q-learning with a target network and replay, with its usual options as fields.

Mnih et al. (2015); double (van Hasselt et al. 2016), dueling (Wang et al. 2016), noisy layers (Fortunato et al. 2018),
n-step returns (Sutton 1988; assembled before replay), Munchausen (Vieillard et al. 2020). The equations are in
ops/q_learning.py and ops/munchausen.py.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from qfleet.algos.base import Batch, LearnsFrom, LossOutput, MunchausenConfig
from qfleet.config import PositiveFloat
from qfleet.networks.flat import FlatNetwork
from qfleet.networks.heads import DuelingHead, LinearHead, QNetwork
from qfleet.networks.torso import NetworkConfig, Torso
from qfleet.ops import q_learning
from qfleet.ops.munchausen import munchausen_bonus, soft_value
from qfleet.types import EnvSpec


class Config(MunchausenConfig):
    """The [algo] section of a DQN recipe."""

    name: str = "dqn"
    dueling: bool = False
    noisy: bool = False
    loss: Literal["huber", "mse"] = "huber"
    huber_delta: PositiveFloat = 1.0


class Algorithm:
    """Deep Q-network.

    Args:
        config: the [algo] section.
    """

    learns_from: LearnsFrom = "replay"

    def __init__(self, config: Config) -> None:
        self.config = config

    def build_network(self, network: NetworkConfig, spec: EnvSpec) -> nn.Module:
        """Observations [B, *O] -> Q-values [B, A].

        Raises:
            ConfigError: an option does not fit the environment.
        """
        self.config.refuse_masks(spec)
        torso = Torso(network, spec.obs_shape, spec.obs_dtype)
        head_class = DuelingHead if self.config.dueling else LinearHead
        return QNetwork(torso, head_class(torso.num_features, spec.num_actions, noisy=self.config.noisy))

    def action_values(self, network: FlatNetwork, obs: Tensor) -> Tensor:
        """[B, *O] -> float [B, A]."""
        values: Tensor = network.infer(obs)
        return values

    @torch.no_grad()
    def targets(self, online: FlatNetwork, target: FlatNetwork, batch: Batch) -> Tensor:
        """What Q(s, a) should be: float [B]."""
        config, reward_B = self.config, batch.reward
        next_q_target_BA = target.infer(batch.next_obs)
        if config.munchausen:
            temperature = config.munchausen_temperature
            reward_B = reward_B + munchausen_bonus(
                target.infer(batch.obs), batch.action, config.munchausen_alpha, temperature, config.munchausen_lowest
            )
            next_value_B = soft_value(next_q_target_BA, temperature, batch.next_action_mask)
        elif config.double:
            next_q_online_BA = online.infer(batch.next_obs)
            next_value_B = q_learning.double_q_value(next_q_target_BA, next_q_online_BA, batch.next_action_mask)
        else:
            next_value_B = q_learning.max_value(next_q_target_BA, batch.next_action_mask)
        return q_learning.bootstrapped_target(reward_B, batch.discount, next_value_B)

    @torch.no_grad()
    def loss(
        self, q_values_BA: Tensor, target_B: Tensor, action_B: Tensor, weights_B: Tensor | None
    ) -> tuple[Tensor, LossOutput]:
        """Mean over the batch of weight * (huber or half-squared TD error).

        Its gradient in the Q-values is so short that it is written out: autograd would cost more than the network.

        Returns:
            The gradient, float [B, A], and what the learner reports.
        """
        value_B = q_learning.select_action_values(q_values_BA, action_B)
        error_B = value_B - target_B
        if self.config.loss == "huber":
            losses_B = q_learning.huber(error_B, self.config.huber_delta)
            gradient_B = q_learning.huber_gradient(error_B, self.config.huber_delta)
        else:
            losses_B = q_learning.half_square(error_B)
            gradient_B = error_B
        gradient_B = gradient_B / len(error_B)
        if weights_B is not None:
            losses_B = losses_B * weights_B
            gradient_B = gradient_B * weights_B
        gradient_BA = q_learning.scatter_to_actions(gradient_B, action_B, q_values_BA.shape[1])
        return gradient_BA, LossOutput(losses_B.mean(), value_B.mean(), error_B.abs())

    @torch.no_grad()
    def priorities(self, online: FlatNetwork, target: FlatNetwork, batch: Batch) -> Tensor:
        """|TD error| of each transition, as `loss` reports it: float [B]."""
        value_B = q_learning.select_action_values(online.infer(batch.obs), batch.action)
        return (value_B - self.targets(online, target, batch)).abs()

    def backpropagate(
        self, online: FlatNetwork, target: FlatNetwork, batch: Batch, weights_B: Tensor | None
    ) -> LossOutput:
        """Fill online.gradient with the gradient of `loss` on a batch."""
        target_B = self.targets(online, target, batch)
        return online.backpropagate(batch.obs, lambda values: self.loss(values, target_B, batch.action, weights_B))
