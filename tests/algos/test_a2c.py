"""A2C's advantages and policy by hand, and its gradient against autograd; the loss itself is in tests/ops."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from qfleet.algos import a2c
from qfleet.algos.base import Minibatch
from qfleet.networks.flat import FlatNetwork
from qfleet.networks.torso import NetworkConfig
from qfleet.types import EnvSpec, Trajectories

SPEC = EnvSpec("test", obs_shape=(5,), obs_dtype="float32", num_actions=3)


class Table:
    """A network whose output is the observations themselves: logits, and the value in the last column."""

    vector = torch.zeros(1)

    def infer(self, obs: torch.Tensor) -> torch.Tensor:
        return obs


def trajectories(valid: list[bool]) -> Trajectories:
    """Two steps of two environments, the second one cut; values 1, 2, 3 and 10, 20, 30."""
    return Trajectories(
        obs=np.zeros((2, 2, 1), np.float32),
        action=np.zeros((2, 2), np.int64),
        reward=np.array([[5, 50], [7, 70]], np.float32),
        discount=np.array([[0.5, 0.0], [0.5, 0.5]], np.float32),
        valid=np.array(valid).reshape(2, 2),
        log_prob=np.zeros((2, 2), np.float32),
        value=np.array([[1, 10], [2, 20], [3, 30]], np.float32),
        last_obs=np.zeros((2, 1), np.float32),
    )


def test_advantages_and_returns() -> None:
    # lambda 1. Environment 0: G_1 = 7 + 0.5 * 3 = 8.5, G_0 = 5 + 0.5 * 8.5 = 9.25. Environment 1: G_1 = 85, G_0 = 50.
    rows = a2c.Algorithm(a2c.Config(trace_lambda=1.0)).prepare(trajectories([True] * 4))
    np.testing.assert_allclose(rows.target, [9.25, 50, 8.5, 85])
    np.testing.assert_allclose(rows.advantage, [8.25, 40, 6.5, 65])
    # lambda 0: r + discount * V' - V.
    rows = a2c.Algorithm(a2c.Config(trace_lambda=0.0)).prepare(trajectories([True] * 4))
    np.testing.assert_allclose(rows.advantage, [5 + 1 - 1, 50 - 10, 7 + 1.5 - 2, 70 + 15 - 20])


def test_normalised_advantages_look_at_valid_rows_only() -> None:
    algorithm = a2c.Algorithm(a2c.Config(normalize_advantage=True))
    rows = algorithm.prepare(trajectories([True, False, True, False]))
    # 8.25 and 6.5: mean 7.375, deviation 0.875.
    np.testing.assert_allclose(rows.advantage[[0, 2]], [1.0, -1.0], rtol=1e-6)
    np.testing.assert_allclose(rows.target, [9.25, 50, 8.5, 85])
    assert rows.weight.tolist() == [2.0, 0.0, 2.0, 0.0]


def test_actions_are_drawn_from_the_softmax_of_the_legal_logits() -> None:
    algorithm, generator = a2c.Algorithm(a2c.Config()), np.random.default_rng(0)
    row = np.array([np.log(1.0), np.log(3.0), np.log(99.0), -7.0], np.float32)
    obs, mask = np.tile(row, (4000, 1)), np.tile([True, True, False], (4000, 1))
    acted = algorithm.act(Table(), obs, mask, 0.0, generator)  # type: ignore[arg-type]
    assert np.bincount(acted.action, minlength=3) == pytest.approx([1000, 3000, 0], abs=150)
    np.testing.assert_allclose(acted.log_prob, np.log(np.array([0.25, 0.75])[acted.action]), rtol=1e-5)
    assert set(acted.value.tolist()) == {-7.0}
    unmasked = algorithm.act(Table(), obs, None, 0.0, generator)  # type: ignore[arg-type]
    assert np.bincount(unmasked.action, minlength=3)[2] > 3700  # 99 of 103
    assert algorithm.values(Table(), obs[:2], None).tolist() == [-7.0, -7.0]  # type: ignore[arg-type]
    assert algorithm.action_values(Table(), torch.from_numpy(obs[:1])).shape == (1, 3)  # type: ignore[arg-type]


@pytest.mark.parametrize("masked", [False, True])
def test_the_gradient_is_autograds(masked: bool) -> None:
    config = a2c.Config(entropy_bonus=0.1, value_coefficient=0.7)
    algorithm = a2c.Algorithm(config)
    torch.manual_seed(3)
    network = FlatNetwork(algorithm.build_network(NetworkConfig(hidden=(16, 8)), SPEC))
    assert network._explicit is not None and network._explicit.tail is None, "the fast path"
    batch = Minibatch(
        obs=torch.randn(6, 5),
        action=torch.tensor([0, 1, 2, 0, 1, 0]),
        weight=torch.tensor([1.5, 1.5, 0.0, 1.5, 0.0, 1.5]),
        target=torch.randn(6),
        advantage=torch.randn(6),
        action_mask=torch.tensor([[True, True, False]] * 2 + [[True] * 3] * 4) if masked else None,
    )
    output = algorithm.backpropagate(network, batch)
    assert network.gradient is not None and batch.advantage is not None
    got = network.gradient.clone()
    out = network.module(batch.obs)
    logits = out[:, :3] if batch.action_mask is None else out[:, :3].masked_fill(~batch.action_mask, -1e9)
    policy = torch.distributions.Categorical(logits=logits)
    losses = (
        -batch.advantage * policy.log_prob(batch.action)
        - 0.1 * policy.entropy()
        + 0.7 * 0.5 * (out[:, 3] - batch.target).square()
    )
    expected = (batch.weight * losses).mean()
    network.gradient.zero_()
    expected.backward()
    torch.testing.assert_close(got, network.gradient, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(output.loss, expected.detach(), rtol=1e-5, atol=1e-6)
    assert set(output.extras) == {"policy_loss", "value_loss", "entropy"}
