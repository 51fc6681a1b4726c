"""A torso of convolutions in bfloat16, as torch's eager kernels compute it best. Floor 2, used by path.py.

Weights are cast once and kept until they change, instead of by autocast at every forward. Images have their channels
last in memory, weights and gradients too: oneDNN then converts nothing between layers. Pixels stay whole numbers from 0
to 255, which are exact in bfloat16, and the first convolution's weight takes the 1/255. Where asked, the first
convolution reads blocks of pixels (image_layout.py). Autocast is left what is none of this: norms, a user's layers.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from qfleet.networks.image_layout import FlattenImages, can_read_blocks, channels_last, fold_weight, in_blocks
from qfleet.networks.observations import UnitRange
from qfleet.networks.spectral import spectral_layers
from qfleet.networks.torso import ImageBody, Torso

_FIRST = "1"  # the first convolution's name, behind what turns channels


class LowPrecisionTorso:
    """`torso` in bfloat16: [B, *O] -> float32 [B, F].

    Args:
        torso: its parameters stay float32, and gradients reach them through the casts.
        version: a number that changes whenever the parameters do.
        reads_blocks: whether the first convolution is to read blocks of pixels; only where `fits_blocks`.
    """

    def __init__(self, torso: Torso, version: Callable[[], int], *, reads_blocks: bool = False) -> None:
        self._torso = torso
        self._version = version
        self._kept: dict[str, tuple[int, Tensor]] = {}  # of which version
        body = torso.body
        # A user's layers may read a weight in other ways than to multiply by it: theirs are left to autocast.
        self._layers = list(body.named_children()) if isinstance(body, ImageBody) else [("", body)]
        self._parameters = _castable(body) if isinstance(body, ImageBody) else {}
        self._parts = {
            name: [part.removeprefix(f"{name}.") for part in self._parameters if part.startswith(f"{name}.")]
            for name, _ in self._layers
        }
        self._needs_autocast = len(self._parameters) < len(list(body.parameters()))
        self._is_stack = isinstance(body, ImageBody) and body.is_stack
        self._has_pixels = _has_pixels(torso)
        self._of_pixels = _FIRST if self._has_pixels and f"{_FIRST}.weight" in self._parameters else ""
        self._of_blocks = _FIRST if reads_blocks else ""

    def __call__(self, obs: Tensor) -> Tensor:
        """[B, *O] -> float32 [B, F]."""
        with torch.autocast(obs.device.type, torch.bfloat16, enabled=self._needs_autocast):
            values = self._prepare(obs)
            for name, layer in self._layers:
                values = self._apply(name, layer, values)
        return values.float()

    def _prepare(self, obs: Tensor) -> Tensor:
        if self._of_blocks:
            obs = in_blocks(obs)
        elif self._is_stack and obs.dim() == 4:
            obs = channels_last(obs)
        if self._of_pixels:
            return obs.to(torch.bfloat16)
        if self._has_pixels:
            return obs.to(torch.bfloat16).mul_(1.0 / 255.0)
        prepared = self._torso.prepare(obs)
        return prepared if self._needs_autocast else prepared.to(torch.bfloat16)

    def _apply(self, name: str, layer: nn.Module, values: Tensor) -> Tensor:
        result: Tensor
        weights = {part: self._weight(f"{name}.{part}") for part in self._parts[name]}
        if type(layer) is nn.Flatten and name:
            result = FlattenImages.apply(values)  # type: ignore[no-untyped-call]
        elif not weights:
            result = layer(values)
        elif type(layer) is nn.Linear:
            result = functional.linear(values, weights["weight"], weights.get("bias"))
        elif type(layer) is nn.Conv2d:
            stride = (1, 1) if name == self._of_blocks else layer.stride
            result = functional.conv2d(
                values, weights["weight"], weights.get("bias"), stride, layer.padding, layer.dilation, layer.groups
            )
        else:
            result = functional_call(layer, weights, (values,), tie_weights=False)
        return result

    def _weight(self, name: str) -> Tensor:
        """A parameter in bfloat16; made anew where gradients are to flow through the cast."""
        if torch.is_grad_enabled():
            return self._cast(name)
        version, kept = self._version(), self._kept.get(name)
        if kept is None or kept[0] != version:
            kept = self._kept[name] = version, self._cast(name)
        return kept[1]

    def _cast(self, name: str) -> Tensor:
        value = self._parameters[name]
        if name == f"{self._of_pixels}.weight":
            value = value * (1.0 / 255.0)
        if name == f"{self._of_blocks}.weight":
            value = fold_weight(value)
        layout = torch.channels_last if value.dim() == 4 else torch.preserve_format
        return value.to(torch.bfloat16, memory_format=layout)


def fits_blocks(torso: Torso) -> bool:
    """Whether a torso's first convolution can read blocks of pixels."""
    body = torso.body
    if not (isinstance(body, ImageBody) and body.is_stack and _has_pixels(torso)):
        return False
    return can_read_blocks(body.get_submodule(_FIRST))


def _has_pixels(torso: Torso) -> bool:
    return isinstance(torso.scale, UnitRange) and torso.norm is None


def _castable(body: nn.Module) -> dict[str, Tensor]:
    """The parameters of convolutions and dense layers, by name, but for those with a spectral norm.

    That one is a norm of the float32 weight.
    """
    normed = {id(norm.layer) for norm in spectral_layers(body)}
    layers = {
        name: layer
        for name, layer in body.named_modules()
        if type(layer) in (nn.Conv2d, nn.Linear) and id(layer) not in normed
    }
    return {f"{name}.{part}": value for name, layer in layers.items() for part, value in layer.named_parameters()}
