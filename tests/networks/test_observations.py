"""Running normalisation against numpy over everything seen; pixels to the unit range."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from qfleet.networks.observations import ObservationNorm, UnitRange


@pytest.mark.parametrize("obs_shape", [(3,), (2, 4)])
def test_statistics_equal_numpys_over_all_batches(obs_shape: tuple[int, ...]) -> None:
    generator = np.random.default_rng(0)
    norm = ObservationNorm(obs_shape)
    batches = [
        generator.normal(loc, scale, (size, *obs_shape)).astype(np.float32)
        for loc, scale, size in [(5.0, 2.0, 7), (-3.0, 0.1, 1), (100.0, 9.0, 64), (0.0, 1.0, 33)]
    ]
    for number, batch in enumerate(batches, 1):
        norm.observe(torch.from_numpy(batch))
        seen = np.concatenate(batches[:number]).astype(np.float64)
        np.testing.assert_allclose(norm.mean, seen.mean(axis=0), rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(norm.variance, seen.var(axis=0), rtol=1e-4, atol=1e-5)
        assert norm.count.item() == len(seen)


def test_forward_by_hand() -> None:
    norm = ObservationNorm((2,))
    norm.observe(torch.tensor([[0.0, 10.0], [4.0, 30.0]]))
    # Means 2 and 20, standard deviations 2 and 10: (6 - 2) / 2 = 2, (15 - 20) / 10 = -0.5; far away is cut at 10.
    np.testing.assert_allclose(norm(torch.tensor([[6.0, 15.0], [99.0, -980.0]])), [[2, -0.5], [10, -10]], rtol=1e-6)


def test_before_anything_is_seen_it_changes_nothing() -> None:
    obs = torch.tensor([[1.5, -2.0]])
    np.testing.assert_allclose(ObservationNorm((2,))(obs), obs)


def test_forward_does_not_learn() -> None:
    norm = ObservationNorm((2,))
    norm(torch.full((5, 2), 99.0))
    assert norm.count.item() == 0


def test_unit_range() -> None:
    scaled = UnitRange()(torch.tensor([[0, 51, 255]], dtype=torch.uint8))
    assert scaled.dtype == torch.float32
    np.testing.assert_allclose(scaled, [[0.0, 0.2, 1.0]])
