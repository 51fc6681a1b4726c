"""What every algorithm gives to the roles: a network, action values to act on, and a loss.

An algorithm's module holds `Config` (its section of a recipe) and `Algorithm` (one of these protocols, by what it
learns from); nothing else in the tree changes when one is added.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from qfleet.config import Fraction, NonNegativeFloat, PositiveFloat, PositiveInt, Section
from qfleet.networks.flat import FlatNetwork
from qfleet.networks.heads import LinearHead, QNetwork
from qfleet.networks.optimizer import OptimizerConfig
from qfleet.networks.torso import NetworkConfig, Torso
from qfleet.ops.actor_critic import log_policy
from qfleet.ops.exploration import sample_policy
from qfleet.ops.q_learning import select_action_values
from qfleet.types import (
    Array,
    BoolArray,
    EnvSpec,
    FloatArray,
    IntArray,
    RolloutBatch,
    Trajectories,
    Transitions,
)

LearnsFrom = Literal["replay", "rollouts", "trajectories"]


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
    """Fields that every algorithm has. A module extends one of the classes below as its `Config`."""

    has_target: ClassVar[bool] = False  # whether a target network stands beside the optimizer

    name: str
    learning_rate: PositiveFloat = 1e-3
    gamma: float = Field(default=0.99, ge=0, le=1)
    optimizer: OptimizerConfig = OptimizerConfig()

    @field_validator("optimizer", mode="before")
    @classmethod
    def _optimizer_by_name(cls, value: object) -> object:
        return {"name": value} if isinstance(value, str) else value

    @property
    def exploration_config(self) -> ExplorationConfig | None:
        """How actions are randomised; None where the policy is random by itself."""
        return None

    def target_share(self, before: int, after: int) -> float:
        """How much of the online network the target takes over between two versions: 0 nothing, 1 is a copy."""
        return 0.0


class ReplayAlgorithmConfig(AlgorithmConfig):
    """Fields of value-based algorithms that learn from replay, with a target network."""

    has_target: ClassVar[bool] = True

    batch_size: PositiveInt = 64
    n_step: PositiveInt = 1
    target_update: Literal["hard", "soft"] = "hard"
    target_period_updates: PositiveInt = 100
    target_tau: Fraction = 0.005
    exploration: ExplorationConfig = ExplorationConfig()

    @field_validator("exploration", mode="before")
    @classmethod
    def _exploration_by_name(cls, value: object) -> object:
        return exploration_by_name(value)

    @property
    def exploration_config(self) -> ExplorationConfig | None:
        """How actions are randomised."""
        return self.exploration

    def target_share(self, before: int, after: int) -> float:
        """As the base class says; soft updates are made for each version in between."""
        if self.target_update == "soft":
            return self.target_tau if after == before + 1 else 1.0 - (1.0 - self.target_tau) ** (after - before)
        period = self.target_period_updates
        return float(after // period > before // period)


class RolloutConfig(AlgorithmConfig):
    """Fields of algorithms that learn from rollouts: T = `rollout_steps` vector steps of all environments."""

    rollout_steps: PositiveInt = 16


class EpochsConfig(RolloutConfig):
    """Fields of algorithms that go over each rollout `num_epochs` times, in `num_minibatches` shuffled minibatches."""

    num_epochs: PositiveInt = 1
    num_minibatches: PositiveInt = 1


class PolicyConfig(AlgorithmConfig):
    """Fields of algorithms that learn a policy beside its values; mixed in with RolloutConfig or EpochsConfig.

    `entropy_bonus` times the policy's entropy in nats is taken off the loss, `value_coefficient` times half the squared
    error of the values is added to it.
    """

    entropy_bonus: NonNegativeFloat = 0.01
    value_coefficient: NonNegativeFloat = 0.5


def exploration_by_name(value: object) -> object:
    """`exploration = "none"` for `exploration.kind = "none"`."""
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
        mask = transitions.next_action_mask
        return cls(
            obs=_tensor(transitions.obs, device),
            action=_tensor(transitions.action, device),
            reward=_tensor(transitions.reward, device),
            discount=_tensor(transitions.discount, device),
            next_obs=_tensor(transitions.next_obs, device),
            next_action_mask=None if mask is None else _tensor(mask, device),
        )


@dataclass(frozen=True, slots=True)
class Minibatch:
    """Rows of a rollout as tensors on the learner's device; fields as in types.RolloutBatch."""

    obs: Tensor
    action: Tensor
    weight: Tensor
    target: Tensor
    advantage: Tensor | None
    action_mask: Tensor | None

    @classmethod
    def of(cls, rows: RolloutBatch, device: torch.device) -> Minibatch:
        """Wrap arrays without copying on CPU; move them elsewhere."""
        return cls(
            obs=_tensor(rows.obs, device),
            action=_tensor(rows.action, device),
            weight=_tensor(rows.weight, device),
            target=_tensor(rows.target, device),
            advantage=None if rows.advantage is None else _tensor(rows.advantage, device),
            action_mask=None if rows.action_mask is None else _tensor(rows.action_mask, device),
        )


@dataclass(frozen=True, slots=True)
class LossOutput:
    """What a loss gives the learner beside the gradient; all detached.

    Attributes:
        loss: scalar, mean over the batch of the weighted losses.
        mean_value: scalar, mean Q of the actions taken, or mean V.
        priority: float [B], |TD error| of each transition; None where nothing is replayed.
        extras: further scalars for the log, by name.
    """

    loss: Tensor
    mean_value: Tensor
    priority: Tensor | None = None
    extras: Mapping[str, Tensor] = field(default_factory=dict)


class Algorithm(Protocol):
    """What every algorithm gives, whatever it learns from.

    Attributes:
        learns_from: "replay" (transitions of any age, off-policy; the default of a class that does not say),
            "rollouts" (minibatches of steps by the present policy, RolloutAlgorithm) or "trajectories" (whole ones,
            corrected for the versions by which their policy lags). A strategy that cannot give that is refused.
    """

    learns_from: LearnsFrom

    def build_network(self, network: NetworkConfig, spec: EnvSpec) -> nn.Module:
        """A fresh network, mapping observations [B, *O] to whatever the loss reads."""

    def action_values(self, network: FlatNetwork, obs: Tensor) -> Tensor:
        """float [B, A], what a greedy policy maximises (Q-values, logits); no gradient."""


class ReplayAlgorithm(Algorithm, Protocol):
    """The contract between an algorithm that learns from replay and the roles."""

    def backpropagate(
        self, online: FlatNetwork, target: FlatNetwork, batch: Batch, weights_B: Tensor | None
    ) -> LossOutput:
        """Fill online.gradient from a batch; `weights_B` are importance weights, None for all ones."""

    def priorities(self, online: FlatNetwork, target: FlatNetwork, batch: Batch) -> Tensor:
        """float [B], what `backpropagate` would report as priority; no gradient. For an actor's own insertions."""


@dataclass(frozen=True, slots=True)
class Acted:
    """What a behaviour policy did in E environments.

    Attributes:
        action: int64 [E].
        log_prob: float32 [E] of it; zeros for a policy whose probabilities nobody reads.
        value: float32 [E], V(s), or max_a Q(s, a), of the observations acted on.
    """

    action: IntArray
    log_prob: FloatArray
    value: FloatArray


class ActingAlgorithm(Algorithm, Protocol):
    """An algorithm that acts for itself, for a RolloutActor."""

    def act(
        self,
        network: FlatNetwork,
        obs: Array,
        mask: BoolArray | None,
        epsilon: float | npt.NDArray[np.float64],
        generator: np.random.Generator,
    ) -> Acted:
        """One inference call for E environments: obs [E, *O], mask bool [E, A].

        `epsilon` is a number, or one per environment; 0 for an algorithm without `exploration`.
        """

    def values(self, network: FlatNetwork, obs: Array, mask: BoolArray | None) -> FloatArray:
        """float32 [K], `Acted.value` of observations [K, *O] that are not acted on; no gradient."""


class ActorCritic:
    """How algorithms with policy and values in one network act. Logits first, V(s) in the last column."""

    def build_network(self, network: NetworkConfig, spec: EnvSpec) -> nn.Module:
        """Observations [B, *O] -> [B, A + 1]."""
        torso = Torso(network, spec.obs_shape, spec.obs_dtype)
        return QNetwork(torso, LinearHead(torso.num_features, spec.num_actions + 1, noisy=False))

    def action_values(self, network: FlatNetwork, obs: Tensor) -> Tensor:
        """[B, *O] -> the logits, float [B, A]."""
        output: Tensor = network.infer(obs)
        return output[:, :-1]

    def act(
        self,
        network: FlatNetwork,
        obs: Array,
        mask: BoolArray | None,
        epsilon: float | npt.NDArray[np.float64],
        generator: np.random.Generator,
    ) -> Acted:
        """Draw each environment's action from the policy, which explores by itself: `epsilon` is not looked at."""
        output = torch.from_numpy(infer(network, obs))
        log_policy_EA = log_policy(output[:, :-1], None if mask is None else torch.from_numpy(mask))
        action_E = sample_policy(log_policy_EA.exp().numpy(), generator)
        log_prob_E = select_action_values(log_policy_EA, torch.from_numpy(action_E))
        return Acted(action_E, log_prob_E.numpy(), output[:, -1].numpy())

    def values(self, network: FlatNetwork, obs: Array, mask: BoolArray | None) -> FloatArray:
        """V(s): [K, *O] -> float32 [K]."""
        return infer(network, obs)[:, -1]


class RolloutAlgorithm(ActingAlgorithm, Protocol):
    """The contract between an algorithm that learns from minibatches of rollouts and the roles."""

    def prepare(self, trajectories: Trajectories) -> RolloutBatch:
        """Targets and advantages of a whole rollout, as T * E independent rows, time first."""

    def backpropagate(self, online: FlatNetwork, minibatch: Minibatch) -> LossOutput:
        """Fill online.gradient from a minibatch."""


class TrajectoryAlgorithm(ActingAlgorithm, Protocol):
    """The contract between an algorithm that learns from whole trajectories of older policies and the roles."""

    def backpropagate(self, online: FlatNetwork, trajectories: Trajectories) -> LossOutput:
        """Fill online.gradient from trajectories [T, E, ...], of one or of several versions of the policy."""


def infer(network: FlatNetwork, obs: Array) -> FloatArray:
    """One inference call for a batch of observations, no gradient: [E, *O] -> what the network gives, [E, ...]."""
    obs_EO = torch.from_numpy(obs)
    if network.vector.is_cuda:
        obs_EO = obs_EO.to(network.vector.device, non_blocking=True)
    output: FloatArray = network.infer(obs_EO).cpu().numpy()
    return output


def infer_action_values(algorithm: Algorithm, network: FlatNetwork, obs: Array) -> FloatArray:
    """One inference call for a batch of observations, no gradient: [E, *O] -> float32 [E, A]."""
    obs_EO = torch.from_numpy(obs)
    if network.vector.is_cuda:
        obs_EO = obs_EO.to(network.vector.device, non_blocking=True)
    values: FloatArray = algorithm.action_values(network, obs_EO).cpu().numpy()
    return values


def _tensor(array: np.ndarray, device: torch.device) -> Tensor:
    value = torch.from_numpy(array)
    return value if device.type == "cpu" else value.to(device, non_blocking=True)
