"""The two-armed bandit, whose returns have a known distribution: learned through the whole stack, they land on it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from qfleet.experiment import Experiment
from qfleet.policy import Policy, load_policy

MakeExperiment = Callable[..., Experiment]
# Arm 0 pays 0.4 for certain, arm 1 pays 0 or 1 with equal chances. Both are pulled at random all the time.
BANDIT: dict[str, Any] = {
    "seed": 1,
    "env.num_envs": 32,
    "algo.batch_size": 128,
    "algo.learning_rate": 0.02,
    "algo.optimizer.schedule": "linear",
    "algo.optimizer.decay_updates": 600,
    "algo.optimizer.end_fraction": 0.01,
    "algo.exploration.end": 1.0,
    "algo.exploration.start": 1.0,
    "network.hidden": [32],
    "replay.min_transitions": 4000,
    "replay.capacity": 10_000,
    "replay.samples_per_insert": 64.0,
    "logging.every_env_steps": 1_000_000,
    "stop.max_env_steps": None,
    "stop.max_updates": 600,
}
OBS = torch.ones(1, 1)


def trained(experiment: MakeExperiment, changes: dict[str, Any]) -> Policy:
    run = experiment("qfleet/Bandit-v0", BANDIT | changes)
    run.run()
    policy = load_policy(run.run_dir)
    # Of some 5,000 transitions half are arm 1's: their share of ones is within 5 * 0.5 / sqrt(2500) = 0.05 of 1/2.
    np.testing.assert_allclose(policy.q_values(np.ones(1, np.float32)), [0.4, 0.5], atol=0.05)
    return policy


def test_atoms_land_on_the_two_outcomes(experiment: MakeExperiment) -> None:
    changes = {"algo": "c51", "algo.v_min": 0.0, "algo.v_max": 1.0, "algo.num_atoms": 11}
    policy = trained(experiment, changes)
    chances = policy._network.infer(OBS)[0].softmax(dim=1).numpy()
    truth = np.zeros((2, 11))
    truth[0, 4] = 1.0  # 0.4 is the fifth atom of 0, 0.1, ...
    truth[1, [0, 10]] = 0.5
    np.testing.assert_allclose(chances, truth, atol=0.06)


def test_quantiles_land_on_the_two_outcomes(experiment: MakeExperiment) -> None:
    policy = trained(experiment, {"algo": "qr_dqn", "algo.num_quantiles": 10, "algo.kappa": 0.0})
    quantiles = policy._network.infer(OBS)[0].numpy()
    np.testing.assert_allclose(quantiles[0], 0.4, atol=0.03)
    # Fractions 0.05 to 0.45 and 0.55 to 0.95; the two in the middle are as near to 1/2 as the sample is.
    np.testing.assert_allclose(quantiles[1, :4], 0.0, atol=0.05)
    np.testing.assert_allclose(quantiles[1, 6:], 1.0, atol=0.05)


def test_with_kappa_as_large_as_the_outcomes_they_are_expectiles(experiment: MakeExperiment) -> None:
    # Errors below kappa are squared: the tau-expectile of a fair 0 or 1 is tau itself (tests/ops/test_quantiles.py).
    policy = trained(experiment, {"algo": "qr_dqn", "algo.num_quantiles": 10, "algo.kappa": 1.0})
    quantiles = policy._network.infer(OBS)[0].numpy()
    np.testing.assert_allclose(quantiles[1], np.arange(0.05, 1.0, 0.1), atol=0.06)


def test_implicit_quantiles_land_on_the_two_outcomes(experiment: MakeExperiment) -> None:
    changes = {"algo": "iqn", "algo.kappa": 0.02, "algo.num_quantiles": 16, "algo.num_target_quantiles": 4}
    policy = trained(experiment, changes | {"algo.num_policy_quantiles": 32})
    fractions = torch.tensor([[0.05, 0.15, 0.25, 0.35, 0.65, 0.75, 0.85, 0.95]])
    quantiles = policy._network.infer(OBS, fractions)[0].numpy()
    np.testing.assert_allclose(quantiles[0], 0.4, atol=0.04)
    # A network is no step function: from 0 to 1 it needs some room around 1/2.
    np.testing.assert_allclose(quantiles[1], [0, 0, 0, 0, 1, 1, 1, 1], atol=0.1)


def test_greedy_actions_are_the_same_each_time(experiment: MakeExperiment) -> None:
    changes = {"algo": "iqn", "algo.noisy": True, "stop.max_updates": 20}
    run = experiment("qfleet/Bandit-v0", BANDIT | changes)
    run.run()
    policy = load_policy(run.run_dir)
    values = [policy.q_values(np.ones((3, 1), np.float32)) for _ in range(3)]
    for again in values[1:]:
        np.testing.assert_array_equal(values[0], again)
    assert np.ptp(values[0], axis=0) == pytest.approx(0.0, abs=1e-6), "and the same in each row"
