"""V-trace's loss: its gradient against autograd, what importance ratios change, and that lag 0 is actor-critic."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from qfleet.algos.vtrace import Algorithm, Config
from qfleet.networks.flat import FlatNetwork
from qfleet.networks.torso import NetworkConfig
from qfleet.ops.returns import lambda_returns
from qfleet.types import EnvSpec, Trajectories

SPEC = EnvSpec("none", (3,), "float32", 4)
T, E = 5, 2


def build(**settings: Any) -> tuple[Algorithm, FlatNetwork]:
    algorithm = Algorithm(Config(**settings))
    torch.manual_seed(0)
    return algorithm, FlatNetwork(algorithm.build_network(NetworkConfig(hidden=[8]), SPEC))


def make_trajectories(network: FlatNetwork, seed: int, lag: float, *, is_masked: bool = False) -> Trajectories:
    """Random ones; `lag` says how far the behaviour's log-probabilities are from the network's."""
    generator = np.random.default_rng(seed)
    obs = generator.normal(0, 1, (T, E, 3)).astype(np.float32)
    action = generator.integers(4, size=(T, E))
    mask = None
    if is_masked:
        mask = generator.random((T, E, 4)) > 0.4
        mask[np.arange(T)[:, None], np.arange(E), action] = True
    logits = network.infer(torch.from_numpy(obs.reshape(-1, 3)))[:, :-1]
    if mask is not None:
        logits = logits.masked_fill(~torch.from_numpy(mask.reshape(-1, 4)), -torch.inf)
    own = torch.log_softmax(logits, 1).gather(1, torch.from_numpy(action.reshape(-1, 1))).reshape(T, E).numpy()
    return Trajectories(
        obs=obs,
        action=action,
        reward=generator.normal(0, 1, (T, E)).astype(np.float32),
        discount=np.where(generator.random((T, E)) < 0.2, 0.0, 0.9).astype(np.float32),
        valid=generator.random((T, E)) > 0.2,
        log_prob=own - (lag * generator.normal(0, 1, (T, E))).astype(np.float32),
        value=np.full((T + 1, E), 99.0, np.float32),  # of the behaviour network: a decoy
        last_obs=generator.normal(0, 1, (E, 3)).astype(np.float32),
        action_mask=mask,
    )


def formula(module: torch.nn.Module, data: Trajectories, config: Config) -> torch.Tensor:
    """The loss as the paper has it, step by step, for autograd: targets and advantages are constants."""
    total = torch.zeros(())
    for e in range(E):
        obs = torch.from_numpy(np.concatenate([data.obs[:, e], data.last_obs[None, e]]))
        output = module(obs)
        value = output[:, -1]
        fixed = value.detach().numpy()
        logits = output[:-1, :-1]
        if data.action_mask is not None:
            logits = logits.masked_fill(~torch.from_numpy(data.action_mask[:, e]), -1e9)
        policy = torch.distributions.Categorical(logits=logits)
        log_prob = policy.log_prob(torch.from_numpy(data.action[:, e]))
        ratio = (log_prob - torch.from_numpy(data.log_prob[:, e])).exp().detach().numpy()
        v = fixed.copy()
        for t in reversed(range(T)):
            error = data.reward[t, e] + data.discount[t, e] * fixed[t + 1] - fixed[t]
            trace = data.discount[t, e] * config.trace_lambda * min(config.c_clip, ratio[t])
            v[t] = fixed[t] + min(config.rho_clip, ratio[t]) * error + trace * (v[t + 1] - fixed[t + 1])
        for t in range(T):
            if not data.valid[t, e]:
                continue
            advantage = data.reward[t, e] + data.discount[t, e] * v[t + 1] - fixed[t]
            total = total - min(config.rho_clip, ratio[t]) * float(advantage) * log_prob[t]
            total = total - config.entropy_bonus * policy.entropy()[t]
            total = total + config.value_coefficient * 0.5 * (value[t] - float(v[t])) ** 2
    return total / int(data.valid.sum())


@pytest.mark.parametrize("is_masked", [False, True])
@pytest.mark.parametrize(
    "settings",
    [{}, {"rho_clip": 0.7, "c_clip": 1.5, "trace_lambda": 0.8, "entropy_bonus": 0.1, "value_coefficient": 1}],
)
def test_the_gradient_is_autograds_of_the_papers_loss(settings: dict[str, Any], is_masked: bool) -> None:
    algorithm, network = build(**settings)
    data = make_trajectories(network, 1, lag=0.5, is_masked=is_masked)
    expected = formula(network.module, data, algorithm.config)
    gradients = torch.autograd.grad(expected, list(network.module.parameters()))
    output = algorithm.backpropagate(network, data)
    assert network.gradient is not None
    np.testing.assert_allclose(
        network.gradient, torch.cat([gradient.reshape(-1) for gradient in gradients]), rtol=1e-3, atol=1e-6
    )
    assert float(output.loss) == pytest.approx(float(expected.detach()), rel=1e-4)


def test_at_lag_0_it_is_actor_critic_on_n_step_returns() -> None:
    algorithm, network = build(entropy_bonus=0.0)
    data = make_trajectories(network, 2, lag=0.0)
    output = algorithm.backpropagate(network, data)
    assert float(output.extras["mean_ratio"]) == pytest.approx(1.0, abs=1e-5)
    obs = torch.from_numpy(np.concatenate([data.obs, data.last_obs[None]]).reshape(-1, 3))
    value = network.infer(obs)[:, -1].reshape(T + 1, E).numpy()
    returns = lambda_returns(data.reward, data.discount, value, 1.0)
    errors = (value[:-1] - returns)[data.valid]
    assert float(output.extras["value_loss"]) == pytest.approx(float((errors**2).mean() / 2), rel=1e-4)


def test_a_step_that_the_policy_has_given_up_teaches_nothing() -> None:
    """Ratios of nearly 0 at every step: no policy gradient, and targets that are the values themselves."""
    algorithm, network = build(entropy_bonus=0.0)
    data = make_trajectories(network, 3, lag=0.0)
    given_up = Trajectories(
        **{name: getattr(data, name) for name in Trajectories.__slots__} | {"log_prob": data.log_prob + 50}
    )
    algorithm.backpropagate(network, data)
    assert network.gradient is not None
    assert float(network.gradient.norm()) > 0.01
    algorithm.backpropagate(network, given_up)
    assert float(network.gradient.norm()) < 1e-6


def test_steps_that_only_reset_weigh_nothing() -> None:
    """An actor gives them, and the steps before them, which have ended an episode, a discount of 0."""
    algorithm, network = build()
    data = make_trajectories(network, 4, lag=0.3)
    follows = np.concatenate([data.valid[1:], np.ones((1, E), bool)])
    data = dataclasses.replace(data, discount=np.where(data.valid & follows, data.discount, 0.0).astype(np.float32))
    algorithm.backpropagate(network, data)
    assert network.gradient is not None
    expected = network.gradient.clone()
    reward, action = data.reward.copy(), data.action.copy()
    reward[~data.valid], action[~data.valid] = 99.0, 0
    algorithm.backpropagate(network, dataclasses.replace(data, reward=reward, action=action))
    np.testing.assert_allclose(network.gradient, expected, rtol=1e-5, atol=1e-7)
    algorithm.backpropagate(network, dataclasses.replace(data, reward=data.reward + 99))
    assert not np.allclose(network.gradient, expected, rtol=0.1), "the others do weigh"
