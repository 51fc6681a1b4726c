"""Spectral normalisation: a layer's weight divided by its largest singular value.

Miyato et al. (2018); of chosen layers in Q-learning, Gogianu et al. (2021). The estimate's vector is a float buffer, so
it is part of snapshots and checkpoints; it is renewed once an update, never while acting. Floor 2.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from qfleet.errors import UsageError

_FIRST_ITERATIONS = 15


class SpectralNorm(nn.Module):
    """A Linear or Conv2d whose weight W, as a matrix [out, rest], acts as W / sigma, sigma ~ its spectral norm.

    sigma = u^T W v with v = W^T u / |W^T u|; u is improved by power iteration (`observe`). The gradient passes through
    sigma too, with u and v as constants.

    Args:
        layer: its parameters are trained; it is called by this module alone.
    """

    u: Tensor

    def __init__(self, layer: nn.Linear | nn.Conv2d) -> None:
        super().__init__()
        self.layer = layer
        self.register_buffer("u", functional.normalize(torch.randn(layer.weight.shape[0]), dim=0))
        for _ in range(_FIRST_ITERATIONS):
            self.observe()

    @torch.no_grad()
    def observe(self) -> None:
        """One power iteration, in place."""
        matrix = self.layer.weight.flatten(1)
        self.u.copy_(functional.normalize(matrix @ (matrix.t() @ self.u), dim=0))

    def weight(self) -> Tensor:
        """W / sigma, in the layer's own shape; float32 whatever the layers compute in."""
        weight = self.layer.weight
        matrix = weight.flatten(1)
        with torch.autocast(weight.device.type, enabled=False):
            with torch.no_grad():
                v = functional.normalize(matrix.t() @ self.u, dim=0)
            return weight / torch.dot(self.u, matrix @ v)

    def forward(self, inputs: Tensor) -> Tensor:
        """As the layer's own, with the normalised weight."""
        layer = self.layer
        if isinstance(layer, nn.Linear):
            return functional.linear(inputs, self.weight(), layer.bias)
        return functional.conv2d(
            inputs, self.weight(), layer.bias, layer.stride, layer.padding, layer.dilation, layer.groups
        )


def normalise_layers(body: nn.Module, places: tuple[int, ...]) -> None:
    """Put SpectralNorm around chosen layers of a torso, in place.

    Args:
        body: its Linear and Conv2d layers are counted from the end.
        places: as in the paper: -1 would be the network's output, which is the head's; -2 is the torso's last layer.

    Raises:
        UsageError: the torso has not so many layers.
    """
    found = [name for name, layer in body.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
    for place in places:
        if not -len(found) <= place + 1 <= -1:
            raise UsageError(
                f"network.spectral_norm = {list(places)}: this torso has {len(found)} layers, "
                f"-2 (the last) to {-len(found) - 1} (the first)"
            )
    for place in set(places):
        parent, _, name = found[place + 1].rpartition(".")
        layer = body.get_submodule(found[place + 1])
        assert isinstance(layer, nn.Linear | nn.Conv2d)
        setattr(body.get_submodule(parent), name, SpectralNorm(layer))


def spectral_layers(module: nn.Module) -> list[SpectralNorm]:
    """The normalised layers of a network."""
    return [layer for layer in module.modules() if isinstance(layer, SpectralNorm)]
