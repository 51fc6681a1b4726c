"""PQN: Q-learning without replay and without a target network, from short rollouts of many environments.

Gallici et al. (2024), "Simplifying deep temporal difference learning": Q(lambda) targets, LayerNorm in the network
(`network.layer_norm`), several epochs of minibatches. The equations are in ops/returns.py and ops/q_learning.py.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from qfleet.algos.base import (
    Acted,
    EpochsConfig,
    Exploration,
    ExplorationConfig,
    LearnsFrom,
    LossOutput,
    Minibatch,
    infer,
    rollout_rows,
)
from qfleet.config import Fraction, PositiveInt
from qfleet.networks.flat import FlatNetwork
from qfleet.networks.heads import LinearHead, QNetwork
from qfleet.networks.torso import NetworkConfig, Torso
from qfleet.ops import q_learning
from qfleet.ops.exploration import epsilon_greedy
from qfleet.ops.returns import lambda_returns
from qfleet.types import Array, BoolArray, EnvSpec, FloatArray, RolloutBatch, Trajectories


class Config(EpochsConfig):
    """The [algo] section of a PQN recipe.

    Attributes:
        trace_lambda: lambda of the Q(lambda) targets; 0 is one-step Q-learning, 1 the return to the rollout's end.
    """

    name: str = "pqn"
    rollout_steps: PositiveInt = 32
    num_epochs: PositiveInt = 2
    num_minibatches: PositiveInt = 16
    trace_lambda: Fraction = 0.65
    exploration: Exploration = ExplorationConfig()

    @property
    def exploration_config(self) -> ExplorationConfig | None:
        """How actions are randomised."""
        return self.exploration


class Algorithm:
    """Parallelised Q-network.

    Args:
        config: the [algo] section.
    """

    learns_from: LearnsFrom = "rollouts"

    def __init__(self, config: Config) -> None:
        self.config = config

    def build_network(self, network: NetworkConfig, spec: EnvSpec) -> nn.Module:
        """Observations [B, *O] -> Q-values [B, A]."""
        torso = Torso(network, spec.obs_shape, spec.obs_dtype)
        return QNetwork(torso, LinearHead(torso.num_features, spec.num_actions, noisy=False))

    def action_values(self, network: FlatNetwork, obs: Tensor) -> Tensor:
        """[B, *O] -> float [B, A]."""
        values: Tensor = network.infer(obs)
        return values

    def act(
        self,
        network: FlatNetwork,
        obs: Array,
        mask: BoolArray | None,
        epsilon: float | npt.NDArray[np.float64],
        generator: np.random.Generator,
    ) -> Acted:
        """Epsilon-greedy; `value` is max_a Q(s, a) over the legal actions, whichever one was taken."""
        q_values_EA = infer(network, obs)
        action = epsilon_greedy(q_values_EA, epsilon, generator, mask)
        return Acted(action, np.zeros(len(action), np.float32), _max_value(q_values_EA, mask))

    def values(self, network: FlatNetwork, obs: Array, mask: BoolArray | None) -> FloatArray:
        """max_a Q of observations [K, *O]: float32 [K]."""
        return _max_value(infer(network, obs), mask)

    def prepare(self, trajectories: Trajectories) -> RolloutBatch:
        """Q(lambda) targets by the values that the behaviour network gave while it acted."""
        target = lambda_returns(
            trajectories.reward, trajectories.discount, trajectories.value, self.config.trace_lambda
        )
        return rollout_rows(trajectories, target)

    @torch.no_grad()
    def loss(self, q_values_BA: Tensor, minibatch: Minibatch) -> tuple[Tensor, LossOutput]:
        """Mean over the batch of weight * (Q(s, a) - G)^2 / 2, and its gradient in the Q-values, float [B, A]."""
        value_B = q_learning.select_action_values(q_values_BA, minibatch.action)
        error_B = value_B - minibatch.target
        gradient_B = error_B * minibatch.weight / len(error_B)
        gradient_BA = q_learning.scatter_to_actions(gradient_B, minibatch.action, q_values_BA.shape[1])
        return gradient_BA, LossOutput(0.5 * torch.dot(gradient_B, error_B), value_B.mean())

    def backpropagate(self, online: FlatNetwork, minibatch: Minibatch) -> LossOutput:
        """Fill online.gradient with the gradient of `loss` on a minibatch."""
        return online.backpropagate(minibatch.obs, lambda values: self.loss(values, minibatch))


def _max_value(q_values_EA: FloatArray, mask: BoolArray | None) -> FloatArray:
    if mask is not None:
        q_values_EA = np.where(mask, q_values_EA, -np.inf)
    values_E: FloatArray = q_values_EA.max(axis=1)
    return values_E
