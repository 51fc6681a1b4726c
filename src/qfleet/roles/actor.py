"""Actor: environments and a behaviour policy; from observations to n-step transitions, on their way to replay.

Inference is one call per batch of environments; nothing here is done per transition.
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
from qfleet.types import Array, BoolArray, IntArray, Progress, Receipt, Transitions


class Actor:
    """Steps a batch of environments with an exploring policy.

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
        self.algorithm = blueprint.build_algorithm()
        self.envs = blueprint.build_envs()
        self.adder = NStepAdder(self.envs.num_envs, blueprint.spec, blueprint.algo.n_step, blueprint.algo.gamma)
        self.generator = derive_generator(blueprint.seed, name, "exploration")
        self.noise_generator = torch.Generator().manual_seed(derive_seed(blueprint.seed, name, "noise"))
        self._noisy_layers = noisy_layers(network.module)
        self.envs.reset(derive_seed(blueprint.seed, name, "env"))
        exploration = blueprint.algo.exploration
        num_envs = self.envs.num_envs
        all_epsilons = apex_epsilons(exploration.base, exploration.alpha, num_actors * num_envs)
        self._own_epsilons = all_epsilons[rank * num_envs : (rank + 1) * num_envs]
        self._mean_own_epsilon = float(np.mean(self._own_epsilons))

    def epsilon(self, progress: Progress) -> float | np.ndarray:
        """The exploration rate now: a number, or float64 [E] with per-environment epsilons."""
        exploration = self.blueprint.algo.exploration
        if exploration.kind == "schedule":
            return linear(exploration.start, exploration.end, exploration.decay_env_steps, progress.num_env_steps)
        return self._own_epsilons if exploration.kind == "per_env" else 0.0

    def mean_epsilon(self, progress: Progress) -> float:
        """The exploration rate now, averaged over the environments; what is shown while training."""
        epsilon = self.epsilon(progress)
        return epsilon if isinstance(epsilon, float) else self._mean_own_epsilon

    def step(self, progress: Progress, receipt: Receipt) -> Transitions:
        """One vector step. Adds its counts and seconds to `receipt` and returns the transitions it completed."""
        started = time.perf_counter()
        obs = self.envs.obs
        actions = self._choose(obs, self.envs.action_mask, progress)
        chosen = time.perf_counter()
        step = self.envs.step(actions)
        transitions = self.adder.add(obs, actions, step)
        num_episodes = len(step.episode_returns)
        if num_episodes:
            receipt.episode_returns.extend(step.episode_returns.tolist())
            receipt.episode_lengths.extend(step.episode_lengths.tolist())
        receipt.num_env_steps += int(np.count_nonzero(step.valid))
        seconds = receipt.seconds
        seconds["inference"] = seconds.get("inference", 0.0) + chosen - started
        seconds["environment"] = seconds.get("environment", 0.0) + time.perf_counter() - chosen
        return transitions

    def _choose(self, obs: Array, mask: BoolArray | None, progress: Progress) -> IntArray:
        epsilon = self.epsilon(progress)
        if isinstance(epsilon, float) and epsilon >= 1.0:
            values = np.zeros((len(obs), self.blueprint.spec.num_actions), dtype=np.float32)
            return epsilon_greedy(values, epsilon, self.generator, mask)
        for layer in self._noisy_layers:
            layer.resample(self.noise_generator)
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
        self.envs.reset(derive_seed(self.blueprint.seed, self.name, "checkpoint", tag))
        return transitions

    def state_dict(self) -> tuple[dict[str, np.ndarray], dict[str, object]]:
        """Arrays and JSON values; call `cut` first."""
        arrays = {"noise_generator": self.noise_generator.get_state().numpy()}
        if self.envs.offers_state:
            arrays |= {f"env.{key}": value for key, value in self.envs.get_state().items()}
            arrays |= {f"adder.{key}": value for key, value in self.adder.state_dict().items()}
        return arrays, {"exploration": generator_state(self.generator)}

    def load_state_dict(self, arrays: dict[str, np.ndarray], values: dict[str, object], tag: str) -> None:
        """Continue from `state_dict` of the checkpoint called `tag`."""
        self.noise_generator.set_state(torch.from_numpy(arrays["noise_generator"].copy()))
        set_generator_state(self.generator, values["exploration"])
        if self.envs.offers_state:
            self.envs.set_state(_with_prefix("env.", arrays))
            self.adder.load_state_dict(_with_prefix("adder.", arrays))
        else:
            self.envs.reset(derive_seed(self.blueprint.seed, self.name, "checkpoint", tag))

    def reseed(self, *names: str | int) -> None:
        """Begin anew with random numbers of this purpose: fresh episodes, no open windows."""
        blueprint = self.blueprint
        self.adder = NStepAdder(self.envs.num_envs, blueprint.spec, blueprint.algo.n_step, blueprint.algo.gamma)
        self.generator = derive_generator(blueprint.seed, self.name, "exploration", *names)
        self.noise_generator.manual_seed(derive_seed(blueprint.seed, self.name, "noise", *names))
        self.envs.reset(derive_seed(blueprint.seed, self.name, "env", *names))

    def close(self) -> None:
        """Close the environments."""
        self.envs.close()


def _with_prefix(prefix: str, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {key.removeprefix(prefix): value for key, value in arrays.items() if key.startswith(prefix)}
