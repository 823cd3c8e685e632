"""`data.map` and sources with settings of their own: what is trained, and the outcome of every raw row."""

import json
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from rayswift.config.fields.source import SourceConfig
from rayswift.config.load import load
from rayswift.config.schema import DataConfig
from rayswift.data import raw_rows
from rayswift.data.cache import fingerprint
from rayswift.data.inspect.inspection import inspect
from rayswift.data.prepare import plan_encoding
from rayswift.data.raw_rows import map_hash
from rayswift.data.sequence.windows import WindowPlan
from rayswift.launch import user_code
from rayswift.log import UserError
from tests.support.streams import TINY, batches, feed_plan

TOKENIZER = Tokenizer.from_file(str(TINY / "tokenizer.json"))
MAP = """
def by_kind(row):
    kind, number = row["kind"], row["number"]
    if kind == "same":
        return row
    if kind == "changed":
        return {"text": f"changed {number}"}
    if kind == "three":
        return [{"text": f"{part} of {number}"} for part in "abc"]
    if kind == "mixed":
        return [{"text": f"good {number}"}, {"wrong": number}, {"text": "long " * 200}]
    if kind == "none":
        return None
    if kind == "no rows":
        return []
    if kind == "reason":
        return None, "it is dull"
    if kind == "odd":
        return number
    raise ValueError(f"number {number} is bad")
"""
# Rows that are trained, and where each made row goes, of a raw row of each kind.
TRAINED = {"same": 1, "changed": 1, "three": 3, "mixed": 1}
LEFT: dict[str, dict[str, int]] = {
    "mixed": {"quarantined: no known columns": 1, "filtered: longer than data.max_length": 1},
    "none": {"filtered: data.map gave no row": 1},
    "no rows": {"filtered: data.map gave no row": 1},
    "reason": {"filtered: data.map: it is dull": 1},
    "odd": {"quarantined: data.map failed": 1},
    "raises": {"quarantined: data.map failed": 1},
}
KINDS = [*TRAINED, *(kind for kind in LEFT if kind not in TRAINED)]


def data_of(folder: Path, kinds: list[str], **fields: Any) -> DataConfig:
    folder.mkdir(parents=True, exist_ok=True)
    rows = [{"text": f"row {number}", "kind": kind, "number": number} for number, kind in enumerate(kinds)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (folder / "rows.py").write_text(MAP, encoding="utf-8")
    whole = {"dataset": [str(folder / "rows.jsonl")], "map": f"{folder / 'rows.py'}:by_kind", "max_length": 64}
    return DataConfig(**{**whole, "max_bad_fraction": 1.0, **fields})


def planned(folder: Path, data: DataConfig) -> WindowPlan:
    return plan_encoding(data, TINY, 1, folder / "work")[0]


def trained_texts(windows: WindowPlan, **plan: Any) -> tuple[list[str], Counter[str], float]:
    sequence = batches(windows, feed_plan(windows, 2, **plan))
    texts = []
    for row in (row for batch in sequence for row in batch.rows):
        begin = 0
        for length in row.lengths:
            texts.append(TOKENIZER.decode(row.input_ids[begin : begin + length].tolist()))
            begin += length
    return texts, Counter(sequence[-1].position.counts), sequence[-1].epochs


@settings(max_examples=25)
@given(st.lists(st.sampled_from(KINDS), max_size=20), st.integers(1, 9), st.booleans(), st.integers(1, 2))
def test_every_row_that_the_function_makes_is_counted_once(
    tmp_path_factory: pytest.TempPathFactory, kinds: list[str], window_rows: int, packing: bool, epochs: int
) -> None:
    folder, kinds = tmp_path_factory.mktemp("m"), ["same", *kinds]
    windows = planned(folder, data_of(folder, kinds, window_rows=window_rows, packing=packing))
    texts, counts, passes = trained_texts(windows, num_epochs=epochs)
    expected = Counter({"trained": sum(TRAINED.get(kind, 0) for kind in kinds)})
    for kind in kinds:
        expected.update(LEFT.get(kind, {}))
    assert counts == Counter({name: number * epochs for name, number in expected.items()})
    assert len(texts) == counts["trained"]
    assert passes == epochs


def test_what_it_gives_is_trained_and_what_it_leaves_has_its_reason(tmp_path: Path) -> None:
    windows = planned(tmp_path, data_of(tmp_path, KINDS, shuffle=False))
    texts, _, _ = trained_texts(windows)
    assert sorted(text.strip() for text in texts) == sorted(
        ["row 0", "changed 1", "a of 2", "b of 2", "c of 2", "good 3"]
    )
    made = windows.make(0, 0)
    rows = {row.id.rpartition("rows.jsonl:")[2]: row for row in made.quarantined}
    assert set(rows) == {"4.2", "8", "9"}
    assert rows["4.2"].reason == "no known columns" and json.loads(rows["4.2"].row) == {"wrong": 3}
    assert rows["8"].detail == "it returned int, expected a row, a list of rows, None, or None with a reason"
    assert rows["9"].detail == "ValueError: number 8 is bad (rows.py:20)"
    assert json.loads(rows["9"].row) == {"text": "row 8", "kind": "raises", "number": 8}
    assert {row_id for row in made.rows for row_id in row.ids} >= {
        f"{tmp_path / 'rows.jsonl'}:3.{n}" for n in (1, 2, 3)
    }


def test_columns_are_mapped_behind_it(tmp_path: Path) -> None:
    (tmp_path / "m.py").write_text('def ask(row):\n    return {"q": row["n"], "a": row["n"] * 2}\n', encoding="utf-8")
    (tmp_path / "rows.jsonl").write_text('{"n": 1}\n{"n": 2}\n', encoding="utf-8")
    data = DataConfig(
        dataset=[str(tmp_path / "rows.jsonl")],
        map=f"{tmp_path / 'm.py'}:ask",
        columns={"q": "query", "a": "response"},
        use_chat_template=False,
    )
    assert trained_texts(planned(tmp_path, data))[1] == {"trained": 2}


def test_it_is_part_of_the_fingerprint_by_what_it_holds(tmp_path: Path) -> None:
    data = data_of(tmp_path / "a", ["same"])
    moved = data_of(tmp_path / "b", ["same"])
    before = fingerprint.take(data, TINY, 1)
    assert before.differences(fingerprint.take(moved, TINY, 1)) == []
    assert planned(tmp_path / "a", data).encode.map_hash == map_hash(data.map or "")
    (tmp_path / "a" / "rows.py").write_text(MAP + "\n", encoding="utf-8")
    (line,) = before.differences(fingerprint.take(data, TINY, 1))
    assert line.startswith("data.map: was 'by_kind of ")
    config = load("sft", ["--model", "m", "--dataset", "x.jsonl", "--data.map", data.map or ""]).config
    was = user_code.content_hash(config)
    (tmp_path / "a" / "rows.py").write_text(MAP, encoding="utf-8")
    assert was and user_code.content_hash(config) != was


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("none.py:f", "data.map = 'none.py:f': No such file or directory"),
        ("rows.py", "wants module:name or file.py:name"),
        ("rows.py:no_such", "has no `no_such`; it has by_kind"),
    ],
)
def test_a_function_that_is_not_there(name: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    data = data_of(tmp_path, ["same"], map=name)
    with pytest.raises(UserError) as caught:
        planned(tmp_path, data)
    assert why in str(caught.value)


def test_a_relative_name_is_found_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Data tasks begin in folders of their own."""
    monkeypatch.chdir(tmp_path)
    windows = planned(tmp_path, data_of(tmp_path, ["same"], map="rows.py:by_kind"))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    raw_rows._function.cache_clear()
    assert windows.make(0, 0).counts == {"trained": 1}
    assert windows.encode.map == f"{tmp_path / 'rows.py'}:by_kind"


def test_a_run_names_a_function_that_cannot_be_called(tmp_path: Path) -> None:
    (tmp_path / "m.py").write_text("def wrong(row, other):\n    return row\n", encoding="utf-8")
    argv = ["--model", "m", "--dataset", "x.jsonl", "--data.map", f"{tmp_path / 'm.py'}:wrong"]
    with pytest.raises(UserError, match=r"data\.map = .* cannot be called as \(row\): it takes \(row, other\)"):
        user_code.check(load("sft", argv).config)


def test_a_row_it_changes_in_place_is_quarantined_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "m.py").write_text('def f(row):\n    row["n"] = "gone"\n    return None if row else 1 / 0\n')
    windows = planned(tmp_path, data_of(tmp_path, ["same"]))
    broken = 'def f(row):\n    row.clear()\n    raise KeyError("x")\n'
    (tmp_path / "m2.py").write_text(broken, encoding="utf-8")
    windows = replace(windows, encode=replace(windows.encode, map=f"{tmp_path / 'm2.py'}:f"))
    (row,) = windows.make(0, 0).quarantined
    assert json.loads(row.row) == {"text": "row 0", "kind": "same", "number": 0}


# ---- each source in its own way ----


def test_sources_with_columns_and_system_prompts_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "one.jsonl").write_text('{"q": "one", "r": "1"}\n' * 3, encoding="utf-8")
    (tmp_path / "two.jsonl").write_text('{"frage": "two", "antwort": "2"}\n' * 3, encoding="utf-8")
    (tmp_path / "three.jsonl").write_text('{"query": "three", "response": "3"}\n' * 3, encoding="utf-8")
    data = DataConfig(
        dataset=[
            str(tmp_path / "one.jsonl"),
            SourceConfig(path=str(tmp_path / "two.jsonl"), columns={"frage": "query", "antwort": "response"}, rows=2),
            SourceConfig(path=str(tmp_path / "three.jsonl"), columns={}, system="of three"),
        ],
        eval=[SourceConfig(path=str(tmp_path / "two.jsonl"), columns={"frage": "query", "antwort": "response"})],
        columns={"q": "query", "r": "response"},
        system="of all",
        use_chat_template=False,
        loss_on="all",
    )
    windows, evaluation = plan_encoding(data, TINY, 1, tmp_path / "work")
    texts, counts, _ = trained_texts(windows)
    assert counts == {"trained": 8}
    assert Counter("".join(text.split()) for text in texts) == {"ofallone1": 3, "ofalltwo2": 2, "ofthreethree3": 3}
    assert evaluation is not None and evaluation.make(0, 0).counts == {"trained": 3}
    assert json.loads(json.dumps(asdict(windows.encode)))["readings"][2] == [{}, "of three"]


def test_a_source_s_own_settings_are_part_of_the_fingerprint(tmp_path: Path) -> None:
    (tmp_path / "one.jsonl").write_text('{"text": "one"}\n', encoding="utf-8")
    plain = DataConfig(dataset=[str(tmp_path / "one.jsonl")])
    own = DataConfig(dataset=[SourceConfig(path=str(tmp_path / "one.jsonl"), system="s")])
    (line,) = fingerprint.take(plain, TINY, 1).differences(fingerprint.take(own, TINY, 1))
    assert line == f"data.dataset: system of {tmp_path / 'one.jsonl'}: was None, is 's'"
    saved = json.loads(json.dumps(asdict(fingerprint.take(own, TINY, 1))))
    assert fingerprint.Fingerprint.from_json(saved).differences(fingerprint.take(own, TINY, 1)) == []


def test_weights_of_sources_mix_them(tmp_path: Path) -> None:
    for name, number in (("a", 30), ("b", 30)):
        (tmp_path / f"{name}.jsonl").write_text(f'{{"text": "{name}"}}\n' * number, encoding="utf-8")
    data = DataConfig(
        dataset=[
            SourceConfig(path=str(tmp_path / "a.jsonl"), weight=0.75),
            SourceConfig(path=str(tmp_path / "b.jsonl"), weight=0.25),
        ]
    )
    texts, counts, _ = trained_texts(planned(tmp_path, data))
    assert counts == {"trained": 40}
    assert Counter(text.strip()[0] for text in texts) == {"a": 30, "b": 10}


# ---- the order that is kept ----


def test_without_shuffle_samples_are_the_first_rows_and_held_out_ones_the_last(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text("".join(f'{{"text": "{i}"}}\n' for i in range(20)), encoding="utf-8")
    data = DataConfig(dataset=[f"{tmp_path / 'x.jsonl'}#10"], eval_fraction=0.2, shuffle=False)
    train, evaluation = plan_encoding(data, TINY, 1, tmp_path / "work")
    assert evaluation is not None

    def ids(plan: WindowPlan) -> list[int]:
        rows = plan.row_set.read(plan.row_set.rows_at(0, plan.num_rows, 0))
        return [int(row.id.rpartition(":")[2]) for row in rows]

    assert ids(train) == list(range(1, 9)) and ids(evaluation) == [9, 10]


def test_inspection_sees_the_rows_that_are_made(tmp_path: Path) -> None:
    found = inspect(planned(tmp_path, data_of(tmp_path, KINDS)), 100, 10)
    assert found.formats == {"text": 7, "unknown": 1}
    assert found.num_sampled == len(KINDS) and found.counts["trained"] == 6
    assert {reason.reason for reason in found.left_out} == {"no known columns", "data.map failed"}
