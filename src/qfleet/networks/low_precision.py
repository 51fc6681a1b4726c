"""A torso of convolutions in bfloat16, as torch's eager kernels compute it best. Floor 2, used by path.py.

Three things beside autocast. Weights are cast once and kept until they change, instead of at every forward. Images have
their channels last in memory, weights too: oneDNN then converts nothing between layers. Pixels stay whole numbers from
0 to 255, which are exact in bfloat16, and the first convolution's weight takes the 1/255.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call

from qfleet.networks.convolutions import ToChannelsFirst
from qfleet.networks.observations import UnitRange
from qfleet.networks.spectral import spectral_layers
from qfleet.networks.torso import Torso


class LowPrecisionTorso:
    """`torso` in bfloat16: [B, *O] -> float32 [B, F].

    Args:
        torso: its parameters stay float32, and gradients reach them through the casts.
        version: a number that changes whenever the parameters do.
    """

    def __init__(self, torso: Torso, version: Callable[[], int]) -> None:
        self._torso = torso
        self._version = version
        self._kept: tuple[int, dict[str, Tensor]] | None = None
        body = torso.body
        # A user's layers may read a weight in other ways than to multiply by it: theirs are left to autocast.
        own = body if type(body) is nn.Sequential and isinstance(body[0], ToChannelsFirst) else nn.Sequential()
        self._is_stack = len(own) > 0 and own[0].channels_first
        normed = {id(norm.layer) for norm in spectral_layers(own)}  # the norm is one of a float32 weight
        layers = {
            name: layer
            for name, layer in own.named_modules()
            if type(layer) in (nn.Conv2d, nn.Linear) and id(layer) not in normed
        }
        self._parameters = {
            f"{name}.{part}": value for name, layer in layers.items() for part, value in layer.named_parameters()
        }
        self._has_pixels = isinstance(torso.scale, UnitRange) and torso.norm is None
        self._of_pixels = "1.weight" if self._has_pixels and "1" in layers else None

    def __call__(self, obs: Tensor) -> Tensor:
        """[B, *O] -> float32 [B, F]."""
        with torch.autocast(obs.device.type, torch.bfloat16):
            features: Tensor = functional_call(
                self._torso.body, self._weights(), (self._prepare(obs),), tie_weights=False
            )
        return features.float()

    def _prepare(self, obs: Tensor) -> Tensor:
        if self._is_stack and obs.dim() == 4:
            obs = channels_last(obs)
        if self._of_pixels is not None:
            return obs.to(torch.bfloat16)
        if self._has_pixels:
            return obs.to(torch.bfloat16).mul_(1.0 / 255.0)
        return self._torso.prepare(obs)

    def _weights(self) -> dict[str, Tensor]:
        """By name; made anew where gradients are to flow through the cast."""
        if torch.is_grad_enabled():
            return self._cast()
        version = self._version()
        if self._kept is None or self._kept[0] != version:
            self._kept = version, self._cast()
        return self._kept[1]

    def _cast(self) -> dict[str, Tensor]:
        weights = {}
        for name, value in self._parameters.items():
            scaled = value * (1.0 / 255.0) if name == self._of_pixels else value
            layout = torch.channels_last if value.dim() == 4 else torch.preserve_format
            weights[name] = scaled.to(torch.bfloat16, memory_format=layout)
        return weights


def channels_last(images: Tensor) -> Tensor:
    """[B, C, H, W] with the channels last in memory; bytes on a CPU by a kernel seven times as fast as torch's.

    Images may lie apart, as the two stacks of a transition do that share their frames.
    """
    num, channels, height, width = images.shape
    size = height * width
    lies_in_planes = images.stride()[1:] == (size, width, 1)
    if images.dtype != torch.uint8 or images.is_cuda or num == 0 or not lies_in_planes:
        return images.contiguous(memory_format=torch.channels_last)
    from qfleet.networks.interleave import interleave  # numba, which takes a while to load

    stride = images.stride(0)
    planes = images.as_strided(((num - 1) * stride + channels * size,), (1,))
    laid_out = torch.empty((num, height, width, channels), dtype=torch.uint8)
    interleave(planes.numpy(), stride, laid_out.numpy().reshape(num, size, channels))
    return laid_out.permute(0, 3, 1, 2)
