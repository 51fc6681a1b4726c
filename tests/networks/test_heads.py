"""Heads: the dueling identity, and what is noisy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from qfleet.networks.heads import DistributionHead, DuelingDistributionHead, DuelingHead, LinearHead
from qfleet.networks.noisy import noisy_layers


def test_dueling_by_hand() -> None:
    head = DuelingHead(1, 3, noisy=False)
    with torch.no_grad():
        for layer in (head.value, head.advantage):
            layer.bias.zero_()
        head.value.weight.fill_(10.0)
        head.advantage.weight.copy_(torch.tensor([[1.0], [2.0], [6.0]]))
    # V = 10, A = (1, 2, 6) with mean 3: 10 + 1 - 3, 10 + 2 - 3, 10 + 6 - 3.
    np.testing.assert_allclose(head(torch.ones(1, 1)).detach(), [[8.0, 9.0, 13.0]])


@pytest.mark.parametrize("noisy", [False, True])
def test_the_mean_over_actions_is_the_state_value(noisy: bool) -> None:
    head = DuelingHead(5, 4, noisy=noisy)
    for layer in noisy_layers(head):
        layer.resample(torch.Generator().manual_seed(0))
    features = torch.randn(7, 5)
    q_values = head(features)
    np.testing.assert_allclose(q_values.mean(dim=1).detach(), head.value(features)[:, 0].detach(), atol=1e-5)
    assert q_values.shape == (7, 4)
    assert q_values.std(dim=1).min() > 1e-3, "actions must differ"


def test_dueling_over_atoms_by_hand() -> None:
    head = DuelingDistributionHead(1, 2, 3, noisy=False)
    with torch.no_grad():
        for layer in (head.value, head.advantage):
            layer.bias.zero_()
        head.value.weight.copy_(torch.tensor([[10.0], [20.0], [30.0]]))
        head.advantage.weight.copy_(torch.tensor([[1.0], [2.0], [3.0], [5.0], [2.0], [-3.0]]))
    # Advantages (1, 2, 3) of action 0 and (5, 2, -3) of action 1 have the means (3, 2, 0) over actions:
    # (10, 20, 30) + (-2, 0, 3) and (10, 20, 30) + (2, 0, -3).
    np.testing.assert_allclose(head(torch.ones(1, 1)).detach(), [[[8, 20, 33], [12, 20, 27]]])


def test_a_distribution_head_has_the_atoms_of_an_action_side_by_side() -> None:
    head = DistributionHead(1, 2, 3, noisy=False)
    with torch.no_grad():
        head.values.weight.copy_(torch.arange(6.0).unsqueeze(1))
        head.values.bias.zero_()
    np.testing.assert_array_equal(head(torch.tensor([[1.0], [2.0]]))[1].detach(), [[0, 2, 4], [6, 8, 10]])


@pytest.mark.parametrize(("head_class", "num_layers"), [(DistributionHead, 1), (DuelingDistributionHead, 2)])
def test_noisy_makes_every_layer_of_a_distribution_head_noisy(head_class: type, num_layers: int) -> None:
    assert len(noisy_layers(head_class(3, 2, 4, noisy=True))) == num_layers
    assert noisy_layers(head_class(3, 2, 4, noisy=False)) == []


@pytest.mark.parametrize(("head_class", "num_layers"), [(LinearHead, 1), (DuelingHead, 2)])
def test_noisy_makes_every_layer_of_the_head_noisy(head_class: type, num_layers: int) -> None:
    assert len(noisy_layers(head_class(3, 2, noisy=True))) == num_layers
    assert noisy_layers(head_class(3, 2, noisy=False)) == []
