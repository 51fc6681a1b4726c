"""Torsos: from an observation to features. A user's own torso stands on equal terms (`--set network=pkg.nets:MyNet`).

The head on top belongs to the algorithm (networks/heads.py).
"""

from __future__ import annotations

import importlib
import math
import re
from typing import Annotated, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from qfleet.config import PositiveInt, Section, did_you_mean
from qfleet.errors import UsageError
from qfleet.networks.convolutions import (
    ConvStyle,
    ToChannelsFirst,
    image_channels,
    impala_layers,
    minatar_layers,
    nature_layers,
    small_layers,
)
from qfleet.networks.observations import ObservationNorm, ToFloat, UnitRange
from qfleet.networks.spectral import normalise_layers, spectral_layers

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh, "silu": nn.SiLU, "gelu": nn.GELU}
# Convolutions of each kind, and the width of the published dense layer behind them.
IMAGE_KINDS = {
    "cnn": (nature_layers, 512),
    "small_cnn": (small_layers, 256),
    "impala_cnn": (impala_layers, 256),
    "minatar_cnn": (minatar_layers, 128),
}
SMALLEST = {"cnn": 36, "small_cnn": 20, "impala_cnn": 8, "minatar_cnn": 3}
MINATAR_BOARD = (10, 10)


class NetworkConfig(Section):
    """The torso.

    `hidden` are the widths of the dense layers: all of an mlp's (None: 128, 128), those after a cnn's convolutions
    (None: the published width). `width` is a factor on a cnn's numbers of channels. `layer_norm` stands behind every
    layer, convolutions too. `spectral_norm` names layers whose weights are divided by their spectral norm, counted from
    the output as Gogianu et al. (2021) do: -2 is the torso's last one. A torso of your own is called with the shape
    alone: of the other fields only `normalize_observations` and `spectral_norm` matter to it.

    `precision` and `compile` say how a network with convolutions is computed; "auto" is by what the machine can do
    (networks/path.py). float32 without a compiler is the reference.

    `kind`: "auto" (minatar_cnn for 10 x 10 x C, cnn for images of at least 36 x 36, else mlp), "mlp", "cnn" (Mnih et
    al. 2015), "small_cnn" (Mnih et al. 2013), "impala_cnn" (Espeholt et al. 2018), "minatar_cnn" (Young and Tian 2019),
    or "package.module:Class", called as Class(obs_shape) and mapping float32 [B, *O] to features [B, F].
    """

    kind: str = "auto"
    hidden: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] | None = None
    width: PositiveInt = 1
    activation: Literal["relu", "tanh", "silu", "gelu"] = "relu"
    layer_norm: bool = False
    spectral_norm: tuple[Annotated[int, Field(le=-2)], ...] = ()
    normalize_observations: bool = False
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    compile: Literal["auto", "never", "always"] = "auto"

    @field_validator("kind")
    @classmethod
    def _known_kind(cls, value: str) -> str:
        known = ["auto", "mlp", *IMAGE_KINDS]
        if value not in known and not re.fullmatch(r"[\w.]+:\w+", value):
            raise ValueError(f"no such network, nor a package.module:Class of yours; {did_you_mean(value, known)}")
        return value


def dense_layers(size: int, widths: tuple[int, ...], config: NetworkConfig) -> list[nn.Module]:
    """Linear, optional LayerNorm, activation; once per width."""
    layers: list[nn.Module] = []
    for width in widths:
        layers.append(nn.Linear(size, width))
        if config.layer_norm:
            layers.append(nn.LayerNorm(width))
        layers.append(ACTIVATIONS[config.activation]())
        size = width
    return layers


class MLP(nn.Sequential):
    """Linear, optional LayerNorm, activation; once per hidden size. Observations are flattened first.

    Args:
        obs_shape: O.
        config: sizes, activation and LayerNorm.
    """

    def __init__(self, obs_shape: tuple[int, ...], config: NetworkConfig) -> None:
        layers: list[nn.Module] = [nn.Flatten()] if len(obs_shape) != 1 else []
        size = math.prod(obs_shape)
        super().__init__(*layers, *dense_layers(size, config.hidden or (128, 128), config))


class ImageBody(nn.Sequential):
    """What `image_body` makes: ToChannelsFirst, convolutions and what stands between them, Flatten, dense layers."""

    @property
    def is_stack(self) -> bool:
        """Whether observations have their channels first: stacks of frames, [C, H, W], or single ones, [H, W]."""
        first = self[0]
        assert isinstance(first, ToChannelsFirst)
        return first.channels_first


def image_body(obs_shape: tuple[int, ...], config: NetworkConfig, kind: str) -> ImageBody:
    """The convolutions of `kind` and dense layers. Observations are [C, H, W] (frame stacks), [H, W, C] or [H, W]."""
    make_layers, width = IMAGE_KINDS[kind]
    channels_first, channels = image_channels(obs_shape)
    style = ConvStyle(ACTIVATIONS[config.activation], config.layer_norm, config.width)
    layers = [ToChannelsFirst(channels_first), *make_layers(channels, style), nn.Flatten()]
    with torch.no_grad():
        flat_size = nn.Sequential(*layers)(torch.zeros(1, *obs_shape)).shape[1]
    return ImageBody(*layers, *dense_layers(flat_size, config.hidden or (width,), config))


class Torso(nn.Module):
    """Preprocessing and the torso proper.

    Attributes:
        num_features: F, size of the output.
        norm: the running normalisation, or None.
    """

    def __init__(self, config: NetworkConfig, obs_shape: tuple[int, ...], obs_dtype: str) -> None:
        super().__init__()
        scales: dict[str, nn.Module] = {"uint8": UnitRange(), "bool": ToFloat()}
        self.scale = scales.get(obs_dtype, nn.Identity())
        self.norm = ObservationNorm(obs_shape) if config.normalize_observations else None
        self.body = build_body(config, obs_shape)
        self.num_features = count_features(self.body, config.kind, obs_shape)
        normalise_layers(self.body, config.spectral_norm)
        self._spectral_layers = spectral_layers(self.body)

    def observe(self, obs: Tensor) -> None:
        """Let what keeps statistics see a batch that is about to be learned from. [B, *O]."""
        if self.norm is not None:
            self.norm.observe(self.scale(obs))
        for layer in self._spectral_layers:
            layer.observe()

    def prepare(self, obs: Tensor) -> Tensor:
        """What the layers see of an observation: [B, *O] -> float [B, *O]."""
        obs = self.scale(obs)
        return obs if self.norm is None else self.norm(obs)

    def forward(self, obs: Tensor) -> Tensor:
        """[B, *O] -> float [B, F]."""
        features: Tensor = self.body(self.prepare(obs))
        return features


def count_features(body: nn.Module, kind: str, obs_shape: tuple[int, ...]) -> int:
    """F, found by two observations of zeros.

    Raises:
        UsageError: the layers fail, give another shape, or behave differently in training than in acting.
    """
    what = f"network.kind = {kind!r}: observations [2, {', '.join(map(str, obs_shape))}]"
    for layer in body.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm | nn.modules.dropout._DropoutNd):
            raise UsageError(
                f"network.kind = {kind!r}: {type(layer).__name__} behaves differently in training than in acting; "
                "use LayerNorm, or leave it out"
            )
    try:
        with torch.no_grad():
            features = body(torch.zeros(2, *obs_shape))
    except Exception as error:
        raise UsageError(f"{what} raised {type(error).__name__}: {str(error).splitlines()[0]}") from error
    if not isinstance(features, Tensor) or features.dim() != 2 or features.shape[0] != 2:
        found = list(features.shape) if isinstance(features, Tensor) else type(features).__name__
        raise UsageError(f"{what} gave {found}; a torso must return features [batch, F]")
    return int(features.shape[1])


def build_body(config: NetworkConfig, obs_shape: tuple[int, ...]) -> nn.Module:
    """The torso's layers for a kind.

    Raises:
        UsageError: a user's class cannot be imported or built, or a CNN is asked for where there is no image.
    """
    kind = choose_kind(obs_shape) if config.kind == "auto" else config.kind
    if kind in IMAGE_KINDS:
        least, size = SMALLEST[kind], sorted(obs_shape)[-2] if len(obs_shape) in (2, 3) else 0
        if size < least:
            fitting = [f"'{name}'" for name, smallest in SMALLEST.items() if smallest <= size]
            raise UsageError(
                f"network.kind = {kind!r} needs images of at least {least} x {least}, not shape {obs_shape}; "
                f"use {' or '.join([*fitting, repr('mlp')])}"
            )
        return image_body(obs_shape, config, kind)
    if config.width != 1:
        raise UsageError(f"network.width = {config.width}: this network has no convolutions; set network.hidden")
    return MLP(obs_shape, config) if kind == "mlp" else _user_body(kind, obs_shape)


def choose_kind(obs_shape: tuple[int, ...]) -> str:
    """What "auto" stands for."""
    if len(obs_shape) == 3 and obs_shape[:2] == MINATAR_BOARD:
        return "minatar_cnn"
    is_image = len(obs_shape) in (2, 3) and sorted(obs_shape)[-2] >= SMALLEST["cnn"]
    return "cnn" if is_image else "mlp"


def _user_body(kind: str, obs_shape: tuple[int, ...]) -> nn.Module:
    module_name, class_name = kind.split(":")
    try:
        factory = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError) as error:
        raise UsageError(f"network.kind = {kind!r}: {error}; is it installed or on PYTHONPATH?") from None
    try:
        body = factory(obs_shape)
    except Exception as error:
        raise UsageError(f"network.kind = {kind!r}: {class_name}({obs_shape}) raised {error!r}") from error
    if not isinstance(body, nn.Module):
        raise UsageError(f"network.kind = {kind!r}: {class_name}({obs_shape}) gave no torch.nn.Module but {body!r}")
    return body
