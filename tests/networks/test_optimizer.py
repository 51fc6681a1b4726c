"""The optimizer of one vector: which rule, which state, which learning rate when."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from qfleet.networks.optimizer import OptimizerConfig, VectorOptimizer


def rates(schedule: str, counts: list[int]) -> list[float]:
    config = OptimizerConfig(name="sgd", schedule=schedule, decay_updates=100, end_fraction=0.1)
    optimizer = VectorOptimizer(config, 2.0, torch.zeros(1))
    return [optimizer.current_learning_rate(count) for count in counts]


def test_schedules_by_hand() -> None:
    assert rates("constant", [0, 50, 10**6]) == [2.0, 2.0, 2.0]
    # From 2 to 0.2: half way 1.1 on the line and on the cosine; at 1/3 the cosine is at (1 + 1/2) / 2 = 3/4.
    assert rates("linear", [0, 50, 100, 10**6]) == pytest.approx([2.0, 1.1, 0.2, 0.2])
    assert rates("cosine", [0, 50, 100, 10**6]) == pytest.approx([2.0, 1.1, 0.2, 0.2])
    config = OptimizerConfig(schedule="cosine", decay_updates=90)
    assert VectorOptimizer(config, 2.0, torch.zeros(1)).current_learning_rate(30) == pytest.approx(1.5)


def test_a_step_follows_the_schedule_by_global_updates() -> None:
    vector = torch.tensor([10.0])
    config = OptimizerConfig(name="sgd", schedule="linear", decay_updates=10)
    optimizer = VectorOptimizer(config, 1.0, vector)
    optimizer.step(torch.tensor([1.0]), num_updates=0)  # rate 1.0
    optimizer.step(torch.tensor([1.0]), num_updates=5)  # rate 0.5, although it is the optimizer's second step
    assert vector.item() == 8.5
    assert optimizer.num_steps == 2


@pytest.mark.parametrize(("name", "num_moments"), [("adam", 2), ("rmsprop", 1), ("sgd", 0)])
def test_state_vectors(name: str, num_moments: int) -> None:
    optimizer = VectorOptimizer(OptimizerConfig(name=name), 0.1, torch.zeros(5))
    assert optimizer.moments.shape == (num_moments, 5)
    optimizer.step(torch.ones(5), 0)
    if num_moments:
        assert (optimizer.moments > 0).all()


@pytest.mark.parametrize("name", ["adam", "rmsprop", "sgd"])
def test_every_field_reaches_the_rule(name: str) -> None:
    config = OptimizerConfig(name=name, epsilon=0.3, beta1=0.7, beta2=0.9, rmsprop_decay=0.6)
    ours = torch.tensor([1.0, -2.0, 3.0])
    theirs = ours.clone().requires_grad_()
    reference = {
        "adam": lambda: torch.optim.Adam([theirs], lr=0.1, betas=(0.7, 0.9), eps=0.3),
        "rmsprop": lambda: torch.optim.RMSprop([theirs], lr=0.1, alpha=0.6, eps=0.3),
        "sgd": lambda: torch.optim.SGD([theirs], lr=0.1),
    }[name]()
    optimizer = VectorOptimizer(config, 0.1, ours)
    for number in range(5):
        gradient = torch.tensor([0.5, -1.0, 2.0]) * (number + 1)
        optimizer.step(gradient, number)
        theirs.grad = gradient.clone()
        reference.step()
    np.testing.assert_allclose(ours, theirs.detach(), rtol=1e-6)
