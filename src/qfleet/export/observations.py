"""Observations to compare an export on: from the environment, greedy with some random actions."""

from __future__ import annotations

import numpy as np

from qfleet.ops.exploration import epsilon_greedy
from qfleet.policy import Policy
from qfleet.roles.blueprint import Blueprint
from qfleet.seeding import derive_generator, derive_seed
from qfleet.types import Array

NUM_OBSERVATIONS = 1000
NUM_ENVS = 8
EPSILON = 0.2


def collect_observations(blueprint: Blueprint, policy: Policy, num_observations: int = NUM_OBSERVATIONS) -> Array:
    """[N, *O] of episodes that the policy plays, one action in five drawn at random; the run's seed decides all.

    Raises:
        UsageError, EnvError: the environment cannot be made or stepped.
    """
    generator = derive_generator(blueprint.seed, "export")
    envs = blueprint.build_envs(NUM_ENVS)
    try:
        obs = envs.reset(derive_seed(blueprint.seed, "export"))
        seen = [obs.copy()]
        while len(seen) * NUM_ENVS < num_observations:
            actions = epsilon_greedy(policy.q_values(obs), EPSILON, generator, envs.action_mask)
            obs = envs.step(actions).obs
            seen.append(obs.copy())
    finally:
        envs.close()
    return np.concatenate(seen)[:num_observations]
