"""What every algorithm gives to the roles: a network, action values to act on, and a loss.

An algorithm's module holds `Config` (its section of a recipe) and `Algorithm` (this protocol); nothing else in the
tree changes when one is added.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from qfleet.config import Fraction, NonNegativeFloat, PositiveFloat, PositiveInt, Section
from qfleet.networks.flat import FlatNetwork
from qfleet.networks.optimizer import OptimizerConfig
from qfleet.networks.torso import NetworkConfig
from qfleet.types import Array, EnvSpec, FloatArray, Transitions


class ExplorationConfig(Section):
    """The behaviour policy.

    `kind`: "schedule" (epsilon from `start` to `end` over `decay_env_steps`), "per_env" (environment i of N keeps
    base^(1 + alpha i / (N - 1)), Horgan et al. 2018) or "none" (noisy layers explore).
    """

    kind: Literal["schedule", "per_env", "none"] = "schedule"
    start: Fraction = 1.0
    end: Fraction = 0.05
    decay_env_steps: PositiveInt = 10_000
    base: Fraction = 0.4
    alpha: NonNegativeFloat = 7.0


class AlgorithmConfig(Section):
    """Fields that every value-based algorithm has. An algorithm's module extends this class as `Config`."""

    name: str
    learning_rate: PositiveFloat = 1e-3
    batch_size: PositiveInt = 64
    gamma: float = Field(default=0.99, ge=0, le=1)
    n_step: PositiveInt = 1
    optimizer: OptimizerConfig = OptimizerConfig()
    target_update: Literal["hard", "soft"] = "hard"
    target_period_updates: PositiveInt = 100
    target_tau: Fraction = 0.005
    exploration: ExplorationConfig = ExplorationConfig()

    @field_validator("optimizer", mode="before")
    @classmethod
    def _optimizer_by_name(cls, value: object) -> object:
        return {"name": value} if isinstance(value, str) else value

    @field_validator("exploration", mode="before")
    @classmethod
    def _exploration_by_name(cls, value: object) -> object:
        return {"kind": value} if isinstance(value, str) else value


@dataclass(frozen=True, slots=True)
class Batch:
    """A sample as tensors on the learner's device; fields as in types.Transitions."""

    obs: Tensor
    action: Tensor
    reward: Tensor
    discount: Tensor
    next_obs: Tensor
    next_action_mask: Tensor | None

    @classmethod
    def of(cls, transitions: Transitions, device: torch.device) -> Batch:
        """Wrap arrays without copying on CPU; move them elsewhere."""

        def tensor(array: np.ndarray) -> Tensor:
            value = torch.from_numpy(array)
            return value if device.type == "cpu" else value.to(device, non_blocking=True)

        mask = transitions.next_action_mask
        return cls(
            obs=tensor(transitions.obs),
            action=tensor(transitions.action),
            reward=tensor(transitions.reward),
            discount=tensor(transitions.discount),
            next_obs=tensor(transitions.next_obs),
            next_action_mask=None if mask is None else tensor(mask),
        )


@dataclass(frozen=True, slots=True)
class LossOutput:
    """What a loss gives the learner beside the gradient; all detached.

    Attributes:
        loss: scalar, mean over the batch of the weighted per-transition losses.
        priority: float [B], |TD error| of each transition.
        mean_value: scalar, mean Q of the actions taken.
    """

    loss: Tensor
    priority: Tensor
    mean_value: Tensor


class Algorithm(Protocol):
    """The contract between an algorithm and the roles.

    Attributes:
        learns_from: "replay" (transitions of any age, off-policy; the default of a class that does not say) or
            "rollouts" (trajectories of the present policy). A strategy that cannot give that is refused.
    """

    learns_from: Literal["replay", "rollouts"]

    def build_network(self, network: NetworkConfig, spec: EnvSpec) -> nn.Module:
        """A fresh network, mapping observations [B, *O] to whatever the loss reads."""

    def action_values(self, network: FlatNetwork, obs: Tensor) -> Tensor:
        """float [B, A], what a greedy policy maximises; no gradient."""

    def backpropagate(
        self, online: FlatNetwork, target: FlatNetwork, batch: Batch, weights_B: Tensor | None
    ) -> LossOutput:
        """Fill online.gradient from a batch; `weights_B` are importance weights, None for all ones."""

    def priorities(self, online: FlatNetwork, target: FlatNetwork, batch: Batch) -> Tensor:
        """float [B], what `backpropagate` would report as priority; no gradient. For an actor's own insertions."""


def infer_action_values(algorithm: Algorithm, network: FlatNetwork, obs: Array) -> FloatArray:
    """One inference call for a batch of observations, no gradient: [E, *O] -> float32 [E, A]."""
    obs_EO = torch.from_numpy(obs)
    if network.vector.is_cuda:
        obs_EO = obs_EO.to(network.vector.device, non_blocking=True)
    values: FloatArray = algorithm.action_values(network, obs_EO).cpu().numpy()
    return values
