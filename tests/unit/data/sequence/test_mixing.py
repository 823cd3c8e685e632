"""Mixes: exact proportions in every part, no row repeats before all others came, any part is computed alone."""

from collections import Counter
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayswift.data.sequence.mixing import Mix, mix, weights_of
from rayswift.data.sequence.windows import RowSet
from rayswift.data.sources import open_sources
from rayswift.log import UserError

SIZES = st.lists(st.integers(1, 300), min_size=1, max_size=5)


@st.composite
def mixes(draw: st.DrawFn) -> tuple[list[int], list[float]]:
    sizes = draw(SIZES)
    weights = draw(
        st.lists(st.sampled_from([0.05, 0.1, 0.3, 0.5, 0.7, 1, 3]), min_size=len(sizes), max_size=len(sizes))
    )
    return sizes, weights


def shares(weights: list[float]) -> list[Fraction]:
    exact = [Fraction(repr(weight)) for weight in weights]
    return [weight / sum(exact) for weight in exact]


@given(mixes())
def test_an_epoch_ends_before_the_first_source_repeats(case: tuple[list[int], list[float]]) -> None:
    sizes, weights = case
    mixed = mix(sizes, weights, "first_exhausted")
    assert all(draws <= size for draws, size in zip(mixed.draws, sizes, strict=True))
    # One row more, in these proportions, would be more than some source has.
    assert any((mixed.num_rows + 1) * share > size for share, size in zip(shares(weights), sizes, strict=True))
    for draws, share in zip(mixed.draws, shares(weights), strict=True):
        assert abs(draws - mixed.num_rows * share) < 1


@given(mixes())
def test_an_epoch_ends_once_all_sources_have_come(case: tuple[list[int], list[float]]) -> None:
    sizes, weights = case
    mixed = mix(sizes, weights, "all_exhausted")
    assert all(draws >= size for draws, size in zip(mixed.draws, sizes, strict=True))
    assert any((mixed.num_rows - 1) * share < size for share, size in zip(shares(weights), sizes, strict=True))


def test_seven_to_three() -> None:
    assert mix([700, 600], [0.7, 0.3], "first_exhausted").draws == (700, 300)
    assert mix([700, 600], [0.7, 0.3], "all_exhausted").draws == (1400, 600)
    assert mix([10, 10, 10], [1, 1, 1], "first_exhausted").draws == (10, 10, 10)


@settings(max_examples=40)
@given(st.lists(st.integers(0, 200), min_size=1, max_size=5).filter(any), st.data())
def test_every_stretch_is_in_proportion_and_computed_by_itself(draws: list[int], data: st.DataObject) -> None:
    mixed = Mix(tuple(draws))
    sources, numbers = mixed.at(0, mixed.num_rows)
    for source, count in enumerate(draws):
        assert numbers[sources == source].tolist() == list(range(count))
        before = np.cumsum(sources == source)
        fair = np.arange(1, mixed.num_rows + 1) * count / mixed.num_rows
        assert np.abs(before - fair).max() <= 1 + len(draws) / 2
    begin = data.draw(st.integers(0, mixed.num_rows))
    end = data.draw(st.integers(begin, mixed.num_rows))
    some_sources, some_numbers = mixed.at(begin, end)
    assert some_sources.tolist() == sources[begin:end].tolist()
    assert some_numbers.tolist() == numbers[begin:end].tolist()


def test_a_stretch_far_into_ten_million_rows_is_cheap() -> None:
    mixed = mix([10_000_000, 9_000_000, 50], [0.6, 0.4, 1e-6], "first_exhausted")
    sources, _ = mixed.at(mixed.num_rows - 1000, mixed.num_rows)
    counts = Counter(sources.tolist())
    assert len(sources) == 1000 and abs(counts[0] - 600) <= 2


# ---- through a row set ----


def row_set(folder: Path, sizes: list[int], mixed: Mix | None, **options: Any) -> RowSet:
    paths = []
    for index, size in enumerate(sizes):
        path = folder / f"{index}.jsonl"
        path.write_text("".join(f'"{index}-{row}"\n' for row in range(size)), encoding="utf-8")
        paths.append(str(path))
    return RowSet(open_sources(paths, folder / "w"), **({"seed": 3} | options), mix=mixed)


def epoch_of(rows: RowSet, epoch: int) -> list[str]:
    return [raw.value for raw in rows.read(rows.rows_at(0, rows.num_rows, epoch))]


@settings(max_examples=25)
@given(mixes(), st.sampled_from(["first_exhausted", "all_exhausted"]), st.booleans(), st.integers(0, 100))
def test_no_row_comes_again_before_every_other_of_its_source_came(
    tmp_path_factory: pytest.TempPathFactory,
    case: tuple[list[int], list[float]],
    until: Any,
    shuffle: bool,
    seed: int,
) -> None:
    sizes, weights = [min(size, 40) for size in case[0]], case[1]
    rows = row_set(tmp_path_factory.mktemp("m"), sizes, mix(sizes, weights, until), seed=seed, shuffle=shuffle)
    if rows.num_rows > 5000:
        return
    seen = [value for epoch in range(3) for value in epoch_of(rows, epoch)]
    for index, size in enumerate(sizes):
        own = [value for value in seen if value.startswith(f"{index}-")]
        for begin in range(0, len(own), size):
            assert len(set(own[begin : begin + size])) == len(own[begin : begin + size])


def test_epochs_of_a_mix_differ_and_are_a_function_of_the_seed(tmp_path: Path) -> None:
    mixed = mix([30, 90], [0.5, 0.5], "first_exhausted")
    rows = row_set(tmp_path, [30, 90], mixed)
    assert epoch_of(rows, 0) == epoch_of(row_set(tmp_path, [30, 90], mixed), 0) != epoch_of(rows, 1)
    assert epoch_of(rows, 0) != epoch_of(row_set(tmp_path, [30, 90], mixed, seed=4), 0)
    # What the larger source has left after an epoch comes in the next ones.
    larger = [value for epoch in range(3) for value in epoch_of(rows, epoch) if value.startswith("1-")]
    assert sorted(larger) == sorted(f"1-{row}" for row in range(90))


# ---- names and weights ----


def test_sources_are_named_as_written_or_by_their_last_part() -> None:
    sources = ["data/a.jsonl.gz", "s3://bucket/b/", "org/c:main", "d.json#500", "data/*.txt"]
    given_names = {"a": 1, "b": 2, "org/c:main": 3, "d": 4, "data/*.txt": 5}
    assert weights_of(sources, given_names) == (1, 2, 3, 4, 5)
    assert weights_of(sources, dict(zip(sources, range(1, 6), strict=True))) == (1, 2, 3, 4, 5)


@pytest.mark.parametrize(
    ("weights", "why"),
    [
        ({"c": 1}, "c fits no source; write each as in data.dataset: x/a.csv, y/a.txt, b"),
        ({"a": 1, "b": 1}, "a fits 2 sources"),
        ({"x/a.csv": 1, "y/a.txt": 1}, "b has no weight"),
        ({"x/a.csv": 1, "y/a.txt": 1, "b": 0}, "b has the weight 0; a weight is above 0 and finite"),
        ({"x/a.csv": 1, "y/a.txt": -1, "b": 1}, "above 0"),
        ({"x/a.csv": 1, "y/a.txt": float("nan"), "b": 1}, "above 0"),
        ({"x/a.csv": 1, "y/a.txt": float("inf"), "b": 1}, "finite"),
    ],
)
def test_names_and_weights_that_do_not_fit(weights: dict[str, float], why: str) -> None:
    with pytest.raises(UserError) as caught:
        weights_of(["x/a.csv", "y/a.txt", "b"], weights)
    assert why in str(caught.value)
