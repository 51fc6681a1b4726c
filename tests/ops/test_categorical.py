"""Categorical distributions: by hand, against the plain loops of the paper's algorithm 1, and beside rlax's numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qfleet.ops import categorical, distributions

ATOMS = torch.tensor([-1.0, 0.0, 1.0])


def projected(values: list[float], probabilities: list[float], atoms: torch.Tensor = ATOMS) -> list[float]:
    return categorical.project(torch.tensor([values]), torch.tensor([probabilities]), atoms)[0].tolist()


def test_projection_by_hand() -> None:
    # R = 0.5, discount = 0.5: atoms (-1, 0, 1) go to (0, 0.5, 1). 0.2 stays on atom 0; 0.5 is halved between 0 and 1;
    # 0.3 is on the last atom.
    assert projected([0.0, 0.5, 1.0], [0.2, 0.5, 0.3]) == pytest.approx([0.0, 0.2 + 0.25, 0.25 + 0.3])
    # Nearer to 0 than to 1 by 3 : 1, and likewise below 0.
    assert projected([0.25, -0.25, 0.25], [0.4, 0.2, 0.4]) == pytest.approx([0.05, 0.6 + 0.15, 0.2])


def test_beyond_the_ends_counts_as_the_end() -> None:
    assert projected([-7.0, 5.0, math.inf], [0.25, 0.5, 0.25]) == [0.25, 0.0, 0.75]


def test_a_nan_stays_one() -> None:
    # The learner reports divergence; an index out of range would only say where.
    assert any(math.isnan(value) for value in projected([math.nan, 0.0, 1.0], [0.2, 0.5, 0.3]))


def loop_projection(
    reward: float, discount: float, probabilities: np.ndarray, v_min: float, v_max: float, num_atoms: int
) -> np.ndarray:
    """Algorithm 1 of the paper; where a value is on an atom (l = u there) it keeps its probability."""
    spacing = (v_max - v_min) / (num_atoms - 1)
    result = np.zeros(num_atoms)
    for j in range(num_atoms):
        value = min(max(reward + discount * (v_min + j * spacing), v_min), v_max)
        position = min((value - v_min) / spacing, num_atoms - 1)  # rounding may bring it past the end
        lower, upper = math.floor(position), math.ceil(position)
        if lower == upper:
            result[lower] += probabilities[j]
        else:
            result[lower] += probabilities[j] * (upper - position)
            result[upper] += probabilities[j] * (position - lower)
    return result


@settings(max_examples=60)
@given(st.integers(0, 2**32 - 1), st.integers(2, 21))
def test_projection_equals_plain_loops_and_keeps_mass_and_mean(seed: int, num_atoms: int) -> None:
    generator = np.random.default_rng(seed)
    v_min = float(generator.normal(-3, 2))
    v_max = v_min + float(generator.uniform(0.5, 10))
    batch = 5
    probabilities = generator.dirichlet(np.ones(num_atoms), size=batch)
    reward = generator.normal(0, 4, batch)
    discount = generator.choice([0.0, 0.5, 0.99, 1.0], size=batch)
    atoms = torch.linspace(v_min, v_max, num_atoms, dtype=torch.float64)
    values = distributions.bootstrapped_rows(torch.from_numpy(reward), torch.from_numpy(discount), atoms.unsqueeze(0))
    got = categorical.project(values, torch.from_numpy(probabilities), atoms)
    expected = [
        loop_projection(reward[i], discount[i], probabilities[i], v_min, v_max, num_atoms) for i in range(batch)
    ]
    np.testing.assert_allclose(got, expected, atol=1e-9)
    np.testing.assert_allclose(got.sum(dim=1), 1.0)
    clipped = values.clamp(v_min, v_max)
    np.testing.assert_allclose(got @ atoms, (clipped * torch.from_numpy(probabilities)).sum(dim=1), atol=1e-9)


def test_expected_values_by_hand() -> None:
    # Logits (0, ln 2, 0) are probabilities (1, 2, 1) / 4; on atoms (-1, 0, 5): (-1 + 5) / 4 = 1.
    logits = torch.tensor([[[0.0, math.log(2.0), 0.0], [0.0, 99.0, 0.0]]])
    np.testing.assert_allclose(
        categorical.expected_values(logits, torch.tensor([-1.0, 0.0, 5.0])), [[1.0, 0.0]], atol=1e-6
    )


def test_cross_entropy_by_hand() -> None:
    # Logits (0, ln 3) are probabilities (1/4, 3/4). -(ln(1/4) + ln(3/4)) / 2 = (1.386294 + 0.287682) / 2.
    logits, target = torch.tensor([[0.0, math.log(3.0)]]), torch.tensor([[0.5, 0.5]])
    assert categorical.cross_entropy(logits, target).tolist() == pytest.approx([0.836988])
    np.testing.assert_allclose(categorical.cross_entropy_gradient(logits, target), [[-0.25, 0.25]], atol=1e-7)
    # The target's entropy is ln 2, the rest the KL divergence: ln(2) / 2 + ln(2/3) / 2 = ln(4/3) / 2.
    assert categorical.entropy(target).tolist() == pytest.approx([math.log(2.0)])
    divergence = categorical.cross_entropy(logits, target) - categorical.entropy(target)
    assert divergence.tolist() == pytest.approx([0.5 * math.log(4 / 3)])
    assert categorical.entropy(torch.tensor([[0.0, 1.0]])).tolist() == [0.0]


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1))
def test_cross_entropy_and_its_gradient_equal_loops_and_autograd(seed: int) -> None:
    generator = np.random.default_rng(seed)
    logits = torch.from_numpy(generator.normal(0, 3, (4, 7))).requires_grad_()
    target = torch.from_numpy(generator.dirichlet(np.ones(7), size=4))
    expected = []
    for row, goal in zip(logits.detach().numpy(), target.numpy(), strict=True):
        normaliser = math.log(sum(math.exp(value) for value in row))
        expected.append(-sum(p * (value - normaliser) for value, p in zip(row, goal, strict=True)))
    losses = categorical.cross_entropy(logits, target)
    np.testing.assert_allclose(losses.detach(), expected, rtol=1e-9)
    losses.sum().backward()
    np.testing.assert_allclose(
        categorical.cross_entropy_gradient(logits.detach(), target), logits.grad, rtol=1e-7, atol=1e-12
    )


def test_beside_rlax() -> None:
    # rlax 0.1.9, jax 0.10.2: categorical_l2_project(0.3 + 0.9 z, p, z) with z = linspace(-2, 2, 5);
    # categorical_q_learning and categorical_double_q_learning(z, logits, 1, 0.3, 0.9, z, log p[, (1, 0)]).
    atoms = torch.linspace(-2.0, 2.0, 5)
    next_probabilities = torch.tensor([[0.9, 0.05, 0.02, 0.02, 0.01], [0.1, 0.2, 0.3, 0.25, 0.15]])
    values = (0.3 + 0.9 * atoms).unsqueeze(0)
    goals = [categorical.project(values, row.unsqueeze(0), atoms) for row in next_probabilities]
    np.testing.assert_allclose(goals[1], [[0.05, 0.17, 0.29, 0.29, 0.2]], atol=1e-6)
    logits = torch.tensor([[0.5, -1.0, 0.0, 2.0, 1.0]])
    # The second has the larger mean; the double variant was told to take the first.
    assert distributions.best_action((next_probabilities @ atoms).unsqueeze(0)).item() == 1
    assert categorical.cross_entropy(logits, goals[1]).item() == pytest.approx(1.9394377, rel=1e-6)
    assert categorical.cross_entropy(logits, goals[0]).item() == pytest.approx(2.7714381, rel=1e-6)
