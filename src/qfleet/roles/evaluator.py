"""Evaluator: full greedy episodes on a snapshot.

Each environment plays a quota fixed beforehand, so short episodes are not over-represented as they are when a vector
environment is stopped after the first N finished ones.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from qfleet.algos.base import infer_action_values
from qfleet.config import EvaluationConfig
from qfleet.envs.vector import EnvBatch
from qfleet.networks.noisy import set_mean_only
from qfleet.ops.exploration import greedy
from qfleet.roles.blueprint import Blueprint
from qfleet.types import ParamSnapshot, Receipt

# Copies stepped one by one cost a step each, also those whose quota is played: more of them only waste more.
MAX_SINGLE_ENVS = 16


class Evaluator:
    """Plays greedy episodes.

    Args:
        blueprint: the run's plan; exploration and noise are off, rewards are the raw ones.
        config: how many environments, and the time limit where the environment has none.
    """

    def __init__(self, blueprint: Blueprint, config: EvaluationConfig) -> None:
        if blueprint.spec.max_episode_steps is None:
            limited = blueprint.env.model_copy(update={"max_episode_steps": config.max_episode_steps})
            blueprint = dataclasses.replace(blueprint, env=limited)
        self.blueprint = blueprint
        self.config = config
        self.algorithm = blueprint.build_algorithm()
        self.network = blueprint.build_network(trainable=False)
        set_mean_only(self.network.module, True)
        self._batches: dict[int, EnvBatch] = {}

    def evaluate(self, snapshot: ParamSnapshot, num_episodes: int, seed: int) -> Receipt:
        """Exactly `num_episodes` complete episodes; their returns and lengths, in a fixed order."""
        self.network.load(snapshot)
        envs = self._envs(num_episodes)
        quota = np.full(envs.num_envs, num_episodes // envs.num_envs)
        quota[: num_episodes % envs.num_envs] += 1
        returns: list[list[float]] = [[] for _ in quota]
        lengths: list[list[int]] = [[] for _ in quota]
        obs = envs.reset(seed)
        num_missing = num_episodes
        while num_missing:
            values = infer_action_values(self.algorithm, self.network, obs)
            step = envs.step(greedy(values, envs.action_mask))
            obs = step.obs
            for env, episode_return, length in zip(
                step.episode_envs, step.episode_returns, step.episode_lengths, strict=True
            ):
                if len(returns[env]) < quota[env]:
                    returns[env].append(float(episode_return))
                    lengths[env].append(int(length))
                    num_missing -= 1
        return Receipt(
            version=snapshot.version,
            episode_returns=[value for values in returns for value in values],
            episode_lengths=[value for values in lengths for value in values],
        )

    def close(self) -> None:
        """Close the environments."""
        for envs in self._batches.values():
            envs.close()

    def _envs(self, num_episodes: int) -> EnvBatch:
        default = num_episodes if self.blueprint.spec.is_native else MAX_SINGLE_ENVS
        num_envs = min(self.config.num_envs or default, num_episodes)
        if num_envs not in self._batches:
            self._batches[num_envs] = self.blueprint.build_envs(num_envs)
        return self._batches[num_envs]


class EvaluatorPool:
    """Evaluators of several environments in one role; they are called one at a time.

    Args:
        blueprints: what to play on, by name.
        config: as of each evaluator.
    """

    timing_twin = "qfleet.roles.timing_twins:TimedEvaluator"

    def __init__(self, blueprints: Mapping[str, Blueprint], config: EvaluationConfig) -> None:
        self._evaluators = {name: Evaluator(blueprint, config) for name, blueprint in blueprints.items()}

    def evaluate(self, env: str, snapshot: ParamSnapshot, num_episodes: int, seed: int) -> Receipt:
        """Play on the environment called `env`; see Evaluator.evaluate."""
        return self._evaluators[env].evaluate(snapshot, num_episodes, seed)

    def close(self) -> None:
        """Close all environments."""
        for evaluator in self._evaluators.values():
            evaluator.close()
