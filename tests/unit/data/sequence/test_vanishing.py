"""Warnings about rows that are not trained, about rewritten history, and the date of a chat template."""

import datetime
import json
import logging
from pathlib import Path
from typing import Any

import pytest

from rayswift.config.load import load
from rayswift.config.schema import DataConfig
from rayswift.data import prepare
from rayswift.data.cache import fingerprint
from rayswift.data.cache import folder as cache_folder
from rayswift.data.encode.config import EncodeConfig
from rayswift.data.encode.encoders import encoder_of
from rayswift.data.inspect.inspection import inspect
from rayswift.data.sequence.global_batches import REMAINDER, FeedPlan, Position
from rayswift.data.sequence.windows import TRAINED
from rayswift.log import UserError
from rayswift.run.accounting import Vanishing
from tests.support.chat_templates import CHATML, Family, write_tokenizer
from tests.support.model_families import REWRITING
from tests.support.streams import TINY, feed_plan

PLAN = FeedPlan(8, 1000, 100, 3, -1, 0.01)


def position(window: int, row: int = 0, epoch: int = 0, **counts: int) -> Position:
    names = {"long": "filtered: longer than data.max_length", "bad": "quarantined: no messages", "tail": REMAINDER}
    return Position(1, epoch, window, row, {names.get(k, TRAINED): v for k, v in counts.items()})


def test_said_once_and_when_it_doubles() -> None:
    vanishing = Vanishing(PLAN)
    assert vanishing.line(position(0, 3, trained=30, long=4)) == ""
    line = vanishing.line(position(0, 5, trained=10, long=80, bad=10))
    assert line.startswith("90 of the first 100 rows are not trained: 80 filtered: longer than data.max_length; 10 qu")
    assert line.endswith("data.max_length and data.truncation decide about length")
    assert vanishing.line(position(0, 9, trained=10, long=80, bad=10)) == ""
    assert vanishing.line(position(4, trained=40, long=360)) == ""
    vanishing = Vanishing(PLAN)
    assert vanishing.line(position(1, trained=94, long=6)).startswith("6 of the first 100")
    assert vanishing.line(position(2, trained=170, long=30)).startswith("30 of the first 200")
    assert vanishing.line(position(9, 50, epoch=1, trained=1000, tail=900)) == ""


def rows(folder: Path, made: list[Any]) -> str:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in made))
    return str(path)


def plan(tmp_path: Path, made: list[Any], tokenizer: Path = TINY, **data: Any) -> Any:
    config = DataConfig(dataset=[rows(tmp_path, made)], **data)
    windows, _ = prepare.plan_encoding(config, tokenizer, 1, tmp_path / "work")
    return windows


def test_the_first_look_says_how_many_rows_cannot_be_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    made = [{"text": "word " * 40}] * 9 + [{"text": "word"}]
    with caplog.at_level(logging.WARNING, "rayswift"):
        plan(tmp_path, made, max_length=16)
    assert "of the first 10 rows 9 cannot be used: 9 longer than data.max_length" in caplog.text


def test_the_first_look_names_columns_that_are_not_trained(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    made = [{"question": "q", "context": "c", "answer": "a", "id": 1}]
    with caplog.at_level(logging.INFO, "rayswift"):
        plan(tmp_path, made)
    assert "columns without effect: context; data.columns maps yours" in caplog.text


def test_the_first_look_names_names_that_no_row_has(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Of all sources read under these names, evaluation rows included; a source with names of its own has others."""
    other, held_out = tmp_path / "other.jsonl", tmp_path / "eval.jsonl"
    other.write_text('{"ask": "q", "reply": "a"}\n')
    held_out.write_text('{"question": "q", "answer": "a", "rule": "s"}\n')
    first = rows(tmp_path, [{"question": "<image>?", "answer": "a"}] * 3)
    sources = [first, {"path": str(other), "columns": {"ask": "query", "reply": "response"}}]
    config = DataConfig(dataset=sources, eval=[str(held_out)], columns={"rule": "system", "id": "unused"})
    with caplog.at_level(logging.WARNING, "rayswift"):
        prepare.plan_encoding(config, TINY, 1, tmp_path / "work")
    assert "none of the first 5 rows has id; their columns are answer, ask, question, reply, rule" in caplog.text
    assert "3 of the first 4 rows have <image> in their texts" in caplog.text
    caplog.clear()
    sources[1] = {"path": str(other), "columns": {"asks": "query", "reply": "response"}}
    with pytest.raises(UserError, match="none of the first"), caplog.at_level(logging.WARNING, "rayswift"):
        prepare.plan_encoding(DataConfig(dataset=sources[1:]), TINY, 1, tmp_path / "work")
    assert "none of the first 1 rows has asks; their columns are ask, reply" in caplog.text


def test_the_first_look_says_what_history_costs(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = write_tokenizer(tmp_path / "qwen3", REWRITING["qwen3"])
    turns = [{"role": ("user", "assistant")[i % 2], "content": f"turn {i}"} for i in range(8)]
    thoughtful = [m | ({"reasoning_content": "why"} if m["role"] == "assistant" else {}) for m in turns]
    with caplog.at_level(logging.WARNING, "rayswift"):
        plan(tmp_path, [{"messages": turns}], folder)
        assert "rewrites" not in caplog.text
        plan(tmp_path, [{"messages": thoughtful}], folder)
        assert "the first 1 rows make 4 texts of" in caplog.text
        caplog.clear()
        plan(tmp_path, [{"messages": thoughtful}], folder, keep_history=True)
        assert "rewrites" not in caplog.text


# ---- the day ----

DATED = Family("{{ strftime_now('%d %B %Y') }}" + CHATML, str)
CHAT = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}


def tokens(folder: Path, date: str | None) -> list[int]:
    ((document,),) = encoder_of(EncodeConfig(str(folder), "", 512, template_date=date)).encode([CHAT])
    return list(document.input_ids.tolist())


def test_a_template_sees_the_day_that_is_written_down(tmp_path: Path) -> None:
    folder = write_tokenizer(tmp_path, DATED)
    assert tokens(folder, "2024-02-29") == tokens(folder, "2024-02-29") != tokens(folder, "2024-03-01")
    data = DataConfig(dataset=["d.jsonl"])
    today = datetime.date.today().isoformat()
    assert prepare.with_template_date(data, folder).template_date == today
    assert prepare.with_template_date(data, folder, {"template_date": "2024-02-29"}).template_date == "2024-02-29"
    own = DataConfig(dataset=["d.jsonl"], template_date="2020-01-01")
    assert prepare.with_template_date(own, folder, {"template_date": "2024-02-29"}).template_date == "2020-01-01"
    assert prepare.with_template_date(data, TINY).template_date is None  # its template asks for no day


def test_cached_rows_keep_their_day(tmp_path: Path) -> None:
    folder = write_tokenizer(tmp_path / "tokenizer", DATED)
    data = DataConfig(dataset=[rows(tmp_path, [CHAT])], template_date="2024-02-29")
    cache_folder.start(tmp_path / "cache", fingerprint.take(data, folder, 1), 1)
    given = DataConfig(dataset=data.dataset, cache=str(tmp_path / "cache"))
    assert prepare.with_template_date(given, folder).template_date == "2024-02-29"


@pytest.mark.parametrize("day", ["today", "2024-13-01", "01.02.2024"])
def test_what_is_no_day_is_refused(day: str) -> None:
    with pytest.raises(Exception, match=r"template_date.*YYYY-MM-DD"):
        load("sft", ["--model", "m", "--data.dataset", "d.jsonl", "--data.template_date", day])


# ---- rows of every verb ----


@pytest.mark.parametrize(
    ("argv", "made", "shown"),
    [
        (["--rlhf_type", "dpo"], [{"prompt": "2+2", "chosen": "4", "rejected": "5"}], "<|assistant|>«5<|im_end|>»"),
        (["rlhf", "--rlhf_type", "kto"], [{"prompt": "2+2", "completion": "4", "label": True}], "«4<|im_end|>»"),
        (["rlhf", "--task", "grpo", "--reward_funcs", "accuracy"], [{"prompt": "1+1?"}], "<|user|>1+1?<|im_end|><|ass"),
        (["pt"], [{"text": "hello hello"}], "hello<|im_end|>»"),
        (["pt"], [CHAT], "qa<|im_end|>"),
        (["sft"], [CHAT], "<|assistant|>«a<|im_end|>»"),
        (["--task_type", "embedding"], [{"anchor": "a", "positive": "b"}], "«<|user|>a<|im_end|>»"),
    ],
)
def test_rows_of_every_verb_are_inspected(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], argv: list[str], made: list[Any], shown: str
) -> None:
    from rayswift.verbs import data_inspect

    flags = ["--model", str(TINY), "--data.dataset", rows(tmp_path, made)]
    invocation = load("data inspect", [*argv, *flags])
    data_inspect.run(invocation)
    out = capsys.readouterr().out
    # What is trained stands between marks, which split a token that is not.
    assert shown.replace("«", "").replace("»", "") in out.replace("«", "").replace("»", "")
    if "«" in shown:
        assert shown[shown.index("«") + 1 :] in out or shown.startswith("hello")


def test_a_config_of_another_verb_is_known_by_its_task(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(
        "model: {path: m}\ndata: {dataset: [d.jsonl]}\ntrain: {task: grpo}\nrollout: {reward_funcs: [accuracy]}\n"
    )
    assert load("data inspect", ["--config", str(file)]).config.train.task == "grpo"
    assert load("data encode", ["--config", str(file), "--to", "c"]).config.rollout.reward_funcs == ["accuracy"]
    pt = load("data encode", ["pt", "--model", "m", "--data.dataset", "d.txt", "--to", "c"]).config
    assert (pt.data.loss_on, pt.data.use_chat_template) == ("all", False)


def test_fill_of_members_is_never_above_one(tmp_path: Path) -> None:
    windows = plan(tmp_path, [CHAT] * 4, packing=False, max_length=8)
    assert inspect(windows, 4, 0).fill <= 1
    assert feed_plan(windows, 2).num_rows == 4
