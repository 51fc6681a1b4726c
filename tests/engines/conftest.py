"""A blueprint whose network is large enough for two threads to collide while they draw its first weights."""

from __future__ import annotations

import pytest

from qfleet.algos import dqn
from qfleet.config import ReplayConfig
from qfleet.envs.config import EnvConfig
from qfleet.networks.torso import NetworkConfig
from qfleet.roles.blueprint import Blueprint
from qfleet.types import EnvSpec


@pytest.fixture
def blueprint() -> Blueprint:
    """A network of some 70 thousand parameters."""
    return Blueprint(
        env=EnvConfig(id="qfleet/Identity-v0"),
        env_factory=None,
        spec=EnvSpec("qfleet/Identity-v0", obs_shape=(8,), obs_dtype="float32", num_actions=4),
        algo_name="dqn",
        algo=dqn.Config(),
        network=NetworkConfig(hidden=(256, 256)),
        replay=ReplayConfig(),
        seed=7,
    )
