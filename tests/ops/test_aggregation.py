"""Aggregation on tiny matrices by hand, and against naive loops."""

from __future__ import annotations

import math
import statistics

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qfleet.ops import aggregation
from qfleet.ops.aggregation import (
    coordinate_median,
    fed_adam,
    krum,
    krum_scores,
    krum_selection,
    mean,
    proximal_gradient,
    squared_distances,
    trimmed_mean,
)

Float32 = npt.NDArray[np.float32]

# Four honest points at the corners of a rectangle, their middle, and an outlier.
POINTS = np.array([[0, 0], [1, 0], [0, 2], [1, 2], [0.5, 1], [10, 10]], np.float32)
# |a - b|^2, coordinate by coordinate: (0,0)-(1,2) is 1 + 4 = 5; the middle is 0.25 + 1 = 1.25 from each corner;
# the outlier is 100 + 100, 81 + 100, 100 + 64, 81 + 64 from the corners and 90.25 + 81 from the middle.
DISTANCES = np.array(
    [
        [0, 1, 4, 5, 1.25, 200],
        [1, 0, 5, 4, 1.25, 181],
        [4, 5, 0, 1, 1.25, 164],
        [5, 4, 1, 0, 1.25, 145],
        [1.25, 1.25, 1.25, 1.25, 0, 171.25],
        [200, 181, 164, 145, 171.25, 0],
    ]
)


@st.composite
def matrices(draw: st.DrawFn) -> Float32:
    num_updates, size = draw(st.integers(1, 9)), draw(st.integers(1, 5))
    entry = st.floats(-1e6, 1e6, width=32)
    rows = draw(st.lists(st.lists(entry, min_size=size, max_size=size), min_size=num_updates, max_size=num_updates))
    return np.array(rows, np.float32)


# Below its normal numbers float32 has steps, not digits: a mean may be one step off.
SUBNORMAL = float(np.finfo(np.float32).smallest_subnormal)


def bits(vector: npt.NDArray[np.floating]) -> bytes:
    return vector.tobytes()


def test_mean_by_hand() -> None:
    updates = [np.array([1, 10], np.float32), np.array([3, -10], np.float32), np.array([8, 30], np.float32)]
    result = mean(updates)
    np.testing.assert_array_equal(result, [4, 10])  # 12 / 3, 30 / 3
    assert result.dtype == np.float32
    # Samples 1, 2, 5: (1 + 6 + 40) / 8 = 5.875 and (10 - 20 + 150) / 8 = 17.5.
    np.testing.assert_array_equal(mean(updates, np.array([1.0, 2.0, 5.0])), [5.875, 17.5])
    np.testing.assert_array_equal(mean(np.stack(updates), np.array([1.0, 2.0, 5.0])), [5.875, 17.5])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("weight", [1.0, 3.0, 0.1, 1e-300])
def test_the_mean_of_one_is_that_one_bit_for_bit(dtype: type[np.floating], weight: float) -> None:
    tiny, huge = np.finfo(dtype).smallest_subnormal, np.finfo(dtype).max
    update = np.array([0.1, -0.0, 0.0, tiny, huge, -np.inf, np.nan, 1 / 3], dtype)
    result = mean([update], np.array([weight]))
    assert result.dtype == dtype
    assert bits(result) == bits(update)
    assert result is not update


def test_an_update_of_weight_0_is_not_read() -> None:
    updates = [np.array([np.nan, 99], np.float32), np.array([0.1, -0.0], np.float32), np.array([98, 98], np.float32)]
    assert bits(mean(updates, np.array([0.0, 7.0, 0.0]))) == bits(updates[1])


def test_the_mean_is_accumulated_in_float64() -> None:
    # 2^24 + 1 is no float32: summed in float32, the first two give 2^24 and the mean (2^24 - 2^24) / 3 = 0, not 1/3.
    updates = np.array([[2.0**24], [1.0], [-(2.0**24)]], np.float32)
    np.testing.assert_allclose(mean(updates), [1 / 3], rtol=1e-6)


@given(matrices(), st.data())
def test_the_mean_is_that_of_exact_sums(updates: Float32, data: st.DataObject) -> None:
    num_updates = len(updates)
    weights = data.draw(st.lists(st.integers(1, 1000), min_size=num_updates, max_size=num_updates))
    expected = [
        math.fsum(w * float(u) for w, u in zip(weights, column, strict=True)) / sum(weights) for column in updates.T
    ]
    largest = float(np.abs(updates).max())
    np.testing.assert_allclose(
        mean(updates, np.array(weights, np.float64)), expected, 1e-7, atol=1e-14 * largest + SUBNORMAL
    )


@pytest.mark.parametrize(
    "weights",
    [[1.0], [[1.0, 1.0]], [1.0, -1.0], [0.0, 0.0], [1.0, np.nan], [1.0, np.inf], [-1.0, 2.0]],
)
def test_bad_weights_are_refused(weights: list[float]) -> None:
    with pytest.raises(ValueError, match="weights must be 2 finite numbers"):
        mean(np.ones((2, 1), np.float32), np.array(weights))


def test_nothing_to_aggregate_is_refused() -> None:
    for rule in (mean, coordinate_median, squared_distances):
        with pytest.raises(ValueError, match="no update"):
            rule([])


def test_median_by_hand() -> None:
    columns = np.array([[3, 99], [1, -4], [2, 98], [1000, -5], [-1000, 7]], np.float32)
    np.testing.assert_array_equal(coordinate_median(columns), [2, 7])  # -1000 1 [2] 3 1000; -5 -4 [7] 98 99
    np.testing.assert_array_equal(coordinate_median(columns[:4]), [2.5, 47])  # 1 [2 3] 1000; -5 [-4 98] 99: 94 / 2
    assert bits(coordinate_median([columns[0]])) == bits(columns[0])


def test_trimmed_mean_by_hand() -> None:
    columns = np.array([[3, 99], [1, -4], [2, 98], [1000, -5], [-1000, 7]], np.float32)
    np.testing.assert_array_equal(trimmed_mean(columns, 1), [2, np.float32(101 / 3)])  # (1+2+3)/3; (-4+7+98)/3
    np.testing.assert_array_equal(trimmed_mean(columns, 2), [2, 7])
    np.testing.assert_array_equal(trimmed_mean(list(columns), 0), mean(columns))
    # Summed as given, the large ones cancel and 1 / 3 is left; sorted, -2^60 + 1 would swallow the 1 first.
    np.testing.assert_array_equal(
        trimmed_mean(np.array([[2.0**60], [-(2.0**60)], [1]], np.float32), 0), [np.float32(1 / 3)]
    )
    for trim in (3, -1):  # 2 * 3 >= 5
        with pytest.raises(ValueError, match=f"cannot drop {trim} of 5"):
            trimmed_mean(columns, trim)
    with pytest.raises(ValueError, match="cannot drop 2 of 4"):  # 2 * 2 >= 4: nothing would be left
        trimmed_mean(columns[:4], 2)


def test_up_to_trim_arbitrary_updates_stay_outside() -> None:
    # Honest values 1, 2, 3; NaN sorts last as infinity does, so two bad ones at one end are the most that trim 2 takes.
    bad = np.array([[1], [np.nan], [3], [np.inf], [2]], np.float32)
    np.testing.assert_array_equal(trimmed_mean(bad, 2), [3])  # 1 2 [3] inf nan
    np.testing.assert_array_equal(coordinate_median(bad), [3])


@given(matrices(), st.data())
def test_robust_means_equal_sorting_each_column(updates: Float32, data: st.DataObject) -> None:
    trim = data.draw(st.integers(0, (len(updates) - 1) // 2))
    kept = [sorted(map(float, column))[trim : len(updates) - trim] for column in updates.T]
    expected = [math.fsum(values) / len(values) for values in kept]
    atol = 1e-14 * float(np.abs(updates).max()) + SUBNORMAL
    np.testing.assert_allclose(trimmed_mean(updates, trim), expected, 1e-7, atol)
    medians = [statistics.median(map(float, column)) for column in updates.T]
    np.testing.assert_allclose(coordinate_median(updates), medians, 1e-7, atol)


def test_squared_distances_by_hand() -> None:
    distances = squared_distances(POINTS)
    np.testing.assert_allclose(distances, DISTANCES, atol=1e-12)
    assert distances.dtype == np.float64
    np.testing.assert_array_equal(distances.diagonal(), 0.0)
    np.testing.assert_array_equal(distances, distances.T)


def test_squared_distances_equal_a_loop_and_add_up_over_slices() -> None:
    # Longer than two blocks of columns, so the blocks' edges are in it; a common offset, as parameters have.
    size = 2 * aggregation._COLUMNS_AT_A_TIME + 17
    updates = (5.0 + np.random.default_rng(0).standard_normal((4, size))).astype(np.float32)
    wide = updates.astype(np.float64)
    expected = [[float(np.square(a - b).sum()) for b in wide] for a in wide]
    np.testing.assert_allclose(squared_distances(list(updates)), expected, rtol=1e-11)
    cut = size // 3
    slices = squared_distances(updates[:, :cut]) + squared_distances(updates[:, cut:])
    np.testing.assert_allclose(slices, expected, rtol=1e-11)


def test_nearly_equal_updates_are_never_a_negative_distance_apart() -> None:
    # Their distance, about 1e-30 of the norm, is lost in float64; what rounding leaves of it may be below 0.
    update = np.random.default_rng(1).standard_normal(1001)
    distances = squared_distances([update * (1 + number * 1e-15) for number in range(20)])
    assert distances.min() >= 0.0
    assert distances.max() <= 1e-12 * float(np.square(update).sum())


def test_krum_scores_by_hand() -> None:
    # N = 6, f = 1: the sum of the 6 - 1 - 2 = 3 nearest others. First corner: 1 + 1.25 + 4 = 6.25, and so the other
    # corners, by symmetry; the middle: 3 * 1.25 = 3.75; the outlier: 145 + 164 + 171.25 = 480.25.
    scores = krum_scores(DISTANCES, 1)
    np.testing.assert_array_equal(scores, [6.25, 6.25, 6.25, 6.25, 3.75, 480.25])
    # f = 0: the 4 nearest: 1 + 1.25 + 4 + 5 = 11.25; 4 * 1.25 = 5; 480.25 + 181 = 661.25.
    np.testing.assert_array_equal(krum_scores(DISTANCES, 0), [11.25, 11.25, 11.25, 11.25, 5, 661.25])


def test_the_diagonal_is_not_read() -> None:
    decoys = DISTANCES.copy()
    np.fill_diagonal(decoys, 99.0)
    np.testing.assert_array_equal(krum_scores(decoys, 1), krum_scores(DISTANCES, 1))
    np.testing.assert_array_equal(decoys.diagonal(), 99.0)  # and the caller's matrix is left as it was


def test_krum_picks_the_middle_and_multi_krum_averages_the_best() -> None:
    np.testing.assert_array_equal(krum_selection(DISTANCES, 1), [4])
    assert bits(krum(POINTS, 1)) == bits(POINTS[4])
    # Three best: the middle, and of the equal corners the first two: (0 + 1 + 0.5) / 3 = 0.5, (0 + 0 + 1) / 3.
    np.testing.assert_array_equal(krum_selection(DISTANCES, 1, 3), [0, 1, 4])
    np.testing.assert_array_equal(krum(list(POINTS), 1, 3), np.array([0.5, 1 / 3], np.float32))
    # All five honest ones: (0 + 1 + 0 + 1 + 0.5) / 5 and (0 + 0 + 2 + 2 + 1) / 5; the plain mean is far off.
    np.testing.assert_array_equal(krum(POINTS, 1, 5), [0.5, 1.0])
    np.testing.assert_array_equal(mean(POINTS), np.array([12.5 / 6, 2.5], np.float32))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 3e38])
def test_krum_withstands_an_update_that_is_not_finite(bad: float) -> None:
    points = POINTS.copy()
    points[5, 0] = bad
    assert bits(krum(points, 1)) == bits(POINTS[4])
    np.testing.assert_array_equal(krum(points, 1, 5), [0.5, 1.0])


def test_more_bad_updates_than_declared_are_not_averaged_in() -> None:
    points = POINTS.copy()
    points[3:] = np.nan
    with pytest.raises(ValueError, match="more than 1 of 6 updates hold NaN"):
        krum(points, 1)


def test_krum_refusals() -> None:
    with pytest.raises(ValueError, match=r"at least 2 \* 2 \+ 3 updates"):  # 7 > 6
        krum(POINTS, 2)
    with pytest.raises(ValueError, match="num_byzantine must be 0 or more"):
        krum_scores(DISTANCES, -1)
    for num_selected in (0, 6):
        with pytest.raises(ValueError, match=f"num_selected is {num_selected}.*from 1 to 5"):
            krum(POINTS, 1, num_selected)
    assert krum_scores(DISTANCES[:5, :5], 1).shape == (5,)  # 5 = 2 * 1 + 3 is enough


def test_fed_adam_by_hand() -> None:
    # m = 0.5 * 2 + 0.5 * 4 = 3; v = 0.75 * 4 + 0.25 * 16 = 7; step = 0.1 * 3 / (sqrt 7 + 0.5).
    vector, first, second = (np.array([value, 0], np.float32) for value in (1.0, 2.0, 4.0))
    gradient = np.array([4.0, 0.0], np.float32)
    new_vector, new_first, new_second = fed_adam(vector, gradient, first, second, 0.1, 0.5, 0.75, 0.5)
    np.testing.assert_allclose(new_vector, [1 - 0.3 / (7**0.5 + 0.5), 0], rtol=1e-6)
    np.testing.assert_array_equal(new_first, [3, 0])
    np.testing.assert_array_equal(new_second, [7, 0])
    assert new_vector.dtype == new_first.dtype == new_second.dtype == np.float32
    np.testing.assert_array_equal(vector, [1, 0])  # what was given is left as it was
    np.testing.assert_array_equal(first, [2, 0])


def test_fed_adam_equals_torch_without_its_bias_correction() -> None:
    # torch's step is lr (m / c1) / (sqrt(v / c2) + eps) with c_i = 1 - beta_i^t. Multiply above and below by sqrt(c2):
    # ours with learning rate lr sqrt(c2) / c1 and tau = eps sqrt(c2), where both begin at m = v = 0.
    generator = np.random.default_rng(2)
    vector = generator.standard_normal(20)
    reference = torch.tensor(vector, requires_grad=True)
    optimizer = torch.optim.Adam([reference], lr=0.03, betas=(0.8, 0.95), eps=1e-3)
    first, second = np.zeros(20), np.zeros(20)
    for number in range(1, 21):
        gradient = generator.standard_normal(20)
        c1, root_c2 = 1 - 0.8**number, (1 - 0.95**number) ** 0.5
        vector, first, second = fed_adam(
            vector, gradient, first, second, 0.03 * root_c2 / c1, 0.8, 0.95, 1e-3 * root_c2
        )
        reference.grad = torch.tensor(gradient)
        optimizer.step()
        np.testing.assert_allclose(vector, reference.detach(), rtol=1e-12, atol=1e-12)


def test_proximal_gradient_by_hand() -> None:
    # 1 + 0.5 (3 - 1) = 2 and -2 + 0.5 (1 - 5) = -4: it points away from the anchor, so a descent step leads back.
    gradient, vector, anchor = (np.array(v, np.float32) for v in ([1, -2], [3, 1], [1, 5]))
    np.testing.assert_array_equal(proximal_gradient(gradient, vector, anchor, 0.5), [2, -4])
    tensor = proximal_gradient(torch.tensor(gradient), torch.tensor(vector), torch.tensor(anchor), 0.5)
    np.testing.assert_array_equal(tensor, [2, -4])
    assert bits(proximal_gradient(gradient, vector, anchor, 0.0)) == bits(gradient)


def test_proximal_gradient_is_the_gradient_of_the_proximal_loss() -> None:
    generator = torch.Generator().manual_seed(0)
    weights, anchor = torch.randn(2, 6, generator=generator, dtype=torch.float64)
    weights.requires_grad_()
    (plain,) = torch.autograd.grad(weights.sin().sum(), weights)
    (whole,) = torch.autograd.grad(weights.sin().sum() + 0.35 * (weights - anchor).square().sum(), weights)
    torch.testing.assert_close(proximal_gradient(plain, weights.detach(), anchor, 0.7), whole)  # mu / 2 = 0.35
