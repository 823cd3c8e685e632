"""Computed columns: every row once, by number and id, resumed after a kill, refused from other ingredients."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayswift.data.cache.columns import ComputedColumns, PartWriter, compute
from rayswift.data.sequence.windows import RowSet
from rayswift.data.sources import RawRow
from rayswift.log import UserError
from tests.support.streams import window_plan


class Scores:
    """Two columns from a row's text; counts the rows it was given."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def __call__(self, rows: Sequence[RawRow]) -> Mapping[str, Sequence[Any]]:
        self.seen += [row.id for row in rows]
        readable = [row.error is None for row in rows]
        return {
            "score": [len(row.text) / 3 if ok else None for row, ok in zip(rows, readable, strict=True)],
            "logps": [[float(len(row.text))] * (i % 3) for i, row in enumerate(rows)],
        }


def here(writer: PartWriter, parts: range) -> Iterator[int]:
    return map(writer, parts)


def row_set(folder: Path, kinds: str) -> RowSet:
    return window_plan(folder, kinds, 4).row_set


def run(rows: RowSet, function: Any, folder: Path, write_parts: Any = here, **ingredients: Any) -> ComputedColumns:
    return compute(rows, function, folder, {"model": "m", **ingredients}, write_parts, part_rows=4)


@settings(max_examples=10)
@given(kinds=st.text("ggb", min_size=1, max_size=30), seed=st.integers(0, 99))
def test_every_row_has_its_values_once(tmp_path_factory: Any, kinds: str, seed: int) -> None:
    folder = tmp_path_factory.mktemp("k")
    rows, scores = row_set(folder, kinds), Scores()
    columns = run(rows, scores, folder / "columns")
    raw = rows.read(np.arange(len(kinds)))
    assert scores.seen == [row.id for row in raw]
    assert columns.names == ("score", "logps")
    order = np.random.default_rng(seed).permutation(len(kinds))
    found = columns.read(order, [raw[i].id for i in order])
    assert found["score"] == [len(raw[i].text) / 3 if kinds[i] == "g" else None for i in order]
    assert found["logps"] == [[float(len(raw[i].text))] * (i % 4 % 3) for i in order]


def test_an_interrupted_computation_goes_on_and_is_then_kept(tmp_path: Path) -> None:
    rows, scores = row_set(tmp_path, "g" * 22), Scores()

    def interrupted(writer: PartWriter, parts: range) -> Iterator[int]:
        yield from map(writer, parts[:3])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(rows, scores, tmp_path / "columns", interrupted)
    again = Scores()
    columns = run(rows, again, tmp_path / "columns")
    assert (len(scores.seen), len(again.seen)) == (12, 10)
    assert not {*scores.seen} & {*again.seen}
    assert run(rows, None, tmp_path / "columns") == columns  # complete: the function is not asked
    assert sorted(p.name for p in (tmp_path / "columns").iterdir()) == ["manifest.json", "values.arrow"]


def test_parts_of_other_ingredients_are_computed_again(tmp_path: Path) -> None:
    rows, scores = row_set(tmp_path, "g" * 8), Scores()
    with pytest.raises(ZeroDivisionError):
        run(rows, lambda raw: {"x": [1 // (len(raw[0].id) * 0)]}, tmp_path / "columns")
    for _ in map(PartWriter(rows, Scores(), str(tmp_path / "columns" / "parts"), "other", 4), range(2)):
        continue
    run(rows, scores, tmp_path / "columns")
    assert len(scores.seen) == 8


def test_other_ingredients_are_refused_by_name(tmp_path: Path) -> None:
    rows = row_set(tmp_path, "g" * 8)
    run(rows, Scores(), tmp_path / "columns", beta=0.1)
    with pytest.raises(UserError, match=r"beta: was 0\.1, is 0\.2"):
        run(rows, Scores(), tmp_path / "columns", beta=0.2)


def test_values_of_another_row_are_refused(tmp_path: Path) -> None:
    columns = run(row_set(tmp_path, "g" * 8), Scores(), tmp_path / "columns")
    with pytest.raises(UserError, match="row 2 was"):
        columns.read([2], ["elsewhere.jsonl:3"])


@pytest.mark.parametrize(
    ("function", "what"),
    [
        (lambda raw: {"x": [1]}, "'x' has 1 values for 4 rows"),
        (lambda raw: {}, "one or more is wanted"),
        (lambda raw: {"id": [0] * len(raw)}, "none named 'id'"),
        (lambda raw: {"x" if raw[0].id.endswith(":1") else "y": [0] * len(raw)}, "is missing for some rows"),
        (lambda raw: {"x": [0 if raw[0].id.endswith(":1") else "a"] * len(raw)}, "differ in type"),
    ],
)
def test_a_function_that_does_not_fit_is_an_error(tmp_path: Path, function: Any, what: str) -> None:
    with pytest.raises(UserError, match=what):
        run(row_set(tmp_path, "g" * 8), function, tmp_path / "columns")
