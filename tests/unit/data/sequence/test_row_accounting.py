"""For any rows: rows read = rows trained + filtered + quarantined, each by name."""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_layouts import TABLE, TEXTS

from rayswift.config.tasks import Family
from rayswift.data.encode.config import EncodeConfig
from rayswift.data.sequence.windows import RowSet, Window, WindowPlan
from rayswift.data.sources import RawRow
from tests.support.streams import TINY

FAMILIES: tuple[Family, ...] = (*("causal", "preference", "kto", "prompt", "embedding", "reranker", "classification"),)
LAYOUTS = {family: [(row, columns) for _, of, row, columns, _ in TABLE if of == family] for family in FAMILIES}
LAYOUTS["causal"] += [(row, {"body": "text"}) for _, row, _ in TEXTS]
JUNK = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4) | st.just("long " * 99)
WRECKS = JUNK | st.lists(JUNK, max_size=2) | st.dictionaries(st.text(max_size=3), JUNK, max_size=2)


@dataclass(frozen=True)
class Held:
    """Rows in memory."""

    rows: tuple[Any, ...]

    @property
    def num_rows(self) -> int:
        return len(self.rows)

    @property
    def files(self) -> tuple[str, ...]:
        return ()

    def read(self, rows: Any) -> list[RawRow]:
        return [RawRow(f"held:{int(i) + 1}", self.rows[int(i)]) for i in rows]


@st.composite
def wrecked(draw: st.DrawFn, value: Any) -> Any:
    """A value with one thing in it, at any depth, replaced or left out."""
    if isinstance(value, dict) and value and draw(st.booleans()):
        key = draw(st.sampled_from(sorted(value)))
        rest = {name: one for name, one in value.items() if name != key}
        return rest if draw(st.integers(0, 3)) == 0 else rest | {key: draw(wrecked(value[key]))}
    if isinstance(value, list) and value and draw(st.booleans()):
        at = draw(st.integers(0, len(value) - 1))
        return [*value[:at], draw(wrecked(value[at])), *value[at + 1 :]]
    return draw(WRECKS)


@st.composite
def sets(draw: st.DrawFn, family: Family) -> tuple[tuple[Any, ...], dict[str, str]]:
    """Rows of several layouts, some wrecked, and the `data.columns` of one of them."""
    chosen = draw(st.lists(st.sampled_from(LAYOUTS[family]), min_size=1, max_size=6))
    rows = [draw(wrecked(row)) if draw(st.integers(0, 2)) == 0 else row for row, _ in chosen]
    return tuple(rows), chosen[0][1]


def windows_of(rows: tuple[Any, ...], family: Family, columns: dict[str, str], **options: Any) -> list[Window]:
    given = {"max_length": 96, "columns": columns, "num_labels": 2, "problem_type": "single_label_classification"}
    config = EncodeConfig(str(TINY), "hash", family=family, **{**given, **options})
    plan = WindowPlan(RowSet((Held(rows),), seed=1), config, family == "causal", 4)
    return [plan.make(0, number) for number in range(plan.num_windows)]


def check(windows: list[Window], num_rows: int) -> Counter[str]:
    """Every row has one outcome, and it is the one that its name stands under.

    Returns:
        Rows by outcome.
    """
    counts = sum((window.counts for window in windows), Counter[str]())
    trained = {row_id for window in windows for row in window.rows for row_id in row.ids}
    bad = [one.id for window in windows for one in window.quarantined]
    filtered = sum(count for name, count in counts.items() if name.startswith("filtered: "))
    assert counts.total() == num_rows
    assert len(trained) == sum(count for name, count in counts.items() if name.startswith("trained"))
    assert len(set(bad)) == len(bad) and not trained & set(bad)
    assert len(trained) + len(bad) + filtered == num_rows
    reasons = Counter(f"quarantined: {one.reason}" for window in windows for one in window.quarantined)
    assert reasons == {name: count for name, count in counts.items() if name.startswith("quarantined: ")}
    assert all(one.detail for window in windows for one in window.quarantined)
    for window in windows:
        if window.rows:  # with none, what was left out moves on with the next window that has some
            assert sum(row.num_source_rows for row in window.rows) == window.counts.total()
    return counts


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_in_are_rows_trained_filtered_and_quarantined(family: Family) -> None:
    @settings(max_examples=60, deadline=None)
    @given(sets(family), st.sampled_from(["drop", "left", "right", "split"]))
    def every_row_has_one_outcome(drawn: tuple[tuple[Any, ...], dict[str, str]], truncation: str) -> None:
        rows, columns = drawn
        check(windows_of(rows, family, columns, truncation=truncation), len(rows))

    every_row_has_one_outcome()


def is_trained_by(family: Family, row: dict[str, Any]) -> bool:
    """Not where the row needs what the tiny model's chat template has no place for."""
    calls = "tool" in str(row) or "function_call" in str(row)
    return not (calls and family == "causal")


@pytest.mark.parametrize("family", FAMILIES)
def test_whole_rows_of_every_layout_are_trained(family: Family) -> None:
    outcomes = []
    for row, columns in LAYOUTS[family]:
        if is_trained_by(family, row):
            is_scored = family == "embedding" and not {"label", "score"}.isdisjoint(row)
            loss = "cosine_similarity" if is_scored else None
            outcomes.append(check(windows_of((row,), family, columns, loss=loss), 1))
    assert sum(outcomes, Counter()) == {"trained": len(outcomes)}
