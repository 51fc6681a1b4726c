"""bfloat16 by hand and against torch's own conversion; top-k and error feedback by hand and against naive loops."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qfleet.ops.compression import compress_with_feedback, from_bfloat16, scatter, to_bfloat16, top_k

Float32 = npt.NDArray[np.float32]

small_floats = st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.0, -2.0, 0.5]) | st.floats(-1e3, 1e3, width=32)
vectors = st.lists(small_floats, min_size=1, max_size=12).map(lambda values: np.array(values, np.float32))


def from_bits(*bits: int) -> Float32:
    return np.array(bits, np.uint32).view(np.float32)


@pytest.mark.parametrize(
    ("bits", "expected"),
    [
        (0x3F800000, 0x3F80),  # 1 is 1
        (0x3F807FFF, 0x3F80),  # below half a step: down
        (0x3F808000, 0x3F80),  # a tie, and 80 is even: down
        (0x3F808001, 0x3F81),  # above half a step: up
        (0x3F818000, 0x3F82),  # a tie, and 81 is odd: up, to the even 82
        (0xBF818000, 0xBF82),  # the same away from zero for a negative one
        (0x3FFF8000, 0x4000),  # a tie that carries through the fraction into the exponent: 2
        (0x00000000, 0x0000),
        (0x80000000, 0x8000),  # -0 keeps its sign
        (0x00008001, 0x0001),  # subnormal, up
        (0x7F7F7FFF, 0x7F7F),  # rounds down to the largest finite one
        (0x7F7F8000, 0x7F80),  # half a step beyond it: infinity
        (0x7F800000, 0x7F80),  # infinities stay
        (0xFF800000, 0xFF80),
        (0x7F800001, 0x7FC0),  # a NaN whose payload is cut off must not become infinity
        (0x7FFFFFFF, 0x7FC0),  # a NaN that rounding would carry into -0
        (0xFFFFFFFF, 0xFFC0),  # a NaN that rounding would carry out of the word, into +0
    ],
)
def test_to_bfloat16_by_hand(bits: int, expected: int) -> None:
    result = to_bfloat16(from_bits(bits))
    assert result.dtype == np.uint16
    assert result.tolist() == [expected]


def test_bfloat16_equals_torch() -> None:
    # A million random bit patterns, each rounding case of every exponent among them.
    generator = np.random.default_rng(0)
    patterns = generator.integers(0, 2**32, 1_000_000, np.uint32)
    upper = np.arange(2**16, dtype=np.uint32) << 16
    ties = np.concatenate([upper | lower for lower in (0x0000, 0x7FFF, 0x8000, 0x8001, 0xFFFF)])
    vector = np.concatenate([patterns, ties]).view(np.float32)
    theirs = torch.from_numpy(vector).bfloat16()
    ours = to_bfloat16(vector)
    nan = np.isnan(vector)
    their_bits = theirs.view(torch.int16).numpy().view(np.uint16)
    np.testing.assert_array_equal(ours[~nan], their_bits[~nan])
    assert nan.sum() > 1000
    assert np.isnan(from_bfloat16(ours)[nan]).all()
    np.testing.assert_array_equal(from_bfloat16(ours), theirs.float().numpy())


def test_every_bfloat16_comes_back_as_it_was() -> None:
    all_of_them = np.arange(2**16, dtype=np.uint16)
    wide = from_bfloat16(all_of_them)
    assert wide.dtype == np.float32
    number = ~np.isnan(wide)
    np.testing.assert_array_equal(to_bfloat16(wide)[number], all_of_them[number])


def test_a_strided_view_is_rounded_like_its_copy() -> None:
    vector = np.arange(10, dtype=np.float32) / 3
    np.testing.assert_array_equal(to_bfloat16(vector[::2]), to_bfloat16(vector[::2].copy()))


def test_float64_is_refused() -> None:
    with pytest.raises(AssertionError, match="float64"):
        to_bfloat16(np.zeros(2))  # type: ignore[arg-type]


def test_top_k_by_hand() -> None:
    vector = np.array([1, -5, 2, 0, 3], np.float32)
    indices, values = top_k(vector, 2)
    assert indices.tolist() == [1, 4]  # |-5| and |3|, in order of index and not of size
    assert values.tolist() == [-5, 3]
    assert (indices.dtype, values.dtype) == (np.int32, np.float32)
    assert top_k(vector, 5)[0].tolist() == [0, 1, 2, 3, 4]
    assert scatter(indices, values, 5).tolist() == [0, -5, 0, 0, 3]


def test_of_equal_magnitudes_the_first_are_kept() -> None:
    assert top_k(np.array([2, -2, 9, 2, -2, 1], np.float32), 3)[0].tolist() == [0, 1, 2]
    assert top_k(np.zeros(4, np.float32), 2)[0].tolist() == [0, 1]


def test_nan_is_sent_first_so_that_the_server_sees_it() -> None:
    assert top_k(np.array([np.inf, 1, -np.nan, 3], np.float32), 1)[0].tolist() == [2]


@pytest.mark.parametrize("k", [0, -1, 4])
def test_a_k_out_of_range_is_refused(k: int) -> None:
    with pytest.raises(ValueError, match=f"k is {k}.*from 1 to 3"):
        top_k(np.zeros(3, np.float32), k)


@given(vectors, st.data())
def test_top_k_equals_sorting(vector: Float32, data: st.DataObject) -> None:
    k = data.draw(st.integers(1, len(vector)))
    expected = sorted(sorted(range(len(vector)), key=lambda index: (-abs(float(vector[index])), index))[:k])
    indices, values = top_k(vector, k)
    assert indices.tolist() == expected
    assert values.tobytes() == b"".join(vector[index].tobytes() for index in expected)


def test_feedback_by_hand() -> None:
    # Sum 1 + 0, -2 + 3, 4 - 9, 0.5 + 0 = 1, 1, -5, 0.5: the largest is the third, though -2 + 3 was not small at first.
    vector, residual = np.array([1, -2, 4, 0.5], np.float32), np.array([0, 3, -9, 0], np.float32)
    indices, values, new_residual = compress_with_feedback(vector, residual, 1)
    assert (indices.tolist(), values.tolist()) == ([2], [-5])
    assert new_residual.tolist() == [1, 1, 0, 0.5]
    assert residual.tolist() == [0, 3, -9, 0]  # what was given is left as it was


@given(vectors, st.data())
def test_nothing_is_lost(vector: Float32, data: st.DataObject) -> None:
    size = len(vector)
    residual = np.array(data.draw(st.lists(small_floats, min_size=size, max_size=size)), np.float32)
    indices, values, new_residual = compress_with_feedback(vector, residual, data.draw(st.integers(1, size)))
    sent = scatter(indices, values, size)
    np.testing.assert_array_equal(sent + new_residual, vector + residual)  # exact: one of the two is 0 everywhere
    assert not np.any((sent != 0) & (new_residual != 0))


def test_a_small_gradient_is_sent_in_the_end() -> None:
    # Entry 1 alone would always win; entry 0 gathers 0.25 a push, and ties at 1 after the fourth push (first one wins).
    residual, sent_at = np.zeros(2, np.float32), []
    for _ in range(8):
        indices, _, residual = compress_with_feedback(np.array([0.25, 1.0], np.float32), residual, 1)
        sent_at.append(indices.tolist())
    # Push 4: 1.0 and 1.0, entry 0 goes and entry 1 keeps its 1. Push 5: 0.25 and 2: entry 1 and then on as before.
    assert sent_at == [[1], [1], [1], [0], [1], [1], [1], [0]]
