"""Actor: environments and a behaviour policy; from observations to n-step transitions, on their way to replay.

Its base class is shared with the RolloutActor (rollout_actor.py). Inference is one call per batch of environments;
nothing here is done per transition.
"""

from __future__ import annotations

import time

import numpy as np
import torch

from qfleet.algos.base import infer_action_values
from qfleet.networks.flat import FlatNetwork
from qfleet.networks.noisy import noisy_layers
from qfleet.ops.exploration import epsilon_greedy, greedy
from qfleet.ops.schedules import apex_epsilons, linear
from qfleet.replay.n_step import NStepAdder
from qfleet.roles.blueprint import Blueprint
from qfleet.seeding import derive_generator, derive_seed, generator_state, set_generator_state
from qfleet.types import Array, BoolArray, EnvStep, IntArray, Progress, Receipt, Transitions


class BaseActor:
    """Environments, and how far their behaviour policy explores; what they give is a subclass's business.

    Args:
        blueprint: the run's plan.
        name: the role's name, for its seeds.
        network: what to act with; shared with a learner in the same role, or the actor's own.
        rank, num_actors: which of how many actors this is, for per-environment epsilons.
    """

    def __init__(
        self, blueprint: Blueprint, name: str, network: FlatNetwork, rank: int = 0, num_actors: int = 1
    ) -> None:
        self.blueprint = blueprint
        self.name = name
        self.network = network
        self.envs = blueprint.build_envs()
        self.generator = derive_generator(blueprint.seed, name, "exploration")
        self.noise_generator = torch.Generator().manual_seed(derive_seed(blueprint.seed, name, "noise"))
        self._noisy_layers = noisy_layers(network.module)
        self.envs.reset(derive_seed(blueprint.seed, name, "env"))
        self._exploration = blueprint.algo.exploration_config
        if self._exploration is not None:
            num_envs = self.envs.num_envs
            all_epsilons = apex_epsilons(self._exploration.base, self._exploration.alpha, num_actors * num_envs)
            self._own_epsilons = all_epsilons[rank * num_envs : (rank + 1) * num_envs]
            self._mean_own_epsilon = float(np.mean(self._own_epsilons))

    def epsilon(self, progress: Progress) -> float | np.ndarray:
        """The exploration rate now: a number, or float64 [E] with per-environment epsilons."""
        exploration = self._exploration
        if exploration is None:
            return 0.0
        if exploration.kind == "schedule":
            return linear(exploration.start, exploration.end, exploration.decay_env_steps, progress.num_env_steps)
        return self._own_epsilons if exploration.kind == "per_env" else 0.0

    def metrics(self, progress: Progress) -> dict[str, float]:
        """What is shown while training: the exploration rate averaged over the environments, where there is one."""
        if self._exploration is None:
            return {}
        epsilon = self.epsilon(progress)
        return {"epsilon": epsilon if isinstance(epsilon, float) else self._mean_own_epsilon}

    def _resample_noise(self) -> None:
        for layer in self._noisy_layers:
            layer.resample(self.noise_generator)

    def restart(self, tag: str) -> None:
        """Start the environments anew from a seed derived from a checkpoint's tag."""
        self.envs.reset(derive_seed(self.blueprint.seed, self.name, "checkpoint", tag))

    def state_dict(self) -> tuple[dict[str, np.ndarray], dict[str, object]]:
        """Arrays and JSON values; call `cut` first."""
        arrays = {"noise_generator": self.noise_generator.get_state().numpy()}
        if self.envs.offers_state:
            arrays |= {f"env.{key}": value for key, value in self.envs.get_state().items()}
        return arrays, {"exploration": generator_state(self.generator)}

    def load_state_dict(self, arrays: dict[str, np.ndarray], values: dict[str, object], tag: str) -> None:
        """Continue from `state_dict` of the checkpoint called `tag`."""
        self.noise_generator.set_state(torch.from_numpy(arrays["noise_generator"].copy()))
        set_generator_state(self.generator, values["exploration"])
        if self.envs.offers_state:
            self.envs.set_state(_with_prefix("env.", arrays))
        else:
            self.restart(tag)

    def reseed(self, *names: str | int) -> None:
        """Begin anew with random numbers of this purpose: fresh episodes."""
        seed = self.blueprint.seed
        self.generator = derive_generator(seed, self.name, "exploration", *names)
        self.noise_generator.manual_seed(derive_seed(seed, self.name, "noise", *names))
        self.envs.reset(derive_seed(seed, self.name, "env", *names))

    def close(self) -> None:
        """Close the environments."""
        self.envs.close()


class Actor(BaseActor):
    """Steps a batch of environments with an exploring policy, and adds n steps up to a transition for replay."""

    def __init__(
        self, blueprint: Blueprint, name: str, network: FlatNetwork, rank: int = 0, num_actors: int = 1
    ) -> None:
        super().__init__(blueprint, name, network, rank, num_actors)
        self.algorithm = blueprint.build_algorithm()
        self.adder = self._new_adder()

    def _new_adder(self) -> NStepAdder:
        algo = self.blueprint.replay_algo
        return NStepAdder(self.envs.num_envs, self.blueprint.spec, algo.n_step, algo.gamma)

    def step(self, progress: Progress, receipt: Receipt) -> Transitions:
        """One vector step. Adds its counts and seconds to `receipt` and returns the transitions it completed."""
        started = time.perf_counter()
        obs = self.envs.obs
        actions = self._choose(obs, self.envs.action_mask, progress)
        chosen = time.perf_counter()
        step = self.envs.step(actions)
        transitions = self.adder.add(obs, actions, step)
        count_step(step, receipt)
        seconds = receipt.seconds
        seconds["inference"] = seconds.get("inference", 0.0) + chosen - started
        seconds["environment"] = seconds.get("environment", 0.0) + time.perf_counter() - chosen
        return transitions

    def _choose(self, obs: Array, mask: BoolArray | None, progress: Progress) -> IntArray:
        epsilon = self.epsilon(progress)
        if isinstance(epsilon, float) and epsilon >= 1.0:
            values = np.zeros((len(obs), self.blueprint.spec.num_actions), dtype=np.float32)
            return epsilon_greedy(values, epsilon, self.generator, mask)
        self._resample_noise()
        values = infer_action_values(self.algorithm, self.network, obs)
        if isinstance(epsilon, float) and epsilon == 0.0:
            return greedy(values, mask)
        return epsilon_greedy(values, epsilon, self.generator, mask)

    def cut(self, tag: str) -> Transitions | None:
        """Bring the environments to a state that a checkpoint can hold.

        Where they offer their state nothing changes. Elsewhere all open windows are closed as a truncation (returned,
        for replay), and the environments start anew from a seed derived from `tag`, in resumed and uninterrupted runs
        alike.
        """
        if self.envs.offers_state:
            return None
        transitions = self.adder.flush(self.envs.obs, self.envs.action_mask)
        self.restart(tag)
        return transitions

    def state_dict(self) -> tuple[dict[str, np.ndarray], dict[str, object]]:
        """Arrays and JSON values; call `cut` first."""
        arrays, values = super().state_dict()
        if self.envs.offers_state:
            arrays |= {f"adder.{key}": value for key, value in self.adder.state_dict().items()}
        return arrays, values

    def load_state_dict(self, arrays: dict[str, np.ndarray], values: dict[str, object], tag: str) -> None:
        """Continue from `state_dict` of the checkpoint called `tag`."""
        super().load_state_dict(arrays, values, tag)
        if self.envs.offers_state:
            self.adder.load_state_dict(_with_prefix("adder.", arrays))

    def reseed(self, *names: str | int) -> None:
        """Begin anew with random numbers of this purpose: fresh episodes, no open windows."""
        super().reseed(*names)
        self.adder = self._new_adder()


def count_step(step: EnvStep, receipt: Receipt) -> None:
    """Add a vector step's valid environment steps and the episodes that ended in it to a receipt."""
    if len(step.episode_returns):
        receipt.episode_returns.extend(step.episode_returns.tolist())
        receipt.episode_lengths.extend(step.episode_lengths.tolist())
    receipt.num_env_steps += int(np.count_nonzero(step.valid))


def _with_prefix(prefix: str, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {key.removeprefix(prefix): value for key, value in arrays.items() if key.startswith(prefix)}
