"""The feed: every rank gets its slice, over restarts, and no rank waits for ever."""

import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from rayswift.data.feed.feed import DRIVERS_ATTEMPT, EVALUATION_COUNTS, Feed, Slice, StaleAttempt
from rayswift.data.sequence.global_batches import FeedPlan, Position
from rayswift.data.sequence.mixing import Mix
from rayswift.data.sequence.windows import Window, WindowPlan
from rayswift.log import UserError
from rayswift.run.accounting import left_out, read_accounting, read_evaluation, write_accounting
from tests.support.streams import batches, feed_plan, good, in_process, numbers, window_plan

PATIENCE_S = 20.0


class Recorder:
    """The in-process stream, noting where it was asked to begin and how many windows it made."""

    def __init__(self) -> None:
        self.begun: list[tuple[int, int]] = []
        self.made = 0

    def __call__(self, plan: WindowPlan, epoch: int, first: int) -> Iterator[Window]:
        self.begun.append((epoch, first))
        for window in in_process(plan, epoch, first):
            self.made += 1
            yield window


def rank_loop(feed: Feed, attempt: int, start: Position, rank: int, size: int, steps: int = 10**9) -> list[Slice]:
    """What a rank does: begin, then ask for step after step."""
    feed.begin(attempt, start)
    received: list[Slice] = []
    while len(received) < steps and not (received and received[-1].last):
        received.append(feed.next(attempt, start.step + len(received), rank, size, PATIENCE_S))
    return received


def run_ranks(feed: Feed, attempt: int, start: Position, size: int, steps: int = 10**9) -> list[list[Slice]]:
    with ThreadPoolExecutor(size) as pool:
        ranks = [pool.submit(rank_loop, feed, attempt, start, rank, size, steps) for rank in range(size)]
        return [rank.result(PATIENCE_S * 2) for rank in ranks]


def merged(ranks: list[list[Slice]]) -> list[tuple[int, list[int], Position, bool]]:
    """All ranks' slices as whole steps, which all ranks must agree on."""
    steps = []
    for slices in zip(*ranks, strict=True):
        assert len({(s.step, s.epochs, s.last, json.dumps(s.position.to_json())) for s in slices}) == 1
        rows = [number for s in slices for number in numbers(s.rows)]
        steps.append((slices[0].step, rows, slices[0].position, slices[0].last))
    return steps


def uninterrupted(windows: WindowPlan, plan: FeedPlan) -> list[tuple[int, list[int], Position, bool]]:
    return [(b.step, numbers(b.rows), b.position, b.last) for b in batches(windows, plan)]


def make(folder: Path, kinds: str = "g" * 60, batch: int = 4, stream: Any = in_process, **options: Any) -> Feed:
    windows = window_plan(folder, kinds, 7, packing=False)
    return Feed(windows, None, feed_plan(windows, batch, **options), str(folder / "data"), stream)


@settings(max_examples=30)
@given(
    kinds=st.text("gggggbul", min_size=1, max_size=40),
    window_rows=st.integers(1, 15),
    size=st.integers(1, 4),
    share=st.integers(1, 3),
    num_epochs=st.integers(1, 2),
)
def test_the_ranks_together_train_every_good_row_once_an_epoch(
    tmp_path_factory: Any, kinds: str, window_rows: int, size: int, share: int, num_epochs: int
) -> None:
    assume("g" in kinds)
    folder = tmp_path_factory.mktemp("f")
    windows = window_plan(folder, kinds, window_rows)
    plan = feed_plan(windows, size * share, num_epochs=num_epochs)
    feed = Feed(windows, None, plan, str(folder / "data"), in_process)
    ranks = run_ranks(feed, 1, Position(), size)
    steps = merged(ranks)
    assert steps == uninterrupted(windows, plan)
    seen, per_epoch = [n for _, rows, _, _ in steps for n in rows], kinds.count("g")
    assert [sorted(seen[i : i + per_epoch]) for i in range(0, len(seen), per_epoch)] == [good(kinds)] * num_epochs
    for slices in ranks:
        assert all(len(s.rows) == share for s in slices[:-1])
        assert len(slices[-1].rows) <= share


@pytest.mark.parametrize(("before", "after"), [(1, 1), (1, 4), (4, 2), (2, 3), (3, 1), (5, 7), (8, 5)])
def test_a_new_life_continues_with_another_number_of_ranks(tmp_path: Path, before: int, after: int) -> None:
    windows = window_plan(tmp_path, "ggbgglgggu" * 6, 7)
    plan = feed_plan(windows, 12, num_epochs=3)
    whole = uninterrupted(windows, plan)
    assert len(whole) >= 4
    first = merged(run_ranks(Feed(windows, None, plan, str(tmp_path / "1"), in_process), 1, Position(), before, 3))
    position = Position(**json.loads(json.dumps(first[1][2].to_json())))  # the checkpoint is a step behind
    second = merged(run_ranks(Feed(windows, None, plan, str(tmp_path / "2"), in_process), 2, position, after))
    assert first == whole[:3]
    assert second == whole[2:]


# ---- begin ----


def test_what_the_driver_warmed_up_is_adopted(tmp_path: Path) -> None:
    stream = Recorder()
    feed = make(tmp_path, stream=stream)
    feed.begin(DRIVERS_ATTEMPT, Position())
    steps = merged(run_ranks(feed, 1, Position(), 2))
    assert len(steps) == 15
    assert stream.begun == [(0, 0)]


def test_ranks_of_one_attempt_do_not_restart_each_other(tmp_path: Path) -> None:
    stream = Recorder()
    feed = make(tmp_path, stream=stream)
    first = rank_loop(feed, 1, Position(), 0, 2, steps=1)  # rank 0 is ahead before rank 1 says it is there
    second = rank_loop(feed, 1, Position(), 1, 2, steps=1)
    assert stream.begun == [(0, 0)]
    assert not set(numbers(first[0].rows)) & set(numbers(second[0].rows))


def test_a_new_attempt_starts_again_from_its_earlier_step(tmp_path: Path) -> None:
    stream = Recorder()
    feed = make(tmp_path, stream=stream)
    first = merged(run_ranks(feed, 1, Position(), 2, steps=6))
    again = merged(run_ranks(feed, 2, first[2][2], 2))
    assert again[:3] == first[3:]
    assert len(again) == 15 - 3
    assert len(stream.begun) == 2


def test_a_new_attempt_at_the_same_place_as_one_that_trained(tmp_path: Path) -> None:
    feed = make(tmp_path)
    first = merged(run_ranks(feed, 1, Position(), 2, steps=6))
    assert merged(run_ranks(feed, 2, Position(), 2))[:6] == first


def test_the_earliest_position_of_an_attempt_counts(tmp_path: Path) -> None:
    positions = [batch.position for batch in batches(*_plans(tmp_path))]
    for order in ((3, 1), (1, 3)):
        feed = make(tmp_path)
        for index in order:
            feed.begin(1, positions[index])
        assert feed.next(1, 2, 0, 1, PATIENCE_S).position == positions[2]


def _plans(folder: Path) -> tuple[WindowPlan, FeedPlan]:
    windows = window_plan(folder, "g" * 60, 7, packing=False)
    return windows, feed_plan(windows, 4)


def test_a_finished_feed_serves_a_new_attempt(tmp_path: Path) -> None:
    feed = make(tmp_path)
    whole = merged(run_ranks(feed, 1, Position(), 1))
    assert whole[-1][3]
    assert merged(run_ranks(feed, 2, whole[9][2], 2)) == whole[10:]


# ---- older groups ----


def test_attempts_rise_also_over_a_feed_that_died(tmp_path: Path) -> None:
    feed = make(tmp_path)
    before = [feed.new_attempt() for _ in range(3)]
    after = make(tmp_path).new_attempt()
    assert DRIVERS_ATTEMPT < before[0] < before[1] < before[2] < after


def test_an_older_group_is_refused_and_moves_nothing(tmp_path: Path) -> None:
    feed = make(tmp_path)
    first = merged(run_ranks(feed, 1, Position(), 2, steps=6))
    feed.begin(2, first[2][2])
    for step in (3, 6, 9):
        with pytest.raises(StaleAttempt, match="attempt 1 is over, attempt 2 has begun"):
            feed.next(1, step, 0, 2, PATIENCE_S)
    with pytest.raises(StaleAttempt):
        feed.begin(1, first[4][2])
    windows, plan = _plans(tmp_path)
    assert merged(run_ranks(feed, 2, first[2][2], 3)) == uninterrupted(windows, plan)[3:]


def test_a_rank_that_waits_hears_that_its_group_is_over(tmp_path: Path) -> None:
    released = threading.Event()

    def stream(plan: WindowPlan, epoch: int, first: int) -> Iterator[Window]:
        released.wait(PATIENCE_S)
        yield from in_process(plan, epoch, first)

    feed = make(tmp_path, stream=stream)
    with ThreadPoolExecutor(1) as pool:
        old = pool.submit(rank_loop, feed, 1, Position(), 0, 1)
        while feed.progress() != (0, 0.0) or not feed._wanted:
            time.sleep(0.01)
        feed.begin(2, Position())
        with pytest.raises(StaleAttempt):
            old.result(PATIENCE_S)
    released.set()
    assert feed.next(2, 0, 0, 1, PATIENCE_S).step == 0


def test_a_rank_may_ask_before_another_says_that_the_group_begins(tmp_path: Path) -> None:
    feed = make(tmp_path)
    feed.begin(1, Position())
    with ThreadPoolExecutor(1) as pool:
        early = pool.submit(feed.next, 2, 4, 1, 2, PATIENCE_S)
        position = [batch.position for batch in batches(*_plans(tmp_path))][3]
        feed.begin(2, position)
        assert early.result(PATIENCE_S).step == 4


# ---- a wish for a checkpoint ----


def test_all_ranks_hear_of_one_step_to_save_behind(tmp_path: Path) -> None:
    feed = make(tmp_path)
    feed.begin(1, Position())
    served = [feed.next(1, step, 0, 2, PATIENCE_S) for step in range(3)]  # rank 0 is ahead
    feed.ask_for_save(1)
    served += [feed.next(1, 3, 0, 2, PATIENCE_S)]
    feed.ask_for_save(1)  # the same wish, heard twice
    served += [feed.next(1, step, 0, 2, PATIENCE_S) for step in range(4, 6)]
    assert [s.save for s in served] == [False] * 3 + [True] + [False] * 2
    assert [feed.next(1, step, 1, 2, PATIENCE_S).save for step in range(6)] == [s.save for s in served]
    feed.ask_for_save(2)
    assert [feed.next(1, step, 0, 2, PATIENCE_S).save for step in range(5, 8)] == [False, True, False]


def test_a_wish_is_over_with_its_group(tmp_path: Path) -> None:
    feed = make(tmp_path)
    positions = [s[2] for s in merged(run_ranks(feed, 1, Position(), 1, steps=4))]
    feed.ask_for_save(1)
    feed.begin(2, positions[1])
    assert not any(feed.next(2, step, 0, 1, PATIENCE_S).save for step in range(2, 7))
    feed.begin(3, positions[2])
    feed.ask_for_save(1)
    assert feed.next(3, 3, 0, 1, PATIENCE_S).save


# ---- pace, ends, errors ----


def test_only_a_few_steps_are_made_ahead(tmp_path: Path) -> None:
    stream = Recorder()
    windows = window_plan(tmp_path, "g" * 400, 4, packing=False)
    feed = Feed(windows, None, feed_plan(windows, 4), str(tmp_path / "data"), stream)
    feed.begin(1, Position())
    feed.next(1, 0, 0, 1, PATIENCE_S)
    made = -1
    while made != stream.made:
        made = stream.made
        time.sleep(0.2)
    assert 8 <= made <= 12
    for step in range(1, 6):
        feed.next(1, step, 0, 1, PATIENCE_S)
    while stream.made < made + 4:
        time.sleep(0.05)
    feed.close()


def test_the_slowest_rank_keeps_its_batches(tmp_path: Path) -> None:
    feed = make(tmp_path)
    fast = rank_loop(feed, 1, Position(), 0, 2, steps=5)
    slow = rank_loop(feed, 1, Position(), 1, 2, steps=5)
    windows, plan = _plans(tmp_path)
    assert [n for _, rows, _, _ in merged([fast, slow]) for n in rows] == [
        n for _, rows, _, _ in uninterrupted(windows, plan)[:5] for n in rows
    ]


def test_a_step_behind_the_end(tmp_path: Path) -> None:
    feed = make(tmp_path)
    run_ranks(feed, 1, Position(), 1)
    with pytest.raises(UserError, match="the data ended before step 15"):
        feed.next(1, 15, 0, 1, PATIENCE_S)


def test_an_error_reaches_every_rank_and_a_new_attempt_recovers(tmp_path: Path) -> None:
    broken = threading.Event()
    broken.set()

    def stream(plan: WindowPlan, epoch: int, first: int) -> Iterator[Window]:
        for number, window in enumerate(in_process(plan, epoch, first), first):
            if number == 3 and broken.is_set():
                raise OSError("the disk is gone")
            yield window

    feed = make(tmp_path, stream=stream)
    with ThreadPoolExecutor(3) as pool:
        ranks = [pool.submit(rank_loop, feed, 1, Position(), rank, 3) for rank in range(3)]
        for rank in ranks:
            with pytest.raises(OSError, match="the disk is gone"):
                rank.result(PATIENCE_S)
    broken.clear()
    windows = window_plan(tmp_path, "g" * 60, 7, packing=False)
    plan = feed_plan(windows, 4)
    assert merged(run_ranks(feed, 2, Position(), 2)) == uninterrupted(windows, plan)


def test_bad_data_is_a_user_error_on_every_rank(tmp_path: Path) -> None:
    feed = make(tmp_path, "gb" * 20, max_bad_fraction=0.1)
    feed.begin(1, Position())
    for rank in range(2):
        with pytest.raises(UserError, match="8 of 14 rows are bad"):
            for step in range(99):
                feed.next(1, step, rank, 2, PATIENCE_S)


def test_a_stuck_stream_is_a_timeout(tmp_path: Path) -> None:
    released = threading.Event()

    def stream(plan: WindowPlan, epoch: int, first: int) -> Iterator[Window]:
        released.wait(PATIENCE_S)
        yield from in_process(plan, epoch, first)

    feed = make(tmp_path, stream=stream)
    feed.begin(1, Position())
    began = time.monotonic()
    with pytest.raises(TimeoutError, match="no batch for step 0"):
        feed.next(1, 0, 0, 1, 0.2)
    assert 0.15 < time.monotonic() - began < 5
    released.set()
    assert feed.next(1, 0, 0, 1, PATIENCE_S).step == 0


def test_a_closed_feed_produces_nothing_more(tmp_path: Path) -> None:
    feed = make(tmp_path, "g" * 200, batch=1)
    feed.begin(1, Position())
    feed.next(1, 0, 0, 1, PATIENCE_S)
    feed.close()
    with pytest.raises(TimeoutError):
        for step in range(1, 200):
            feed.next(1, step, 0, 1, 0.1)


def test_a_look_at_the_first_rows_moves_nothing(tmp_path: Path) -> None:
    """For an adapter that is initialised from rows, on rank 0 alone, whatever its share."""
    feed, expected = make(tmp_path), uninterrupted(*_plans(tmp_path))
    run_ranks(feed, 1, Position(), 1, steps=2)
    first = numbers(feed.first_rows(7))
    assert first == [number for _, rows, _, _ in expected for number in rows][: len(first)]
    assert len(feed.first_rows(7)) == 7
    assert feed.next(1, 2, 0, 1, PATIENCE_S).step == 2
    assert len(feed.first_rows(10**6)) == sum(len(window.rows) for window in in_process(_plans(tmp_path)[0], 0, 0))


def test_progress(tmp_path: Path) -> None:
    feed = make(tmp_path)
    assert feed.progress() == (0, 0.0)
    feed.begin(1, Position())
    for step in range(3):
        slice_ = feed.next(1, step, 0, 1, PATIENCE_S)
    assert feed.progress() == (2, slice_.epochs)
    assert slice_.epochs == pytest.approx(12 / 60)


# ---- quarantine and evaluation ----


def quarantined(folder: Path) -> list[str]:
    lines = (folder / "data" / "quarantine.jsonl").read_text(encoding="utf-8").splitlines()
    return sorted(json.loads(line)["id"] for line in lines)


def ids_of(folder: Path, *line_numbers: int) -> list[str]:
    return sorted(f"{folder / 'rows.jsonl'}:{number}" for number in line_numbers)


def test_quarantined_rows_are_written_once(tmp_path: Path) -> None:
    kinds, ids = "gbgggugggg" * 2, ids_of(tmp_path, 2, 6, 12, 16)
    feed = make(tmp_path, kinds, num_epochs=3)
    run_ranks(feed, 1, Position(), 1)
    assert quarantined(tmp_path) == ids
    run_ranks(feed, 2, Position(), 1)
    run_ranks(make(tmp_path, kinds), 3, Position(), 1)  # the feed's process died
    assert quarantined(tmp_path) == ids


def test_rows_that_only_later_epochs_of_a_mix_take_are_quarantined_too(tmp_path: Path) -> None:
    """An epoch draws 6 of 24 rows, so that all bad rows have come after four epochs."""
    kinds = "gggb" * 6
    windows = window_plan(tmp_path, kinds, 3, packing=False)
    windows = replace(windows, row_set=replace(windows.row_set, mix=Mix((6,))))
    feed = Feed(windows, None, feed_plan(windows, 2, num_epochs=4), str(tmp_path / "data"), in_process)
    (slices,) = run_ranks(feed, 1, Position(), 1)
    assert slices[-1].position.counts == {"trained": 18, "quarantined: malformed JSON": 6}
    assert quarantined(tmp_path) == ids_of(tmp_path, 4, 8, 12, 16, 20, 24)


def test_a_quarantine_line_cut_off_by_a_kill_is_written_again(tmp_path: Path) -> None:
    kinds = "gbgggugggg"
    run_ranks(make(tmp_path, kinds), 1, Position(), 1)
    file = tmp_path / "data" / "quarantine.jsonl"
    whole = file.read_text(encoding="utf-8")
    file.write_text(whole[:-20], encoding="utf-8")
    run_ranks(make(tmp_path, kinds), 2, Position(), 1)
    readable = []
    for line in file.read_text(encoding="utf-8").splitlines():
        try:
            readable.append(json.loads(line)["id"])
        except json.JSONDecodeError:
            continue
    assert sorted(readable) == ids_of(tmp_path, 2, 6)


def evaluating(folder: Path, kinds: str, stream: Any = in_process) -> Feed:
    windows = window_plan(folder / "train", "g" * 10, 5)
    held_out = window_plan(folder / "eval", kinds, 3, packing=False, shuffle=False)
    return Feed(windows, held_out, feed_plan(windows, 2), str(folder / "data"), stream)


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_evaluation_rows_are_divided_among_the_ranks(tmp_path: Path, size: int) -> None:
    kinds = "ggbggglgg"
    stream = Recorder()
    feed = evaluating(tmp_path, kinds, stream)
    shares = [feed.evaluation(rank, size) for rank in range(size)]
    assert sorted(n for rows, _ in shares for n in numbers(rows)) == good(kinds)
    assert {most for _, most in shares} == {max(len(rows) for rows, _ in shares)}
    assert stream.begun == [(0, 0)]
    assert quarantined(tmp_path) == ids_of(tmp_path / "eval", 3)


def test_evaluation_rows_are_accounted_for(tmp_path: Path) -> None:
    feed = evaluating(tmp_path, "ggblglgug")
    feed.evaluation(0, 1)
    counts = json.loads((tmp_path / "data" / EVALUATION_COUNTS).read_text())
    assert sum(counts.values()) == 9
    assert counts["evaluated"] == 5
    assert counts["quarantined: malformed JSON"] == 1
    assert counts["filtered: longer than data.max_length"] == 2
    assert not any(name.startswith("trained") for name in counts)
    write_accounting(tmp_path, {"trained": 10})
    assert read_accounting(tmp_path) == {"trained": 10}
    assert read_evaluation(tmp_path) == counts
    written = json.loads((tmp_path / "data" / "accounting.json").read_text())
    assert written == {"rows seen": 10, "trained": 10, "evaluation": {"rows seen": 9, **counts}}
    line = left_out(counts)
    assert line.startswith("evaluation rows: 5 of 9 are used as they are; 2 filtered: longer than data.max_length, ")
    assert left_out({"evaluated": 5}) == ""


def test_evaluation_and_training_at_once(tmp_path: Path) -> None:
    feed = evaluating(tmp_path, "g" * 20)
    with ThreadPoolExecutor(2) as pool:
        evaluation = pool.submit(feed.evaluation, 0, 1)
        training = pool.submit(rank_loop, feed, 1, Position(), 0, 1)
        assert numbers(evaluation.result(PATIENCE_S)[0]) == list(range(20))
        assert sorted(n for s in training.result(PATIENCE_S) for n in numbers(s.rows)) == list(range(10))


def test_every_rank_hears_that_no_evaluation_row_can_be_used(tmp_path: Path) -> None:
    feed = evaluating(tmp_path, "bul")
    for rank in range(2):
        with pytest.raises(UserError, match=r"no evaluation row[^!]*quarantined: malformed JSON"):
            feed.evaluation(rank, 2)
