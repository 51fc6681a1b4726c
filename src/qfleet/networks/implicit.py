"""Implicit quantile head: the value of any fraction tau of the return distribution, for each action.

Features of the observation times features of tau. Dabney et al. (2018b), Implicit Quantile Networks, equation 4.
Floor 2.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from qfleet.networks.heads import DuelingHead, LinearHead, linear_layer
from qfleet.networks.noisy import RandomLayer
from qfleet.ops.quantiles import midpoints

# What fractions are drawn for. Each purpose has random numbers of its own: they depend on the role's last draw alone,
# and not on how often a network was asked since.
Purpose = Literal["act", "learn", "target", "choice", "present"]
_PURPOSES: tuple[Purpose, ...] = ("act", "learn", "target", "choice", "present")


class ImplicitQuantileHead(RandomLayer):
    """Z_tau(s, a) = f(psi(s) * phi(tau)), phi_j(tau) = ReLU(sum_(i < n) cos(pi i tau) w_ij + b_j).

    f is a linear or dueling layer, with a hidden layer before it where `hidden` says so.

    Args:
        num_features, num_actions: F and A.
        num_fractions: K, how many fractions stand for the distribution where none are given.
        num_cosines: n.
        hidden: width of the hidden layer, or None.
        dueling, noisy: of f.
    """

    def __init__(
        self,
        num_features: int,
        num_actions: int,
        *,
        num_fractions: int,
        num_cosines: int,
        hidden: int | None = None,
        dueling: bool = False,
        noisy: bool = False,
    ) -> None:
        super().__init__()
        self.num_fractions = num_fractions
        self.num_cosines = num_cosines
        self.embedding = nn.Linear(num_cosines, num_features)
        self.hidden = None if hidden is None else linear_layer(num_features, hidden, noisy=noisy)
        head_class = DuelingHead if dueling else LinearHead
        self.values = head_class(hidden or num_features, num_actions, noisy=noisy)
        self.mean_only = False
        self._seed = 0

    def resample(self, generator: torch.Generator) -> None:
        """Begin new random numbers for every purpose."""
        self._seed = int(torch.randint(2**48, (), generator=generator))

    def fractions(self, batch: int, num: int, purpose: Purpose) -> Tensor:
        """float32 [batch, num], uniform in [0, 1), equal until `resample`; with `mean_only` fixed ones, [1, num]."""
        device = self.embedding.weight.device
        if self.mean_only:
            return midpoints(num).unsqueeze(0).to(device)
        generator = torch.Generator().manual_seed(self._seed * len(_PURPOSES) + _PURPOSES.index(purpose))
        return torch.rand(batch, num, generator=generator).to(device, non_blocking=True)

    def forward(self, features: Tensor, fractions: Tensor | None = None) -> Tensor:
        """float [B, F], fractions float [B, N] or [1, N] -> float [B, A, N]; without fractions at K fixed ones."""
        if fractions is None:
            fractions = midpoints(self.num_fractions).unsqueeze(0).to(features.device)
        steps = math.pi * torch.arange(self.num_cosines, dtype=features.dtype, device=features.device)
        embedded = torch.relu(self.embedding(torch.cos(fractions.unsqueeze(2) * steps)))
        product = (features.unsqueeze(1) * embedded).flatten(0, 1)
        if self.hidden is not None:
            product = torch.relu(self.hidden(product))
        values: Tensor = self.values(product)
        # Not len(features): a tracer takes that for a constant, and the exported network for one of that batch size.
        return values.reshape(features.shape[0], fractions.shape[1], -1).transpose(1, 2)
