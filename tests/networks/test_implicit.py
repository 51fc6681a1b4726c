"""The implicit quantile head: by hand, its random numbers, and its shapes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from qfleet.networks.flat import FlatNetwork
from qfleet.networks.heads import QNetwork
from qfleet.networks.implicit import ImplicitQuantileHead
from qfleet.networks.noisy import noisy_layers, set_mean_only
from qfleet.networks.torso import NetworkConfig, Torso


def make(**options: object) -> ImplicitQuantileHead:
    torch.manual_seed(1)
    return ImplicitQuantileHead(3, 2, num_fractions=4, num_cosines=5, **options)  # type: ignore[arg-type]


def test_by_hand() -> None:
    head = ImplicitQuantileHead(1, 2, num_fractions=1, num_cosines=3)
    with torch.no_grad():
        head.embedding.weight.copy_(torch.tensor([[1.0, 2.0, 4.0]]))
        head.embedding.bias.fill_(0.5)
        head.values.values.weight.copy_(torch.tensor([[1.0], [-2.0]]))
        head.values.values.bias.copy_(torch.tensor([0.0, 10.0]))
    # tau 0: cosines (1, 1, 1): 1 + 2 + 4 + 0.5 = 7.5. tau 1: (1, -1, 1): 3.5. tau 1/2: (1, 0, -1): -2.5, cut to 0.
    # Times the feature 2: 15, 7, 0; the actions are 1 and 10 - 2 times that.
    got = head(torch.tensor([[2.0]]), torch.tensor([[0.0, 1.0, 0.5]])).detach()
    np.testing.assert_allclose(got, [[[15, 7, 0], [-20, -4, 10]]], atol=1e-5)


@pytest.mark.parametrize(
    "options", [{}, {"dueling": True}, {"noisy": True, "hidden": 6}, {"dueling": True, "noisy": True, "hidden": 6}]
)
def test_each_row_reads_its_own_fractions(options: dict[str, object]) -> None:
    head = make(**options)
    for layer in noisy_layers(head):
        layer.resample(torch.Generator().manual_seed(2))
    features = torch.randn(4, 3, generator=torch.Generator().manual_seed(3))
    fractions = torch.rand(4, 6, generator=torch.Generator().manual_seed(4))
    values = head(features, fractions)
    assert values.shape == (4, 2, 6)
    for row in range(4):
        for column in range(6):
            one = head(features[row : row + 1], fractions[row : row + 1, column : column + 1])
            torch.testing.assert_close(values[row, :, column], one[0, :, 0])
    # One row of fractions serves all, and without any there are K fixed ones.
    torch.testing.assert_close(head(features, fractions[:1]), head(features, fractions[:1].expand(4, 6)))
    midpoints = torch.tensor([[0.125, 0.375, 0.625, 0.875]])
    torch.testing.assert_close(head(features), head(features, midpoints))


def test_fractions_are_those_of_the_last_draw_and_of_the_purpose() -> None:
    head, twin = make(), make()
    generator = torch.Generator().manual_seed(5)
    head.resample(generator)
    first = head.fractions(64, 32, "learn")
    assert torch.equal(first, head.fractions(64, 32, "learn")), "asking changes nothing"
    assert not torch.equal(first, head.fractions(64, 32, "target"))
    head.resample(generator)
    second = head.fractions(64, 32, "learn")
    assert not torch.equal(first, second)
    twin_generator = torch.Generator().manual_seed(5)
    twin.resample(twin_generator)
    assert torch.equal(first, twin.fractions(64, 32, "learn"))
    # Uniform in [0, 1): 2,048 numbers have a mean within 0.5 +- 5 * 0.289 / sqrt(2048) = 0.032.
    assert abs(float(second.mean()) - 0.5) < 0.032
    assert 0.0 <= float(second.min()) < 0.01 and 0.99 < float(second.max()) < 1.0


def test_evaluation_takes_fixed_fractions_and_no_random_numbers() -> None:
    head = make(noisy=True)
    set_mean_only(head, True)
    for _ in range(2):
        for layer in noisy_layers(head):
            layer.resample(torch.Generator())
        np.testing.assert_allclose(head.fractions(9, 2, "act"), [[0.25, 0.75]])
    assert not any(math.isnan(value) for value in head(torch.ones(1, 3)).flatten().tolist())


def test_the_global_generator_is_left_alone() -> None:
    head = make()
    state = torch.random.get_rng_state()
    head.resample(torch.Generator().manual_seed(1))
    head.fractions(3, 3, "act")
    assert torch.equal(state, torch.random.get_rng_state())


@pytest.mark.parametrize("kind", ["mlp", "cnn"])
def test_a_flat_network_hands_fractions_on(kind: str) -> None:
    # An MLP's layers are written out and the head is left to autograd; of a CNN all is.
    shape = (5,) if kind == "mlp" else (4, 36, 36)
    torch.manual_seed(2)
    torso = Torso(NetworkConfig(kind=kind, hidden=(8,)), shape, "float32")
    flat = FlatNetwork(QNetwork(torso, ImplicitQuantileHead(8, 2, num_fractions=4, num_cosines=5, dueling=True)))
    assert (flat._explicit is not None) == (kind == "mlp")
    obs, fractions = torch.randn(3, *shape), torch.rand(3, 6)
    output = flat.module(obs, fractions)
    torch.testing.assert_close(flat.infer(obs, fractions), output.detach())
    weights = torch.randn(3, 2, 6)
    expected = torch.autograd.grad((output * weights).sum(), list(flat.module.parameters()))
    flat.backpropagate(obs, lambda _: (weights, None), fractions)
    assert flat.gradient is not None
    torch.testing.assert_close(flat.gradient, torch.cat([part.reshape(-1) for part in expected]), rtol=1e-4, atol=1e-5)
