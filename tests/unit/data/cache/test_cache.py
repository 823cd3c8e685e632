"""The encoded cache: the same windows as without it, refused when an ingredient differs, resumed after a kill."""

import json
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import fields
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayswift.cluster.layout import Layout
from rayswift.config.load import load
from rayswift.config.schema import DataConfig, SftConfig
from rayswift.data import prepare
from rayswift.data.cache import fingerprint
from rayswift.data.cache import folder as cache_folder
from rayswift.data.cache.parts import SCHEMA, CachedWindows, PartSummary, PartWriter, _packed_rows, _table
from rayswift.data.encode.config import RowKind
from rayswift.data.feed.feed import Feed
from rayswift.data.sequence.global_batches import Position
from rayswift.data.sequence.windows import PackedRow, Window, Windows
from rayswift.launch import plan
from rayswift.log import UserError
from rayswift.model.texts.row_kind import row_kind
from tests.support.streams import TINY, batches, feed_plan, good, line, numbers

KINDS = "gggbglguggggglgg" * 5


def here(writer: PartWriter, parts: range) -> Iterator[PartSummary]:
    """What Ray Data tasks would do."""
    return map(writer, parts)


def data_config(folder: Path, kinds: str = KINDS, **options: Any) -> DataConfig:
    folder.mkdir(parents=True, exist_ok=True)
    source = folder / "rows.jsonl"
    if not source.exists():
        source.write_text("".join(line(i, kind) + "\n" for i, kind in enumerate(kinds)), encoding="utf-8")
    return DataConfig(**({"dataset": [str(source)], "max_length": 24, "window_rows": 7} | options))


def encode(data: DataConfig, to: Path, epochs: int = 1, seed: int = 5, tokenizer: Path = TINY) -> bool:
    made_from = fingerprint.take(data, tokenizer, seed, cache_folder.known(to))
    if not cache_folder.start(to, made_from, epochs):
        return False
    train, evaluation = prepare.plan_encoding(data, tokenizer, seed, to / "work")
    plans = {"train": train} | ({"eval": evaluation} if evaluation else {})
    cache_folder.write(to, plans, made_from, epochs, 1.0, here)
    return True


def opened(data: DataConfig, to: Path, seed: int = 5, tokenizer: Path = TINY) -> tuple[Windows, Windows | None]:
    return prepare.plan_windows(data.model_copy(update={"cache": str(to)}), tokenizer, seed, to / "unused")


def shape(window: Window) -> Any:
    """A window as values that compare, every field of its rows."""
    rows = [[_plain(getattr(row, field.name)) for field in fields(row)] for row in window.rows]
    return rows, dict(window.counts), window.quarantined


def _plain(value: Any) -> Any:
    return (str(value.dtype), value.tolist()) if isinstance(value, np.ndarray) else value


def whole(windows: Windows, epoch: int) -> list[Any]:
    return [shape(windows.make(epoch, number)) for number in range(windows.num_windows)]


@settings(max_examples=8)
@given(
    kinds=st.text("gggggbul", min_size=1, max_size=40),
    window_rows=st.integers(1, 12),
    epochs=st.integers(1, 2),
    packing=st.booleans(),
    shuffle=st.booleans(),
)
def test_its_epochs_are_those_without_it(
    tmp_path_factory: Any, kinds: str, window_rows: int, epochs: int, packing: bool, shuffle: bool
) -> None:
    folder = tmp_path_factory.mktemp("c")
    data = data_config(folder, "g" + kinds, window_rows=window_rows, packing=packing, shuffle=shuffle)
    plain, _ = prepare.plan_windows(data, TINY, 5, folder / "work")
    encode(data, folder / "cache", epochs)
    cached, _ = opened(data, folder / "cache")
    assert (cached.num_windows, cached.num_rows) == (plain.num_windows, plain.num_rows)
    for epoch in range(epochs if shuffle else 3):
        assert whole(cached, epoch) == whole(plain, epoch)
    # An epoch that is read again: the same rows and accounting, only the last window in its place.
    again = [cached.make(epochs, number) for number in range(cached.num_windows)]
    assert sorted(n for window in again for n in numbers(window.rows)) == good("g" + kinds)
    assert sum((window.counts for window in again), Counter()).total() == len(kinds) + 1


def test_later_epochs_have_orders_of_their_own(tmp_path: Path) -> None:
    encode(data := data_config(tmp_path, "g" * 70), tmp_path / "cache")
    cached, _ = opened(data, tmp_path / "cache")
    orders = [[n for w in range(cached.num_windows) for n in numbers(cached.make(e, w).rows)] for e in range(4)]
    assert len({tuple(order) for order in orders}) == 4
    assert all(sorted(order) == list(range(70)) for order in orders)


def test_a_run_over_several_epochs_resumes_anywhere(tmp_path: Path) -> None:
    encode(data := data_config(tmp_path), tmp_path / "cache")
    cached, _ = opened(data, tmp_path / "cache")
    plan = feed_plan(cached, 3, num_epochs=3)
    uninterrupted = batches(cached, plan)
    for stop in range(0, len(uninterrupted) - 1, 4):
        position = Position(**json.loads(json.dumps(uninterrupted[stop].position.to_json())))
        rest = batches(cached, plan, position)
        assert [numbers(b.rows) for b in rest] == [numbers(b.rows) for b in uninterrupted[stop + 1 :]]
        assert [(b.epochs, b.position) for b in rest] == [(b.epochs, b.position) for b in uninterrupted[stop + 1 :]]
    assert uninterrupted[-1].epochs == 3
    assert all(a.epochs < b.epochs for a, b in pairwise(uninterrupted))
    counts = uninterrupted[-1].position.counts
    assert counts["trained"] == 3 * len(good(KINDS))
    assert sum(counts.values()) == 3 * len(KINDS)


def test_bad_rows_are_quarantined_and_judged_as_without_it(tmp_path: Path) -> None:
    encode(data := data_config(tmp_path), tmp_path / "cache")
    plain, _ = prepare.plan_windows(data, TINY, 5, tmp_path / "work")
    cached, _ = opened(data, tmp_path / "cache")
    files = []
    for name, windows in (("plain", plain), ("cached", cached)):
        in_place = lambda w, e, f: (w.make(e, n) for n in range(f, w.num_windows))  # noqa: E731
        feed = Feed(windows, None, feed_plan(windows, 4, max_bad_fraction=0.1), str(tmp_path / name), in_place)
        feed.begin(1, Position())
        with pytest.raises(UserError, match=r"bad, more than data.max_bad_fraction = 0.1 allows of 80 in all"):
            for step in range(100):
                feed.next(1, step, 0, 1, 20)
        files.append((tmp_path / name / "quarantine.jsonl").read_text())
    assert files[0] == files[1]


def test_evaluation_rows_are_in_it(tmp_path: Path) -> None:
    data = data_config(tmp_path, eval_fraction=0.2)
    _, plain = prepare.plan_windows(data, TINY, 5, tmp_path / "work")
    encode(data, tmp_path / "cache", epochs=2)
    _, cached = opened(data, tmp_path / "cache")
    assert plain is not None and cached is not None
    assert whole(cached, 0) == whole(plain, 0)


def test_every_field_of_a_packed_row_is_kept() -> None:
    assert SCHEMA.names == [field.name for field in fields(PackedRow)]
    ids = np.arange(5, dtype=np.int32)
    weights = np.array([0, 0.5, 1, 2, 0], np.float32)
    rows = [
        PackedRow(ids, ids > 1, (2, 3), 4, weights, 1, 1, ("a:1", "b:22"), (("n", 1.5), ("n", 2.0)), "{}"),
        PackedRow(ids, ids > 2, (5,), 1),
    ]
    back = _packed_rows(_table(rows))
    assert shape(Window(tuple(back), Counter(), ())) == shape(Window(tuple(rows), Counter(), ()))
    assert back[1].weights is None
    assert [row.ids for row in back] == [("a:1", "b:22"), ()]
    assert [row.numbers for row in back] == [(("n", 1.5), ("n", 2.0)), ()]


# ---- another ingredient ----


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"max_length": 25}, "data.max_length: was 24, is 25"),
        ({"packing": False}, "data.packing: was True, is False"),
        ({"window_rows": 8}, "data.window_rows: was 7, is 8"),
        ({"system": "Be brief."}, "data.system: was None, is 'Be brief.'"),
        ({"eval_fraction": 0.5}, "data.eval_fraction: was 0.0, is 0.5"),
    ],
)
def test_another_setting_is_refused_by_name(tmp_path: Path, change: dict[str, Any], named: str) -> None:
    encode(data := data_config(tmp_path), tmp_path / "cache")
    with pytest.raises(UserError, match="was made from something else") as refused:
        opened(data.model_copy(update=change), tmp_path / "cache")
    assert named in str(refused.value)
    assert str(refused.value).count(": was ") == 1
    with pytest.raises(UserError, match="holds a cache that was made from something else") as refused:
        encode(data.model_copy(update=change), tmp_path / "cache")
    assert named in str(refused.value)


def test_another_seed_tokenizer_or_template_is_refused_by_name(tmp_path: Path) -> None:
    encode(data := data_config(tmp_path), tmp_path / "cache")
    with pytest.raises(UserError, match=r"train\.seed: was 5, is 6"):
        opened(data, tmp_path / "cache", seed=6)
    other = shutil.copytree(TINY, tmp_path / "tokenizer")
    (other / "chat_template.jinja").write_text("{{ messages }}", encoding="utf-8")
    with pytest.raises(UserError, match="  chat template: was"):
        opened(data, tmp_path / "cache", tokenizer=other)
    (other / "tokenizer.json").write_text((TINY / "tokenizer.json").read_text() + "\n", encoding="utf-8")
    with pytest.raises(UserError, match="  tokenizer: was"):
        opened(data, tmp_path / "cache", tokenizer=other)


def test_a_source_is_known_by_content_not_by_place_or_time(tmp_path: Path) -> None:
    encode(data := data_config(tmp_path), tmp_path / "cache")
    source = Path(data.dataset[0])
    moved = source.rename(tmp_path / "moved.jsonl")
    moved.write_bytes(moved.read_bytes())  # another time, the same content
    elsewhere = data.model_copy(update={"dataset": [str(moved)]})
    opened(elsewhere, tmp_path / "cache")
    content = moved.read_bytes()
    moved.write_bytes(content.replace(b"x", b"y", 1))
    with pytest.raises(UserError, match=r"moved\.jsonl: its content has changed"):
        opened(elsewhere, tmp_path / "cache")
    moved.write_bytes(content + b"{}\n")
    with pytest.raises(UserError, match=r"moved\.jsonl: was \d+ bytes, is \d+"):
        opened(elsewhere, tmp_path / "cache")


def test_the_number_of_rows_that_the_encoding_chose_for_a_window_may_be_named(tmp_path: Path) -> None:
    """As the resolved config of a run that is continued names it."""
    encode(data := data_config(tmp_path, window_rows=None), tmp_path / "cache")
    chosen = opened(data, tmp_path / "cache")[0].window_rows
    assert opened(data.model_copy(update={"window_rows": chosen}), tmp_path / "cache")[0].window_rows == chosen
    with pytest.raises(UserError, match=f"data.window_rows: was None, is {chosen + 1}"):
        opened(data.model_copy(update={"window_rows": chosen + 1}), tmp_path / "cache")


# ---- interrupted and broken ----


def test_an_interrupted_encoding_goes_on(tmp_path: Path) -> None:
    data = data_config(tmp_path, "g" * 490)
    encode(data, tmp_path / "whole")
    made: list[int] = []

    def interrupted(writer: PartWriter, parts: range) -> Iterator[PartSummary]:
        for part in parts:
            if len(made) == 9:
                raise KeyboardInterrupt
            made.append(part)
            yield writer(part)

    made_from = fingerprint.take(data, TINY, 5)
    cache_folder.start(tmp_path / "cache", made_from, 1)
    train, _ = prepare.plan_encoding(data, TINY, 5, tmp_path / "cache" / "work")
    with pytest.raises(KeyboardInterrupt):
        cache_folder.write(tmp_path / "cache", {"train": train}, made_from, 1, 1.0, interrupted)
    (tmp_path / "cache" / "train" / "part-00009.parquet.7.partial").write_bytes(b"half")
    with pytest.raises(UserError, match="incomplete: encode it again"):
        opened(data, tmp_path / "cache")
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache" / "train").glob("*.parquet")}
    assert encode(data, tmp_path / "cache")
    assert len(times) == 9
    assert all(path.stat().st_mtime_ns == time for path, time in times.items())
    assert sorted(p.name for p in (tmp_path / "cache").iterdir()) == ["manifest.json", "train"]
    assert whole(opened(data, tmp_path / "cache")[0], 0) == whole(opened(data, tmp_path / "whole")[0], 0)
    assert not encode(data, tmp_path / "cache")  # complete: nothing to do


def test_an_unfinished_encoding_of_something_else_makes_way(tmp_path: Path) -> None:
    data = data_config(tmp_path)
    cache_folder.start(tmp_path / "cache", fingerprint.take(data, TINY, 6), 1)
    (tmp_path / "cache" / "train").mkdir()
    (tmp_path / "cache" / "train" / "part-00000.parquet").write_bytes(b"of another seed")
    assert encode(data, tmp_path / "cache")
    opened(data, tmp_path / "cache")


def test_a_folder_of_the_users_is_left_alone(tmp_path: Path) -> None:
    data = data_config(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    with pytest.raises(UserError, match=r"holds thesis\.tex"):
        encode(data, tmp_path / "mine")
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["thesis.tex"]


def test_a_cache_that_lost_something_is_refused(tmp_path: Path) -> None:
    data = data_config(tmp_path)
    with pytest.raises(UserError, match="rayswift data encode"):
        opened(data, tmp_path / "nothing")
    encode(data, tmp_path / "cache")
    part = tmp_path / "cache" / "train" / "part-00003.parquet"
    content = part.read_bytes()
    cached = opened(data, tmp_path / "cache")[0]
    assert isinstance(cached, CachedWindows)
    part.write_bytes(b"x" * len(content))
    with pytest.raises(UserError, match="encode it again"):
        cached.make(0, 3)
    part.write_bytes(content[:-1])
    with pytest.raises(UserError, match=r"part-00003\.parquet has \d+ bytes, not \d+"):
        opened(data, tmp_path / "cache")
    part.unlink()
    with pytest.raises(UserError, match=r"part-00003\.parquet is gone"):
        opened(data, tmp_path / "cache")


PAIRS = {"prompt": "2+2", "chosen": "4", "rejected": "5", "margin": 0.5}
OF_TASKS: list[tuple[RowKind, dict[str, Any]]] = [
    (RowKind("preference"), PAIRS),
    (RowKind("kto"), {"prompt": "2+2", "completion": "4", "label": True}),
    (RowKind("embedding"), {"anchor": "a", "positive": "b", "negative": ["c", "d"]}),
    (RowKind("prompt", max_length=64), {"prompt": "2+2", "solution": "4"}),
]


@pytest.mark.parametrize(("kind", "row"), OF_TASKS, ids=lambda value: getattr(value, "family", ""))
def test_rows_of_every_task_come_back_as_they_were(tmp_path: Path, kind: RowKind, row: dict[str, Any]) -> None:
    source = tmp_path / "rows.jsonl"
    source.write_text((json.dumps(row) + "\n") * 9)
    data = DataConfig(dataset=[str(source)], max_length=64, window_rows=4, packing=False)
    cache = tmp_path / "cache"
    made_from = fingerprint.take(data, TINY, 5, None, kind)
    assert cache_folder.start(cache, made_from, 1)
    plain, _ = prepare.plan_encoding(data, TINY, 5, cache / "work", kind)
    expected = whole(plain, 0)
    cache_folder.write(cache, {"train": plain}, made_from, 1, 1.0, here)
    given = data.model_copy(update={"cache": str(cache)})
    cached, _ = prepare.plan_windows(given, TINY, 5, tmp_path / "unused", kind)
    assert whole(cached, 0) == expected
    with pytest.raises(UserError, match=rf"rows.family: was '{kind.family}', is 'causal'"):
        prepare.plan_windows(given, TINY, 5, tmp_path / "unused")


@pytest.mark.parametrize("task", ["causal_lm", "embedding", "reranker", "generative_reranker"])
def test_rows_are_read_alike_before_and_after_the_config_is_resolved(task: str) -> None:
    config = load("sft", ["--model", str(TINY), "--random_init", "--data.dataset", "d.jsonl", "--task", task]).config
    assert isinstance(config, SftConfig)
    resolved = plan.resolve(config, Layout(1, "cpu", 1, local=True), None).config
    source = Path(config.model.path)
    assert row_kind(config, source) == row_kind(resolved, source)
