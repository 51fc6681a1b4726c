"""Environments whose Q-values are known in closed form: learned through the whole stack, they agree within 1%."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from qfleet.envs.toy import Chain, Identity, MaskedChain
from qfleet.experiment import Experiment
from qfleet.policy import load_policy

GAMMA = 0.8
# One-hot observations: one hidden layer is as good as a table. Everything is tried all the time, and the learning
# rate goes to a hundredth, so what is left of the error is the method's.
TABLE = {
    "seed": 1,
    "env.num_envs": 8,
    "algo.gamma": GAMMA,
    "algo.batch_size": 32,
    "algo.learning_rate": 0.01,
    "algo.loss": "mse",
    "algo.target_period_updates": 20,
    "algo.optimizer.schedule": "linear",
    "algo.optimizer.decay_updates": 1000,
    "algo.optimizer.end_fraction": 0.01,
    "algo.exploration.end": 1.0,
    "network.hidden": [32],
    "replay.min_transitions": 400,
    "replay.samples_per_insert": 16.0,
    "logging.every_env_steps": 1_000_000,
    "stop.max_env_steps": None,
    "stop.max_updates": 1000,
}
MakeExperiment = Callable[..., Experiment]


def learned_q(run: Experiment, num_states: int) -> np.ndarray:
    run.run()
    return load_policy(run.run_dir).q_values(np.eye(num_states, dtype=np.float32))


def assert_within_one_percent(got: np.ndarray, optimal: np.ndarray) -> None:
    legal = np.isfinite(optimal)
    np.testing.assert_allclose(got[legal], optimal[legal], rtol=0.01)


def test_identity_with_a_time_limit(experiment: MakeExperiment) -> None:
    # It never ends, it is only cut every 5 steps: the right action is worth 1 + gamma / (1 - gamma) = 5, any other 4.
    # Were truncation taken for termination, the values would be below 1 + 0.8 + ... + 0.8^4 = 3.4.
    changes = {"env.kwargs": {"num_actions": 3, "length": 1_000_000}, "env.max_episode_steps": 5}
    q_values = learned_q(experiment("qfleet/Identity-v0", TABLE | changes), 3)
    assert_within_one_percent(q_values, 4.0 + np.eye(3))


def test_identity_that_terminates(experiment: MakeExperiment) -> None:
    # The end is worth nothing: exactly the reward of the one step.
    q_values = learned_q(experiment("qfleet/Identity-v0", TABLE | {"env.kwargs": {"length": 1}}), 4)
    np.testing.assert_allclose(q_values, np.eye(4), atol=0.01)


@pytest.mark.parametrize(
    ("env_kwargs", "options"),
    [
        ({"mode": "terminate", "time_limit": 50}, {}),
        ({"mode": "continue", "time_limit": 10}, {}),
        ({"mode": "continue", "time_limit": 10}, {"algo.double": False, "algo.dueling": True}),
        ({"mode": "terminate", "time_limit": 50}, {"replay.sampler": "prioritized"}),
        ({"mode": "continue", "time_limit": 10}, {"algo.target_update": "soft", "algo.target_tau": 0.1}),
    ],
    ids=["termination", "truncation", "dueling", "prioritized", "soft-target"],
)
def test_chain(experiment: MakeExperiment, env_kwargs: dict[str, Any], options: dict[str, Any]) -> None:
    changes = {"env.kwargs": {"num_states": 4, "random_start": True, **env_kwargs}}
    q_values = learned_q(experiment("qfleet/Chain-v0", TABLE | changes | options), 4)
    assert_within_one_percent(q_values, Chain(4, env_kwargs["mode"]).optimal_q(GAMMA))


CHAIN = {key: value for key, value in TABLE.items() if key != "algo.loss"} | {"env.num_envs": 16}
IQN = dict.fromkeys(
    ["algo.num_quantiles", "algo.num_target_quantiles", "algo.num_policy_quantiles", "algo.num_cosines"], 8
)
# The support holds the largest value, 5, so that no mean is moved; quantiles of a certain return are all the same.
DISTRIBUTIONAL: dict[str, dict[str, Any]] = {
    "c51": {"algo": "c51", "algo.v_min": 0.0, "algo.v_max": 6.0, "algo.num_atoms": 31},
    "c51-double-dueling": {
        "algo": "c51",
        "algo.v_min": -1.0,
        "algo.v_max": 7.0,
        "algo.double": True,
        "algo.dueling": True,
        "replay.sampler": "prioritized",
    },
    "qr_dqn": {"algo": "qr_dqn", "algo.num_quantiles": 8},
    "qr_dqn-double-dueling": {
        "algo": "qr_dqn",
        "algo.num_quantiles": 8,
        "algo.double": True,
        "algo.dueling": True,
        "replay.sampler": "prioritized",
    },
    "iqn": {"algo": "iqn", **IQN},
    "iqn-double-dueling": {
        "algo": "iqn",
        **IQN,
        "algo.double": True,
        "algo.dueling": True,
        "replay.sampler": "prioritized",
    },
}


@pytest.mark.parametrize("name", DISTRIBUTIONAL)
def test_distributions_on_a_chain(experiment: MakeExperiment, name: str) -> None:
    changes = {"env.kwargs": {"num_states": 4, "random_start": True, "mode": "continue", "time_limit": 10}}
    q_values = learned_q(experiment("qfleet/Chain-v0", CHAIN | changes | DISTRIBUTIONAL[name]), 4)
    assert_within_one_percent(q_values, Chain(4, "continue").optimal_q(GAMMA))


@pytest.mark.parametrize("name", ["c51", "qr_dqn", "iqn"])
def test_distributions_on_a_masked_chain(experiment: MakeExperiment, name: str) -> None:
    env_kwargs = {"num_states": 5, "time_limit": 30, "random_start": True}
    q_values = learned_q(
        experiment("qfleet/MaskedChain-v0", CHAIN | {"env.kwargs": env_kwargs} | DISTRIBUTIONAL[name]), 5
    )
    assert_within_one_percent(q_values, MaskedChain(5).optimal_q(GAMMA))


def munchausen_q(alpha: float, temperature: float) -> np.ndarray:
    """The fixed point of the Munchausen operator on the chain of 4 states that goes on for ever, by iteration."""
    q = np.zeros((4, 2))
    for _ in range(2000):
        log_policy = q / temperature - np.log(np.exp(q / temperature).sum(axis=1, keepdims=True))
        soft = (np.exp(log_policy) * (q - temperature * log_policy)).sum(axis=1)
        following = np.array([[max(state - 1, 0), min(state + 1, 3)] for state in range(4)])
        reward = np.zeros((4, 2))
        reward[3, 1] = 1.0
        q = reward + alpha * np.clip(temperature * log_policy, -1.0, 0.0) + GAMMA * soft[following]
    return q


@pytest.mark.parametrize("algo", ["dqn", "iqn"])
def test_munchausen_on_a_chain(experiment: MakeExperiment, algo: str) -> None:
    changes: dict[str, Any] = {
        **(IQN if algo == "iqn" else {}),
        "algo": algo,
        "algo.double": False,
        "algo.munchausen": True,
        "algo.munchausen_alpha": 0.5,
        "algo.munchausen_temperature": 0.3,
        "env.kwargs": {"num_states": 4, "random_start": True, "mode": "continue", "time_limit": 10},
    }
    expected = munchausen_q(0.5, 0.3)
    assert np.abs(expected / Chain(4, "continue").optimal_q(GAMMA) - 1).max() > 0.1, "not those of plain Q-learning"
    assert_within_one_percent(learned_q(experiment("qfleet/Chain-v0", CHAIN | changes), 4), expected)


def test_three_step_returns_of_a_random_policy(experiment: MakeExperiment) -> None:
    # Identity cut every 1000 steps and acted on at random: a window of three holds the first reward, then two that are
    # 1/2 on average, then the bootstrap. So Q_right = 1 + (0.8 + 0.64) / 2 + 0.512 Q_right = 1.72 / 0.488, the other
    # one is 1 less.
    changes = {
        "env.kwargs": {"num_actions": 2, "length": 1_000_000},
        "env.max_episode_steps": 1000,
        "algo.n_step": 3,
        "replay.samples_per_insert": 1.0,
        "replay.capacity": 40_000,
        "env.num_envs": 32,
    }
    q_values = learned_q(experiment("qfleet/Identity-v0", TABLE | changes), 2)
    right = 1.72 / 0.488
    assert_within_one_percent(q_values, right - 1 + np.eye(2))


def test_masked_chain_learns_the_masked_optimum_and_takes_no_illegal_action(
    experiment: MakeExperiment, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    taken: list[tuple[int, int]] = []
    move = MaskedChain._move

    def watched(self: MaskedChain, state: int, action: int) -> tuple[int, float, bool]:
        taken.append((state, action))
        return move(self, state, action)  # raises ValueError on an illegal action

    monkeypatch.setattr(MaskedChain, "_move", watched)
    env_kwargs = {"num_states": 5, "time_limit": 30, "random_start": True}
    q_values = learned_q(experiment("qfleet/MaskedChain-v0", TABLE | {"env.kwargs": env_kwargs}), 5)
    env = MaskedChain(5)
    assert_within_one_percent(q_values, env.optimal_q(GAMMA))
    legal = {(state, action) for state in range(5) for action in np.flatnonzero(env.action_mask(state))}
    assert set(taken) == legal, "all legal pairs are tried and no other"
    policy = load_policy(tmp_path / "run")
    masks = np.array([env.action_mask(state) for state in range(5)])
    np.testing.assert_array_equal(policy.act(np.eye(5, dtype=np.float32), masks), env.optimal_q(GAMMA).argmax(axis=1))


@pytest.mark.parametrize(
    ("mode", "time_limit", "options"),
    [
        ("terminate", 50, {}),
        ("continue", 10, {}),
        ("continue", 10, {"env.autoreset": "next_step", "env.vectorization": "sync"}),
    ],
    ids=["termination", "truncation", "next-step-autoreset"],
)
def test_pqn_on_a_chain(experiment: MakeExperiment, mode: str, time_limit: int, options: dict[str, Any]) -> None:
    # Everything is tried all the time, so only one-step targets (lambda = 0) are those of the optimal policy.
    changes = {key: value for key, value in TABLE.items() if not key.startswith(("algo.", "replay."))}
    changes |= {key: value for key, value in TABLE.items() if key.startswith("algo.optimizer")}
    changes |= {
        "algo": "pqn",
        "algo.gamma": GAMMA,
        "algo.learning_rate": 0.01,
        "algo.exploration.end": 1.0,
        "algo.trace_lambda": 0.0,
        "algo.rollout_steps": 8,
        "algo.num_epochs": 2,
        "algo.num_minibatches": 2,
        "algo.optimizer.decay_updates": 2000,
        "stop.max_updates": 2000,
        "env.kwargs": {"num_states": 4, "random_start": True, "mode": mode, "time_limit": time_limit},
    }
    q_values = learned_q(experiment("qfleet/Chain-v0", changes | options), 4)
    assert_within_one_percent(q_values, Chain(4, mode).optimal_q(GAMMA))


@pytest.mark.parametrize("algo", ["a2c", "pqn"])
def test_rollouts_hold_no_illegal_action(
    experiment: MakeExperiment, monkeypatch: pytest.MonkeyPatch, algo: str
) -> None:
    taken: set[tuple[int, int]] = set()
    move = MaskedChain._move

    def watched(self: MaskedChain, state: int, action: int) -> tuple[int, float, bool]:
        taken.add((state, action))
        return move(self, state, action)  # raises ValueError on an illegal action

    monkeypatch.setattr(MaskedChain, "_move", watched)
    env_kwargs = {"num_states": 5, "time_limit": 7, "random_start": True}
    experiment("qfleet/MaskedChain-v0", {"algo": algo, "env.kwargs": env_kwargs}).run()
    env = MaskedChain(5)
    assert taken == {(state, action) for state in range(5) for action in np.flatnonzero(env.action_mask(state))}


@pytest.mark.parametrize("max_policy_lag", [0, 3])
def test_vtrace_with_a_time_limit(experiment: MakeExperiment, max_policy_lag: int) -> None:
    # As above, cut every 5 steps: by a policy that always takes the right action, each state is worth 5.
    changes = {key: value for key, value in TABLE.items() if not key.startswith(("algo.", "replay."))}
    changes |= {key: value for key, value in TABLE.items() if key.startswith("algo.optimizer")}
    changes |= {
        "algo": "vtrace",
        "strategy": "actor_learner",
        "strategy.max_policy_lag": max_policy_lag,
        "algo.gamma": GAMMA,
        "algo.learning_rate": 0.01,
        "algo.entropy_bonus": 0.0,
        "algo.rollout_steps": 8,
        "env.kwargs": {"num_actions": 3, "length": 1_000_000},
        "env.max_episode_steps": 5,
    }
    run = experiment("qfleet/Identity-v0", changes)
    run.run()
    network = load_policy(run.run_dir)._network
    output = network.infer(torch.eye(3)).numpy()
    np.testing.assert_allclose(output[:, -1], 5.0, rtol=0.01)
    np.testing.assert_array_equal(output[:, :-1].argmax(axis=1), [0, 1, 2])


def test_the_toy_environments_are_what_the_closed_forms_assume() -> None:
    # Decoy check: with termination and truncation exchanged the two chains would differ by a factor 1 / (1 - gamma).
    assert Chain(4, "continue").optimal_q(GAMMA)[3, 1] == pytest.approx(5.0)
    assert Chain(4, "terminate").optimal_q(GAMMA)[3, 1] == 1.0
    assert Identity(3).observation_space.shape == (3,)
