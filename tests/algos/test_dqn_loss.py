"""DQN's loss and gradient against a reference written in numpy, for every combination of its options."""

from __future__ import annotations

import copy
import itertools

import numpy as np
import pytest
import torch
from torch import nn

from qfleet.algos.base import Batch, infer_action_values
from qfleet.algos.dqn import Algorithm, Config
from qfleet.networks.flat import FlatNetwork
from qfleet.networks.heads import DuelingHead, LinearHead
from qfleet.networks.noisy import noisy_layers
from qfleet.networks.torso import NetworkConfig
from qfleet.types import EnvSpec, Transitions

BATCH, NUM_OBS, NUM_ACTIONS = 9, 3, 4
OPTIONS = list(itertools.product([False, True], ["huber", "mse"], [False, True], [False, True]))


def transitions(seed: int, masked: bool) -> Transitions:
    generator = np.random.default_rng(seed)
    mask = generator.random((BATCH, NUM_ACTIONS)) < 0.6
    mask[:, 0] = True
    discount = np.full(BATCH, 0.9, np.float32)
    discount[[1, 4]] = 0.0
    mask[1] = False  # a terminal state without any legal action
    return Transitions(
        obs=generator.normal(size=(BATCH, NUM_OBS)).astype(np.float32),
        action=generator.integers(NUM_ACTIONS, size=BATCH),
        reward=generator.normal(0, 2, BATCH).astype(np.float32),
        discount=discount,
        next_obs=generator.normal(size=(BATCH, NUM_OBS)).astype(np.float32),
        next_action_mask=mask if masked else None,
    )


def linear_networks(seed: int) -> tuple[FlatNetwork, FlatNetwork]:
    torch.manual_seed(seed)
    return (
        FlatNetwork(nn.Linear(NUM_OBS, NUM_ACTIONS)),
        FlatNetwork(nn.Linear(NUM_OBS, NUM_ACTIONS), trainable=False),
    )


def cpu_batch(data: Transitions) -> Batch:
    return Batch.of(data, torch.device("cpu"))


def reference(
    online: FlatNetwork,
    target: FlatNetwork,
    data: Transitions,
    weights: np.ndarray | None,
    *,
    double: bool,
    loss: str,
    delta: float,
) -> tuple[float, np.ndarray, np.ndarray, np.ndarray]:
    """(loss, |TD errors|, d loss / d weight, d loss / d bias), one transition after the other, in float64."""

    def q_values(network: FlatNetwork, obs: np.ndarray) -> np.ndarray:
        vector = network.vector.numpy().astype(float)
        return vector[: NUM_ACTIONS * NUM_OBS].reshape(NUM_ACTIONS, NUM_OBS) @ obs + vector[NUM_ACTIONS * NUM_OBS :]

    total, errors = 0.0, []
    weight_grad, bias_grad = np.zeros((NUM_ACTIONS, NUM_OBS)), np.zeros(NUM_ACTIONS)
    for i in range(BATCH):
        goal = float(data.reward[i])
        if data.discount[i] > 0:
            legal = range(NUM_ACTIONS)
            if data.next_action_mask is not None:
                legal = np.flatnonzero(data.next_action_mask[i])
            judge = q_values(online if double else target, data.next_obs[i])
            best = max(legal, key=lambda action: judge[action])
            goal += float(data.discount[i]) * q_values(target, data.next_obs[i])[best]
        action = data.action[i]
        error = q_values(online, data.obs[i])[action] - goal
        weight = 1.0 if weights is None else float(weights[i])
        if loss == "mse" or abs(error) <= delta:
            one, slope = error**2 / 2, error
        else:
            one, slope = delta * (abs(error) - delta / 2), delta * np.sign(error)
        total += weight * one / BATCH
        errors.append(abs(error))
        weight_grad[action] += weight * slope / BATCH * data.obs[i]
        bias_grad[action] += weight * slope / BATCH
    return total, np.array(errors), weight_grad, bias_grad


@pytest.mark.parametrize(("double", "loss", "weighted", "masked"), OPTIONS)
@pytest.mark.parametrize("delta", [1.0, 0.3])
def test_loss_priorities_and_gradient(double: bool, loss: str, weighted: bool, masked: bool, delta: float) -> None:
    online, target = linear_networks(seed=1)
    data = transitions(seed=2, masked=masked)
    weights = np.random.default_rng(3).random(BATCH).astype(np.float32) if weighted else None
    algorithm = Algorithm(Config(double=double, loss=loss, huber_delta=delta))
    before = online.vector.clone(), target.vector.clone()
    assert online.gradient is not None
    online.gradient.fill_(99.0)  # what was there before must not be added to
    output = algorithm.backpropagate(
        online, target, cpu_batch(data), None if weights is None else torch.from_numpy(weights)
    )
    expected, errors, weight_grad, bias_grad = reference(
        online, target, data, weights, double=double, loss=loss, delta=delta
    )
    assert output.loss.item() == pytest.approx(expected, rel=1e-5)
    np.testing.assert_allclose(output.priority, errors, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(online.gradient, np.concatenate([weight_grad.ravel(), bias_grad]), rtol=1e-4, atol=1e-6)
    assert torch.equal(before[0], online.vector)
    assert torch.equal(before[1], target.vector)
    assert not output.priority.requires_grad
    assert not output.loss.requires_grad


def test_the_options_really_differ() -> None:
    online, target = linear_networks(seed=1)
    batch = cpu_batch(transitions(seed=2, masked=False))
    losses = {
        Algorithm(Config(double=double, loss=loss)).backpropagate(online, target, batch, None).loss.item()
        for double in (False, True)
        for loss in ("huber", "mse")
    }
    assert len(losses) == 4


@pytest.mark.parametrize(
    ("options", "network"),
    [
        ({}, {}),
        ({}, {"layer_norm": True, "activation": "tanh"}),
        ({}, {"normalize_observations": True}),
        ({"dueling": True}, {"layer_norm": True}),
        ({"noisy": True}, {}),
        ({"noisy": True, "dueling": True}, {"activation": "silu"}),
    ],
)
def test_the_gradient_of_a_whole_network_is_autograds(options: dict[str, bool], network: dict[str, object]) -> None:
    algorithm = Algorithm(Config(double=False, loss="mse", **options))
    spec = EnvSpec("Decoy-v99", (NUM_OBS,), "float32", NUM_ACTIONS)
    torch.manual_seed(5)
    module = algorithm.build_network(NetworkConfig(hidden=(8, 6), **network), spec)
    module.torso.observe(torch.randn(50, NUM_OBS) * 3 + 1)
    for layer in noisy_layers(module):
        layer.resample(torch.Generator().manual_seed(6))
    target = FlatNetwork(copy.deepcopy(module), trainable=False)
    reference_module = copy.deepcopy(module)
    online = FlatNetwork(module)
    data = transitions(seed=2, masked=False)
    output = algorithm.backpropagate(online, target, cpu_batch(data), None)

    obs, next_obs, action = map(torch.from_numpy, (data.obs, data.next_obs, data.action))
    goal = torch.from_numpy(data.reward) + torch.from_numpy(data.discount) * reference_module(next_obs).amax(1).detach()
    error = reference_module(obs)[torch.arange(BATCH), action] - goal
    loss = (0.5 * error**2).mean()
    gradient = torch.autograd.grad(loss, list(reference_module.parameters()))
    assert online.gradient is not None
    np.testing.assert_allclose(online.gradient, torch.cat([g.reshape(-1) for g in gradient]), rtol=1e-4, atol=1e-6)
    assert output.loss.item() == pytest.approx(loss.item(), rel=1e-5)
    np.testing.assert_allclose(
        infer_action_values(algorithm, online, data.obs), reference_module(obs).detach(), rtol=1e-4, atol=1e-6
    )


def test_one_transition_by_hand() -> None:
    # Q(s, .) = obs * weight: obs 2 gives (2, 4), the next obs 3 gives online (3, 6) and target (30, 9).
    online = FlatNetwork(nn.Linear(1, 2, bias=False))
    target = FlatNetwork(nn.Linear(1, 2, bias=False), trainable=False)
    online.vector.copy_(torch.tensor([1.0, 2.0]))
    target.vector.copy_(torch.tensor([10.0, 3.0]))
    data = Transitions(
        obs=np.array([[2.0]], np.float32),
        action=np.array([1]),
        reward=np.array([1.0], np.float32),
        discount=np.array([0.5], np.float32),
        next_obs=np.array([[3.0]], np.float32),
    )
    batch = cpu_batch(data)
    # Double: online prefers action 1, which the target values at 9: 1 + 0.5 * 9 = 5.5; error 4 - 5.5 = -1.5.
    double = Algorithm(Config(double=True, loss="mse")).backpropagate(online, target, batch, None)
    assert (double.loss.item(), double.priority.item(), double.mean_value.item()) == (1.125, 1.5, 4.0)
    # d loss / d weight: -1.5 * obs 2, for the action taken only.
    np.testing.assert_array_equal(online.gradient, [0.0, -3.0])
    # Plain: the target's own best is 30: 1 + 15 = 16; error -12; huber with delta 1: 12 - 0.5.
    plain = Algorithm(Config(double=False, loss="huber")).backpropagate(online, target, batch, None)
    assert (plain.loss.item(), plain.priority.item()) == (11.5, 12.0)


@pytest.mark.parametrize("dueling", [False, True])
@pytest.mark.parametrize("noisy", [False, True])
def test_the_network_has_the_head_that_is_asked_for(dueling: bool, noisy: bool) -> None:
    algorithm = Algorithm(Config(dueling=dueling, noisy=noisy))
    spec = EnvSpec("Decoy-v99", (NUM_OBS,), "float32", NUM_ACTIONS)
    network = algorithm.build_network(NetworkConfig(hidden=(5,)), spec)
    assert isinstance(network.head, DuelingHead if dueling else LinearHead)
    assert bool(noisy_layers(network)) == noisy
    assert algorithm.action_values(FlatNetwork(network), torch.zeros(6, NUM_OBS)).shape == (6, NUM_ACTIONS)


def test_inference_takes_no_gradient_and_gives_numpy() -> None:
    algorithm = Algorithm(Config())
    network = linear_networks(seed=4)[0]
    obs = np.ones((2, NUM_OBS), np.float32)
    values = infer_action_values(algorithm, network, obs)
    np.testing.assert_allclose(values, network.module(torch.from_numpy(obs)).detach())
    assert isinstance(values, np.ndarray)
