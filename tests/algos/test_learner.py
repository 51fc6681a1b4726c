"""The learner around a loss: target network, clipping, importance weights, normalisation. One linear layer, by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from qfleet.experiment import Experiment
from qfleet.networks.spectral import spectral_layers
from qfleet.policy import make_blueprint
from qfleet.roles.learner import Learner
from qfleet.types import Sample, Transitions

MakeExperiment = Callable[..., Experiment]
BATCH = 6


@pytest.fixture
def learner(experiment: MakeExperiment) -> Callable[..., Learner]:
    """learner({"algo.target_update": "soft"}): plain SGD on the Identity environment's 4 observations."""

    def make(changes: dict[str, Any] | None = None) -> Learner:
        plain = {"algo.optimizer": "sgd", "algo.learning_rate": 0.5, "algo.loss": "mse", **(changes or {})}
        run = experiment("qfleet/Identity-v0", plain)
        return Learner(make_blueprint(run.config, run.spec), "worker-0")

    return make


def sample(seed: int = 0, probabilities: np.ndarray | None = None) -> Sample:
    generator = np.random.default_rng(seed)
    transitions = Transitions(
        obs=generator.normal(size=(BATCH, 4)).astype(np.float32),
        action=generator.integers(4, size=BATCH),
        reward=generator.normal(size=BATCH).astype(np.float32),
        discount=np.full(BATCH, 0.9, np.float32),
        next_obs=generator.normal(size=(BATCH, 4)).astype(np.float32),
    )
    return Sample(np.arange(BATCH), transitions, np.full(BATCH, 0.1) if probabilities is None else probabilities, 10)


def test_a_hard_target_follows_every_period(learner: Callable[..., Learner]) -> None:
    made = learner({"algo.target_period_updates": 3})
    first = made.online.vector.clone()
    for number in range(1, 7):
        made.learn(sample(number))
        if number % 3:
            assert not torch.equal(made.target.vector, made.online.vector)
        else:
            assert torch.equal(made.target.vector, made.online.vector)
        if number < 3:
            assert torch.equal(made.target.vector, first)
    assert made.version == 6


def test_a_soft_target_goes_a_fraction_of_the_way(learner: Callable[..., Learner]) -> None:
    made = learner({"algo.target_update": "soft", "algo.target_tau": 0.25})
    first = made.online.vector.clone()
    made.learn(sample())
    # 3/4 old + 1/4 new
    np.testing.assert_allclose(made.target.vector, 0.75 * first + 0.25 * made.online.vector, rtol=1e-5, atol=1e-6)


def test_the_step_is_the_learning_rate_times_the_clipped_gradient(learner: Callable[..., Learner]) -> None:
    free, clipped = learner({"algo.optimizer.max_grad_norm": None}), learner({"algo.optimizer.max_grad_norm": 0.01})
    before = free.online.vector.clone()
    assert torch.equal(before, clipped.online.vector)
    for made in (free, clipped):
        made.learn(sample())
    gradient = (before - free.online.vector) / 0.5
    norm = float(torch.linalg.vector_norm(gradient))
    assert norm > 0.1
    assert free.gradient_norm == pytest.approx(norm, rel=1e-3)
    # The same direction at norm 0.01; what is reported is the norm before clipping.
    np.testing.assert_allclose((before - clipped.online.vector) / 0.5, gradient / norm * 0.01, rtol=1e-2, atol=1e-6)
    assert clipped.gradient_norm == pytest.approx(norm, rel=1e-3)


def test_importance_weights_follow_their_schedule(learner: Callable[..., Learner]) -> None:
    changes = {
        "replay.sampler": "prioritized",
        "replay.importance_exponent_start": 0.0,
        "replay.importance_exponent_end": 1.0,
        "replay.importance_anneal_updates": 10,
    }
    made = learner(changes)
    probabilities = np.array([0.1, 0.1, 0.1, 0.1, 0.2, 0.4])
    # N P = 1, 1, 1, 1, 2, 4. Exponent 0: all 1. Exponent 5/10: 2^-1/2 and 4^-1/2. Exponent 1: 1/2 and 1/4.
    for version, last in [(0, [1.0, 1.0]), (5, [2**-0.5, 0.5]), (10, [0.5, 0.25]), (99, [0.5, 0.25])]:
        made.version = version
        weights = made._weights(sample(probabilities=probabilities))
        np.testing.assert_allclose(weights, [1.0] * 4 + last, rtol=1e-6)
    assert learner({"replay.sampler": "uniform"})._weights(sample(probabilities=probabilities)) is None


def test_normalisation_learns_from_each_batch_and_the_target_sees_the_same(learner: Callable[..., Learner]) -> None:
    made = learner({"network.normalize_observations": True})
    batches = [sample(1), sample(2)]
    for batch in batches:
        made.learn(batch)
    seen = np.concatenate([batch.transitions.obs for batch in batches])
    # Buffers are mean [4], variance [4], count [1].
    np.testing.assert_allclose(made.online.buffers[:4], seen.mean(axis=0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(made.online.buffers[4:8], seen.var(axis=0), rtol=1e-4)
    assert made.online.buffers[8] == 12
    assert torch.equal(made.target.buffers, made.online.buffers)


def test_with_spectral_norms_the_target_stays_where_it_is_between_its_updates(learner: Callable[..., Learner]) -> None:
    made = learner(
        {"network": "mlp", "network.hidden": [8], "network.spectral_norm": [-2], "algo.target_period_updates": 3}
    )
    obs = torch.from_numpy(sample(9).transitions.obs)
    values = []
    for number in range(6):
        made.learn(sample(number))
        values.append(made.target.infer(obs).clone())
    assert torch.equal(values[2], values[3]) and torch.equal(values[3], values[4])
    assert not torch.equal(values[1], values[2])
    assert torch.equal(values[5], made.online.infer(obs))
    followed = learner(
        {"network": "mlp", "network.hidden": [8], "network.spectral_norm": [-2], "algo.target_update": "soft"}
    )
    for number in range(20):
        followed.learn(sample(number))
    (layer,) = spectral_layers(followed.target.module)
    assert float(torch.linalg.matrix_norm(layer.weight().detach(), 2)) == pytest.approx(1.0, abs=0.01)


def test_a_learner_restored_goes_on_alike(learner: Callable[..., Learner]) -> None:
    changes = {"algo.optimizer": "adam", "algo.noisy": True, "network.normalize_observations": True}
    whole, part = learner(changes), learner(changes)
    for number in range(12):
        whole.learn(sample(number))
    for number in range(7):
        part.learn(sample(number))
    arrays, values = part.state_dict()
    saved = {name: array.copy() for name, array in arrays.items()}
    part.learn(sample(99))  # what comes after the save must not leak into it
    resumed = learner(changes)
    resumed.load_state_dict(saved, values)
    for number in range(7, 12):
        resumed.learn(sample(number))
    assert torch.equal(resumed.online.vector, whole.online.vector)
    assert torch.equal(resumed.target.vector, whole.target.vector)
    assert resumed.version == whole.version == 12
