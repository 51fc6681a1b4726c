"""DQN: Q-learning with a target network and replay, with its usual options as fields.

Mnih et al. (2015); double (van Hasselt et al. 2016), dueling (Wang et al. 2016), noisy layers (Fortunato et al. 2018),
n-step returns (Sutton 1988; assembled before replay). The equations are in ops/q_learning.py.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from qfleet.algos.base import AlgorithmConfig, Batch, LossOutput
from qfleet.config import PositiveFloat
from qfleet.networks.heads import DuelingHead, LinearHead, QNetwork
from qfleet.networks.torso import NetworkConfig, Torso
from qfleet.ops import q_learning
from qfleet.types import EnvSpec


class Config(AlgorithmConfig):
    """The [algo] section of a DQN recipe."""

    name: str = "dqn"
    double: bool = True
    dueling: bool = False
    noisy: bool = False
    loss: Literal["huber", "mse"] = "huber"
    huber_delta: PositiveFloat = 1.0


class Algorithm:
    """Deep Q-network.

    Args:
        config: the [algo] section.
    """

    def __init__(self, config: Config) -> None:
        self.config = config

    def build_network(self, network: NetworkConfig, spec: EnvSpec) -> nn.Module:
        """Observations [B, *O] -> Q-values [B, A]."""
        torso = Torso(network, spec.obs_shape, spec.obs_dtype)
        head_class = DuelingHead if self.config.dueling else LinearHead
        return QNetwork(torso, head_class(torso.num_features, spec.num_actions, noisy=self.config.noisy))

    def action_values(self, network: nn.Module, obs: Tensor) -> Tensor:
        """[B, *O] -> float [B, A]."""
        values: Tensor = network(obs)
        return values

    @torch.no_grad()
    def targets(self, online: nn.Module, target: nn.Module, batch: Batch) -> Tensor:
        """What Q(s, a) should be: float [B]."""
        next_q_target_BA = target(batch.next_obs)
        if self.config.double:
            next_value_B = q_learning.double_q_value(next_q_target_BA, online(batch.next_obs), batch.next_action_mask)
        else:
            next_value_B = q_learning.max_value(next_q_target_BA, batch.next_action_mask)
        return q_learning.bootstrapped_target(batch.reward, batch.discount, next_value_B)

    def loss(self, online: nn.Module, target: nn.Module, batch: Batch, weights: Tensor | None) -> LossOutput:
        """Mean over the batch of weight * (huber or half-squared TD error)."""
        target_B = self.targets(online, target, batch)
        value_B = q_learning.select_action_values(online(batch.obs), batch.action)
        error_B = value_B - target_B
        if self.config.loss == "huber":
            losses_B = q_learning.huber(error_B, self.config.huber_delta)
        else:
            losses_B = q_learning.half_square(error_B)
        if weights is not None:
            losses_B = losses_B * weights
        return LossOutput(losses_B.mean(), error_B.detach().abs(), value_B.detach().mean())
