"""Prompts: rendering and records, rows that are left out with the reason, and the sequence from any position."""

import datetime
import decimal
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from rayswift.data.encode.config import EncodeConfig
from rayswift.data.encode.encoder import EncodedRow, TooLong
from rayswift.data.encode.encoders import encoder_of
from rayswift.data.encode.template import ChatTemplate
from rayswift.data.rows import BadRow
from rayswift.data.sequence.global_batches import Position
from rayswift.data.sequence.windows import RowSet, WindowPlan
from rayswift.data.sources import open_sources
from rayswift.data.tokenizer.folder import read_chat_template
from rayswift.rollout.prompts import Drawn, PromptFeed
from tests.support.chat_templates import FAMILIES, write_tokenizer
from tests.support.streams import TINY, feed_plan, in_process

TOKENIZER = Tokenizer.from_file(str(TINY / "tokenizer.json"))


def encode(row: Any, max_length: int = 64, folder: Path = TINY, **options: Any) -> EncodedRow | BadRow:
    (result,) = encoder_of(EncodeConfig(str(folder), "hash", max_length, family="prompt", **options)).encode([row])
    if isinstance(result, BadRow):
        return result
    (encoded,) = result
    return encoded


def encoded(row: Any, **options: Any) -> EncodedRow:
    result = encode(row, **options)
    assert isinstance(result, EncodedRow), result
    return result


def text(row: EncodedRow) -> str:
    return TOKENIZER.decode(row.input_ids.tolist(), skip_special_tokens=False)


def test_a_prompt_ends_with_the_opening_of_the_answer_and_nothing_is_trained() -> None:
    row = encoded({"question": "2+2", "solution": "4", "level": 3})
    assert text(row) == "<|user|>2+2<|im_end|><|assistant|>"
    assert not row.trained.any()
    assert json.loads(row.record) == {
        "messages": [{"role": "user", "content": "2+2"}],
        "columns": {"solution": "4", "level": 3},
    }


def test_an_answer_behind_the_prompt_is_a_column() -> None:
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    assert text(encoded({"messages": turns})) == "<|user|>q<|im_end|><|assistant|>"
    assert json.loads(encoded({"messages": turns}).record)["columns"] == {"answer": "a"}
    assert json.loads(encoded({"messages": turns, "answer": "own"}).record)["columns"] == {"answer": "own"}


def test_without_the_template_a_prompt_is_its_contents() -> None:
    assert text(encoded({"prompt": "2+2="}, use_chat_template=False)) == "2+2="


@pytest.mark.parametrize("name", FAMILIES)
def test_prompts_of_every_template_are_what_it_renders(tmp_path: Path, name: str) -> None:
    write_tokenizer(tmp_path, FAMILIES[name])
    source, special = read_chat_template(tmp_path)
    assert source is not None
    turns = [{"role": "user", "content": "2+2"}]
    wanted = ChatTemplate(source, special).render(turns, generate=True)
    own = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    row = encoded({"messages": turns}, folder=tmp_path, max_length=4096)
    assert row.input_ids.tolist() == own.encode(wanted, add_special_tokens=False).ids


def test_template_variables_of_the_run_and_of_the_row(tmp_path: Path) -> None:
    template = "{{ mood }} {% for m in messages %}{{ m.content }}{% endfor %}"
    write_tokenizer(tmp_path, replace(FAMILIES["chatml"], template=template))
    own = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for row, wanted in (({}, "calm q"), ({"chat_template_kwargs": {"mood": "wild"}}, "wild q")):
        made = encoded({"question": "q", **row}, folder=tmp_path, template_kwargs={"mood": "calm"})
        assert own.decode(made.input_ids.tolist()) == wanted


def test_long_prompts_are_left_out_by_name_or_cut_where_asked() -> None:
    row = {"question": " ".join(map(str, range(60)))}
    long = encode(row, max_length=16)
    assert isinstance(long, TooLong)
    assert long.reason == "longer than rollout.max_prompt_length"
    whole = encoded(row, max_length=999)
    cut = encoded(row, max_length=16, truncation="left")
    assert cut.cut
    assert cut.input_ids.tolist() == whole.input_ids[-16:].tolist()
    assert isinstance(encode(row, max_length=16, truncation="right"), TooLong)


def test_columns_of_parquet_become_plain_values() -> None:
    day = datetime.date(2026, 1, 2)
    row = encoded({"question": "q", "day": day, "price": decimal.Decimal("1.5"), "vector": np.arange(2)})
    assert json.loads(row.record)["columns"] == {"day": "2026-01-02", "price": "1.5", "vector": [0, 1]}
    bad = encode({"question": "q", "blob": b"png"})
    assert isinstance(bad, BadRow)
    assert bad.reason == "column is no JSON" and "blob" in bad.detail


# ---- the sequence ----


def plan(folder: Path, kinds: str, window_rows: int) -> WindowPlan:
    """Row i is g: a prompt, b: bad, l: too long."""
    made = {"g": {"question": "q"}, "b": {"n": 1}, "l": {"question": "x " * 99}}
    path = folder / "rows.jsonl"
    rows = [json.dumps(made[kind] | {"number": number}) + "\n" for number, kind in enumerate(kinds)]
    path.write_text("".join(rows), encoding="utf-8")
    row_set = RowSet(open_sources([str(path)], folder / "work"), seed=5)
    return WindowPlan(row_set, EncodeConfig(str(TINY), "hash", 24, family="prompt"), False, window_rows)


def drawn(folder: Path, windows: WindowPlan, start: Position, **options: Any) -> list[Drawn]:
    feed = PromptFeed(windows, None, feed_plan(windows, 1, **options), str(folder / "data"), in_process)
    feed.begin(start)
    found = []
    while (one := feed.draw(timeout_s=30)) is not None:
        found.append(one)
    assert feed.draw(timeout_s=30) is None
    feed.close()
    return found


@settings(max_examples=25, deadline=None)
@given(st.text("gggbl", min_size=1, max_size=20).filter(lambda kinds: "g" in kinds), st.integers(1, 7), st.data())
def test_prompts_from_any_position_are_those_of_the_whole_sequence(
    tmp_path_factory: pytest.TempPathFactory, kinds: str, window_rows: int, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("prompts")
    windows = plan(folder, kinds, window_rows)
    whole = drawn(folder, windows, Position(), num_epochs=2)
    assert [one.prompt.ordinal for one in whole] == list(range(2 * kinds.count("g")))
    for epoch in (0, 1):
        numbers = [one.prompt.columns["number"] for one in whole if one.prompt.epoch == epoch]
        assert sorted(numbers) == [i for i, kind in enumerate(kinds) if kind == "g"]
    assert [one.last for one in whole] == [False] * (len(whole) - 1) + [True]
    assert sum(whole[-1].position.counts.values()) == 2 * len(kinds)
    cut = data.draw(st.integers(0, len(whole) - 1))
    rest = drawn(folder, windows, whole[cut].position, num_epochs=2)
    assert [one.prompt.columns for one in rest] == [one.prompt.columns for one in whole[cut + 1 :]]
    assert [one.position for one in rest] == [one.position for one in whole[cut + 1 :]]
    assert [(o.prompt.ordinal, o.prompt.epoch) for o in rest] == [
        (o.prompt.ordinal, o.prompt.epoch) for o in whole[cut + 1 :]
    ]


def test_a_prompt_says_that_it_was_cut(tmp_path: Path) -> None:
    windows = plan(tmp_path, "glg", 3)
    found = drawn(
        tmp_path, replace(windows, encode=replace(windows.encode, truncation="left")), Position(), num_epochs=1
    )
    assert [(one.prompt.columns["number"], one.prompt.cut) for one in found if one.prompt.cut] == [(1, True)]
    assert len(found) == 3
    assert max(len(one.prompt.input_ids) for one in found) == 24


def test_evaluation_prompts(tmp_path: Path) -> None:
    windows = plan(tmp_path, "gbg", 2)
    feed = PromptFeed(windows, windows, feed_plan(windows, 1), str(tmp_path / "data"), in_process)
    assert [(one.ordinal, one.columns["number"]) for one in feed.evaluation()] in (
        [(0, 0), (1, 2)],
        [(0, 2), (1, 0)],
    )


@pytest.mark.parametrize("family", [None, *FAMILIES])
def test_the_answer_that_is_trained_is_the_last_turn_as_sft_trains_it(family: str | None, tmp_path: Path) -> None:
    """Behind what is before it, up to the end token; whatever the chat template makes of the conversation."""
    folder = TINY if family is None else write_tokenizer(tmp_path, FAMILIES[family])
    asked, said = {"role": "user", "content": "two and two"}, {"role": "assistant", "content": "makes four"}
    row = {"messages": [asked, said]}
    config = EncodeConfig(str(folder), "hash", 400, loss_on="last_turn")
    (trained,) = encoder_of(config).encode([row])
    found = encode(row, 400, folder, max_answer=64)
    if isinstance(trained, BadRow):
        assert isinstance(found, BadRow)
        return
    assert isinstance(found, EncodedRow), found
    (whole,) = trained
    places = np.flatnonzero(whole.trained)
    before, answer = json.loads(found.record)["answer_ids"]
    assert before == whole.input_ids[: places[0]].tolist()
    assert answer == whole.input_ids[places[0] : places[-1] + 1].tolist()


def test_a_row_whose_answer_cannot_be_trained_says_why() -> None:
    missing = encode({"messages": [{"role": "user", "content": "2+2"}]}, max_answer=8)
    assert isinstance(missing, BadRow) and missing.reason == "no answer"
    row = {"messages": [{"role": "user", "content": "2+2"}, {"role": "assistant", "content": "4 " * 30}]}
    long = encode(row, max_answer=8)
    assert isinstance(long, BadRow) and long.reason == "answer longer than rollout.max_completion_length"
    assert "answer_ids" not in json.loads(encoded(row).record)


def test_a_teacher_sees_its_own_prompt_in_place_of_the_last_question() -> None:
    messages = [
        {"role": "user", "content": "1+1"},
        {"role": "assistant", "content": "2"},
        {"role": "user", "content": "2+2"},
    ]
    row = encoded({"messages": messages, "teacher_prompt": "2+2, it is 4"}, teacher_prompts="some")
    seen = TOKENIZER.decode(json.loads(row.record)["teacher_ids"], skip_special_tokens=False)
    assert seen == text(row).replace("2+2", "2+2, it is 4")
    assert "teacher_ids" not in json.loads(encoded({"messages": messages}, teacher_prompts="some").record)
    for columns, reason in (({}, "no teacher_prompt"), ({"teacher_prompt": 3}, "bad teacher_prompt")):
        bad = encode({"messages": messages, **columns}, teacher_prompts="all")
        assert isinstance(bad, BadRow) and bad.reason == reason
