"""Torsos: shapes for vectors and images of every layout, and a user's own network with its refusals."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from qfleet.errors import ConfigError, UsageError
from qfleet.networks.torso import MLP, NetworkConfig, Torso, build_body

CASES = [
    ((4,), "float32", "mlp", 128),
    ((3, 5), "float32", "mlp", 128),
    ((2, 3, 4), "uint8", "mlp", 128),
    ((4, 84, 84), "uint8", "cnn", 512),  # frame stack
    ((84, 84, 3), "uint8", "cnn", 512),  # colours last
    ((84, 84), "uint8", "cnn", 512),
    ((3, 36, 40), "float32", "cnn", 512),
    ((10, 10, 4), "bool", "minatar_cnn", 128),
    ((10, 10, 10), "bool", "minatar_cnn", 128),
]
FIRST_CONVOLUTION = {"mlp": [], "cnn": [32], "minatar_cnn": [16]}


@pytest.mark.parametrize(("obs_shape", "obs_dtype", "kind", "num_features"), CASES)
def test_auto_chooses_by_shape(obs_shape: tuple[int, ...], obs_dtype: str, kind: str, num_features: int) -> None:
    torso = Torso(NetworkConfig(), obs_shape, obs_dtype)
    assert isinstance(torso.body, MLP) == (kind == "mlp")
    filters = [layer.out_channels for layer in torso.body.modules() if isinstance(layer, nn.Conv2d)]
    assert filters[:1] == FIRST_CONVOLUTION[kind]
    assert torso.num_features == num_features
    obs = torch.zeros(3, *obs_shape, dtype=getattr(torch, obs_dtype))
    assert torso(obs).shape == (3, num_features)
    assert torso(obs).dtype == torch.float32


def test_an_image_and_its_transpose_are_the_same_picture() -> None:
    torch.manual_seed(0)
    first, last = Torso(NetworkConfig(), (3, 40, 48), "uint8"), Torso(NetworkConfig(), (40, 48, 3), "uint8")
    last.load_state_dict(first.state_dict())
    image = torch.randint(0, 256, (2, 3, 40, 48), dtype=torch.uint8)
    np.testing.assert_allclose(first(image).detach(), last(image.permute(0, 2, 3, 1)).detach(), atol=1e-6)


def test_pixels_are_scaled_and_floats_are_not() -> None:
    torch.manual_seed(0)
    pixels, floats = Torso(NetworkConfig(), (4,), "uint8"), Torso(NetworkConfig(), (4,), "float32")
    floats.load_state_dict(pixels.state_dict())
    obs = torch.tensor([[0, 51, 102, 255]], dtype=torch.uint8)
    np.testing.assert_allclose(pixels(obs).detach(), floats(obs / 255.0).detach(), atol=1e-6)


def test_the_first_convolutions_are_mnihs() -> None:
    # (84 - 8) / 4 + 1 = 20 -> (20 - 4) / 2 + 1 = 9 -> 9 - 3 + 1 = 7; 64 * 7 * 7 = 3136 inputs to the hidden layer.
    hidden = [layer for layer in Torso(NetworkConfig(), (4, 84, 84), "uint8").body if isinstance(layer, nn.Linear)]
    assert [(layer.in_features, layer.out_features) for layer in hidden] == [(3136, 512)]


def test_sizes_activation_and_layer_norm_are_fields() -> None:
    config = NetworkConfig(hidden=(7, 5), activation="tanh", layer_norm=True)
    kinds = [type(layer) for layer in build_body(config, (3,))]
    assert kinds == [nn.Linear, nn.LayerNorm, nn.Tanh] * 2
    assert Torso(config, (3,), "float32").num_features == 5
    assert nn.LayerNorm not in {type(layer) for layer in build_body(NetworkConfig(), (3,))}
    cnn = build_body(NetworkConfig(layer_norm=True, activation="silu"), (1, 36, 36))
    assert {nn.LayerNorm, nn.GroupNorm, nn.SiLU} <= {type(layer) for layer in cnn}


def test_normalisation_is_learned_by_observe_on_scaled_pixels() -> None:
    torso = Torso(NetworkConfig(normalize_observations=True), (2,), "uint8")
    torso.observe(torch.tensor([[0, 255], [51, 255]], dtype=torch.uint8))
    assert torso.norm is not None
    np.testing.assert_allclose(torso.norm.mean, [0.1, 1.0], rtol=1e-6)
    assert Torso(NetworkConfig(), (2,), "uint8").norm is None


def test_a_cnn_without_an_image_is_refused_with_the_way_out() -> None:
    with pytest.raises(UsageError, match=r"36 x 36, not shape \(4,\); use 'mlp'"):
        build_body(NetworkConfig(kind="cnn"), (4,))
    with pytest.raises(UsageError, match=r"not shape \(4, 20, 20\); use 'small_cnn' or 'impala_cnn' or"):
        build_body(NetworkConfig(kind="cnn"), (4, 20, 20))


MODULE = """
import torch
from torch import nn

class Good(nn.Module):
    def __init__(self, obs_shape):
        super().__init__()
        self.layer = nn.Linear(obs_shape[0], 6)
    def forward(self, obs):
        return self.layer(obs)

class Flat(Good):
    def forward(self, obs):
        return super().forward(obs).sum(dim=1)

class Raises(nn.Module):
    def __init__(self, obs_shape):
        raise KeyError("boom")

class NoModule:
    def __init__(self, obs_shape):
        pass
"""


@pytest.fixture
def nets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "proof_nets.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "proof_nets", raising=False)
    return "proof_nets"


def test_a_users_class_becomes_the_body(nets: str) -> None:
    torso = Torso(NetworkConfig(kind=f"{nets}:Good"), (3,), "float32")
    assert type(torso.body).__name__ == "Good"
    assert torso.num_features == 6


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Raises", r"proof_nets:Raises.*Raises\(\(3,\)\) raised KeyError\('boom'\)"),
        ("NoModule", r"gave no torch.nn.Module"),
        ("Absent", r"no attribute 'Absent'; is it installed or on PYTHONPATH"),
        ("Flat", r"gave \[2\]; a torso must return features \[batch, F\]"),
    ],
)
def test_a_users_class_that_does_not_fit_is_refused(nets: str, name: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Torso(NetworkConfig(kind=f"{nets}:{name}"), (3,), "float32")


def test_a_users_module_that_is_absent_is_refused() -> None:
    with pytest.raises(UsageError, match=r"no_such_module_99:Net.*No module named.*PYTHONPATH"):
        Torso(NetworkConfig(kind="no_such_module_99:Net"), (3,), "float32")


def test_a_misspelt_kind_is_refused_before_anything_runs() -> None:
    from qfleet.config import parse_section

    with pytest.raises(ConfigError, match=r"^network.kind = 'cnnn': no such network.*did you mean cnn\?"):
        parse_section(NetworkConfig, {"kind": "cnnn"}, "network")


def wide_and_deep(obs_shape: tuple[int, ...]) -> nn.Module:
    return nn.Linear(99, 8)  # not what comes in


def with_dropout(obs_shape: tuple[int, ...]) -> nn.Module:
    return nn.Sequential(nn.Linear(obs_shape[0], 8), nn.Dropout(0.5))


def with_batch_norm(obs_shape: tuple[int, ...]) -> nn.Module:
    return nn.Sequential(nn.Linear(obs_shape[0], 8), nn.BatchNorm1d(8))


class Pair(nn.Module):
    def __init__(self, obs_shape: tuple[int, ...]) -> None:
        super().__init__()

    def forward(self, obs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return obs, obs


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("wide_and_deep", r"observations \[2, 4\] raised RuntimeError: mat1 and mat2"),
        ("with_dropout", "Dropout behaves differently in training than in acting"),
        ("with_batch_norm", "BatchNorm1d behaves differently in training than in acting"),
        ("Pair", r"gave tuple; a torso must return features \[batch, F\]"),
    ],
)
def test_a_torso_that_cannot_work_is_refused_before_the_run(
    monkeypatch: pytest.MonkeyPatch, name: str, message: str
) -> None:
    monkeypatch.setitem(sys.modules, "nets_of_mine", sys.modules[__name__])
    with pytest.raises(UsageError, match=message) as caught:
        Torso(NetworkConfig(kind=f"nets_of_mine:{name}"), (4,), "float32")
    assert "\n" not in str(caught.value)


def test_hidden_are_the_dense_layers_of_a_cnn_too() -> None:
    assert Torso(NetworkConfig(hidden=(64, 32)), (4, 84, 84), "uint8").num_features == 32
