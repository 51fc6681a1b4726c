"""Convolutions of the field's image networks: Nature's, the smaller one before it, IMPALA's, MinAtar's.

Mnih et al. (2015), Mnih et al. (2013); Espeholt et al. (2018), figure 3, the deep one; Young and Tian (2019). Each is a
list of layers from float [B, *O] to float [B, C, H, W]; dense layers follow in the torso. Floor 2, used by torso.py.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class ConvStyle:
    """What every convolution of a network has in common.

    Attributes:
        activation: class of the layer behind each.
        layer_norm: normalise each convolution's output over channels and pixels (scale and shift by channel).
        width: factor on the published numbers of channels.
    """

    activation: type[nn.Module]
    layer_norm: bool
    width: int

    def after(self, channels: int) -> list[nn.Module]:
        """What follows a convolution, but for its activation."""
        return [nn.GroupNorm(1, channels)] if self.layer_norm else []


def nature_layers(channels: int, style: ConvStyle) -> list[nn.Module]:
    """32 filters of 8 x 8 at stride 4, 64 of 4 x 4 at stride 2, 64 of 3 x 3; for images of at least 36 x 36."""
    return _plain_layers(channels, style, ((32, 8, 4), (64, 4, 2), (64, 3, 1)))


def small_layers(channels: int, style: ConvStyle) -> list[nn.Module]:
    """16 filters of 8 x 8 at stride 4, 32 of 4 x 4 at stride 2; for images of at least 20 x 20."""
    return _plain_layers(channels, style, ((16, 8, 4), (32, 4, 2)))


def _plain_layers(channels: int, style: ConvStyle, sizes: tuple[tuple[int, int, int], ...]) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for filters, kernel, stride in sizes:
        out_channels = filters * style.width
        layers += [nn.Conv2d(channels, out_channels, kernel, stride), *style.after(out_channels), style.activation()]
        channels = out_channels
    return layers


def minatar_layers(channels: int, style: ConvStyle) -> list[nn.Module]:
    """16 filters of 3 x 3."""
    filters = 16 * style.width
    return [nn.Conv2d(channels, filters, 3), *style.after(filters), style.activation()]


def impala_layers(channels: int, style: ConvStyle) -> list[nn.Module]:
    """Three times convolution, pooling by half and two residual blocks, with 16, 32 and 32 filters."""
    layers: list[nn.Module] = []
    for filters in (16, 32, 32):
        out_channels = filters * style.width
        layers += [
            nn.Conv2d(channels, out_channels, 3, padding=1),
            *style.after(out_channels),
            nn.MaxPool2d(3, stride=2, padding=1),
            ResidualBlock(out_channels, style),
            ResidualBlock(out_channels, style),
        ]
        channels = out_channels
    return [*layers, style.activation()]


class ResidualBlock(nn.Module):
    """x + conv(f(conv(f(x)))), f the activation."""

    def __init__(self, channels: int, style: ConvStyle) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(2):
            layers += [style.activation(), nn.Conv2d(channels, channels, 3, padding=1), *style.after(channels)]
        self.layers = nn.Sequential(*layers)

    def forward(self, images: Tensor) -> Tensor:
        """float [B, C, H, W] -> float [B, C, H, W]."""
        changed: Tensor = self.layers(images)
        return images + changed


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


def image_channels(obs_shape: tuple[int, ...]) -> tuple[bool, int]:
    """Whether channels come first, and how many there are.

    [C, H, W] (frame stacks) where the first axis is smaller than the last, else [H, W, C]: MinAtar's Seaquest is
    [10, 10, 10]. [H, W] has one.
    """
    if len(obs_shape) == 2:
        return True, 1
    channels_first = obs_shape[0] < obs_shape[2]
    return channels_first, obs_shape[0] if channels_first else obs_shape[2]
