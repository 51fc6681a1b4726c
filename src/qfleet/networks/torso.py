"""Torsos: from an observation to features. A user's own torso stands on equal terms (`--set network=pkg.nets:MyNet`).

The head on top belongs to the algorithm (networks/heads.py).
"""

from __future__ import annotations

import importlib
import math
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from qfleet.config import PositiveInt, Section
from qfleet.errors import UsageError
from qfleet.networks.observations import ObservationNorm, UnitRange

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh, "silu": nn.SiLU, "gelu": nn.GELU}


class NetworkConfig(Section):
    """The torso.

    `hidden` are the widths of the dense layers: all of an mlp's (None: 128, 128), those after a cnn's convolutions
    (None: 512). A torso of your own is called with
    the shape alone: of the other fields only `normalize_observations` matters to it.

    `precision` and `compile` say how a network with convolutions is computed; "auto" is by what the machine can do
    (networks/path.py). float32 without a compiler is the reference.

    `kind`: "auto" (cnn for images of at least 36 x 36, else mlp), "mlp", "cnn" (Mnih et al. 2015), or
    "package.module:Class", called as Class(obs_shape) and mapping float32 [B, *O] to features [B, F].
    """

    kind: str = Field(default="auto", pattern=r"^(auto|mlp|cnn|[\w.]+:\w+)$")
    hidden: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] | None = None
    activation: Literal["relu", "tanh", "silu", "gelu"] = "relu"
    layer_norm: bool = False
    normalize_observations: bool = False
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    compile: Literal["auto", "never", "always"] = "auto"


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


class NatureCNN(nn.Sequential):
    """The convolutions of Mnih et al. (2015) and dense layers, one of 512 there.

    Observations are [C, H, W] (frame stacks) or [H, W, C]; whichever axis is smaller is taken as C.
    """

    def __init__(self, obs_shape: tuple[int, ...], config: NetworkConfig) -> None:
        if len(obs_shape) == 2:
            obs_shape = (1, *obs_shape)
        channels_first = obs_shape[0] <= obs_shape[2]
        channels = obs_shape[0] if channels_first else obs_shape[2]
        convolutions: list[nn.Module] = [ToChannelsFirst(channels_first)]
        for in_channels, out_channels, kernel, stride in ((channels, 32, 8, 4), (32, 64, 4, 2), (64, 64, 3, 1)):
            convolutions += [nn.Conv2d(in_channels, out_channels, kernel, stride), ACTIVATIONS[config.activation]()]
        convolutions.append(nn.Flatten())
        with torch.no_grad():
            flat_size = nn.Sequential(*convolutions)(torch.zeros(1, *obs_shape)).shape[1]
        super().__init__(*convolutions, *dense_layers(flat_size, config.hidden or (512,), config))


class ToChannelsFirst(nn.Module):
    """[B, H, W, C] or [B, H, W] to [B, C, H, W]; a frame stack passes as it is."""

    def __init__(self, channels_first: bool) -> None:
        super().__init__()
        self.channels_first = channels_first

    def forward(self, obs: Tensor) -> Tensor:
        """float [B, *O] -> float [B, C, H, W]."""
        if obs.dim() == 3:
            obs = obs.unsqueeze(1)
        return obs if self.channels_first else obs.permute(0, 3, 1, 2)


class Torso(nn.Module):
    """Preprocessing and the torso proper.

    Attributes:
        num_features: F, size of the output.
        norm: the running normalisation, or None.
    """

    def __init__(self, config: NetworkConfig, obs_shape: tuple[int, ...], obs_dtype: str) -> None:
        super().__init__()
        self.scale = UnitRange() if obs_dtype == "uint8" else nn.Identity()
        self.norm = ObservationNorm(obs_shape) if config.normalize_observations else None
        self.body = build_body(config, obs_shape)
        self.num_features = count_features(self.body, config.kind, obs_shape)

    def observe(self, obs: Tensor) -> None:
        """Let the running normalisation see a batch that is about to be learned from. [B, *O]."""
        if self.norm is not None:
            self.norm.observe(self.scale(obs))

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
    is_image = len(obs_shape) >= 2 and sorted(obs_shape)[-2] >= 36
    if config.kind == "mlp" or (config.kind == "auto" and not is_image):
        return MLP(obs_shape, config)
    if config.kind in ("cnn", "auto"):
        if not is_image or len(obs_shape) > 3:
            raise UsageError(f"network.kind = 'cnn' needs images of at least 36 x 36, not shape {obs_shape}; use 'mlp'")
        return NatureCNN(obs_shape, config)
    return _user_body(config.kind, obs_shape)


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
