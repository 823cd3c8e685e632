"""Bin packing: every row once, no bin too full, little room left."""

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayswift.data.sequence.packing import pack


@st.composite
def problems(draw: st.DrawFn) -> tuple[list[int], int]:
    capacity = draw(st.integers(1, 200))
    return draw(st.lists(st.integers(1, capacity), max_size=120)), capacity


@given(problems())
def test_every_row_is_in_exactly_one_bin_and_no_bin_overflows(problem: tuple[list[int], int]) -> None:
    lengths, capacity = problem
    bins = pack(lengths, capacity)
    assert sorted(row for rows in bins for row in rows) == list(range(len(lengths)))
    assert all(rows and sum(lengths[row] for row in rows) <= capacity for rows in bins)


@given(problems())
def test_order_is_by_first_row_and_the_same_again(problem: tuple[list[int], int]) -> None:
    bins = pack(*problem)
    assert bins == pack(*problem)
    assert all(rows == sorted(rows) for rows in bins)
    assert [rows[0] for rows in bins] == sorted(rows[0] for rows in bins)


@given(problems())
def test_no_two_bins_could_be_one(problem: tuple[list[int], int]) -> None:
    lengths, capacity = problem
    fills = sorted(sum(lengths[row] for row in rows) for rows in pack(lengths, capacity))
    assert len(fills) < 2 or fills[0] + fills[1] > capacity


@pytest.mark.parametrize("mean", [300, 800, 1600])
def test_only_the_last_bin_of_a_lognormal_window_is_left_partly_empty(mean: int) -> None:
    lengths = np.random.default_rng(mean).lognormal(np.log(mean) - 0.5, 1, 2000).astype(int).clip(1, 8192).tolist()
    assert len(pack(lengths, 8192)) == -(-sum(lengths) // 8192)


def test_a_gap_that_no_single_row_fills_is_filled_by_several() -> None:
    # Best-fit decreasing puts the 3 beside the 6 and needs a third bin.
    assert pack([6, 5, 3, 2, 2, 2], 10) == [[0, 3, 4], [1, 2, 5]]


@given(st.lists(st.integers(1, 12), max_size=40))
def test_lengths_that_divide_the_capacity_leave_no_room(multiples: list[int]) -> None:
    lengths = [m for m in multiples if 12 % m == 0]
    assert len(pack(lengths, 12)) == -(-sum(lengths) // 12)


def test_work_is_bounded() -> None:
    lengths = np.random.default_rng(0).integers(1, 8193, 50_000).tolist()
    started = time.process_time()
    pack(lengths, 8192)
    assert time.process_time() - started < 10


def test_small_cases() -> None:
    assert pack([], 10) == []
    assert pack([10], 10) == [[0]]
    assert pack([6, 6, 4, 4], 10) == [[0, 2], [1, 3]]
    assert pack([3, 7, 5], 10) == [[0, 1], [2]]
    assert pack([1] * 7, 3) == [[0, 1, 2], [3, 4, 5], [6]]


@pytest.mark.parametrize("length", [0, -1, 11])
def test_a_length_that_fits_no_bin(length: int) -> None:
    with pytest.raises(ValueError, match=f"row 1 has {length} tokens; a bin holds 1 to 10"):
        pack([5, length], 10)
