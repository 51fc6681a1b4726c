"""PQN's targets, loss and gradient by hand and against autograd."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from qfleet.algos import pqn
from qfleet.algos.base import Minibatch
from qfleet.networks.flat import FlatNetwork
from qfleet.networks.torso import NetworkConfig
from qfleet.types import EnvSpec, Trajectories

SPEC = EnvSpec("test", obs_shape=(5,), obs_dtype="float32", num_actions=3)


class Table:
    """A network whose Q-values are the observations themselves."""

    vector = torch.zeros(1)

    def infer(self, obs: torch.Tensor) -> torch.Tensor:
        return obs


def minibatch(num_rows: int = 6) -> Minibatch:
    random = torch.Generator().manual_seed(1)
    return Minibatch(
        obs=torch.randn(num_rows, 5, generator=random),
        action=torch.arange(num_rows) % 3,
        weight=torch.tensor([1.5, 1.5, 0.0, 1.5, 0.0, 1.5]),
        target=torch.randn(num_rows, generator=random),
        advantage=None,
        action_mask=None,
    )


def test_loss_by_hand() -> None:
    # Errors 1 - 3 = -2, weight 2, and 4 - 99, weight 0: loss = (2 * 4 / 2) / 2 = 2; gradient of the first = 2 * -2 / 2.
    batch = Minibatch(
        obs=torch.zeros(2, 5),
        action=torch.tensor([1, 0]),
        weight=torch.tensor([2.0, 0.0]),
        target=torch.tensor([3.0, 99.0]),
        advantage=None,
        action_mask=None,
    )
    q_values = torch.tensor([[98.0, 1.0, 98.0], [4.0, 98.0, 98.0]])
    gradient, output = pqn.Algorithm(pqn.Config()).loss(q_values, batch)
    assert gradient.tolist() == [[0, -2, 0], [0, 0, 0]]
    assert float(output.loss) == 2.0
    assert float(output.mean_value) == 2.5


@pytest.mark.parametrize("layer_norm", [False, True])
def test_the_gradient_is_autograds(layer_norm: bool) -> None:
    algorithm, batch = pqn.Algorithm(pqn.Config()), minibatch()
    torch.manual_seed(3)
    network = FlatNetwork(algorithm.build_network(NetworkConfig(hidden=(16, 8), layer_norm=layer_norm), SPEC))
    assert network._explicit is not None and network._explicit.tail is None, "the fast path"
    output = algorithm.backpropagate(network, batch)
    assert network.gradient is not None
    got = network.gradient.clone()
    values = network.module(batch.obs).gather(1, batch.action[:, None])[:, 0]
    expected = (0.5 * batch.weight * (values - batch.target).square()).mean()
    network.gradient.zero_()
    expected.backward()
    torch.testing.assert_close(got, network.gradient, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(output.loss, expected.detach())
    assert float(got.abs().sum()) > 0


def test_rows_of_weight_zero_change_nothing() -> None:
    algorithm, batch = pqn.Algorithm(pqn.Config()), minibatch()
    q_values = torch.randn(6, 3, generator=torch.Generator().manual_seed(4))
    gradient, output = algorithm.loss(q_values, batch)
    batch.target[batch.weight == 0] = 1e6
    again, output_again = algorithm.loss(q_values, batch)
    torch.testing.assert_close(again, gradient, rtol=0, atol=0)
    assert output_again.loss == output.loss


def test_it_acts_and_bootstraps_by_the_best_legal_action() -> None:
    algorithm, generator = pqn.Algorithm(pqn.Config()), np.random.default_rng(0)
    q_values = np.array([[1.0, 2.0, 99.0], [7.0, 5.0, 6.0]], np.float32)
    mask = np.array([[True, True, False], [True, True, True]])
    acted = algorithm.act(Table(), q_values, mask, 0.0, generator)  # type: ignore[arg-type]
    assert acted.action.tolist() == [1, 0]
    assert acted.value.tolist() == [2.0, 7.0]
    assert acted.log_prob.tolist() == [0.0, 0.0]
    assert algorithm.values(Table(), q_values, None).tolist() == [99.0, 7.0]  # type: ignore[arg-type]
    many = np.repeat(q_values[:1], 2000, axis=0)
    random = algorithm.act(Table(), many, np.repeat(mask[:1], 2000, axis=0), 1.0, generator)  # type: ignore[arg-type]
    assert np.bincount(random.action, minlength=3) == pytest.approx([1000, 1000, 0], abs=100)
    assert set(random.value.tolist()) == {2.0}, "an exploring action does not change what the state is worth"


def test_targets_are_q_lambda_returns() -> None:
    # gamma 0.5, lambda 0.5, one environment: G_1 = 4 + 0.5 * 8 = 8 (the last value);
    # G_0 = 2 + 0.5 * (0.5 * 8 + 0.5 * 6) = 5.5, where 6 is max_a Q of the second observation.
    trajectories = Trajectories(
        obs=np.arange(2, dtype=np.float32).reshape(2, 1, 1),
        action=np.array([[1], [0]]),
        reward=np.array([[2], [4]], np.float32),
        discount=np.full((2, 1), 0.5, np.float32),
        valid=np.ones((2, 1), bool),
        log_prob=np.zeros((2, 1), np.float32),
        value=np.array([[99], [6], [8]], np.float32),
        last_obs=np.zeros((1, 1), np.float32),
    )
    rows = pqn.Algorithm(pqn.Config(trace_lambda=0.5)).prepare(trajectories)
    assert rows.target.tolist() == [5.5, 8.0]
    assert rows.action.tolist() == [1, 0]
    assert rows.weight.tolist() == [1.0, 1.0]
    assert rows.advantage is None
