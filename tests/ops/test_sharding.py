"""Draws over shards: the identity with exact fractions, and the counts by chi-square."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from qfleet.ops.sharding import draw_counts, global_probabilities, shard_shares

PRIORITIES = [[1, 3], [2], [4, 4, 2]]  # totals 4, 2, 10; 16 in all


def test_drawing_shard_then_transition_is_drawing_from_all() -> None:
    # Every path through the two draws, in exact fractions: 4/16 * 1/4 = 1/16, 4/16 * 3/4 = 3/16, 2/16 * 1 = 2/16, ...
    paths = [Fraction(sum(shard), 16) * Fraction(p, sum(shard)) for shard in PRIORITIES for p in shard]
    assert paths == [Fraction(p, 16) for shard in PRIORITIES for p in shard]

    shares = shard_shares(np.array([4.0, 2.0, 10.0]))
    np.testing.assert_array_equal(shares, [0.25, 0.125, 0.625])
    ours = [
        global_probabilities(np.array(shard, np.float64) / sum(shard), float(share))
        for shard, share in zip(PRIORITIES, shares, strict=True)
    ]
    np.testing.assert_allclose(np.concatenate(ours), [float(path) for path in paths], rtol=1e-15)
    assert np.concatenate(ours).dtype == np.float64


def test_counts_follow_the_totals() -> None:
    # 4000 batches of 32 = 128000 draws over shares 1/16, 3/16, 4/16, 8/16. Pearson's sum of (seen - expected)^2 /
    # expected has 3 degrees of freedom; it passes 16.27 once in 1000 seeds (99.9% quantile), and this seed is fixed.
    shares, generator = np.array([1, 3, 4, 8]) / 16, np.random.default_rng(0)
    draws = np.array([draw_counts(np.array([0.5, 1.5, 2.0, 4.0]), 32, generator) for _ in range(4000)])
    assert (draws.sum(axis=1) == 32).all()
    expected = 128_000 * shares
    assert float((np.square(draws.sum(axis=0) - expected) / expected).sum()) < 16.27
    # Each count is binomial, not a rounded share: variance 32 p (1 - p), here within 10% (4 of its standard errors,
    # which are about sqrt(2 / 4000) = 2.2% each).
    np.testing.assert_allclose(draws.var(axis=0), 32 * shares * (1 - shares), rtol=0.1)


def test_transitions_drawn_through_shards_follow_the_global_probabilities() -> None:
    # Both draws together, 40000 transitions of six kinds: 5 degrees of freedom, 99.9% quantile 20.52.
    generator = np.random.default_rng(1)
    seen = np.zeros(6)
    offsets = np.cumsum([0, *map(len, PRIORITIES)])
    for _ in range(400):
        counts = draw_counts(np.array([4.0, 2.0, 10.0]), 100, generator)
        for shard, count, offset in zip(PRIORITIES, counts, offsets, strict=False):
            drawn = generator.choice(len(shard), count, p=np.array(shard) / sum(shard))
            seen += np.bincount(drawn + offset, minlength=6)
    expected = 40_000 * np.array([p for shard in PRIORITIES for p in shard]) / 16
    assert float((np.square(seen - expected) / expected).sum()) < 20.52


def test_an_empty_shard_gives_nothing() -> None:
    # Thirds do not add up to 1 in float64, and numpy would give what is left over to the last category.
    generator = np.random.default_rng(0)
    for _ in range(200):
        counts = draw_counts(np.array([0.0, 0.1, 0.1, 0.1, 0.0]), 64, generator)
        assert counts[[0, 4]].tolist() == [0, 0]
        assert counts.sum() == 64
    assert counts.dtype == np.int64


@pytest.mark.parametrize("totals", [[7.0], [0.0, 7.0, 0.0]])
def test_the_only_filled_shard_gives_all_and_draws_no_randomness(totals: list[float]) -> None:
    generator = np.random.default_rng(0)
    before = generator.bit_generator.state
    assert draw_counts(np.array(totals), 32, generator).tolist() == [32 if total else 0 for total in totals]
    assert generator.bit_generator.state == before
    local = np.array([0.1, 1 / 3])
    assert global_probabilities(local, 1.0).tobytes() == local.tobytes()


@pytest.mark.parametrize("totals", [[0.0, 0.0], [1.0, -1.0], [3.0, -1.0], [1.0, np.nan], [1.0, np.inf], []])
def test_bad_totals_are_refused(totals: list[float]) -> None:
    with pytest.raises(ValueError, match="totals must be finite"):
        draw_counts(np.array(totals), 4, np.random.default_rng(0))


@pytest.mark.parametrize("share", [0.0, -0.5, 1.5, np.nan])
def test_bad_shares_are_refused(share: float) -> None:
    with pytest.raises(ValueError, match="share is"):
        global_probabilities(np.array([0.5]), share)
