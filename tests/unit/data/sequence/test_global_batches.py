"""The global sequence: every good row once per epoch, divided into steps, continued from any position."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from rayswift.data.sequence.global_batches import Position, global_batches, table
from rayswift.data.sequence.windows import WindowPlan
from rayswift.log import UserError
from tests.support.streams import all_numbers, batches, feed_plan, good, in_process, numbers, shape, window_plan

KINDS = st.text("ggggggbul", min_size=1, max_size=40)
SIZES = {
    "kinds": KINDS,
    "window_rows": st.integers(1, 15),
    "global_batch": st.integers(1, 9),
    "packing": st.booleans(),
}


def last_window_is_wholly_bad(windows: WindowPlan, epoch: int) -> bool:
    return not windows.make(epoch, windows.num_windows - 1).rows


def expected_counts(kinds: str, epochs: int) -> dict[str, int]:
    outcomes = {
        "g": "trained",
        "l": "filtered: longer than data.max_length",
        "b": "quarantined: malformed JSON",
        "u": "quarantined: no known columns",
    }
    return {outcome: kinds.count(kind) * epochs for kind, outcome in outcomes.items() if kind in kinds}


@settings(max_examples=50)
@given(**SIZES, num_epochs=st.integers(1, 3))
def test_every_good_row_once_an_epoch(
    tmp_path_factory: Any, kinds: str, window_rows: int, global_batch: int, packing: bool, num_epochs: int
) -> None:
    assume("g" in kinds)
    windows = window_plan(tmp_path_factory.mktemp("b"), kinds, window_rows, packing)
    sequence = batches(windows, feed_plan(windows, global_batch, num_epochs=num_epochs))
    seen, per_epoch = all_numbers(sequence), kinds.count("g")
    assert [sorted(seen[e * per_epoch : (e + 1) * per_epoch]) for e in range(num_epochs)] == [good(kinds)] * num_epochs
    assert len(seen) == num_epochs * per_epoch

    assert [batch.step for batch in sequence] == list(range(len(sequence)))
    assert [batch.last for batch in sequence] == [False] * (len(sequence) - 1) + [True]
    assert all(len(batch.rows) == global_batch for batch in sequence[:-1])
    assert 1 <= len(sequence[-1].rows) <= global_batch
    progress = [batch.epochs for batch in sequence]
    assert progress == sorted(progress)
    assert progress[-1] <= num_epochs


@settings(max_examples=40)
@given(**SIZES, num_epochs=st.integers(1, 3))
def test_the_accounting_sums_to_the_rows_seen(
    tmp_path_factory: Any, kinds: str, window_rows: int, global_batch: int, packing: bool, num_epochs: int
) -> None:
    assume("g" in kinds)
    windows = window_plan(tmp_path_factory.mktemp("b"), kinds, window_rows, packing)
    assume(not last_window_is_wholly_bad(windows, num_epochs - 1))
    last = batches(windows, feed_plan(windows, global_batch, num_epochs=num_epochs))[-1]
    assert last.position.counts == expected_counts(kinds, num_epochs)
    assert sum(last.position.counts.values()) == len(kinds) * num_epochs
    assert last.epochs == num_epochs


def test_a_last_window_of_bad_rows_is_accounted_for(tmp_path: Path) -> None:
    windows = window_plan(tmp_path, "gggbb", 3, shuffle=False)
    last = batches(windows, feed_plan(windows, 2))[-1]
    assert last.position.counts == expected_counts("gggbb", 1)
    assert last.epochs == 1


@settings(max_examples=25)
@given(**SIZES, epochs=st.sampled_from([0.5, 1.0, 1.7, 2.0]), max_steps=st.sampled_from([-1, 7]), data=st.data())
def test_any_position_continues_with_the_same_tail(
    tmp_path_factory: Any,
    kinds: str,
    window_rows: int,
    global_batch: int,
    packing: bool,
    epochs: float,
    max_steps: int,
    data: st.DataObject,
) -> None:
    assume("g" in kinds)
    windows = window_plan(tmp_path_factory.mktemp("b"), kinds, window_rows, packing)
    plan = feed_plan(windows, global_batch, num_epochs=epochs, max_steps=max_steps)
    whole = batches(windows, plan)
    assume(len(whole) > 1)
    at = data.draw(st.integers(0, len(whole) - 2))
    position = Position(**json.loads(json.dumps(whole[at].position.to_json())))
    assert [shape(batch) for batch in batches(windows, plan, position)] == [shape(batch) for batch in whole[at + 1 :]]


@pytest.mark.parametrize("num_epochs", [0.5, 1, 1.5, 2])
def test_behind_the_last_step_nothing_follows(tmp_path: Path, num_epochs: float) -> None:
    windows = window_plan(tmp_path, "gbgggugglg" * 3, 7)
    plan = feed_plan(windows, 2, num_epochs=num_epochs)
    assert batches(windows, plan, batches(windows, plan)[-1].position) == []


def test_behind_the_last_of_max_steps_nothing_follows(tmp_path: Path) -> None:
    windows = window_plan(tmp_path, "g" * 30, 7)
    plan = feed_plan(windows, 2, max_steps=3)
    assert batches(windows, plan, batches(windows, plan)[-1].position) == []


def test_every_window_is_opened_however_often_a_run_is_continued(tmp_path: Path) -> None:
    windows = window_plan(tmp_path, "gbgggugglg" * 4, 9)
    plan = feed_plan(windows, 1, num_epochs=2)
    opened: list[tuple[int, int]] = []
    start: Position | None = Position()
    while start:
        source = lambda e, f: in_process(windows, e, f)  # noqa: E731
        following = global_batches(plan, source, start, lambda e, n, w: opened.append((e, n)))
        batch = next(following, None)
        start = batch.position if batch else None
    expected = [(epoch, number) for epoch in range(2) for number in range(windows.num_windows)]
    assert sorted(set(opened)) == expected


# ---- where it ends ----


@pytest.mark.parametrize("max_steps", [1, 2, 13, 40])
def test_max_steps_repeats_the_data(tmp_path: Path, max_steps: int) -> None:
    kinds = "ggbgulgggg"
    windows = window_plan(tmp_path, kinds, 4, packing=False)
    sequence = batches(windows, feed_plan(windows, 2, max_steps=max_steps, num_epochs=1))
    assert len(sequence) == max_steps
    assert all(len(batch.rows) == 2 for batch in sequence)
    assert [batch.last for batch in sequence] == [False] * (max_steps - 1) + [True]
    seen = all_numbers(sequence)
    for begin in range(0, len(seen) - 6, 7):
        assert sorted(seen[begin : begin + 7]) == good(kinds)


def test_max_steps_replaces_the_epochs(tmp_path: Path) -> None:
    windows = window_plan(tmp_path, "g" * 20, 5, packing=False)
    assert len(batches(windows, feed_plan(windows, 2, max_steps=3, num_epochs=5))) == 3


@settings(max_examples=40)
@given(**SIZES, num_epochs=st.floats(0.05, 2.5))
@example("g" * 10, 5, 2, False, 0.5)
def test_fractional_epochs_end_at_the_first_row_that_reaches_them(
    tmp_path_factory: Any, kinds: str, window_rows: int, global_batch: int, packing: bool, num_epochs: float
) -> None:
    assume("g" in kinds)
    windows = window_plan(tmp_path_factory.mktemp("b"), kinds, window_rows, packing)
    assume(all(windows.make(epoch, n).rows for epoch in range(3) for n in range(windows.num_windows)))
    sequence = batches(windows, feed_plan(windows, global_batch, num_epochs=num_epochs))
    longer = batches(windows, feed_plan(windows, 1, num_epochs=3))
    rows = all_numbers(sequence)
    assert rows == all_numbers(longer)[: len(rows)]
    num_packed = sum(len(batch.rows) for batch in sequence)
    # Each packed row of `longer` is a step, so its progress is known: only the last one reached the end.
    reached = [batch.epochs for batch in longer[:num_packed]]
    assert sequence[-1].epochs == reached[-1]
    assert reached[-1] >= num_epochs
    assert all(progress < num_epochs for progress in reached[:-1])


# ---- too many bad rows ----


def test_bad_rows_stop_a_run_as_soon_as_they_are_too_many_for_all_its_rows(tmp_path: Path) -> None:
    windows = window_plan(tmp_path, "b" * 10 + "g" * 90, 20, shuffle=False)
    assert batches(windows, feed_plan(windows, 4, max_bad_fraction=0.1))
    with pytest.raises(UserError) as caught:
        batches(windows, feed_plan(windows, 4, max_bad_fraction=0.09))
    assert caught.value.exit_code == 1
    first, *rest = str(caught.value).splitlines()
    assert first == (
        "10 of 20 rows are bad, more than data.max_bad_fraction = 0.09 allows of 100 in all; correct them, see "
        "data/quarantine.jsonl in the run folder, or leave them out: --data.max_bad_fraction 0.5"
    )
    assert rest[0].split() == ["rows", "seen", "20"]


@given(st.lists(st.sampled_from("ggggb"), min_size=1, max_size=40), st.integers(1, 12), st.floats(0, 1))
def test_a_run_ends_early_exactly_where_it_would_end_at_the_end_of_the_data(
    tmp_path_factory: pytest.TempPathFactory, kinds: list[str], window_rows: int, fraction: float
) -> None:
    windows = window_plan(tmp_path_factory.mktemp("g"), "".join(kinds), window_rows)
    plan = feed_plan(windows, 2, max_bad_fraction=fraction)
    num_bad = kinds.count("b")
    if num_bad > fraction * len(kinds) or num_bad == len(kinds):
        with pytest.raises(UserError):
            batches(windows, plan)
    else:
        batches(windows, plan)


def test_from_1000_rows_on_bad_rows_stop_the_run_at_once(tmp_path: Path) -> None:
    windows = window_plan(tmp_path, "g" * 900 + "b" * 400, 100, shuffle=False)
    plan = feed_plan(windows, 1, max_bad_fraction=0.05)
    trained = 0
    with pytest.raises(UserError, match="100 of 1000 rows are bad"):
        for batch in global_batches(plan, lambda e, f: in_process(windows, e, f), Position(), lambda *_: None):
            trained += len(numbers(batch.rows))
    assert trained > 800


def test_rows_left_out_by_rule_are_not_bad(tmp_path: Path) -> None:
    windows = window_plan(tmp_path, "gl" * 20, 10)
    assert batches(windows, feed_plan(windows, 4, max_bad_fraction=0.0))


@pytest.mark.parametrize("options", [{"num_epochs": 2}, {"max_steps": 5}])
def test_data_without_a_good_row_is_an_error(tmp_path: Path, options: dict[str, Any]) -> None:
    windows = window_plan(tmp_path, "bull", 2)
    with pytest.raises(UserError, match="no row is left to train") as caught:
        batches(windows, feed_plan(windows, 1, **options))
    assert "quarantined: malformed JSON" in str(caught.value)


def test_the_table_is_sorted_and_summed() -> None:
    lines = [line.split() for line in table({"trained": 5, "quarantined: x": 2000, "filtered: y": 30}).splitlines()]
    assert [(" ".join(words[:-1]), words[-1]) for words in lines] == [
        ("rows seen", "2,035"),
        ("quarantined: x", "2,000"),
        ("filtered: y", "30"),
        ("trained", "5"),
    ]


@pytest.mark.parametrize("packing", [False, True])
def test_pieces_of_a_split_row_all_belong_to_its_epoch(tmp_path: Path, packing: bool) -> None:
    """Also those behind the point at which every raw row of the last epoch is counted."""
    windows = window_plan(tmp_path, "gl", 2, packing, shuffle=False)
    windows = replace(windows, encode=replace(windows.encode, truncation="split", loss_on="all"))
    pieces = [row.input_ids.tolist() for row in windows.make(0, 0).rows]
    assert len(pieces) > 2
    sequence = batches(windows, feed_plan(windows, 1, num_epochs=2))
    assert [row.input_ids.tolist() for batch in sequence for row in batch.rows] == pieces * 2
    assert sequence[-1].position.counts == {"trained": 4}
    assert sequence[-1].epochs == 2


@pytest.mark.parametrize("packing", [False, True])
def test_a_split_row_is_done_piece_by_piece(tmp_path: Path, packing: bool) -> None:
    """Else the learning rate would be that of the end behind the first piece, and a resume would find nothing left."""
    windows = window_plan(tmp_path, "gl", 2, packing, shuffle=False)
    windows = replace(windows, encode=replace(windows.encode, truncation="split", loss_on="all"))
    num_pieces = len(windows.make(0, 0).rows)
    sequence = batches(windows, feed_plan(windows, 1, num_epochs=2))
    assert [batch.epochs for batch in sequence] == pytest.approx([(n + 1) / num_pieces for n in range(2 * num_pieces)])
    half = batches(windows, feed_plan(windows, 1, num_epochs=0.5))
    assert len(half) == -(-num_pieces // 2)
    assert half[-2].epochs < 0.5 <= half[-1].epochs
