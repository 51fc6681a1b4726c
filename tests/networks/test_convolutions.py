"""Image networks: sizes worked out by hand, channel order, normalisation behind every layer, heads on all of them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from qfleet.errors import ConfigError, UsageError
from qfleet.networks.convolutions import ConvStyle, ResidualBlock, image_channels
from qfleet.networks.flat import FlatNetwork
from qfleet.networks.heads import DuelingHead, LinearHead, QNetwork
from qfleet.networks.torso import NetworkConfig, Torso, build_body
from qfleet.run_config import build_config

ATARI, MINATAR = (4, 84, 84), (10, 10, 4)


def layers(body: nn.Module, kind: type[nn.Module]) -> list[Any]:
    return [layer for layer in body.modules() if isinstance(layer, kind)]


@pytest.mark.parametrize(
    ("kind", "shape", "width", "filters", "dense"),
    [
        # 84 -> 20 -> 9 -> 7: 64 * 49.
        ("cnn", ATARI, 1, [32, 64, 64], (3136, 512)),
        # 84 -> 20 -> 9: 32 * 81.
        ("small_cnn", ATARI, 1, [16, 32], (2592, 256)),
        # Pooled by half, rounded up: 84 -> 42 -> 21 -> 11: 32 * 121, two blocks of two convolutions at each size.
        ("impala_cnn", ATARI, 1, [16] * 5 + [32] * 5 + [32] * 5, (3872, 256)),
        ("impala_cnn", ATARI, 2, [32] * 5 + [64] * 5 + [64] * 5, (7744, 256)),
        # 10 -> 8: 16 * 64.
        ("minatar_cnn", MINATAR, 1, [16], (1024, 128)),
        ("minatar_cnn", MINATAR, 3, [48], (3072, 128)),
    ],
)
def test_sizes_are_the_published_ones(
    kind: str, shape: tuple[int, ...], width: int, filters: list[int], dense: tuple[int, int]
) -> None:
    body = build_body(NetworkConfig(kind=kind, width=width), shape)
    assert [layer.out_channels for layer in layers(body, nn.Conv2d)] == filters
    assert [(layer.in_features, layer.out_features) for layer in layers(body, nn.Linear)] == [dense]
    assert not layers(body, nn.GroupNorm)


def test_the_impala_network_has_as_many_parameters_as_counted_by_hand() -> None:
    # Convolutions of 3 x 3 with biases, per section one that enters and four within; then 3872 x 256.
    entering = [(4, 16), (16, 32), (32, 32)]
    expected = sum(9 * i * o + o + 4 * (9 * o * o + o) for i, o in entering) + 3872 * 256 + 256
    assert sum(p.numel() for p in build_body(NetworkConfig(kind="impala_cnn"), ATARI).parameters()) == expected


def test_a_residual_block_adds_to_what_enters() -> None:
    block = ResidualBlock(2, ConvStyle(nn.ReLU, False, 1))
    images = torch.tensor([[[[3.0]], [[-2.0]]]])
    for parameter in block.parameters():
        nn.init.zeros_(parameter)
    assert block(images).flatten().tolist() == [3.0, -2.0]  # not ReLU'd on the way through
    first, second = layers(block, nn.Conv2d)
    first.weight.data[0, 0, 1, 1] = 2.0  # ReLU(3) * 2 = 6; channel 1 enters as ReLU(-2) = 0
    first.weight.data[1, 1, 1, 1] = 99.0
    second.weight.data[1, 0, 1, 1] = 0.5
    assert block(images).flatten().tolist() == [3.0, -2.0 + 0.5 * 6.0]


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((4, 84, 84), (True, 4)),
        ((84, 84, 3), (False, 3)),
        ((84, 84), (True, 1)),
        ((10, 10, 4), (False, 4)),
        ((10, 10, 10), (False, 10)),  # MinAtar's Seaquest: channels last, like the other four games
        ((12, 84, 84), (True, 12)),
    ],
)
def test_channels_are_found(shape: tuple[int, ...], expected: tuple[bool, int]) -> None:
    assert image_channels(shape) == expected


def test_seaquests_ten_channels_are_the_last_axis() -> None:
    torch.manual_seed(0)
    body = build_body(NetworkConfig(kind="minatar_cnn"), (10, 10, 10))
    (convolution,) = layers(body, nn.Conv2d)
    # Only channel 7 of the board is lit, at row 2 and column 5; the filter that looks at it alone sees it there.
    convolution.weight.data.zero_()
    convolution.bias.data.zero_()
    convolution.weight.data[0, 7, 1, 1] = 1.0
    board = torch.zeros(1, 10, 10, 10)
    board[0, 2, 5, 7] = 1.0
    seen = body[:2](board)[0, 0]
    assert seen.nonzero().tolist() == [[1, 4]]  # without padding a centre at (2, 5) is output (1, 4)


@pytest.mark.parametrize(("kind", "norms"), [("cnn", 3), ("small_cnn", 2), ("impala_cnn", 15), ("minatar_cnn", 1)])
def test_layer_norm_stands_behind_every_layer(kind: str, norms: int) -> None:
    shape = MINATAR if kind == "minatar_cnn" else ATARI
    body = build_body(NetworkConfig(kind=kind, layer_norm=True, hidden=(8,)), shape)
    found = layers(body, nn.GroupNorm)
    assert len(found) == len(layers(body, nn.Conv2d)) == norms
    assert len(layers(body, nn.LayerNorm)) == 1
    # Over channels and pixels of one image: mean 0 and variance 1, whatever the others of the batch are.
    normal = found[0](torch.randn(2, found[0].num_channels, 5, 5) * torch.tensor([1.0, 9.0]).view(2, 1, 1, 1) + 3.0)
    np.testing.assert_allclose(normal.detach().flatten(1).mean(1), [0.0, 0.0], atol=1e-5)
    np.testing.assert_allclose(normal.detach().flatten(1).var(1, unbiased=False), [1.0, 1.0], atol=1e-3)


@pytest.mark.parametrize("head", [LinearHead, DuelingHead])
@pytest.mark.parametrize("noisy", [False, True])
@pytest.mark.parametrize("kind", ["cnn", "small_cnn", "impala_cnn", "minatar_cnn"])
def test_heads_stand_on_all_and_every_parameter_learns(kind: str, head: Any, noisy: bool) -> None:
    torch.manual_seed(0)
    shape = MINATAR if kind == "minatar_cnn" else (2, 36, 36)
    torso = Torso(NetworkConfig(kind=kind, hidden=(8,), layer_norm=True), shape, "uint8")
    network = FlatNetwork(QNetwork(torso, head(8, 3, noisy=noisy)))
    obs = torch.randint(0, 256, (4, *shape), dtype=torch.uint8)
    values = network.infer(obs)
    assert values.shape == (4, 3)
    network.backpropagate(obs, lambda output: (torch.tensor([[1.0, 0.0, -0.5]] * 4), None))
    assert network.gradient is not None
    silent = [name for name, p in network.module.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    # Noise that was never drawn is zero, and so is its gradient.
    assert [name for name in silent if "sigma" not in name] == []


def test_boards_of_bools_are_zeros_and_ones() -> None:
    torso = Torso(NetworkConfig(), MINATAR, "bool")
    board = torch.rand(2, *MINATAR) < 0.5
    np.testing.assert_array_equal(torso(board).detach(), torso.body(board.float()).detach())
    assert math.isclose(float(torso.scale(board).max()), 1.0)


def test_refusals() -> None:
    with pytest.raises(UsageError, match=r"'impala_cnn' needs images of at least 8 x 8, not shape \(4,\); use 'mlp'"):
        build_body(NetworkConfig(kind="impala_cnn"), (4,))
    with pytest.raises(UsageError, match=r"network\.width = 2: this network has no convolutions"):
        build_body(NetworkConfig(width=2), (4,))
    with pytest.raises(ConfigError, match=r"network\.kind = 'decoy_cnn'"):
        build_config({"network": {"kind": "decoy_cnn"}}, [])
