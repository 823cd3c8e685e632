"""Rows of every family: the documented examples, spellings of messages, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest

import rayswift.data.rows
from rayswift.config.tasks import Family
from rayswift.data.rows import (
    BadRow,
    CausalRow,
    ClassificationRow,
    EmbeddingRow,
    KtoRow,
    PreferenceRow,
    PromptRow,
    RerankerRow,
    format_of,
    parse_row,
)

README = Path(rayswift.data.rows.__file__).with_name("README.md").read_text(encoding="utf-8")
EXAMPLES = [json.loads(line) for block in README.split("```jsonl\n")[1:] for line in block.split("```")[0].splitlines()]
CAUSAL = [row for row in EXAMPLES if "family" not in row]
OTHERS = [(row["family"], row["row"]) for row in EXAMPLES if "family" in row]
TYPES = {
    "preference": PreferenceRow,
    "kto": KtoRow,
    "embedding": EmbeddingRow,
    "reranker": RerankerRow,
    "classification": ClassificationRow,
    "prompt": PromptRow,
}
ASKED = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]


def parse(row: Any, family: Family = "causal", **options: Any) -> Any:
    return parse_row(row, family, options.pop("columns", {}), **options)


def messages(*turns: dict[str, Any], **columns: Any) -> tuple[dict[str, Any], ...]:
    made = parse({"messages": list(turns), **columns}).conversation
    return made.messages


def refused(row: Any, family: Family = "causal") -> BadRow:
    with pytest.raises(BadRow) as caught:
        parse(row, family)
    return caught.value


# ---- the documented rows ----


def test_documented_conversations() -> None:
    forms = ["messages", "sharegpt", "messages", *["prompt_completion"] * 2, *["alpaca"] * 2, "query_response"]
    forms += ["segments", "text", "response"]
    assert [format_of(row) for row in CAUSAL] == forms
    assert all(isinstance(parse(row), CausalRow) for row in CAUSAL)


@pytest.mark.parametrize(("family", "row"), OTHERS)
def test_documented_rows_of_other_families(family: Family, row: dict[str, Any]) -> None:
    assert isinstance(parse(row, family), TYPES[family])
    assert format_of(row) == family


def test_preference_spellings_mean_the_same() -> None:
    rows = [parse(row, "preference") for family, row in OTHERS if family == "preference"]
    assert {(r.chosen.messages[-1]["content"], r.rejected[0].messages[-1]["content"]) for r in rows} == {
        ("good", "bad")
    }
    assert len({str(r.chosen.messages) for r in rows}) == 1
    assert [r.margin for r in rows] == [0.5, *[None] * (len(rows) - 1)]
    several = parse({"messages": ASKED, "rejected_response": ["b", "c"]}, "preference")
    assert [worse.messages[-1]["content"] for worse in several.rejected] == ["b", "c"]


def test_labels() -> None:
    for given, label in [(1, 1), (True, 1), ([0, 2], (0, 2)), (0.5, 0.5), ([0.5, 1], (0.5, 1.0))]:
        assert parse({"text": "t", "label": given}, "classification").label == label
    for given, label in [(True, True), (0, False), ("1.0", True), ("0.0", False)]:
        ((_, wanted),) = parse({"messages": ASKED, "label": given}, "kto").judged
        assert wanted is label


def test_pairs_of_texts_are_suggested_as_pairs() -> None:
    for first, second in (("sentence1", "sentence2"), ("premise", "hypothesis"), ("question1", "question2")):
        with pytest.raises(BadRow, match=f"as in {{{first}: query, {second}: response}}"):
            parse_row({first: "a", second: "b", "label": 1}, "classification", {})


def test_names_with_an_underscore_are_no_numbers() -> None:
    for given, label in [("1_2", "1_2"), ("12", 12), ("1_0.5", "1_0.5"), ("1.5", 1.5)]:
        assert parse({"text": "t", "label": given}, "classification").label == label


def test_prompts_keep_reward_columns_and_the_answer() -> None:
    row = parse({"messages": ASKED, "solution": "2", "level": 3}, "prompt")
    assert (row.prompt.messages, row.answer) == (tuple(ASKED[:1]), "a")
    assert row.columns == {"solution": "2", "level": 3}
    row = parse({"question": "q", "answer": "a"}, "prompt", system="S")
    assert [m["role"] for m in row.prompt.messages] == ["system", "user"]
    assert row.columns == {"answer": "a"}


@pytest.mark.parametrize(
    ("family", "row", "reason"),
    [
        ("preference", {"messages": ASKED}, "no known columns"),
        ("preference", {"messages": ASKED, "rejected_response": "a"}, "no preference"),
        ("preference", {"messages": ASKED[:1], "rejected_response": "b"}, "no answer"),
        ("preference", {"messages": ASKED, "rejected_response": "b", "rejected_messages": ASKED}, "ambiguous columns"),
        ("preference", {"chosen": "a", "rejected": "b"}, "no known columns"),
        ("preference", {"messages": ASKED, "rejected_response": "b", "margin": "much"}, "wrong type"),
        ("kto", {"messages": ASKED}, "bad label"),
        ("kto", {"messages": ASKED, "label": 2}, "bad label"),
        ("kto", {"messages": ASKED[:1], "label": True}, "no answer"),
        ("embedding", {"anchor": "a"}, "no positive"),
        ("embedding", {"messages": ASKED[:1], "positive_messages": ASKED[:1]}, "wrong type"),
        ("embedding", {"positive": "b"}, "no known columns"),
        ("reranker", {"messages": ASKED[:1], "positive_messages": []}, "no positive"),
        ("classification", {"text": "t"}, "no known columns"),
        ("classification", {"label": 1}, "no known columns"),
        ("classification", {"text": "t", "label": ""}, "bad label"),
        ("classification", {"text": "t", "label": float("nan")}, "bad label"),
        ("classification", {"text": "t", "label": None}, "bad label"),
        ("classification", {"question": "q", "sentence": "s", "label": 1}, "ambiguous columns"),
        ("kto", {"prompt": "q", "completion": "a", "label": None}, "bad label"),
        ("prompt", {"solution": "2", "x": 1}, "no known columns"),
        ("prompt", {"messages": ASKED[1:]}, "no prompt"),
        ("prompt", {"question": "q", "problem": "p"}, "ambiguous columns"),
    ],
)
def test_refusals(family: Family, row: Any, reason: str) -> None:
    assert refused(row, family).reason == reason


# ---- messages ----

CALL = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}


@pytest.mark.parametrize(
    "turns",
    [
        [{"role": "assistant", "content": None, "tool_calls": [CALL]}],
        [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": '{"x": 1}'}}]}],
        [{"role": "assistant", "tool_calls": [{"name": "f", "arguments": {"x": 1}}]}],
        [{"role": "tool_call", "content": '{"name": "f", "arguments": {"x": 1}}'}],
        [{"from": "function_call", "value": '{"name": "f", "arguments": "{\\"x\\": 1}"}'}],
        [{"role": "assistant", "content": [{"type": "tool_use", "name": "f", "input": {"x": 1}}]}],
        [
            {"role": "assistant", "content": ""},
            {"role": "tool_call", "content": '{"name": "f", "parameters": {"x": 1}}'},
        ],
    ],
)
def test_calls_of_every_spelling(turns: list[dict[str, Any]]) -> None:
    assert messages(*turns) == ({"role": "assistant", "content": "", "tool_calls": [CALL]},)


def test_anthropic_blocks() -> None:
    turns = messages(
        {"role": "assistant", "content": [{"type": "thinking", "thinking": "t"}, {"type": "text", "text": "a"}]},
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "1", "content": [{"type": "text", "text": "3"}]},
                {"type": "text", "text": "go on"},
            ],
        },
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "2", "content": "4"}]},
    )
    assert turns == (
        {"role": "assistant", "content": "a", "reasoning_content": "t"},
        {"role": "tool", "content": "3", "tool_call_id": "1"},
        {"role": "user", "content": "go on"},
        {"role": "tool", "content": "4", "tool_call_id": "2"},
    )


@pytest.mark.parametrize("kind", ["image", "image_url", "input_audio", "video", "redacted_thinking"])
def test_blocks_that_are_not_text_are_refused_by_name(kind: str) -> None:
    bad = refused({"messages": [{"role": "user", "content": [{"type": kind}]}]})
    assert bad.reason == "unsupported content"
    assert kind in bad.detail


def test_tools_as_a_list_as_text_and_of_anthropic() -> None:
    tool = {"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}}
    anthropic = {"name": "f", "description": "d", "input_schema": {"type": "object"}}
    for tools in ([tool], json.dumps([tool]), [json.dumps(tool)], [anthropic]):
        assert parse({"messages": ASKED, "tools": tools}).conversation.tools == (tool,)
    assert parse({"messages": ASKED, "tools": []}).conversation.tools is None
    for tools, reason in (("{", "malformed JSON"), ({"a": 1}, "wrong type"), ([3], "wrong type")):
        assert refused({"messages": ASKED, "tools": tools}).reason == reason


@pytest.mark.parametrize("call", [3, {}, {"name": 3}, {"name": "f", "arguments": [1]}, "{"])
def test_calls_that_are_none(call: Any) -> None:
    bad = refused({"messages": [{"role": "assistant", "content": "", "tool_calls": [call]}]})
    assert bad.reason in ("bad tool call", "malformed JSON")


def test_names_and_thoughts_are_kept_and_the_rest_is_not() -> None:
    (user, assistant) = messages(
        {"role": "user", "content": "q", "name": "bob", "unknown": 1},
        {"role": "assistant", "content": "a", "reasoning_content": "t", "tool_calls": None},
    )
    assert user == {"role": "user", "content": "q", "name": "bob"}
    assert assistant == {"role": "assistant", "content": "a", "reasoning_content": "t"}
    both = {"role": "assistant", "content": "a", "reasoning_content": "t", "thinking": "u"}
    assert refused({"messages": [both]}).reason == "ambiguous columns"


@pytest.mark.parametrize("row", [None, 3, [], {}, {"messages": 3}, {"query": 1, "question": 2}, {"label": object()}])
def test_the_format_of_junk(row: Any) -> None:
    assert format_of(row) in ("unknown", "classification", "prompt")
