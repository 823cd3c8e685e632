"""Windows: what they hold depends on data, seed and epoch alone, and every raw row is in one of them."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayswift.config.schema import DataConfig, TruncationMode
from rayswift.data.prepare import derived_window_rows, plan_encoding
from rayswift.data.sequence.windows import TRAINED, TRAINED_CUT, RowSet
from rayswift.data.sources import hold_out, open_sources
from tests.support.streams import MAX_LENGTH, TINY, batches, feed_plan, good, line, numbers, window_plan

KINDS = st.text("gggggbul", min_size=1, max_size=40)


@settings(max_examples=60)
@given(KINDS, st.integers(1, 15), st.booleans(), st.booleans(), st.integers(0, 3))
def test_every_row_is_in_one_window_and_counted_once(
    tmp_path_factory: pytest.TempPathFactory,
    kinds: str,
    window_rows: int,
    packing: bool,
    shuffle: bool,
    epoch: int,
) -> None:
    plan = window_plan(tmp_path_factory.mktemp("w"), kinds, window_rows, packing, shuffle=shuffle)
    windows = [plan.make(epoch, number) for number in range(plan.num_windows)]
    assert sorted(n for window in windows for n in numbers(window.rows)) == good(kinds)
    for window in windows:
        assert [int(name.rpartition(":")[2]) - 1 for row in window.rows for name in row.ids] == numbers(window.rows)
    counts: Counter[str] = sum((window.counts for window in windows), Counter())
    expected = {
        "trained": kinds.count("g"),
        "filtered: longer than data.max_length": kinds.count("l"),
        "quarantined: malformed JSON": kinds.count("b"),
        "quarantined: no known columns": kinds.count("u"),
    }
    assert counts == Counter({k: v for k, v in expected.items() if v})
    quarantined = sorted(int(row.id.split(":")[1]) for window in windows for row in window.quarantined)
    assert quarantined == [i + 1 for i, kind in enumerate(kinds) if kind in ("b", "u")]


@settings(max_examples=60)
@given(KINDS, st.integers(1, 15), st.booleans())
def test_packed_rows_fit_and_account_for_the_rows_left_out(
    tmp_path_factory: pytest.TempPathFactory, kinds: str, window_rows: int, packing: bool
) -> None:
    plan = window_plan(tmp_path_factory.mktemp("w"), kinds, window_rows, packing)
    for number in range(plan.num_windows):
        window = plan.make(0, number)
        for row in window.rows:
            assert sum(row.lengths) == len(row.input_ids) <= MAX_LENGTH
            assert packing or len(row.lengths) == 1
            for begin in np.cumsum([0, *row.lengths[:-1]]):
                assert not row.trained[begin]
        if window.rows:
            assert sum(row.num_source_rows for row in window.rows) == window.counts.total()


def test_a_window_is_the_same_whenever_and_wherever_it_is_made(tmp_path: Path) -> None:
    kinds = "g" * 50
    one, two = (window_plan(tmp_path / n, kinds, 8) for n in "ab")
    first = [numbers(one.make(1, w).rows) for w in range(one.num_windows)]
    again = [numbers(two.make(1, w).rows) for w in reversed(range(two.num_windows))]
    assert first == again[::-1]


def test_epochs_and_seeds_have_other_orders_and_no_shuffle_has_the_files(tmp_path: Path) -> None:
    kinds = "g" * 30
    order = {
        (seed, epoch): tuple(window_plan(tmp_path, kinds, 30, seed=seed).row_set.rows_at(0, 30, epoch).tolist())
        for seed in (1, 2)
        for epoch in (0, 1)
    }
    assert len(set(order.values())) == 4
    unshuffled = window_plan(tmp_path, kinds, 7, shuffle=False)
    for epoch in (0, 1):
        read = [n for w in range(unshuffled.num_windows) for n in sorted(numbers(unshuffled.make(epoch, w).rows))]
        assert read == list(range(30))


def test_quarantined_rows_say_where_and_why(tmp_path: Path) -> None:
    plan = window_plan(tmp_path, "gbu", 3, shuffle=False)
    malformed, unknown = plan.make(0, 0).quarantined
    path = tmp_path / "rows.jsonl"
    assert (malformed.id, malformed.reason, malformed.row) == (f"{path}:2", "malformed JSON", '{"text": ')
    assert (unknown.id, unknown.reason) == (f"{path}:3", "no known columns")
    assert "columns are n" in unknown.detail
    assert json.loads(unknown.row) == {"n": 2}


# ---- rows that are cut, split or weighed ----


@pytest.mark.parametrize(
    ("truncation", "outcome"),
    [
        ("drop", "filtered: longer than data.max_length"),
        ("left", TRAINED_CUT),
        ("right", TRAINED_CUT),
        ("split", TRAINED),
    ],
)
@settings(max_examples=25)
@given(kinds=KINDS, window_rows=st.integers(1, 15), global_batch=st.integers(1, 4))
def test_each_row_is_counted_once_whatever_becomes_of_it(
    tmp_path_factory: pytest.TempPathFactory,
    truncation: TruncationMode,
    outcome: str,
    kinds: str,
    window_rows: int,
    global_batch: int,
) -> None:
    plan = window_plan(tmp_path_factory.mktemp("w"), kinds, window_rows)
    plan = replace(plan, encode=replace(plan.encode, truncation=truncation))
    windows = [plan.make(0, number) for number in range(plan.num_windows)]
    expected = Counter(
        {"quarantined: malformed JSON": kinds.count("b"), "quarantined: no known columns": kinds.count("u")}
    )
    expected += Counter({TRAINED: kinds.count("g")}) + Counter({outcome: kinds.count("l")})
    assert sum((window.counts for window in windows), Counter()) == +expected
    for window in windows:
        assert not window.rows or sum(row.num_source_rows for row in window.rows) == window.counts.total()
    if any(window.rows for window in windows):
        last = batches(plan, feed_plan(plan, global_batch))[-1]
        assert Counter(last.position.counts) == +expected
        assert last.epochs == 1


def test_weights_of_packed_rows(tmp_path: Path) -> None:
    folder = tmp_path / "rows"
    folder.mkdir()
    heavy = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "loss_scale": 2}]}
    plain = {"query": "q", "response": "a"}
    (folder / "rows.jsonl").write_text(f"{json.dumps(heavy)}\n{json.dumps(plain)}\n", encoding="utf-8")
    plan = window_plan(tmp_path / "other", "g", 9)
    row_set = RowSet(open_sources([str(folder)], tmp_path / "w"), seed=0, shuffle=False)
    plan = replace(plan, row_set=row_set, encode=replace(plan.encode, max_length=100))
    (row,) = plan.make(0, 0).rows
    assert row.weights is not None
    assert row.weights.dtype == np.float32
    assert sorted(set(row.weights[row.trained])) == [1, 2]


# ---- several stores, held-out rows ----


def test_rows_of_several_stores_are_numbered_through(tmp_path: Path) -> None:
    sizes = (3, 1, 6)
    paths = []
    for index, size in enumerate(sizes):
        path = tmp_path / f"{index}.jsonl"
        path.write_text("".join(f'"{index}-{row}"\n' for row in range(size)), encoding="utf-8")
        paths.append(str(path))
    row_set = RowSet(open_sources(paths, tmp_path / "w"), seed=0)
    assert row_set.num_rows == sum(sizes)
    asked = np.array([9, 0, 3, 2, 4, 3])
    assert [raw.value for raw in row_set.read(asked)] == ["2-5", "0-0", "1-0", "0-2", "2-0", "1-0"]
    assert sorted(row_set.rows_at(0, 10, 0).tolist()) == list(range(10))
    assert row_set.rows_at(8, 99, 0).tolist() == row_set.rows_at(0, 10, 0).tolist()[8:]


@given(st.integers(2, 200), st.floats(0, 0.99), st.integers(1, 3), st.integers(0, 100))
def test_held_out_rows_are_disjoint_and_nothing_is_lost(
    tmp_path_factory: pytest.TempPathFactory, num_rows: int, fraction: float, num_stores: int, seed: int
) -> None:
    (store,) = _store(tmp_path_factory, num_rows)
    train, held_out = hold_out([store] * num_stores, fraction, seed)
    assert sum(part.num_rows for part in held_out) == round(num_rows * num_stores * fraction)
    for one, other in zip(train, held_out, strict=True):
        ids = [row.id for part in (one, other) for row in part.read(range(part.num_rows))]
        assert sorted(ids) == sorted(row.id for row in store.read(range(num_rows)))


def test_held_out_rows_are_chosen_by_the_seed(tmp_path_factory: pytest.TempPathFactory) -> None:
    (store,) = _store(tmp_path_factory, 200)
    chosen = []
    for seed in (1, 1, 2):
        _, (held_out,) = hold_out([store], 0.2, seed)
        chosen.append(sorted(row.id for row in held_out.read(range(40))))
    assert chosen[0] == chosen[1] != chosen[2]
    assert chosen[0] != sorted(row.id for row in store.read(range(40)))


def test_held_out_rows_of_rows_in_order_are_the_last(tmp_path_factory: pytest.TempPathFactory) -> None:
    (store,) = _store(tmp_path_factory, 200)
    (train,), (held_out,) = hold_out([store], 0.2, 1, shuffle=False)
    ids = [row.id for row in store.read(range(200))]
    assert [row.id for row in train.read(range(160))] == ids[:160]
    assert [row.id for row in held_out.read(range(40))] == ids[160:]


@pytest.mark.parametrize(
    ("max_length", "mean_length", "mean_bytes", "rows"),
    [
        (2048, 200, 800, 2048),  # 200 packed rows' worth
        (256, 200, 800, 2000),  # at least so many
        (32_768, 20, 80, 50_000),  # at most so many
        (131_072, 131_072, 500_000, 128),  # no more than 16 M tokens
        (32_768, 30_000, 120_000, 559),
        (2048, 2000, 5_000_000, 54),  # rows that are cut are large before: no more than 256 MiB
        (1 << 20, 1 << 26, 1, 1),
    ],
)
def test_windows_are_bounded_by_tokens_and_bytes(
    max_length: int, mean_length: float, mean_bytes: float, rows: int
) -> None:
    assert derived_window_rows(max_length, mean_length, mean_bytes) == rows


def test_a_window_of_long_rows_is_bounded_by_what_they_hold(tmp_path: Path) -> None:
    """A row that is split counts with all its pieces."""
    rows = tmp_path / "x.jsonl"
    rows.write_text("".join(json.dumps({"text": f"{i} " + "a b c d " * 4_000}) + "\n" for i in range(4)))
    for truncation in ("split", "drop"):
        data = DataConfig(
            dataset=[str(rows)], truncation=truncation, max_length=64 if truncation == "split" else 1 << 20
        )
        plan, _ = plan_encoding(data, TINY, 1, tmp_path / "work")
        num_tokens = sum(len(row.input_ids) for row in plan.make(0, 0).rows) / 4
        assert 0.9 < plan.window_rows * num_tokens / (1 << 24) <= 1.1


_STORES: dict[int, tuple] = {}


def _store(tmp_path_factory: pytest.TempPathFactory, num_rows: int) -> tuple:
    if num_rows not in _STORES:
        folder = tmp_path_factory.mktemp("store")
        path = folder / "x.jsonl"
        path.write_text("".join(line(i, "g") + "\n" for i in range(num_rows)), encoding="utf-8")
        _STORES[num_rows] = open_sources([str(path)], folder / "w")
    return _STORES[num_rows]
