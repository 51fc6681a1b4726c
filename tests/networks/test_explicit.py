"""The written-out MLP gives autograd's numbers: same outputs, same gradients, for every head it may meet."""

from __future__ import annotations

import copy

import pytest
import torch

from qfleet.algos import dqn
from qfleet.networks.explicit import ExplicitMLP
from qfleet.networks.flat import FlatNetwork
from qfleet.networks.noisy import noisy_layers
from qfleet.networks.torso import NetworkConfig
from qfleet.types import EnvSpec

SPEC = EnvSpec("test", obs_shape=(5,), obs_dtype="float32", num_actions=3)


def build(network: NetworkConfig, spec: EnvSpec, **options: bool) -> FlatNetwork:
    torch.manual_seed(3)
    flat = FlatNetwork(dqn.Algorithm(dqn.Config(**options)).build_network(network, spec))
    generator = torch.Generator().manual_seed(5)
    for layer in noisy_layers(flat.module):
        layer.resample(generator)
    return flat


@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("options", [{}, {"dueling": True}, {"noisy": True}])
@pytest.mark.parametrize("normalize", [False, True])
def test_equals_autograd(layer_norm: bool, options: dict[str, bool], normalize: bool) -> None:
    config = NetworkConfig(hidden=(16, 8), layer_norm=layer_norm, normalize_observations=normalize)
    explicit = build(config, SPEC, **options)
    reference = build(config, SPEC, **options)
    assert explicit._explicit is not None
    assert (explicit._explicit.tail is None) == (options == {})
    obs = torch.randn(12, 5, generator=torch.Generator().manual_seed(1))
    weights = torch.randn(12, 3, generator=torch.Generator().manual_seed(2))

    torch.testing.assert_close(explicit.infer(obs), reference.module(obs).detach(), rtol=1e-6, atol=1e-6)
    values = explicit.backpropagate(obs, lambda q: (2 * q * weights.square() / q.numel(), q))
    expected = (reference.module(obs) * weights).square().mean()
    expected.backward()
    assert reference.gradient is not None and explicit.gradient is not None
    torch.testing.assert_close(values, reference.module(obs).detach(), rtol=1e-6, atol=1e-6)
    assert float(reference.gradient.abs().min()) >= 0 and float(reference.gradient.abs().sum()) > 0
    torch.testing.assert_close(explicit.gradient, reference.gradient, rtol=1e-5, atol=1e-7)


def test_gradient_replaces_the_previous_one() -> None:
    flat = build(NetworkConfig(hidden=(8,)), SPEC, dueling=True)
    obs = torch.ones(2, 5)
    flat.backpropagate(obs, lambda q: (torch.ones_like(q), None))
    assert flat.gradient is not None
    first = flat.gradient.clone()
    flat.backpropagate(obs, lambda q: (torch.ones_like(q), None))
    torch.testing.assert_close(flat.gradient, first)


def test_uint8_and_flattened_observations() -> None:
    spec = EnvSpec("test", obs_shape=(2, 3), obs_dtype="uint8", num_actions=3)
    flat = build(NetworkConfig(kind="mlp", hidden=(8,)), spec)
    assert flat._explicit is not None
    obs = torch.arange(12, dtype=torch.uint8).reshape(2, 2, 3)
    torch.testing.assert_close(flat.infer(obs), flat.module(obs).detach())


@pytest.mark.parametrize("config", [NetworkConfig(activation="tanh"), NetworkConfig(kind="cnn")])
def test_other_networks_stay_with_autograd(config: NetworkConfig) -> None:
    spec = SPEC if config.kind == "auto" else EnvSpec("test", (4, 84, 84), "uint8", 3)
    flat = build(config, spec)
    assert ExplicitMLP.of(flat.module) is None
    obs = torch.zeros(2, *spec.obs_shape, dtype=torch.float32 if config.kind == "auto" else torch.uint8)
    flat.backpropagate(obs, lambda q: (torch.ones_like(q), None))
    twin = copy.deepcopy(flat.module)
    twin.zero_grad(set_to_none=True)
    twin(obs).sum().backward()
    expected = torch.cat([p.grad.reshape(-1) for p in twin.parameters() if p.grad is not None])
    torch.testing.assert_close(flat.gradient, expected)
