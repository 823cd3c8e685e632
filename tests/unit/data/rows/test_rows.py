"""Every row format, and every way a row is refused."""

import itertools
import json
from typing import Any

import numpy as np
import pytest

from rayswift.data.rows import (
    BadRow,
    CausalRow,
    Conversation,
    MessageLoss,
    absent_names,
    is_read,
    media_marks,
    parse_row,
    unused_columns,
)


def causal(row: Any, columns: dict[str, str] | None = None, system: str | None = None) -> CausalRow:
    made = parse_row(row, "causal", columns or {}, system)
    assert isinstance(made, CausalRow)
    return made


def chat(row: Any, columns: dict[str, str] | None = None, system: str | None = None) -> Conversation:
    made = causal(row, columns, system).conversation
    assert made
    return made


def turns(row: Any, columns: dict[str, str] | None = None, system: str | None = None) -> list[tuple[str, str]]:
    return [(m["role"], m["content"]) for m in chat(row, columns, system).messages]


def refused(row: Any, columns: dict[str, str] | None = None) -> BadRow:
    with pytest.raises(BadRow) as caught:
        causal(row, columns)
    return caught.value


ASKED = [("user", "q"), ("assistant", "a")]


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]},
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
        {"conversation": [{"from": "user", "value": "q"}, {"from": "bot", "value": "a"}]},
        {"prompt": [{"role": "user", "content": "q"}], "completion": [{"role": "assistant", "content": "a"}]},
        {"prompt": "q", "completion": "a"},
        {"instruction": "q", "output": "a"},
        {"instruction": "q", "input": "", "output": "a"},
        {"instruction": "q", "input": None, "output": "a"},
        {"query": "q", "response": "a"},
        {"question": "q", "answer": "a"},
        {"problem": "q", "solution": "a"},
        {"query": "q", "response": "a", "history": []},
        {"query": "q", "response": "a", "extra": 1, "id": "x"},
        {"messages": np.array([{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}])},
        {"messages": None, "query": "q", "response": "a"},
    ],
)
def test_formats(row: dict[str, Any]) -> None:
    assert turns(row) == ASKED


def test_alpaca_joins_instruction_and_input() -> None:
    assert turns({"instruction": "Add.", "input": "1 2", "output": "3"})[0] == ("user", "Add.\n1 2")


def test_history_comes_first() -> None:
    row = {"query": "q", "response": "a", "history": [["q1", "a1"], ["q2", "a2"]]}
    expected = [("user", "q1"), ("assistant", "a1"), ("user", "q2"), ("assistant", "a2"), *ASKED]
    assert turns(row) == expected


def test_text() -> None:
    assert causal({"text": "hello", "source": "web"}) == CausalRow(text="hello")


@pytest.mark.parametrize(
    ("given", "role"),
    [
        *(("human", "user"), ("gpt", "assistant"), ("bot", "assistant"), ("observation", "tool")),
        *(("tool_response", "tool"), ("system", "system"), ("developer", "developer"), ("tool", "tool")),
    ],
)
def test_sharegpt_roles(given: str, role: str) -> None:
    assert turns({"conversations": [{"from": given, "value": "x"}]}) == [(role, "x")]


# ---- columns ----


def test_columns_rename() -> None:
    assert turns({"q": "q", "a": "a"}, {"q": "query", "a": "response"}) == ASKED
    chat = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    assert turns({"chat": chat}, {"chat": "messages"}) == ASKED


@pytest.mark.parametrize("row", [{"query": "x", "q": "q", "response": "a"}, {"q": "q", "query": "x", "response": "a"}])
def test_a_mapped_column_wins_over_one_that_has_the_name(row: dict[str, Any]) -> None:
    assert turns(row, {"q": "query"}) == ASKED


def test_columns_settle_what_is_ambiguous() -> None:
    row = {"question": "q", "problem": "p", "answer": "a"}
    bad = refused(row)
    assert bad.reason == "ambiguous columns"
    assert "question and problem" in bad.detail
    assert "data.columns" in bad.detail
    assert turns(row, {"question": "query"}) == ASKED


def test_ambiguous_responses() -> None:
    assert refused({"query": "q", "answer": "a", "solution": "b"}).reason == "ambiguous columns"


# One row of each format, in the documented order; the content names the format.
FORMATS: list[dict[str, Any]] = [
    {"messages": [{"role": "user", "content": "messages"}]},
    {"conversations": [{"from": "human", "value": "conversations"}]},
    {"prompt": [{"role": "user", "content": "prompt"}], "completion": [{"role": "assistant", "content": "a"}]},
    {"instruction": "instruction", "output": "a"},
    {"query": "query", "response": "a"},
    {"text": "text"},
]
PAIRS = list(itertools.combinations(range(len(FORMATS)), 2))


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_of_two_formats_that_a_row_fits_the_first_of_the_documented_order_counts(first: int, second: int) -> None:
    # Whatever the order of its columns.
    if (first, second) == (0, 1):
        row = FORMATS[0] | FORMATS[1]
        assert "messages and conversations" in refused(row).detail
        assert causal(row, {"messages": "messages"}) == causal(FORMATS[0])
        assert causal(row, {"conversations": "messages"}) == causal(FORMATS[1])
        return
    for row in (FORMATS[first] | FORMATS[second], FORMATS[second] | FORMATS[first]):
        assert causal(row) == causal(FORMATS[first])


# ---- system ----


def test_system_prompts() -> None:
    row = {"query": "q", "response": "a"}
    assert turns(row, system="S") == [("system", "S"), *ASKED]
    assert turns(row | {"system": "own"}, system="S") == [("system", "own"), *ASKED]
    for role in ("system", "developer"):
        messages = [{"role": role, "content": "in"}, {"role": "user", "content": "q"}]
        assert turns({"messages": messages}, system="S")[0] == (role, "in")
        assert len(turns({"messages": messages}, system="S")) == 2
    assert causal({"text": "t"}, system="S").text == "t"


def test_an_inserted_system_prompt_keeps_losses_aligned() -> None:
    row = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "loss": False}]}
    assert [loss.trained for loss in chat(row, system="S").losses] == [None, None, False]


# ---- loss ----


@pytest.mark.parametrize(
    ("mark", "expected"),
    [
        ({}, MessageLoss()),
        ({"loss": True}, MessageLoss(True)),
        ({"loss": False}, MessageLoss(False)),
        ({"loss": None}, MessageLoss()),
        ({"loss": 1}, MessageLoss(True)),
        ({"loss_scale": 0}, MessageLoss(None, 0)),
        ({"loss_scale": 0.5}, MessageLoss(None, 0.5)),
        ({"loss_scale": None}, MessageLoss()),
        ({"loss": True, "loss_scale": 2}, MessageLoss(True, 2)),
        ({"weight": 0}, MessageLoss(None, 0)),  # OpenAI's
    ],
)
def test_loss_of_a_message(mark: dict[str, Any], expected: MessageLoss) -> None:
    assert chat({"messages": [{"role": "assistant", "content": "a", **mark}]}).losses == (expected,)


@pytest.mark.parametrize("mark", [{"loss": "false"}, {"loss": [1]}, {"loss_scale": -1}])
def test_a_loss_of_another_kind_is_refused(mark: dict[str, Any]) -> None:
    assert refused({"messages": [{"role": "assistant", "content": "a", **mark}]}).reason == "bad loss"


@pytest.mark.parametrize("scale", [float("nan"), float("inf"), 10**400, "2", True, [1]])
def test_a_loss_scale_that_is_no_number_is_refused(scale: Any) -> None:
    assert refused({"messages": [{"role": "assistant", "content": "a", "loss_scale": scale}]}).reason == "wrong type"


# ---- contents ----


def test_text_blocks_are_joined() -> None:
    blocks = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert turns({"messages": [{"role": "user", "content": blocks}]}) == [("user", "ab")]
    image = [{"type": "image", "image": "x.png"}]
    assert refused({"messages": [{"role": "user", "content": image}]}).reason == "unsupported content"


def test_numbers_are_text() -> None:
    assert turns({"query": "1+1", "response": 2}) == [("user", "1+1"), ("assistant", "2")]
    assert turns({"query": "1/2", "response": 0.5})[1] == ("assistant", "0.5")


def test_zero_is_text_too() -> None:
    assert turns({"query": "1-1", "response": 0})[1] == ("assistant", "0")


@pytest.mark.parametrize("content", [False, {}])
def test_empty_values_of_other_types_are_refused(content: Any) -> None:
    assert refused({"query": "q", "response": content}).reason == "wrong type"


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("a string", "not an object"),
        (["a"], "not an object"),
        (3, "not an object"),
        (None, "not an object"),
        ({}, "no known columns"),
        ({"a": 1, "b": 2}, "no known columns"),
        ({"query": "q"}, "no known columns"),
        ({"messages": []}, "no messages"),
        ({"messages": "hello"}, "wrong type"),
        ({"messages": ["hello"]}, "bad message"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "unknown role"),
        ({"messages": [{"content": "x"}]}, "unknown role"),
        ({"messages": [{"role": "user"}]}, "no content"),
        ({"messages": [{"role": "user", "content": {"a": 1}}]}, "wrong type"),
        ({"messages": [{"role": "user", "content": True}]}, "wrong type"),
        ({"query": "q", "response": "a", "history": [["only one"]]}, "bad history"),
        ({"instruction": "i", "question": "q", "output": "a"}, "ambiguous columns"),
        ({"messages": [{"role": "user", "content": float("nan")}]}, "wrong type"),
        ({"query": "q", "response": float("inf")}, "wrong type"),
        ({"query": "q", "response": "a", "history": "before"}, "wrong type"),
        ({"text": ["a"]}, "wrong type"),
        ({"query": "q", "response": "a", "system": ["s"]}, "wrong type"),
        ({"prompt": [{"role": "user", "content": "q"}], "completion": 3 * [None]}, "bad message"),
    ],
)
def test_refusals(row: Any, reason: str) -> None:
    assert refused(row).reason == reason


def test_a_refusal_names_the_columns_and_the_way_out() -> None:
    detail = refused({"b": 1, "a": 2}).detail
    assert detail.startswith("columns are a, b; wanted: messages;")
    assert detail.endswith("map yours with data.columns")


def test_nan_is_a_missing_value() -> None:
    # As pandas writes a cell without a value.
    assert turns({"instruction": "q", "input": float("nan"), "output": "a", "system": float("nan")}) == ASKED
    assert refused({"query": "q", "response": float("nan")}).reason == "no known columns"


def test_a_prompt_as_a_dialogue_in_text_is_messages() -> None:
    # hh-rlhf's, as it is split into prompt and answer.
    prompt = "\n\nHuman: q0\n\nAssistant: a0\n\nHuman: q\n\nAssistant:"
    assert turns({"prompt": prompt, "completion": "a"}) == [("user", "q0"), ("assistant", "a0"), *ASKED]
    assert turns({"prompt": "Human: q", "completion": "a"}) == [("user", "Human: q"), ("assistant", "a")]


@pytest.mark.parametrize(
    ("row", "mapping"),
    [
        ({"document": "d", "summary": "s"}, "{summary: response, document: query}"),
        ({"document": "d", "response": "s"}, "{document: query}"),
        ({"content": "c"}, "{content: text}"),
    ],
)
def test_a_suggested_mapping_trains_the_answer(row: dict[str, Any], mapping: str) -> None:
    # With the column `text` the row would be trained as it stands, without its answer.
    assert refused(row).detail.endswith(f"as in {mapping}")


@pytest.mark.parametrize(
    ("row", "unused"),
    [
        ({"question": "q", "context": "c", "answer": "a", "id": "7"}, ["context"]),
        ({"instruction": "q", "context": "c", "response": "a", "category": "x"}, ["category"]),
        ({"messages": [{"role": "user", "content": "q"}], "prompt": "q", "source": "s", "notes": None}, ["prompt"]),
        ({"input_ids": [1], "notes": "n"}, []),
        ({"unknown": "u"}, []),
    ],
)
def test_columns_without_effect(row: dict[str, Any], unused: list[str]) -> None:
    assert unused_columns([(row, {})], "causal") == unused
    assert unused_columns([(row, dict.fromkeys(unused, "unused"))], "causal") == []


def test_a_column_with_effect_in_one_row_has_effect() -> None:
    rows = [{"text": "t", "label": 1}, {"text": "t", "query": "q", "response": "a", "label": 1}]
    assert unused_columns(((row, {}) for row in rows), "classification") == []


@pytest.mark.parametrize("name", ["text", "sentence"])
def test_a_pair_of_texts_is_classified_as_one(name: str) -> None:
    pair = {name: "q", "text_pair": "a", "label": 1}
    wanted = parse_row({"query": "q", "response": "a", "label": 1}, "classification", {})
    assert parse_row(pair, "classification", {}) == wanted
    assert unused_columns([(pair, {})], "classification") == []
    alone = parse_row({name: "q", "label": 1}, "classification", {})
    assert parse_row(pair | {"text_pair": None}, "classification", {}) == alone != wanted


TALK = {"dialog": [{"speaker": "pupil", "utterance": "q"}, {"speaker": "tutor", "utterance": "a"}]}
TALKED = {"dialog": "messages", "speaker": "role", "utterance": "content", "pupil": "user", "tutor": "assistant"}


@pytest.mark.parametrize(
    ("row", "columns", "absent"),
    [
        (TALK, TALKED, []),
        ({"dialog": json.dumps(TALK["dialog"])}, TALKED, []),
        (TALK, TALKED | {"system_text": "system", "observer": "user"}, ["observer", "system_text"]),
        ({"query": "q", "reply": None}, {"reply": "response", "q": "response"}, ["q"]),
        ({"a": {"b": {"c": "x"}}}, {"a.b.c": "solution", "a.b.d": "query", "b": "query"}, ["a.b.d", "b"]),
        ({"a.b": "x"}, {"a.b": "query"}, []),
        (["no object"], {"images": "unused"}, ["images"]),
    ],
)
def test_names_that_no_row_has(row: Any, columns: dict[str, str], absent: list[str]) -> None:
    assert absent_names([(row, columns)]) == absent
    # One row that has them is enough, but it must be of a source that is read under these names.
    rest = dict.fromkeys(absent, "x") | {name.partition(".")[0]: {"b": {"d": "x"}} for name in absent if "." in name}
    assert absent_names([(row, columns), (rest, columns)]) == []
    assert absent_names([(row, columns), (rest, {})]) == absent


def test_marks_of_images_in_texts() -> None:
    messages = [{"role": "user", "content": "<image>What is it?"}, {"role": "assistant", "content": "a cat"}]
    rows = [{"messages": messages, "images": None}, {"messages": messages, "images": ["a.png"]}, {"text": "<video>"}]
    assert media_marks([(row, {}) for row in rows], "causal") == {"<image>": 1, "<video>": 1}
    assert media_marks([(row, {"images": "unused"}) for row in rows], "causal") == {"<image>": 2, "<video>": 1}
    assert media_marks([({"text": "t", "note": "<image>"}, {})], "causal") == {}


def test_every_column_that_is_trained_is_read_of_a_huge_row() -> None:
    assert all(is_read(name, {}) for name in ("context", "text_pair", "negative_1", "history", "Question"))
    assert not is_read("thumbnail", {})


def test_a_role_that_is_no_text_is_refused() -> None:
    assert refused({"messages": [{"role": ["user"], "content": "x"}]}).reason == "unknown role"
