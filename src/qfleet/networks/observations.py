"""What happens to an observation before the torso: uint8 and bool to unit range, running normalisation."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ObservationNorm(nn.Module):
    """(obs - mean) / sqrt(variance), clipped to +-10, with running statistics of what the learner has seen.

    The statistics are float buffers, so they travel with every snapshot and are part of every checkpoint. Merging
    follows Chan et al. (1979), the parallel variance formula.

    Args:
        obs_shape: O, shape of one observation.
    """

    mean: Tensor
    variance: Tensor
    count: Tensor

    def __init__(self, obs_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(obs_shape))
        self.register_buffer("variance", torch.ones(obs_shape))
        self.register_buffer("count", torch.zeros(1))

    @torch.no_grad()
    def observe(self, obs: Tensor) -> None:
        """Merge a batch into the statistics, in place. float [B, *O]."""
        batch_count = obs.shape[0]
        batch_mean = obs.mean(dim=0)
        batch_variance = obs.var(dim=0, unbiased=False)
        total = self.count + batch_count
        shift = batch_mean - self.mean
        summed = self.variance * self.count + batch_variance * batch_count
        summed += shift.square() * self.count * batch_count / total
        self.mean.add_(shift * batch_count / total)
        self.variance.copy_(summed / total)
        self.count.copy_(total)

    def forward(self, obs: Tensor) -> Tensor:
        """float [B, *O] -> float [B, *O]."""
        return ((obs - self.mean) * (self.variance + 1e-8).rsqrt()).clamp(-10.0, 10.0)


class UnitRange(nn.Module):
    """uint8 pixels to float32 in [0, 1]."""

    def forward(self, obs: Tensor) -> Tensor:
        """uint8 [B, *O] -> float32 [B, *O]."""
        return obs.to(torch.float32) * (1.0 / 255.0)


class ToFloat(nn.Module):
    """bool to float32, 0 or 1."""

    def forward(self, obs: Tensor) -> Tensor:
        """bool [B, *O] -> float32 [B, *O]."""
        return obs.to(torch.float32)
