"""Spectral normalisation: against the singular values themselves; which layers; when its vector moves."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from qfleet.errors import ConfigError, UsageError
from qfleet.experiment import Experiment
from qfleet.networks.flat import FlatNetwork
from qfleet.networks.heads import LinearHead, QNetwork
from qfleet.networks.spectral import SpectralNorm, normalise_layers, spectral_layers
from qfleet.networks.torso import NetworkConfig, Torso, build_body
from qfleet.run_config import build_config


def converged(layer: nn.Linear | nn.Conv2d) -> SpectralNorm:
    norm = SpectralNorm(layer)
    for _ in range(200):
        norm.observe()
    return norm


def test_a_weight_is_divided_by_its_largest_singular_value() -> None:
    layer = nn.Linear(2, 2)
    # Rows (3, 0) and (4, 0) beside a decoy of 1: W^T W = diag(25, 1) -> the norm is 5, though no entry is above 4.
    layer.weight.data = torch.tensor([[3.0, 0.8], [4.0, -0.6]])
    norm = converged(layer)
    np.testing.assert_allclose(norm.weight().detach(), [[0.6, 0.16], [0.8, -0.12]], atol=1e-6)
    layer.bias.data = torch.tensor([10.0, 20.0])
    np.testing.assert_allclose(norm(torch.tensor([[1.0, 0.0]])).detach(), [[10.6, 20.8]], atol=1e-5)


@pytest.mark.parametrize("layer", [nn.Linear(7, 5), nn.Conv2d(3, 4, 3, stride=2, padding=1)])
def test_the_norm_of_what_acts_is_one(layer: nn.Linear | nn.Conv2d) -> None:
    torch.manual_seed(0)
    nn.init.normal_(layer.weight)
    norm = converged(layer)
    values = torch.linalg.svdvals(norm.weight().detach().flatten(1))
    np.testing.assert_allclose(values[0], 1.0, rtol=1e-4)
    if isinstance(layer, nn.Conv2d):
        image = torch.randn(2, 3, 8, 8)
        by_hand = nn.functional.conv2d(image, norm.weight(), layer.bias, stride=2, padding=1)
        np.testing.assert_allclose(norm(image).detach(), by_hand.detach())


def test_the_gradient_passes_through_the_norm() -> None:
    # f(W) = sum(C * W / s(W)) with s = |W| for one row: its gradient is (C - W (C . W) / s^2) / s.
    layer = nn.Linear(2, 1, bias=False)
    layer.weight.data = torch.tensor([[3.0, 4.0]])
    norm = converged(layer)
    (norm.weight() * torch.tensor([[1.0, 2.0]])).sum().backward()  # type: ignore[no-untyped-call]
    # C . W = 11; (1 - 3 * 11 / 25) / 5 = -0.064 and (2 - 4 * 11 / 25) / 5 = 0.048.
    np.testing.assert_allclose(layer.weight.grad, [[-0.064, 0.048]], atol=1e-6)


@pytest.mark.parametrize(
    ("places", "expected"),
    [((), []), ((-2,), ["5"]), ((-3,), ["3"]), ((-2, -4), ["1", "5"])],
)
def test_layers_are_counted_from_the_output(places: tuple[int, ...], expected: list[str]) -> None:
    body = nn.Sequential(nn.Flatten(), nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 5))
    normalise_layers(body, places)
    assert [name for name, layer in body.named_children() if isinstance(layer, SpectralNorm)] == expected
    assert body(torch.zeros(1, 2)).shape == (1, 5)


def test_layers_within_blocks_count_too() -> None:
    body = build_body(NetworkConfig(kind="impala_cnn", hidden=(8,)), (2, 16, 16))
    normalise_layers(body, (-2, -3))
    dense, inner = spectral_layers(body)[::-1]
    assert isinstance(dense.layer, nn.Linear)
    assert isinstance(inner.layer, nn.Conv2d)


def test_refusals() -> None:
    with pytest.raises(UsageError, match=r"spectral_norm = \[-4\]: this torso has 2 layers, -2 \(the last\) to -3"):
        Torso(NetworkConfig(spectral_norm=(-4,)), (4,), "float32")
    with pytest.raises(ConfigError, match=r"network\.spectral_norm"):
        build_config({"network": {"spectral_norm": [-1]}}, [])


def make_network() -> FlatNetwork:
    torch.manual_seed(3)
    torso = Torso(NetworkConfig(hidden=(6, 5), spectral_norm=(-2, -3)), (4,), "float32")
    return FlatNetwork(QNetwork(torso, LinearHead(5, 2, noisy=False)))


def test_the_vectors_are_buffers_that_acting_leaves_alone_and_learning_moves() -> None:
    network, twin = make_network(), make_network()
    assert network.buffers.shape == (6 + 5,)
    before = network.buffers.clone()
    obs = torch.randn(3, 4)
    network.infer(obs)
    network.backpropagate(obs, lambda values: (torch.ones_like(values), None))
    np.testing.assert_array_equal(network.buffers, before)
    network.vector.add_(torch.randn(network.num_parameters))
    network.module.torso.observe(obs)  # type: ignore[union-attr, operator]
    assert not torch.equal(network.buffers, before)
    twin.load(network.snapshot(1))
    np.testing.assert_array_equal(twin.infer(obs), network.infer(obs))


def test_a_run_renews_them_and_resumes_with_them(experiment: Callable[..., Experiment]) -> None:
    changes = {"network.spectral_norm": [-2], "stop.max_env_steps": 200}
    run = experiment("qfleet/Identity-v0", changes)
    first = run.session  # nothing has run yet
    assert first is None
    summary = run.run()
    plain = experiment("qfleet/Identity-v0", {"stop.max_env_steps": 200}, run_dir="plain").run()
    assert summary["num_updates"] == plain["num_updates"] > 10
    assert summary["parameters_sha256"] != plain["parameters_sha256"]
