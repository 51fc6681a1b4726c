"""Noisy linear layers by the paper's formula."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from qfleet.networks.flat import FlatNetwork
from qfleet.networks.noisy import NoisyLinear, noisy_layers, set_mean_only


def layer_with(noise: list[float], monkeypatch: pytest.MonkeyPatch) -> NoisyLinear:
    """2 inputs, 2 outputs, round parameters, and unit Gaussians that are these four: two for the inputs first."""
    layer = NoisyLinear(2, 2)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
        layer.bias.copy_(torch.tensor([5.0, 6.0]))
        layer.weight_sigma.copy_(torch.tensor([[0.1, 0.2], [0.3, 0.4]]))
        layer.bias_sigma.copy_(torch.tensor([0.5, 0.25]))
    monkeypatch.setattr(torch, "randn", lambda *shape, generator: torch.tensor(noise))
    layer.resample(torch.Generator())
    return layer


def test_factorised_noise_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = layer_with([4.0, -9.0, -1.0, 16.0], monkeypatch)
    # f(x) = sign(x) sqrt|x|: eps_in = (2, -3), eps_out = (-1, 4); eps_w = eps_out eps_in^T = [[-2, 3], [8, -12]].
    # w = mu + sigma eps_w = [[1 - 0.2, 2 + 0.6], [3 + 2.4, 4 - 4.8]]; b = (5 - 0.5, 6 + 1).
    # x = (1, 10): 0.8 + 26 + 4.5 = 31.3; 5.4 - 8 + 7 = 4.4.
    np.testing.assert_allclose(layer(torch.tensor([[1.0, 10.0]])).detach(), [[31.3, 4.4]], rtol=1e-6)


def test_mean_only_drops_the_noise_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = layer_with([4.0, -9.0, -1.0, 16.0], monkeypatch)
    set_mean_only(nn.Sequential(layer), True)
    # mu x + mu_b: 1 + 20 + 5 = 26; 3 + 40 + 6 = 49.
    np.testing.assert_allclose(layer(torch.tensor([[1.0, 10.0]])).detach(), [[26.0, 49.0]])
    set_mean_only(nn.Sequential(layer), False)
    assert layer(torch.tensor([[1.0, 10.0]]))[0, 0].item() == pytest.approx(31.3)


def test_noise_stays_until_it_is_resampled_and_comes_from_the_generator() -> None:
    layer, x = NoisyLinear(3, 2), torch.ones(1, 3)
    layer.resample(torch.Generator().manual_seed(1))
    first = layer(x)
    assert torch.equal(first, layer(x))
    layer.resample(torch.Generator().manual_seed(2))
    assert not torch.equal(first, layer(x))
    torch.manual_seed(99)  # the global generator has no say
    layer.resample(torch.Generator().manual_seed(1))
    assert torch.equal(first, layer(x))


def test_sigma_is_learned() -> None:
    layer = NoisyLinear(3, 2)
    layer.resample(torch.Generator().manual_seed(1))
    layer(torch.ones(1, 3)).sum().backward()
    # d y_o / d sigma_oi = eps_oi x_i, and x is 1.
    np.testing.assert_allclose(layer.weight_sigma.grad, layer.noise_weight)
    np.testing.assert_allclose(layer.bias_sigma.grad, layer.noise_bias)


def test_initial_values_are_the_papers() -> None:
    # mu uniform in +-1/sqrt(p), sigma = 0.5 / sqrt(p), with p = 16 inputs: 1/4 and 1/8.
    layer = NoisyLinear(16, 500)
    assert 0.24 < layer.weight.abs().max() <= 0.25
    np.testing.assert_array_equal(layer.weight_sigma.detach(), 0.125)
    np.testing.assert_array_equal(layer.bias_sigma.detach(), 0.125)


def test_a_snapshot_carries_no_noise() -> None:
    network = FlatNetwork(NoisyLinear(3, 2))
    assert network.num_parameters == 2 * (3 * 2 + 2)
    assert network.buffers.numel() == 0
    assert noisy_layers(network.module) == [network.module]
