"""Bin packing: every row once, no bin too full, little room left."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayswift.data.packing import pack


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


@pytest.mark.parametrize("seed", range(3))
def test_fill_of_a_window_of_lognormal_lengths(seed: int) -> None:
    lengths = np.random.default_rng(seed).lognormal(5.3, 0.9, 2000).astype(int).clip(1, 2048).tolist()
    bins = pack(lengths, 2048)
    assert sum(lengths) / (2048 * len(bins)) >= 0.99


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
