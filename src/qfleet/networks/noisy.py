"""Noisy linear layers: exploration learned by the network itself.

Fortunato et al. (2018), Noisy Networks for Exploration, with factorised Gaussian noise (section 3.b).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class RandomLayer(nn.Module):
    """A layer whose output depends on random numbers that its role draws, with a generator of the role's own.

    Attributes:
        mean_only: whether it does without them (evaluation, export).
    """

    mean_only: bool

    def resample(self, generator: torch.Generator) -> None:
        """Draw anew: before an update, and before each choice of actions."""
        raise NotImplementedError


class NoisyLinear(RandomLayer):
    """y = (mu_w + sigma_w * eps_w) x + mu_b + sigma_b * eps_b, with eps_w = f(eps_out) f(eps_in)^T.

    The noise stays fixed until `resample`; `mean_only` switches it off (evaluation, export).

    Args:
        in_features, out_features: as in nn.Linear.
        sigma_init: sigma_0 of the paper (0.5 there).
    """

    noise_weight: Tensor
    noise_bias: Tensor

    def __init__(self, in_features: int, out_features: int, sigma_init: float = 0.5) -> None:
        super().__init__()
        bound = 1.0 / math.sqrt(in_features)
        self.weight = nn.Parameter(torch.empty(out_features, in_features).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(out_features).uniform_(-bound, bound))
        self.weight_sigma = nn.Parameter(torch.full((out_features, in_features), sigma_init * bound))
        self.bias_sigma = nn.Parameter(torch.full((out_features,), sigma_init * bound))
        # Plain attributes, not buffers: noise is not part of what a snapshot carries.
        self.noise_weight = torch.zeros(out_features, in_features)
        self.noise_bias = torch.zeros(out_features)
        self.mean_only = False

    def resample(self, generator: torch.Generator) -> None:
        """Draw fresh noise: f(x) = sign(x) sqrt(|x|) of unit Gaussians."""
        device = self.weight.device
        out_features, in_features = self.weight.shape
        noise = torch.randn(in_features + out_features, generator=generator)
        noise = (noise.sign() * noise.abs().sqrt()).to(device)
        noise_in, noise_out = noise[:in_features], noise[in_features:]
        self.noise_weight = torch.outer(noise_out, noise_in)
        self.noise_bias = noise_out

    def forward(self, features: Tensor) -> Tensor:
        """float [B, in] -> float [B, out]."""
        if self.mean_only:
            return nn.functional.linear(features, self.weight, self.bias)
        weight = torch.addcmul(self.weight, self.weight_sigma, self.noise_weight.to(self.weight.device))
        bias = torch.addcmul(self.bias, self.bias_sigma, self.noise_bias.to(self.bias.device))
        return nn.functional.linear(features, weight, bias)


def noisy_layers(module: nn.Module) -> list[RandomLayer]:
    """The layers of a network that need random numbers, to be found once and resampled often."""
    return [layer for layer in module.modules() if isinstance(layer, RandomLayer)]


def set_mean_only(module: nn.Module, mean_only: bool) -> None:
    """Switch the random numbers of every layer off or on."""
    for layer in noisy_layers(module):
        layer.mean_only = mean_only
