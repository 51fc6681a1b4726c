"""A network's parameters as one contiguous float32 vector, its gradient as another, its float buffers as a third.

The module holds views of them, so push, pull, averaging, clipping, the optimizer step and the checkpoint are vector
operations. The layout's hash travels with every snapshot.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from qfleet.errors import CheckpointError, UsageError
from qfleet.networks.explicit import ExplicitMLP
from qfleet.networks.path import REFERENCE, ComputePath, forward_of
from qfleet.networks.spectral import spectral_layers
from qfleet.types import ParamSnapshot

Result = TypeVar("Result")


class FlatNetwork:
    """A module together with the vectors that its parameters, gradients and float buffers are views of.

    Args:
        module: the network.
        device: where it is to live.
        trainable: whether it gets a gradient vector.
        path: how it is computed.

    Attributes:
        module: the network itself; `infer` and `backpropagate` are how roles use it.
        vector: float32 [P], all parameters in the order of `module.named_parameters()`.
        gradient: float32 [P], filled by `backward`; None for a network that is never trained (a target, an actor).
        buffers: float32 [F], all floating-point buffers.
        layout_hash: SHA-256 over names and shapes.

    Raises:
        UsageError: the module has no parameters, or one that is not floating point.
    """

    def __init__(
        self,
        module: nn.Module,
        device: torch.device | str = "cpu",
        *,
        trainable: bool = True,
        path: ComputePath = REFERENCE,
    ) -> None:
        self.path = path
        # Nothing may behave differently between acting and learning, nor draw from the global generator.
        self.module = module.to(device=device, dtype=torch.float32).eval()
        named = list(self.module.named_parameters())
        if not named:
            raise UsageError(f"network {type(module).__name__} has no parameters to train")
        parameters = [parameter for _, parameter in named]
        self.vector = torch.cat([parameter.detach().reshape(-1) for parameter in parameters])
        self.gradient = torch.zeros_like(self.vector) if trainable else None
        offset = 0
        for parameter in parameters:
            end = offset + parameter.numel()
            parameter.data = self.vector[offset:end].view(parameter.shape)
            parameter.requires_grad_(trainable)
            if self.gradient is not None:
                parameter.grad = self.gradient[offset:end].view(parameter.shape)
            offset = end
        self._buffer_list = [value for _, value in self.module.named_buffers() if value.is_floating_point()]
        self.buffers = torch.cat([torch.zeros(0, device=device)] + [value.reshape(-1) for value in self._buffer_list])
        offset = 0
        for value in self._buffer_list:
            end = offset + value.numel()
            value.set_(self.buffers[offset:end].view(value.shape))  # type: ignore[call-overload]
            offset = end
        self._norms = spectral_layers(self.module)
        self.layout_hash = layout_hash(self.module)
        self._explicit = ExplicitMLP.of(self.module) if path.is_reference else None
        self._forward = forward_of(self.module, path, lambda: self.vector._version)

    def infer(self, obs: Tensor, *inputs: Tensor) -> Any:
        """The network's output without gradients: [B, *O] -> what the module returns.

        `inputs` are what the head reads beside the features, such as IQN's fractions.
        """
        with torch.no_grad():
            if self._explicit is None:
                return self._forward(obs, *inputs)
            output = self._explicit.forward(obs)
            return output if self._explicit.tail is None else self._explicit.tail(output, *inputs)

    def backpropagate(
        self, obs: Tensor, gradient_of: Callable[[Tensor], tuple[Tensor, Result]], *inputs: Tensor
    ) -> Result:
        """Fill `gradient` with the gradient of a loss of the network's output.

        Args:
            obs: [B, *O].
            gradient_of: maps the output, detached, to the loss's gradient in it and whatever the caller wants back.
            inputs: what the head reads beside the features; no gradient flows there.

        Returns:
            The second value of `gradient_of`.
        """
        assert self.gradient is not None, "this network is not trainable"
        self.gradient.zero_()
        explicit = self._explicit
        if explicit is None:
            return _backward(self._forward(obs, *inputs), gradient_of)
        hidden, cache = explicit.forward_cached(obs)
        if explicit.tail is None:
            gradient, result = gradient_of(hidden)
        else:
            result = _backward(explicit.tail(hidden.requires_grad_(), *inputs), gradient_of)
            assert hidden.grad is not None
            gradient = hidden.grad
        explicit.backward(cache, gradient)
        return result

    @property
    def num_parameters(self) -> int:
        """P, the length of the vector."""
        return self.vector.numel()

    def snapshot(self, version: int) -> ParamSnapshot:
        """An immutable copy of parameters and buffers."""
        vector = self.vector.detach().cpu().numpy().copy()
        buffers = self.buffers.detach().cpu().numpy().copy()
        vector.setflags(write=False)
        buffers.setflags(write=False)
        return ParamSnapshot(version=version, vector=vector, buffers=buffers, layout_hash=self.layout_hash)

    def load(self, snapshot: ParamSnapshot) -> None:
        """Take over a snapshot's parameters and buffers.

        Raises:
            CheckpointError: the snapshot is of another layout.
        """
        if snapshot.layout_hash != self.layout_hash:
            raise CheckpointError(
                f"parameters of another network: layout {snapshot.layout_hash[:12]}, {len(snapshot.vector)} values; "
                f"this one is {self.layout_hash[:12]} with {self.num_parameters}; use the same network and algorithm"
            )
        self.copy_from(np.asarray(snapshot.vector), np.asarray(snapshot.buffers))

    def follow_statistics(self, other: FlatNetwork) -> None:
        """Take over another's observation statistics; the vectors of the spectral norms stay those of own weights."""
        own = [layer.u.clone() for layer in self._norms]
        self.buffers.copy_(other.buffers)
        for layer, vector in zip(self._norms, own, strict=True):
            layer.u.copy_(vector)

    def renew_norms(self) -> None:
        """Let the spectral norms follow a small change of the parameters: one power iteration."""
        for layer in self._norms:
            layer.observe()

    def copy_from(self, vector: np.ndarray, buffers: np.ndarray) -> None:
        """Copy raw vectors in (float32 [P], float32 [F])."""
        self.vector.copy_(as_tensor(vector))
        self.buffers.copy_(as_tensor(buffers))


def layout_hash(module: nn.Module) -> str:
    """SHA-256 of the names and shapes of all parameters and float buffers, in order."""
    layout = [(name, list(value.shape)) for name, value in module.named_parameters()]
    layout += [(name, list(value.shape)) for name, value in module.named_buffers() if value.is_floating_point()]
    return hashlib.sha256(json.dumps(layout).encode()).hexdigest()


def vector_sha256(vector: np.ndarray) -> str:
    """SHA-256 of a parameter vector's bytes (float32, little endian)."""
    return hashlib.sha256(np.ascontiguousarray(vector, dtype="<f4").tobytes()).hexdigest()


def as_tensor(values: np.ndarray) -> Tensor:
    """A tensor of an array that may be read-only (one that came from another role)."""
    # A read-only array must not become a writable tensor; the copy is of a vector and happens once per pull.
    return torch.from_numpy(values if values.flags.writeable else values.copy())


def _backward(output: Tensor, gradient_of: Callable[[Tensor], tuple[Tensor, Result]]) -> Result:
    gradient, result = gradient_of(output.detach())
    output.backward(gradient)  # type: ignore[no-untyped-call]
    return result
