"""What every algorithm gives to the roles: a network, action values to act on, and a loss.

An algorithm's module holds `Config` (its section of a recipe) and `Algorithm` (one of these protocols, by what it
learns from); nothing else in the tree changes when one is added.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch
from pydantic import BeforeValidator, Field, ValidationInfo, field_validator
from torch import Tensor, nn

from qfleet.config import Fraction, NonNegativeFloat, PositiveFloat, PositiveInt, Section
from qfleet.errors import ConfigError
from qfleet.networks.flat import FlatNetwork
from qfleet.networks.heads import LinearHead, QNetwork
from qfleet.networks.optimizer import OptimizerConfig
from qfleet.networks.torso import NetworkConfig, Torso
from qfleet.ops.exploration import sample_policy
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


def _exploration_by_name(value: object) -> object:
    """`exploration = "none"` for `exploration.kind = "none"`."""
    return {"kind": value} if isinstance(value, str) else value


Exploration = Annotated[ExplorationConfig, BeforeValidator(_exploration_by_name)]


class AlgorithmConfig(Section):
    """Fields that every algorithm has. A module extends one of the classes below as its `Config`."""

    has_target: ClassVar[bool] = False  # whether a target network stands beside the optimizer
    value_name: ClassVar[str] = "mean_q"  # what LossOutput.mean_value is called in the log

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
    exploration: Exploration = ExplorationConfig()

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


class MunchausenConfig(ReplayAlgorithmConfig):
    """Fields of algorithms that may take the Munchausen target instead of a maximum (Vieillard et al. 2020).

    It has no maximum to be double about, and needs the policy at each state that a reward was got in, which n-step
    returns leave out.
    """

    double: bool = True
    munchausen: bool = False
    munchausen_alpha: Fraction = 0.9
    munchausen_temperature: PositiveFloat = 0.03
    munchausen_lowest: float = Field(default=-1.0, le=0, allow_inf_nan=False)

    @field_validator("munchausen")
    @classmethod
    def _one_step_and_soft(cls, value: bool, info: ValidationInfo) -> bool:
        if value and info.data.get("double"):
            raise ValueError("its target has no maximum for algo.double to choose; set algo.double=false")
        if value and info.data.get("n_step", 1) > 1:
            raise ValueError("only the first of n steps would get its bonus; set algo.n_step=1")
        return value

    def refuse_masks(self, spec: EnvSpec) -> None:
        """Say so where the target would need what replay does not hold.

        Raises:
            ConfigError: Munchausen's policy at the present observation, with illegal actions.
        """
        if self.munchausen and spec.has_action_mask:
            raise ConfigError(
                f"algo.munchausen: {spec.env_id} has action masks, and replay does not hold that of the present "
                "observation, which the bonus needs; set it to false"
            )


class RolloutConfig(AlgorithmConfig):
    """Fields of algorithms that learn from rollouts: T = `rollout_steps` vector steps of all environments."""

    rollout_steps: PositiveInt = 16


class EpochsConfig(RolloutConfig):
    """Fields of algorithms that go over each rollout `num_epochs` times, in `num_minibatches` shuffled minibatches."""

    num_epochs: PositiveInt = 1
    num_minibatches: PositiveInt = 1


class PolicyConfig(RolloutConfig):
    """Fields of algorithms whose network is a policy (logits) and its value."""

    value_name: ClassVar[str] = "mean_v"

    entropy_bonus: NonNegativeFloat = 0.01
    value_coefficient: NonNegativeFloat = 0.5


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
        priority: float [B], |TD error| of each transition, or what stands for it where distributions are learned; None
            where nothing is replayed.
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


class PolicyAlgorithm:
    """The acting half of an algorithm whose network gives [B, A + 1]: logits, and the value in the last column."""

    def build_network(self, network: NetworkConfig, spec: EnvSpec) -> nn.Module:
        """Observations [B, *O] -> logits and value [B, A + 1], by one linear layer on a shared torso."""
        torso = Torso(network, spec.obs_shape, spec.obs_dtype)
        return QNetwork(torso, LinearHead(torso.num_features, spec.num_actions + 1, noisy=False))

    def action_values(self, network: FlatNetwork, obs: Tensor) -> Tensor:
        """The logits: [B, *O] -> float [B, A]."""
        logits: Tensor = network.infer(obs)[:, :-1]
        return logits

    def act(
        self,
        network: FlatNetwork,
        obs: Array,
        mask: BoolArray | None,
        epsilon: float | npt.NDArray[np.float64],
        generator: np.random.Generator,
    ) -> Acted:
        """Draw from the policy; illegal actions have probability 0, and epsilon no meaning."""
        output_EA = infer(network, obs)
        logits_EA = output_EA[:, :-1]
        if mask is not None:
            logits_EA = np.where(mask, logits_EA, -np.inf)
        shifted_EA = logits_EA - logits_EA.max(axis=1, keepdims=True)
        policy_EA = np.exp(shifted_EA)
        action = sample_policy(policy_EA, generator)
        log_prob = shifted_EA[np.arange(len(action)), action] - np.log(policy_EA.sum(axis=1))
        return Acted(action, log_prob, output_EA[:, -1])

    def values(self, network: FlatNetwork, obs: Array, mask: BoolArray | None) -> FloatArray:
        """V of observations [K, *O]: float32 [K]."""
        return infer(network, obs)[:, -1]


def rollout_rows(
    trajectories: Trajectories, target: npt.NDArray[np.float32], advantage: npt.NDArray[np.float32] | None = None
) -> RolloutBatch:
    """The T * E rows of a rollout, time first, with targets and advantages float32 [T, E]; invalid ones weigh nothing.

    Weights are scaled so that the mean over the rollout is that over its valid rows.
    """
    valid = trajectories.valid.reshape(-1)
    mask = trajectories.action_mask
    return RolloutBatch(
        obs=trajectories.obs.reshape(-1, *trajectories.obs.shape[2:]),
        action=trajectories.action.reshape(-1),
        weight=valid.astype(np.float32) * np.float32(len(valid) / max(int(valid.sum()), 1)),
        target=target.reshape(-1),
        advantage=None if advantage is None else advantage.reshape(-1),
        action_mask=None if mask is None else mask.reshape(-1, mask.shape[2]),
    )


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
