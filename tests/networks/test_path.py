"""Every way to compute a network against the reference: the same function, up to its precision."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from qfleet.networks import path as paths
from qfleet.networks.convolutions import ToChannelsFirst
from qfleet.networks.flat import FlatNetwork
from qfleet.networks.heads import DuelingHead, QNetwork
from qfleet.networks.image_layout import channels_last
from qfleet.networks.low_precision import LowPrecisionTorso
from qfleet.networks.optimizer import OptimizerConfig, VectorOptimizer
from qfleet.networks.path import REFERENCE, ComputePath, choose_path, cpu_flags
from qfleet.networks.spectral import SpectralNorm
from qfleet.networks.torso import NetworkConfig, Torso

BFLOAT16 = ComputePath("bfloat16", channels_last=True)
SHAPE = (2, 36, 40)


def build(obs_dtype: str = "uint8", config: NetworkConfig | None = None) -> QNetwork:
    torch.manual_seed(3)
    torso = Torso(config or NetworkConfig(hidden=(32,)), SHAPE, obs_dtype)
    return QNetwork(torso, DuelingHead(torso.num_features, 3, noisy=False))


def large() -> QNetwork:
    """64 features x 8,192, and some: above the 400,000 parameters from which on a path is worth its overhead."""
    return build(config=NetworkConfig(hidden=(8192,)))


def observations(num: int = 16) -> torch.Tensor:
    return torch.randint(0, 256, (num, *SHAPE), dtype=torch.uint8, generator=torch.Generator().manual_seed(num))


def output_and_gradient(path: ComputePath, obs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    network = FlatNetwork(build(), path=path)

    def gradient_of(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return values / values.numel(), values

    values = network.backpropagate(obs, gradient_of)
    assert network.gradient is not None
    return values, network.gradient


@pytest.fixture
def set_flags(monkeypatch: pytest.MonkeyPatch):
    """Makes the processor one of these flags, with or without a compiler."""

    def set_(*flags: str, compiler: bool = True) -> None:
        monkeypatch.setattr(paths, "cpu_flags", lambda: frozenset(flags))
        monkeypatch.setattr(paths.shutil, "which", lambda name: "/usr/bin/" + name if compiler else None)

    return set_


def test_bfloat16_gives_the_references_values_and_gradient_up_to_its_precision() -> None:
    obs = observations()
    (values, gradient), (expected, reference) = (output_and_gradient(path, obs) for path in (BFLOAT16, REFERENCE))
    assert values.dtype == gradient.dtype == torch.float32
    assert not torch.equal(values, expected)  # or the path was not taken
    # bfloat16 rounds by at most 2^-9 = 0.2%; a handful of layers add up to a few of these
    assert float((values - expected).norm() / expected.norm()) < 0.01
    assert float((gradient - reference).norm() / reference.norm()) < 0.03


@pytest.mark.parametrize("kind", ["cnn", "small_cnn", "impala_cnn", "minatar_cnn"])
@pytest.mark.parametrize("layer_norm", [False, True])
def test_every_networks_values_and_gradients_are_the_references(kind: str, layer_norm: bool) -> None:
    torch.manual_seed(3)
    torso = Torso(NetworkConfig(kind=kind, hidden=(32,), layer_norm=layer_norm), SHAPE, "uint8")
    module, obs = QNetwork(torso, nn.Linear(32, 3)), observations()
    results = []
    for path in (BFLOAT16, REFERENCE):
        network = FlatNetwork(copy.deepcopy(module), path=path)
        values = network.backpropagate(obs, lambda values: (values / values.numel(), values))
        assert network.gradient is not None
        parts = [parameter.grad for parameter in network.module.parameters()]
        results.append((values, network.gradient, parts))
    (values, gradient, parts), (expected, reference, _) = results
    assert not torch.equal(values, expected)
    assert float((values - expected).norm() / expected.norm()) < 0.02
    assert float((gradient - reference).norm() / reference.norm()) < 0.05
    assert all(part is not None and part.abs().max() > 0 for part in parts)


def test_the_gradient_comes_back_with_its_channels_last() -> None:
    torso = Torso(NetworkConfig(hidden=(32,)), SHAPE, "uint8")
    seen = []
    assert isinstance(torso.body, nn.Sequential)
    for layer in torso.body:
        if isinstance(layer, nn.ReLU):
            layer.register_full_backward_hook(lambda layer, gradients, given: seen.append(given[0]))
    LowPrecisionTorso(torso, lambda: 0)(observations()).sum().backward()
    assert [gradient.dim() for gradient in seen] == [2, 4, 4, 4]
    assert all(gradient.is_contiguous(memory_format=torch.channels_last) for gradient in seen[1:])


class Twice(nn.Sequential):
    """A user's body that looks like ours: one activation used twice, and a container where a convolution would be."""

    def __init__(self, obs_shape: tuple[int, ...]) -> None:
        relu = nn.ReLU()
        block = nn.Sequential(nn.Conv2d(obs_shape[0], 4, 8, 4), relu)
        super().__init__(ToChannelsFirst(True), block, nn.Conv2d(4, 4, 2), relu, nn.Flatten(2), nn.Flatten())


def test_a_users_body_is_called_as_it_is() -> None:
    torso, obs = Torso(NetworkConfig(kind=f"{__name__}:Twice"), SHAPE, "uint8"), observations()
    module = QNetwork(torso, nn.Linear(torso.num_features, 3))
    values, expected = (FlatNetwork(copy.deepcopy(module), path=path).infer(obs) for path in (BFLOAT16, REFERENCE))
    assert float((values - expected).norm() / expected.norm()) < 0.02


def test_the_head_is_computed_in_float32() -> None:
    module, obs = build(), observations()
    values = FlatNetwork(module, path=BFLOAT16).infer(obs)
    with torch.no_grad():
        features = LowPrecisionTorso(module.torso, lambda: 0)(obs)
        assert torch.equal(values, module.head(features))


@pytest.mark.parametrize("optimizer", ["adam", "radam", "rmsprop", "sgd", "load", "copy"])
def test_weights_kept_for_inference_follow_the_parameters(optimizer: Any) -> None:
    network, obs = FlatNetwork(build(), path=BFLOAT16), observations()
    before = network.infer(obs)
    assert torch.equal(network.infer(obs), before)
    network.backpropagate(obs, lambda values: (values, None))
    assert network.gradient is not None
    if optimizer == "load":
        other = FlatNetwork(build())
        other.vector.mul_(1.1)
        network.load(other.snapshot(1))
    elif optimizer == "copy":
        network.copy_from(network.vector.numpy() * np.float32(1.1), network.buffers.numpy())
    else:
        step = VectorOptimizer(OptimizerConfig(name=optimizer), 1e-2, network.vector).step
        step(network.gradient, 1)
    after = network.infer(obs)
    assert not torch.equal(after, before)
    fresh = FlatNetwork(build(), path=BFLOAT16)
    fresh.copy_from(network.vector.numpy(), network.buffers.numpy())
    assert torch.equal(fresh.infer(obs), after)


def test_acting_and_learning_see_the_same_values() -> None:
    network, obs = FlatNetwork(build(), path=BFLOAT16), observations()
    assert torch.equal(network.backpropagate(obs, lambda values: (values, values.clone())), network.infer(obs))


def test_the_spectral_norm_is_one_of_a_float32_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    module, obs = build(config=NetworkConfig(hidden=(32,), spectral_norm=(-2, -3))), observations()
    seen = []
    weight = SpectralNorm.weight
    monkeypatch.setattr(SpectralNorm, "weight", lambda self: seen.append(weight(self)) or seen[-1])
    values, expected = (FlatNetwork(copy.deepcopy(module), path=path).infer(obs) for path in (BFLOAT16, REFERENCE))
    assert [one.dtype for one in seen] == [torch.float32] * 4
    assert float((values - expected).norm() / expected.norm()) < 0.02


class Halved(nn.Sequential):
    """Layers of a user's, which read a weight as they like."""

    def forward(self, obs: torch.Tensor) -> torch.Tensor:
        assert self[0].weight.dtype == torch.float32
        result: torch.Tensor = super().forward(obs) / 2
        return result


def test_layers_of_a_users_have_their_own_weights() -> None:
    torso, obs = Torso(NetworkConfig(hidden=(32,)), SHAPE, "uint8"), observations()
    torso.body = Halved(nn.Conv2d(2, 4, 8, 4), nn.ReLU(), nn.Flatten())
    module = QNetwork(torso, nn.Linear(4 * 8 * 9, 3))
    values, expected = (FlatNetwork(copy.deepcopy(module), path=path).infer(obs) for path in (BFLOAT16, REFERENCE))
    assert float((values - expected).norm() / expected.norm()) < 0.02


@pytest.mark.parametrize("shape", [(4, 40, 40), (40, 40, 3), (40, 40)])
def test_images_of_every_layout_have_their_channels_last_where_convolutions_see_them(
    shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(3)
    torso = Torso(NetworkConfig(hidden=(32,), layer_norm=True), shape, "uint8")
    module = QNetwork(torso, nn.Linear(32, 3))
    seen, convolve = [], nn.functional.conv2d
    monkeypatch.setattr(nn.functional, "conv2d", lambda *inputs: seen.append(inputs[:2]) or convolve(*inputs))
    obs = torch.randint(0, 256, (16, *shape), dtype=torch.uint8)
    values, expected = (FlatNetwork(copy.deepcopy(module), path=path).infer(obs) for path in (BFLOAT16, REFERENCE))
    monkeypatch.undo()
    for images, weight in seen[:3]:
        assert images.dtype == weight.dtype == torch.bfloat16
        assert images.is_contiguous(memory_format=torch.channels_last)
        assert weight.is_contiguous(memory_format=torch.channels_last)
    assert float((values - expected).norm() / expected.norm()) < 0.02


@pytest.mark.parametrize("kind", ["cnn", "small_cnn"])
@pytest.mark.parametrize("layer_norm", [False, True])
def test_over_blocks_of_pixels_the_torso_is_the_same(
    kind: str, layer_norm: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(3)
    torso = Torso(NetworkConfig(kind=kind, hidden=(32,), layer_norm=layer_norm), (4, 37, 42), "uint8")
    obs = torch.randint(0, 256, (9, 8, 37, 42), dtype=torch.uint8)[:, 4:]
    parameters, sizes, convolve = list(torso.parameters()), [], nn.functional.conv2d
    monkeypatch.setattr(nn.functional, "conv2d", lambda *inputs: sizes.append(inputs[0].shape) or convolve(*inputs))

    def values_and_gradients(reads_blocks: bool) -> list[torch.Tensor]:
        sizes.clear()
        low = LowPrecisionTorso(torso, lambda: 0, reads_blocks=reads_blocks)
        values = low(obs)
        assert sizes[0] == ((9, 64, 9, 10) if reads_blocks else (9, 4, 37, 42))
        with torch.no_grad():
            assert torch.equal(low(obs), values)
        return [values.detach(), *torch.autograd.grad(values.square().sum(), parameters)]

    for found, expected in zip(values_and_gradients(True), values_and_gradients(False), strict=True):
        assert found.shape == expected.shape
        assert float((found - expected).norm() / expected.norm()) < 0.02


@pytest.mark.parametrize(
    ("flags", "config", "shape", "obs_dtype", "reads_blocks"),
    [
        (("avx512_bf16", "amx_bf16"), {}, (4, 36, 36), "uint8", True),
        (("avx512_bf16",), {}, (4, 36, 36), "uint8", False),
        (("avx512_bf16", "amx_bf16"), {"compile": "always"}, (4, 36, 36), "uint8", False),
        (("avx512_bf16", "amx_bf16"), {"precision": "float32"}, (4, 36, 36), "uint8", False),
        (("avx512_bf16", "amx_bf16"), {"normalize_observations": True}, (4, 36, 36), "uint8", False),
        (("avx512_bf16", "amx_bf16"), {"spectral_norm": (-5,)}, (4, 36, 36), "uint8", False),
        (("avx512_bf16", "amx_bf16"), {"kind": "impala_cnn"}, (4, 36, 36), "uint8", False),
        (("avx512_bf16", "amx_bf16"), {}, (4, 36, 36), "float32", False),
        (("avx512_bf16", "amx_bf16"), {}, (3, 36, 36), "uint8", False),
        (("avx512_bf16", "amx_bf16"), {}, (36, 36, 4), "uint8", False),
    ],
)
def test_blocks_are_for_stacks_of_four_frames_beside_matrix_units(
    set_flags, flags, config, shape, obs_dtype, reads_blocks, monkeypatch
) -> None:
    set_flags(*flags)
    settings = NetworkConfig(**{"hidden": (32,), "precision": "bfloat16", "compile": "never", **config})
    torso = Torso(settings, shape, obs_dtype)
    module = QNetwork(torso, nn.Linear(32, 3))
    path = choose_path(settings, module, "cpu")
    assert path.reads_blocks == reads_blocks
    assert path.describe().endswith("in blocks") == reads_blocks
    if path.is_compiled:
        return
    seen, convolve = [], nn.functional.conv2d
    monkeypatch.setattr(nn.functional, "conv2d", lambda *inputs: seen.append(inputs[0].shape[1]) or convolve(*inputs))
    FlatNetwork(module, path=path).infer(torch.zeros(16, *shape, dtype=getattr(torch, obs_dtype)))
    assert (seen[0] == 64) == reads_blocks


def test_every_pixel_is_exact_in_bfloat16() -> None:
    obs = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(obs.to(torch.bfloat16).to(torch.uint8), obs)


@pytest.mark.parametrize("shape", [(3, 4, 5, 7), (2, 3, 6, 6), (1, 1, 4, 4), (2, 10, 10, 10), (0, 4, 8, 8)])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_channels_last_moves_bytes_and_changes_none(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    images = torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    beside = torch.cat([images, images], dim=1)
    for given in (images, beside[:, : shape[1]], beside[:, 1 : 1 + shape[1]], images.flip(0)[:, :, ::2], images[::2]):
        moved = channels_last(given)
        assert torch.equal(moved, given)
        assert moved.is_contiguous(memory_format=torch.channels_last)
        assert moved.dtype == dtype


def test_a_memory_format_changes_no_value() -> None:
    obs = observations()
    values, gradient = output_and_gradient(ComputePath(channels_last=True), obs)
    expected, reference = output_and_gradient(REFERENCE, obs)
    torch.testing.assert_close(values, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradient, reference, rtol=1e-4, atol=1e-6)


def test_normalised_observations_are_the_same_on_every_path() -> None:
    config = NetworkConfig(hidden=(32,), normalize_observations=True)
    networks = [FlatNetwork(build(config=config), path=path) for path in (BFLOAT16, REFERENCE)]
    obs = observations()
    for network in networks:
        network.module.torso.observe(obs)
    values, expected = (network.infer(obs) for network in networks)
    assert float((values - expected).norm() / expected.norm()) < 0.02


def test_a_few_observations_are_not_worth_a_conversion() -> None:
    obs = observations(4)
    assert torch.equal(FlatNetwork(build(), path=BFLOAT16).infer(obs), FlatNetwork(build()).infer(obs))


@pytest.mark.parametrize(
    ("flags", "compiler", "expected"),
    [
        (("avx2", "avx512f"), True, REFERENCE),
        (("avx512f", "avx512_bf16"), True, BFLOAT16),
        (("avx512_bf16", "amx_bf16"), True, BFLOAT16),
    ],
)
def test_auto_follows_the_processor(set_flags, flags, compiler, expected) -> None:
    set_flags(*flags, compiler=compiler)
    assert choose_path(NetworkConfig(), large(), "cpu") == expected


def test_what_is_asked_for_is_done_or_said(set_flags) -> None:
    set_flags("avx512_bf16", "amx_bf16")
    reference = NetworkConfig(precision="float32")
    assert choose_path(reference, large(), "cpu") == REFERENCE
    assert not choose_path(NetworkConfig(compile="never"), large(), "cpu").is_compiled
    always = NetworkConfig(precision="float32", compile="always")
    assert choose_path(always, build(), "cpu").describe() == "float32, compiled"
    set_flags(compiler=False)
    without = choose_path(always, build(), "cpu")
    assert dataclasses.replace(without, note="") == REFERENCE
    assert "needs a C++ compiler" in without.note


def test_a_small_network_and_one_without_convolutions_are_left_alone(set_flags) -> None:
    set_flags("avx512_bf16", "amx_bf16")
    torso = Torso(NetworkConfig(), (4,), "float32")
    assert choose_path(NetworkConfig(), QNetwork(torso, nn.Linear(128, 2)), "cpu") == REFERENCE
    assert choose_path(NetworkConfig(), build(), "cpu") == REFERENCE
    assert choose_path(NetworkConfig(), nn.Conv2d(4, 1, 8), "cpu") == REFERENCE


def test_flags_are_read_as_the_kernel_writes_them(tmp_path: Path) -> None:
    x86, arm = tmp_path / "x86", tmp_path / "arm"
    x86.write_text("processor\t: 0\nflags\t\t: fpu avx512_bf16\nflags\t\t: other\n")
    arm.write_text("processor\t: 0\nFeatures\t: fp asimd bf16\n")
    assert cpu_flags(x86) == {"fpu", "avx512_bf16"}
    assert cpu_flags(arm) == {"fp", "asimd", "bf16"}
    assert cpu_flags(tmp_path / "none") == frozenset()


@pytest.mark.slow
@pytest.mark.skipif(bool(paths.what_compiling_lacks("cpu")), reason="needs a C++ compiler")
def test_what_is_compiled_fits_every_network_of_the_run_and_follows_the_vector() -> None:
    from torch._dynamo.utils import counters

    obs, path = observations(), ComputePath("float32", channels_last=True, is_compiled=True)
    values, gradient = output_and_gradient(path, obs)
    expected, reference = output_and_gradient(REFERENCE, obs)
    torch.testing.assert_close(values, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(gradient, reference, rtol=1e-3, atol=1e-5)
    first, second = FlatNetwork(build(), path=path), FlatNetwork(build(), path=path, trainable=False)
    first.infer(obs), second.infer(obs)
    num_graphs = counters["stats"]["unique_graphs"]
    for scale in (0.5, 2.0):
        first.vector.mul_(scale)
        second.vector.mul_(scale)
        twin = FlatNetwork(build())
        twin.vector.copy_(first.vector)
        want = twin.infer(obs)
        for network in (first, second):
            torch.testing.assert_close(network.infer(obs), want, rtol=1e-3, atol=1e-4)
        first.backpropagate(obs, lambda output: (output, None))
        assert first.infer(observations(5)).shape == (5, 3)  # of another size than updates have: not compiled
    assert counters["stats"]["unique_graphs"] == num_graphs
    np.testing.assert_array_equal(list(counters["recompiles"]), [])
