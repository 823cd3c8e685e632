"""Each row is trained once an epoch or accounted for by name, in one order, whatever happens to the workers.

Random sources, mixes and epochs; runs that are killed at random steps, go on from the last checkpoint and change
their number of workers each time. No Ray: what ranks get is `share` of the batches that the feed serves.
"""

import gzip
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from rayswift.data.encode.config import EncodeConfig
from rayswift.data.sequence.global_batches import FeedPlan, GlobalBatch, Position, global_batches, share
from rayswift.data.sequence.mixing import mix
from rayswift.data.sequence.windows import RowSet, WindowPlan
from rayswift.data.sources import hold_out, open_sources
from tests.support.streams import MAX_LENGTH, TINY, feed_plan, in_process, line, numbers, shape

OUTCOMES = {
    "g": "trained",
    "l": "filtered: longer than data.max_length",
    "b": "quarantined: malformed JSON",
    "u": "quarantined: no known columns",
}


@dataclass(frozen=True)
class Case:
    """A data set and how it is trained; `kinds` holds a letter for every row of every source, see streams.line."""

    kinds: tuple[str, ...]
    compressed: tuple[bool, ...]
    samples: tuple[int | None, ...]
    weights: tuple[float, ...] | None
    until: Any
    eval_fraction: float
    window_rows: int
    global_batch: int
    num_epochs: int

    @property
    def all_kinds(self) -> str:
        return "".join(self.kinds)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    num = draw(st.integers(1, 3))
    many = lambda values: tuple(draw(st.lists(values, min_size=num, max_size=num)))  # noqa: E731
    return Case(
        kinds=many(st.text("gggggbul", min_size=1, max_size=18)),
        compressed=many(st.booleans()),
        samples=many(st.sampled_from([None, None, 3, 25])),
        weights=many(st.sampled_from([0.2, 0.3, 0.5, 1.0])) if draw(st.booleans()) else None,
        until=draw(st.sampled_from(["first_exhausted", "all_exhausted"])),
        eval_fraction=draw(st.sampled_from([0.0, 0.0, 0.25])),
        window_rows=draw(st.integers(1, 15)),
        global_batch=draw(st.integers(1, 9)),
        num_epochs=draw(st.integers(1, 2)),
    )


def plan_of(case: Case, folder: Path) -> WindowPlan:
    paths, number = [], 0
    for index, kinds in enumerate(case.kinds):
        content = "".join(line(number + i, kind) + "\n" for i, kind in enumerate(kinds)).encode()
        path = folder / f"{index}.jsonl{'.gz' if case.compressed[index] else ''}"
        path.write_bytes(gzip.compress(content) if case.compressed[index] else content)
        paths.append(f"{path}#{case.samples[index]}" if case.samples[index] else str(path))
        number += len(kinds)
    stores = open_sources(paths, folder / "work", seed=5)
    if case.eval_fraction:
        stores, _ = hold_out(stores, case.eval_fraction, 5)
    assume(all(store.num_rows for store in stores))
    mixed = mix([s.num_rows for s in stores], case.weights, case.until) if case.weights else None
    rows = RowSet(stores, 5, mix=mixed)
    assume(rows.num_rows <= 120)
    return WindowPlan(rows, EncodeConfig(str(TINY), "hash", MAX_LENGTH), True, case.window_rows)


def drawn(windows: WindowPlan, num_epochs: int) -> list[int]:
    """The number of each raw row that the epochs draw, from its text; -1 for a malformed one, which has none."""
    rows = windows.row_set
    raw = [row for epoch in range(num_epochs) for row in rows.read(rows.rows_at(0, rows.num_rows, epoch))]
    values = [row.value for row in raw]
    return [-1 if v is None else int(v["n"] if "n" in v else v["text"].split()[0]) for v in values]


def run(windows: WindowPlan, plan: FeedPlan, start: Position) -> Any:
    return global_batches(plan, lambda e, f: in_process(windows, e, f), start, lambda *_: None)


def usable(case: Case, windows: WindowPlan) -> None:
    """Leave out what is an error by itself, and what the next rows of an epoch would account for."""
    last = windows.num_windows - 1
    assume(all(windows.make(epoch, last).rows for epoch in range(case.num_epochs)))


@settings(max_examples=25)
@given(cases())
def test_every_row_of_an_epoch_is_trained_once_or_accounted_for(
    tmp_path_factory: pytest.TempPathFactory, case: Case
) -> None:
    windows = plan_of(case, tmp_path_factory.mktemp("x"))
    usable(case, windows)
    sequence = list(run(windows, feed_plan(windows, case.global_batch, num_epochs=case.num_epochs), Position()))
    expected = drawn(windows, case.num_epochs)
    kinds = Counter("b" if number < 0 else case.all_kinds[number] for number in expected)
    good = Counter(number for number in expected if number >= 0 and case.all_kinds[number] == "g")
    trained = Counter(number for batch in sequence for number in numbers(batch.rows))
    assert trained == good
    assert sequence[-1].position.counts == {OUTCOMES[kind]: count for kind, count in kinds.items()}
    assert sum(sequence[-1].position.counts.values()) == windows.row_set.num_rows * case.num_epochs
    if not case.weights and not any(case.samples):
        assert set(good.values()) == {case.num_epochs}


@settings(max_examples=25)
@given(cases(), st.lists(st.tuples(st.integers(1, 4), st.integers(1, 6)), max_size=5), st.integers(1, 4))
def test_kills_and_other_numbers_of_workers_leave_the_sequence_as_it_is(
    tmp_path_factory: pytest.TempPathFactory, case: Case, attempts: list[tuple[int, int]], save_steps: int
) -> None:
    windows = plan_of(case, tmp_path_factory.mktemp("x"))
    usable(case, windows)
    plan = feed_plan(windows, case.global_batch, num_epochs=case.num_epochs)
    undisturbed: list[GlobalBatch] = list(run(windows, plan, Position()))

    trained: dict[int, tuple[Any, ...]] = {}
    saved = Position()
    for size, steps in [*attempts, (3, 10**6)]:
        for batch, _ in zip(run(windows, plan, saved), range(steps), strict=False):
            slices = [batch.rows[share(case.global_batch, rank, size)] for rank in range(size)]
            together = tuple(row for rows in slices for row in rows)
            trained[batch.step] = shape(GlobalBatch(batch.step, together, batch.epochs, batch.position, batch.last))
            if (batch.step + 1) % save_steps == 0:
                saved = Position(**json.loads(json.dumps(batch.position.to_json())))
    assert [trained[step] for step in sorted(trained)] == [shape(batch) for batch in undisturbed]


@pytest.mark.parametrize("size", [1, 2, 3, 4])
@pytest.mark.parametrize("global_batch", [1, 4, 7])
def test_no_row_is_dropped_to_make_shares_equal(size: int, global_batch: int) -> None:
    rows = list(range(global_batch))
    shares = [rows[share(global_batch, rank, size)] for rank in range(size)]
    assert [row for part in shares for row in part] == rows
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
