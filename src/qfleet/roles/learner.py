"""Learner: from a sample to a gradient to the next parameter version, with the target network beside the optimizer.

What it is given is a Sample of replay, whose probabilities become importance weights here and nowhere else (Schaul et
al. 2016), or a minibatch of a rollout.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import numpy as np
import torch

from qfleet.algos.base import Batch, LossOutput, Minibatch, ReplayAlgorithmConfig
from qfleet.errors import DivergenceError
from qfleet.networks.flat import FlatNetwork, as_tensor
from qfleet.networks.noisy import noisy_layers
from qfleet.networks.optimizer import VectorOptimizer
from qfleet.ops.importance import importance_weights
from qfleet.ops.optimizers import clip_scale
from qfleet.ops.schedules import linear
from qfleet.roles.blueprint import Blueprint, copy_network
from qfleet.seeding import derive_seed
from qfleet.types import Array, FloatArray, LearnerState, ParamSlice, ParamSnapshot, RolloutBatch, Sample, Trajectories

Drawn = Sample | RolloutBatch | Trajectories  # what an update is made from

_NO_PRIORITY: FloatArray = np.empty(0, np.float32)


class BaseLearner(ABC):
    """Online and target network, optimizer, version; what the gradient is made from is a subclass's business.

    Args:
        blueprint: the run's plan.
        name: the role's name, for its seeds.

    Attributes:
        online, target: the two networks, each one flat vector; the same one where the algorithm has no target network.
        version: updates applied so far.
        loss, mean_value, gradient_norm, extras: scalars of the last update.
    """

    def __init__(self, blueprint: Blueprint, name: str) -> None:
        self.config = blueprint.algo
        self.online: FlatNetwork = blueprint.build_network()
        self.target: FlatNetwork = copy_network(self.online) if self.config.has_target else self.online
        self._copies_target = isinstance(self.config, ReplayAlgorithmConfig) and self.config.target_update == "hard"
        self.optimizer = VectorOptimizer(self.config.optimizer, self.config.learning_rate, self.online.vector)
        self.version = 0
        self._pulled_version = -1  # the version that `pull` left here, -1 once it has been trained on
        self.loss = self.mean_value = self.gradient_norm = 0.0
        self.extras: dict[str, float] = {}
        self.noise_generator = torch.Generator().manual_seed(derive_seed(blueprint.seed, name, "learner-noise"))
        self._noisy_layers = noisy_layers(self.online.module)
        if self.target is not self.online:
            self._noisy_layers += noisy_layers(self.target.module)
        self._observe = getattr(getattr(self.online.module, "torso", None), "observe", None)
        self._device = self.online.vector.device

    @property
    def has_statistics(self) -> bool:
        """Whether the network keeps observation statistics of what it is trained on."""
        return self._observe is not None and self.online.buffers.numel() > 0

    def learn(self, sample: Drawn) -> FloatArray:
        """One update from one sample; returns |TD error| of its transitions, float32 [B]; [0] of a rollout's.

        Raises:
            DivergenceError: loss, gradient or a parameter is NaN or infinite.
        """
        priority = self.gradient(sample)
        self.step(sample)
        return priority

    def step(self, sample: Drawn) -> None:
        """Apply the gradient vector, whose norm is `gradient_norm`; `sample` is for the message where that breaks.

        Raises:
            DivergenceError: a parameter is NaN or infinite now.
        """
        self.apply(self.gradient_norm)
        if not math.isfinite(float(self.online.vector.sum())):
            raise DivergenceError(
                describe_divergence(self.version, self.loss, self.gradient_norm, sample, "a parameter")
            )

    def gradient(self, sample: Drawn) -> FloatArray:
        """Fill the gradient vector from a sample, not clipped yet; returns |TD error|, float32 [B]; [0] of a rollout's.

        Raises:
            DivergenceError: loss or gradient is NaN or infinite.
        """
        vector = self.online.gradient
        assert vector is not None
        for layer in self._noisy_layers:
            layer.resample(self.noise_generator)
        output = self._backpropagate(sample)
        self._check(output, vector, sample)
        return _NO_PRIORITY if output.priority is None else output.priority.cpu().numpy()

    @abstractmethod
    def _backpropagate(self, sample: Drawn) -> LossOutput:
        """Fill the gradient vector by the algorithm's loss."""

    def _observe_batch(self, obs: torch.Tensor) -> None:
        """Let the observation statistics, where there are any, see what is about to be trained on."""
        if self._observe is not None and self.has_statistics:
            self._observe(obs)
            self.follow_statistics()

    def follow_statistics(self) -> None:
        """Let the target network use the online one's observation statistics."""
        if self.target is not self.online:
            self.target.follow_statistics(self.online)

    def _follow_norms(self) -> None:
        """Let the target's spectral norms be those of the parameters that it has got: between, it does not move."""
        if self._copies_target:
            self.target.buffers.copy_(self.online.buffers)
        else:
            self.target.renew_norms()

    def measure(self, sample: Drawn) -> None:
        """Take `gradient_norm` anew, where the gradient vector has become a mean over several learners.

        Raises:
            DivergenceError: it is NaN or infinite.
        """
        assert self.online.gradient is not None
        norm = float(torch.linalg.vector_norm(self.online.gradient))
        if not math.isfinite(norm):
            raise DivergenceError(describe_divergence(self.version + 1, self.loss, norm, sample))
        self.gradient_norm = norm

    def apply(self, norm: float) -> None:
        """Clip the gradient vector, whose norm is `norm`, step the optimizer on it and let the target follow.

        The version grows by one.
        """
        vector = self.online.gradient
        assert vector is not None
        if self.config.optimizer.max_grad_norm is not None:
            scale = clip_scale(norm, self.config.optimizer.max_grad_norm)
            if scale < 1.0:
                vector.mul_(scale)
        self.optimizer.step(vector, self.version)
        self.version += 1
        self._pulled_version = -1
        share = self.config.target_share(self.version - 1, self.version)
        if share > 0.0:
            self.target.vector.lerp_(self.online.vector, share)
            self._follow_norms()

    def pull(self, *slices: ParamSlice) -> None:
        """Take over what servers published: the newest version's parameters, and the target's where a slice has it.

        Of an older version, which comes along where it is the one that the target last changed at, only the target
        is taken. The observation statistics stay this learner's own.
        """
        newest = max(part.version for part in slices)
        if newest == self._pulled_version:
            return
        for part in slices:
            end = part.offset + len(part.vector)
            if part.version == newest:
                self.online.vector[part.offset : end] = as_tensor(part.vector)
            if part.target is not None:
                self.target.vector[part.offset : end] = as_tensor(part.target)
        if any(part.target is not None for part in slices):
            self._follow_norms()
        self.version = self._pulled_version = newest

    def snapshot(self) -> ParamSnapshot:
        """The online parameters as an immutable copy.

        Raises:
            DivergenceError: a parameter is NaN or infinite.
        """
        snapshot = self.online.snapshot(self.version)
        if not np.isfinite(snapshot.vector).all():
            raise DivergenceError(
                f"a parameter is NaN or infinite after update {self.version}; lower algo.learning_rate"
            )
        return snapshot

    def metrics(self, loss: float, value: float) -> dict[str, float]:
        """What is logged of the updates since the last report, given the mean loss and value over them."""
        return {"loss": loss, self.config.value_name: value, "grad_norm": self.gradient_norm, **self.extras}

    def importance_exponent(self) -> float:
        """Beta of the importance weights at the present version; 0 where all rows weigh the same."""
        return 0.0

    def _check(self, output: LossOutput, vector: torch.Tensor, sample: Drawn) -> None:
        loss = float(output.loss)
        norm = float(torch.linalg.vector_norm(vector))
        if not math.isfinite(loss) or not math.isfinite(norm):
            raise DivergenceError(describe_divergence(self.version + 1, loss, norm, sample))
        self.loss, self.mean_value, self.gradient_norm = loss, float(output.mean_value), norm
        if output.extras:
            self.extras = {name: float(value) for name, value in output.extras.items()}

    def state_dict(self) -> tuple[dict[str, np.ndarray], dict[str, object]]:
        """Arrays and JSON values that continue this learner exactly."""
        arrays = {
            "online": self.online.vector.cpu().numpy(),
            "online_buffers": self.online.buffers.cpu().numpy(),
            "target": self.target.vector.cpu().numpy(),
            "target_buffers": self.target.buffers.cpu().numpy(),
            "moments": self.optimizer.moments.cpu().numpy(),
            "learner_noise": self.noise_generator.get_state().numpy(),
        }
        return arrays, {
            "version": self.version,
            "optimizer_steps": float(self.optimizer.num_steps),
            "layout_hash": self.online.layout_hash,
        }

    def load_state_dict(self, arrays: dict[str, np.ndarray], values: dict[str, object]) -> None:
        """Continue from `state_dict`.

        Raises:
            CheckpointError: the parameters are of another network.
        """
        self.take_over(
            LearnerState(
                version=int(str(values["version"])),
                optimizer_steps=float(str(values["optimizer_steps"])),
                online=arrays["online"],
                online_buffers=arrays["online_buffers"],
                target=arrays["target"],
                target_buffers=arrays["target_buffers"],
                moments=arrays["moments"],
                layout_hash=str(values["layout_hash"]),
            )
        )
        self.noise_generator.set_state(torch.from_numpy(arrays["learner_noise"].copy()))

    def share(self) -> LearnerState:
        """A copy of everything but the random generator, for a learner that is to go on from here."""
        return LearnerState(
            version=self.version,
            optimizer_steps=float(self.optimizer.num_steps),
            online=_frozen(self.online.vector),
            online_buffers=_frozen(self.online.buffers),
            target=_frozen(self.target.vector),
            target_buffers=_frozen(self.target.buffers),
            moments=_frozen(self.optimizer.moments),
            layout_hash=self.online.layout_hash,
        )

    def take_over(self, state: LearnerState) -> None:
        """Go on from where another learner was; the random generator stays this one's own.

        Raises:
            CheckpointError: the parameters are of another network.
        """
        version, layout_hash = state.version, state.layout_hash
        self.online.load(ParamSnapshot(version, state.online, state.online_buffers, layout_hash))
        self.target.load(ParamSnapshot(version, state.target, state.target_buffers, layout_hash))
        self.optimizer.moments.copy_(as_tensor(state.moments))
        self.optimizer.num_steps.fill_(state.optimizer_steps)
        self.version = version
        self._pulled_version = -1


class Learner(BaseLearner):
    """The learner of an algorithm that learns from replay."""

    def __init__(self, blueprint: Blueprint, name: str) -> None:
        super().__init__(blueprint, name)
        self.replay_config = blueprint.replay
        self.algorithm = blueprint.build_replay_algorithm()

    def importance_exponent(self) -> float:
        """Beta of the importance weights at the present version; 0 where replay draws uniformly."""
        replay = self.replay_config
        if replay.sampler == "uniform":
            return 0.0
        return linear(
            replay.importance_exponent_start,
            replay.importance_exponent_end,
            replay.importance_anneal_updates,
            self.version,
        )

    def _backpropagate(self, sample: Drawn) -> LossOutput:
        assert isinstance(sample, Sample)
        batch = Batch.of(sample.transitions, self._device)
        self._observe_batch(batch.obs)
        return self.algorithm.backpropagate(self.online, self.target, batch, self._weights(sample))

    def _weights(self, sample: Sample) -> torch.Tensor | None:
        if self.replay_config.sampler == "uniform":
            return None
        weights = importance_weights(sample.probabilities, sample.num_transitions, self.importance_exponent())
        return torch.from_numpy(weights).to(self._device)


class RolloutLearner(BaseLearner):
    """The learner of an algorithm that learns from minibatches of rollouts."""

    def __init__(self, blueprint: Blueprint, name: str) -> None:
        super().__init__(blueprint, name)
        self.algorithm = blueprint.build_rollout_algorithm()

    def _backpropagate(self, sample: Drawn) -> LossOutput:
        assert isinstance(sample, RolloutBatch)
        minibatch = Minibatch.of(sample, self._device)
        self._observe_batch(minibatch.obs)
        return self.algorithm.backpropagate(self.online, minibatch)


class TrajectoryLearner(BaseLearner):
    """The learner of an algorithm that learns from whole trajectories."""

    def __init__(self, blueprint: Blueprint, name: str) -> None:
        super().__init__(blueprint, name)
        self.algorithm = blueprint.build_trajectory_algorithm()

    def _backpropagate(self, sample: Drawn) -> LossOutput:
        assert isinstance(sample, Trajectories)
        if self.has_statistics:
            self._observe_batch(torch.from_numpy(sample.obs).flatten(0, 1).to(self._device))
        return self.algorithm.backpropagate(self.online, sample)


def _frozen(values: torch.Tensor) -> Array:
    copy: Array = values.detach().cpu().numpy().copy()
    copy.setflags(write=False)
    return copy


def describe_divergence(num_update: int, loss: float, norm: float, sample: Drawn, what: str = "") -> str:
    """One line: which update, how it broke, the batch's range."""
    broken = f"{what} is NaN or infinite after it, " if what else ""
    if isinstance(sample, Sample):
        what_of, numbers, obs = "rewards", sample.transitions.reward, sample.transitions.obs
    elif isinstance(sample, RolloutBatch):
        what_of, numbers, obs = "targets", sample.target, sample.obs
    else:
        what_of, numbers, obs = "rewards", sample.reward, sample.obs
    return (
        f"learning diverged at update {num_update}: {broken}loss {loss}, gradient norm {norm}; its batch has "
        f"{what_of} in [{numbers.min():.4g}, {numbers.max():.4g}] and observations in "
        f"[{obs.min():.4g}, {obs.max():.4g}]; lower algo.learning_rate, or scale rewards "
        "or observations"
    )
