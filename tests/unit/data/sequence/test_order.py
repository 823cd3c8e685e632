"""The order of an epoch: a bijection, computed at any position, different for each key."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayswift.data.sequence.order import shuffled

KEYS = st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 2**31))


def order(num_rows: int, *key: int) -> list[int]:
    return shuffled(np.arange(num_rows, dtype=np.int64), num_rows, key).tolist()


@given(st.integers(0, 3000), KEYS)
def test_bijection(num_rows: int, key: tuple[int, int]) -> None:
    assert sorted(order(num_rows, *key)) == list(range(num_rows))


@pytest.mark.parametrize("num_rows", [0, 1, 2, 3, 4, 5, 15, 16, 17, 255, 256, 257, 65_536, 65_537])
def test_bijection_around_powers_of_two(num_rows: int) -> None:
    assert sorted(order(num_rows, 42, 0)) == list(range(num_rows))


@settings(max_examples=30)
@given(st.integers(2, 10**12), KEYS, st.data())
def test_pointwise_as_in_bulk(num_rows: int, key: tuple[int, int], data: st.DataObject) -> None:
    positions = data.draw(st.lists(st.integers(0, num_rows - 1), min_size=1, max_size=20, unique=True))
    bulk = shuffled(np.array(positions, np.int64), num_rows, key)
    one_by_one = [int(shuffled(np.array([p], np.int64), num_rows, key)[0]) for p in positions]
    assert bulk.tolist() == one_by_one
    assert len(set(one_by_one)) == len(positions)
    assert 0 <= min(one_by_one) <= max(one_by_one) < num_rows


@given(st.integers(20, 500), st.integers(0, 10**6))
def test_epochs_and_seeds_differ(num_rows: int, seed: int) -> None:
    orders = [order(num_rows, *key) for key in ((seed, 0), (seed, 1), (seed + 1, 0), (seed + 1, 1))]
    assert len({tuple(o) for o in orders}) == 4
    assert list(range(num_rows)) not in orders


def test_positions_are_left_alone() -> None:
    positions = np.arange(10)
    shuffled(positions, 10, (1, 2))
    assert positions.tolist() == list(range(10))


@pytest.mark.parametrize("num_rows", [2, 3, 10, 100])
def test_every_row_is_as_likely_first_as_any(num_rows: int) -> None:
    tries = 200 * num_rows
    first = np.array([int(shuffled(np.array([0]), num_rows, (seed, 0))[0]) for seed in range(min(tries, 4000))])
    counts = np.bincount(first, minlength=num_rows)
    expected = len(first) / num_rows
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    assert chi_square < num_rows - 1 + 5 * (2 * num_rows) ** 0.5


def test_neighbours_do_not_stay_together() -> None:
    rows = np.array(order(10_000, 7, 0))
    assert (abs(np.diff(rows)) == 1).mean() < 0.002
    assert abs(np.corrcoef(np.arange(10_000), rows)[0, 1]) < 0.05
