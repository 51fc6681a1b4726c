"""The layers of an MLP written out, forward and backward, on the views of the flat vector.

For small networks autograd's bookkeeping costs more than the arithmetic: here the same aten kernels run in the same
order without it, and each layer's gradient is written straight into its place in the gradient vector. What follows
the last layer that this file knows (a dueling, noisy or distributional head) stays with autograd. Floor 2.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from qfleet.networks.heads import DistributionHead, LinearHead, QNetwork
from qfleet.networks.torso import MLP

_aten = torch.ops.aten


@dataclass(frozen=True, slots=True)
class DenseLayer:
    """One Linear, with the LayerNorm and the ReLU that follow it.

    Tensors are views of the flat vector; the `grad_*` ones are views of the gradient vector.
    """

    weight: Tensor
    bias: Tensor
    grad_weight: Tensor | None
    grad_bias: Tensor | None
    norm: tuple[Tensor, Tensor, float] | None
    grad_norm: tuple[Tensor, Tensor] | None
    has_relu: bool


# What the backward pass needs of one layer: input, pre-norm values, mean, 1/std, output.
LayerCache = tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor]


class ExplicitMLP:
    """Forward and backward of the leading dense layers of a Q-network.

    Args:
        layers: the dense layers in order.
        before: preprocessing (scale, normalisation); no gradient flows through it.
        tail: the rest of the network, differentiated by autograd; None if the layers are all of it.
        shape: of one row of the layers' output; None leaves it [F].
    """

    def __init__(
        self,
        layers: list[DenseLayer],
        before: list[nn.Module],
        tail: nn.Module | None,
        shape: tuple[int, int] | None = None,
    ) -> None:
        self.layers = layers
        self.before = before
        self.tail = tail
        self.shape = shape

    @classmethod
    def of(cls, module: nn.Module) -> ExplicitMLP | None:
        """The explicit form of a network whose parameters are views already, or None if it is built otherwise."""
        if not isinstance(module, QNetwork) or not isinstance(module.torso.body, MLP):
            return None
        torso = module.torso
        before: list[nn.Module] = [] if isinstance(torso.scale, nn.Identity) else [torso.scale]
        if torso.norm is not None:
            before.append(torso.norm)
        body = list(module.torso.body)
        if isinstance(body[0], nn.Flatten):
            before.append(body.pop(0))
        layers = _dense_layers(body)
        if layers is None:
            return None
        head = module.head
        if isinstance(head, LinearHead | DistributionHead) and isinstance(head.values, nn.Linear):
            last = _dense_layers([head.values])
            assert last is not None
            return cls(layers + last, before, None, head.shape if isinstance(head, DistributionHead) else None)
        return cls(layers, before, head)

    @torch.no_grad()
    def forward(self, obs: Tensor) -> Tensor:
        """The layers' output without anything kept: [B, *O] -> float [B, F], or [B, *shape]."""
        hidden = self._prepare(obs)
        for layer in self.layers:
            hidden = torch.addmm(layer.bias, hidden, layer.weight.t())
            if layer.norm is not None:
                weight, bias, epsilon = layer.norm
                hidden = torch.native_layer_norm(hidden, weight.shape, weight, bias, epsilon)[0]
            if layer.has_relu:
                hidden = torch.relu_(hidden)
        return hidden if self.shape is None else hidden.view(-1, *self.shape)

    @torch.no_grad()
    def forward_cached(self, obs: Tensor) -> tuple[Tensor, list[LayerCache]]:
        """As `forward`, with what `backward` needs."""
        hidden = self._prepare(obs)
        cache: list[LayerCache] = []
        for layer in self.layers:
            entering = hidden
            before_norm = hidden = torch.addmm(layer.bias, hidden, layer.weight.t())
            mean = inverse_std = None
            if layer.norm is not None:
                weight, bias, epsilon = layer.norm
                hidden, mean, inverse_std = torch.native_layer_norm(hidden, weight.shape, weight, bias, epsilon)
            if layer.has_relu:
                hidden = torch.relu_(hidden)
            cache.append((entering, before_norm, mean, inverse_std, hidden))
        return hidden if self.shape is None else hidden.view(-1, *self.shape), cache

    @torch.no_grad()
    def backward(self, cache: list[LayerCache], gradient: Tensor) -> None:
        """Write the layers' parameter gradients, given the gradient of their output (float [B, F], or [B, *shape])."""
        gradient = gradient.flatten(1)
        for index in range(len(self.layers) - 1, -1, -1):
            layer = self.layers[index]
            entering, before_norm, mean, inverse_std, leaving = cache[index]
            if layer.has_relu:
                gradient = _aten.threshold_backward(gradient, leaving, 0)
            if layer.norm is not None and layer.grad_norm is not None:
                weight, bias, _ = layer.norm
                gradient, grad_weight, grad_bias = _aten.native_layer_norm_backward(
                    gradient, before_norm, weight.shape, mean, inverse_std, weight, bias, (True, True, True)
                )
                layer.grad_norm[0].copy_(grad_weight)
                layer.grad_norm[1].copy_(grad_bias)
            torch.mm(gradient.t(), entering, out=layer.grad_weight)
            torch.sum(gradient, 0, out=layer.grad_bias)
            if index:
                gradient = torch.mm(gradient, layer.weight)

    def _prepare(self, obs: Tensor) -> Tensor:
        for module in self.before:
            obs = module(obs)
        return obs


def _dense_layers(modules: list[nn.Module]) -> list[DenseLayer] | None:
    """Group Linear [LayerNorm] [ReLU] runs; None if there is anything else."""
    layers: list[DenseLayer] = []
    rest = list(modules)
    while rest:
        linear = rest.pop(0)
        if not isinstance(linear, nn.Linear):
            return None
        norm = rest.pop(0) if rest and isinstance(rest[0], nn.LayerNorm) else None
        assert norm is None or isinstance(norm, nn.LayerNorm)
        has_relu = bool(rest) and type(rest[0]) is nn.ReLU
        if has_relu:
            rest.pop(0)
        layers.append(
            DenseLayer(
                weight=linear.weight.detach(),
                bias=linear.bias.detach(),
                grad_weight=linear.weight.grad,
                grad_bias=linear.bias.grad,
                norm=None if norm is None else (norm.weight.detach(), norm.bias.detach(), norm.eps),
                grad_norm=_gradients(norm),
                has_relu=has_relu,
            )
        )
    return layers


def _gradients(norm: nn.LayerNorm | None) -> tuple[Tensor, Tensor] | None:
    if norm is None or norm.weight.grad is None or norm.bias.grad is None:
        return None
    return norm.weight.grad, norm.bias.grad
