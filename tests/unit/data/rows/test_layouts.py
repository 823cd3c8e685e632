"""Other people's layouts: one row of each, in every family that it can serve, is the same canonical row.

A table: format x family -> what it is read as. The rows are written anew after what ms-swift, LLaMA-Factory, TRL,
OpenAI, Anthropic, axolotl, sentence-transformers and public data sets have.
"""

import json
from collections import Counter
from typing import Any

import pytest

from rayswift.config.tasks import Family
from rayswift.data.rows import (
    BadRow,
    CausalRow,
    ClassificationRow,
    Conversation,
    EmbeddingRow,
    KtoRow,
    MessageLoss,
    PreferenceRow,
    PromptRow,
    RerankerRow,
    format_of,
    parse_row,
)

Layout = tuple[str, dict[str, Any]] | tuple[str, dict[str, Any], dict[str, str]]


def said(*turns: str, system: str | None = None, tools: Any = None, **given: Any) -> Conversation:
    """A conversation of user and assistant in turn."""
    roles = ("user", "assistant")
    messages = [{"role": roles[i % 2], "content": text} for i, text in enumerate(turns)]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    return Conversation(tuple(messages), (MessageLoss(),) * len(messages), tools, given)


def of(role: str, *texts: str) -> tuple[Conversation, ...]:
    return tuple(Conversation(({"role": role, "content": text},), (MessageLoss(),)) for text in texts)


USER, BOT = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
BAD = {"role": "assistant", "content": "b"}
HUMAN, GPT = {"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}
SYSTEM = {"role": "system", "content": "s"}
EARLIER = [{"role": "user", "content": "q0"}, {"role": "assistant", "content": "a0"}]
TOOL: dict[str, Any] = {
    "type": "function",
    "function": {"name": "f", "description": "d", "parameters": {"type": "object"}},
}
CALL: dict[str, Any] = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
WITH_CALL = Conversation(
    (
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "content": "r"},
        {"role": "assistant", "content": "a"},
    ),
    (MessageLoss(),) * 4,
    (TOOL,),
)


def blocks(text: str, key: str = "text") -> list[dict[str, Any]]:
    return [{"type": "text", key: text}]


# Format -> a row, and data.columns where it takes them. All are {user: q, assistant: a}.
CHATS: list[Layout] = [
    ("openai messages", {"messages": [USER, BOT]}),
    ("openai content parts", {"messages": [USER | {"content": blocks("q")}, BOT | {"content": blocks("a")}]}),
    ("openai responses parts", {"messages": [USER | {"content": [{"type": "input_text", "text": "q"}]}, BOT]}),
    ("anthropic blocks", {"messages": [USER, BOT | {"content": blocks("a")}]}),
    ("messages as json text", {"messages": json.dumps([USER, BOT])}),
    ("messages as python text", {"messages": str([USER, BOT])}),
    ("ms-swift conversation pairs", {"conversation": [{"human": "q", "assistant": "a"}]}),
    ("ms-swift conversations pairs", {"conversations": [{"user": "q", "assistant": "a"}]}),
    ("ms-swift pairs of a bot", {"conversation": [{"human": "q", "bot": "a"}]}),
    ("ms-swift query", {"query": "q", "response": "a"}),
    ("ms-swift query with nulls", {"query": "q", "response": "a", "history": None, "system": None}),
    ("ms-swift csv", {"query": "q", "response": "a", "history": "", "system": "", "tools": ""}),
    ("ms-swift input", {"input": "q", "output": "a"}),
    ("ms-swift targets", {"input": "q", "targets": "a"}),
    ("ms-swift answer key", {"question": "q", "answer_key": "a"}),
    ("ms-swift answers", {"question": "q", "answers": ["a"]}),
    ("sharegpt", {"conversations": [HUMAN, GPT]}),
    ("sharegpt in capitals", {"conversations": [HUMAN | {"from": "Human"}, GPT | {"from": "Assistant"}]}),
    ("sharegpt of a prompter", {"conversations": [HUMAN | {"from": "prompter"}, GPT | {"from": "assistant"}]}),
    ("lists of a table", {"messages": {"role": ["user", "assistant"], "content": ["q", "a"]}}),
    ("sharegpt of role and value", {"conversations": [{"role": "user", "value": "q"}, {"role": "ai", "value": "a"}]}),
    (
        "openhermes",
        {"conversations": [{"from": "human", "value": "q", "weight": None}, GPT], "source": "x", "id": None},
    ),
    ("llama-factory alpaca", {"instruction": "q", "input": "", "output": "a"}),
    ("llama-factory alpaca history", {"instruction": "q", "output": "a", "history": []}),
    ("alpaca of axolotl's gpteacher", {"instruction": "q", "input": "", "response": "a"}),
    ("instruction and response", {"instruction": "q", "response": "a"}),
    ("instruction and completion", {"instruction": "q", "completion": "a"}),
    ("dolly", {"instruction": "q", "context": "", "response": "a", "category": "open_qa"}),
    ("oasst in capitals", {"INSTRUCTION": "q", "RESPONSE": "a"}),
    ("question and answer", {"question": "q", "answer": "a"}),
    ("jeopardy", {"question": "q", "category": "history", "answer": "a"}),
    ("trl prompt-completion", {"prompt": "q", "completion": "a"}),
    ("trl conversational prompt-completion", {"prompt": [USER], "completion": [BOT]}),
    ("trl prompt, completion with the prompt", {"prompt": [USER], "completion": [USER, BOT]}),
    ("prompt and response", {"prompt": "q", "response": "a"}),
    ("numina", {"problem": "q", "solution": "a"}),
    (
        "axolotl message_property_mappings",
        {"dialog": [{"speaker": "user", "said": "q"}, {"speaker": "assistant", "said": "a"}]},
        {"dialog": "messages", "speaker": "role", "said": "content"},
    ),
    (
        "axolotl roles",
        {"dialog": [{"who": "pupil", "text": "q"}, {"who": "tutor", "text": "a"}]},
        {"dialog": "messages", "who": "role", "text": "content", "pupil": "user", "tutor": "assistant"},
    ),
    ("columns of one's own", {"ask": "q", "tell": "a"}, {"ask": "query", "tell": "response"}),
    ("metharme", {"prompt": "q", "generation": "a"}, {"generation": "response"}),
    ("summaries", {"article": "q", "summary": "a"}, {"article": "query", "summary": "response"}),
    ("a column inside another", {"qa": {"q": "q", "a": "a"}}, {"qa.q": "query", "qa.a": "response"}),
]
OTHER_CHATS: list[tuple[str, dict[str, Any], Conversation]] = [
    ("openai system", {"messages": [SYSTEM, USER, BOT]}, said("q", "a", system="s")),
    ("ms-swift system", {"query": "q", "response": "a", "system": "s"}, said("q", "a", system="s")),
    ("openorca", {"system_prompt": "s", "question": "q", "response": "a"}, said("q", "a", system="s")),
    ("anthropic system", {"system": blocks("s"), "messages": [USER, BOT]}, said("q", "a", system="s")),
    ("sharegpt system", {"system": "s", "conversations": [HUMAN, GPT]}, said("q", "a", system="s")),
    ("a system prompt in both", {"system": "t", "messages": [SYSTEM, USER, BOT]}, said("q", "a", system="s")),
    (
        "ms-swift history",
        {"query": "q", "response": "a", "history": [["q0", "a0"]]},
        said("q0", "a0", "q", "a"),
    ),
    ("history as json text", {"query": "q", "response": "a", "history": '[["q0", "a0"]]'}, said("q0", "a0", "q", "a")),
    ("history as python text", {"query": "q", "answer": "a", "history": "[['q0', 'a0']]"}, said("q0", "a0", "q", "a")),
    (
        "llama-factory alpaca whole",
        {"instruction": "q", "input": "m", "output": "a", "system": "s", "history": [["q0", "a0"]]},
        said("q0", "a0", "q\nm", "a", system="s"),
    ),
    ("dolly with context", {"instruction": "q", "context": "c", "response": "a"}, said("q\nc", "a")),
    ("ms-swift pairs", {"conversation": [{"human": "q0", "assistant": "a0"}, {"human": "q", "assistant": "a"}]},
     said("q0", "a0", "q", "a")),
    ("template arguments", {"messages": [USER, BOT], "chat_template_kwargs": {"x": 1, "y": None}}, said("q", "a", x=1)),
    ("template arguments as text", {"messages": [USER, BOT], "chat_template_kwargs": '{"x": 1}'}, said("q", "a", x=1)),
]  # fmt: skip
ASK_AND_TOOL = {"conversations": [HUMAN, {"from": "function_call", "value": '{"name": "f", "arguments": {"x": 1}}'},
                                  {"from": "observation", "value": "r"}, GPT]}  # fmt: skip
BARE: dict[str, Any] = TOOL["function"]


def calling(call: dict[str, Any], **result: Any) -> list[dict[str, Any]]:
    return [USER, {"role": "assistant", **call}, {"role": "tool", "content": "r"} | result, BOT]


TOOLS: list[Layout] = [
    ("openai", {"messages": calling({"content": None, "tool_calls": [CALL]}), "tools": [TOOL]}),
    ("openai arguments as text", {
        "messages": calling({"tool_calls": [{"function": {"name": "f", "arguments": '{"x": 1}'}}]}), "tools": [TOOL]}),
    ("openai calls as text", {"messages": calling({"tool_calls": json.dumps([CALL])}), "tools": json.dumps([TOOL])}),
    ("openai functions", {
        "messages": calling({"content": None, "function_call": {"name": "f", "arguments": '{"x": 1}'}},
                            role="function"), "functions": [BARE]}),
    ("openai, tables' nulls", {
        "messages": calling({"content": None, "function_call": None,
                             "tool_calls": [{"function": {"name": "f", "arguments": {"x": 1, "of_another": None}}}]}),
        "tools": [{"type": "function", "function": BARE | {"parameters": {"type": "object", "of_another": None}}}]}),
    ("anthropic", {"messages": [
        USER, {"role": "assistant", "content": [{"type": "tool_use", "name": "f", "input": {"x": 1}}]},
        {"role": "user", "content": [{"type": "tool_result", "content": "r"}]}, BOT],
        "tools": [{"name": "f", "description": "d", "input_schema": {"type": "object"}}]}),
    ("ms-swift", {"messages": [
        USER, {"role": "tool_call", "content": '{"name": "f", "arguments": {"x": 1}}'},
        {"role": "tool_response", "content": "r"}, BOT], "tools": json.dumps([TOOL])}),
    ("ms-swift, tools each as text", {"messages": calling({"tool_calls": [CALL]}), "tools": [json.dumps(TOOL)]}),
    ("llama-factory sharegpt", ASK_AND_TOOL | {"tools": json.dumps([BARE])}),
    ("llama-factory parallel calls", {"conversations": [
        HUMAN, {"from": "function_call", "value": '[{"name": "f", "arguments": {"x": 1}}]'},
        {"from": "observation", "value": "r"}, GPT], "tools": json.dumps([BARE])}),
    ("bare functions", {"messages": calling({"tool_calls": [CALL["function"]]}), "tools": [BARE]}),
    ("calls by their own keys", {"log": [
        {"who": "user", "what": "q"}, {"who": "call", "what": '{"name": "f", "parameters": {"x": 1}}'},
        {"who": "result", "what": "r"}, {"who": "assistant", "what": "a"}], "tools": [TOOL]},
        {"log": "messages", "who": "role", "what": "content", "call": "tool_call", "result": "tool"}),
]  # fmt: skip

CHOSEN_BAD: list[Layout] = [
    ("trl explicit", {"prompt": "q", "chosen": "a", "rejected": "b"}),
    ("trl conversational", {"prompt": [USER], "chosen": [BOT], "rejected": [BAD]}),
    ("trl implicit", {"chosen": [USER, BOT], "rejected": [USER, BAD]}),
    ("ultrafeedback_binarized", {
        "prompt": "q", "prompt_id": "x", "chosen": [USER, BOT], "rejected": [USER, BAD], "messages": [USER, BOT],
        "score_chosen": 8.0, "score_rejected": 4.0}),
    ("ultrafeedback without messages", {"prompt": "q", "chosen": [USER, BOT], "rejected": [USER, BAD]}),
    ("a prompt of messages beside whole ones", {"prompt": [USER], "chosen": [USER, BOT], "rejected": [USER, BAD]}),
    ("pairs as json text", {"prompt": "q", "chosen": json.dumps([USER, BOT]), "rejected": json.dumps([USER, BAD])}),
    ("ms-swift rejected_response", {"messages": [USER, BOT], "rejected_response": "b"}),
    ("ms-swift rejected list", {"messages": [USER, BOT], "rejected_response": ["b"]}),
    ("ms-swift rejected messages", {"messages": [USER, BOT], "rejected_messages": [USER, BAD]}),
    ("rejected messages without the question", {"messages": [USER, BOT], "rejected_messages": [BAD]}),
    ("implicit pairs as json text", {"chosen": json.dumps([USER, BOT]), "rejected": json.dumps([USER, BAD])}),
    ("ms-swift query", {"query": "q", "response": "a", "rejected_response": "b"}),
    ("llama-factory alpaca", {"instruction": "q", "input": "", "chosen": "a", "rejected": "b"}),
    ("llama-factory sharegpt", {
        "conversations": [HUMAN], "chosen": GPT, "rejected": {"from": "gpt", "value": "b"}}),
    ("axolotl chat_template", {"messages": [USER], "chosen": BOT, "rejected": BAD}),
    ("axolotl icr", {"input": "q", "chosen": "a", "rejected": "b"}),
    ("argilla", {"instruction": "q", "chosen_response": "a", "rejected_response": "b"}),
    ("openai pairs", {"input": {"messages": [USER], "tools": [], "parallel_tool_calls": True},
                      "preferred_output": [BOT], "non_preferred_output": [BAD]}),
    ("orca pairs", {"question": "q", "chosen": "a", "rejected": "b"}),
    ("hh-rlhf", {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b"}),
    ("columns of one's own", {"ask": "q", "correct": "a", "incorrect": "b"},
     {"ask": "prompt", "correct": "chosen", "incorrect": "rejected"}),
    ("stack exchange", {"question": "q", "response_j": "a", "response_k": "b"},
     {"response_j": "chosen", "response_k": "rejected"}),
]  # fmt: skip
OTHER_PAIRS: list[tuple[str, dict[str, Any], Conversation, Conversation]] = [
    ("llama-factory history", {"instruction": "q", "input": "m", "chosen": "a", "rejected": "b", "system": "s",
     "history": [["q0", "a0"]]}, said("q0", "a0", "q\nm", "a", system="s"), said("q0", "a0", "q\nm", "b", system="s")),
    ("intel orca", {"system": "s", "question": "q", "chosen": "a", "rejected": "b"}, said("q", "a", system="s"),
     said("q", "b", system="s")),
    ("several turns of hh-rlhf", {
        "chosen": "\n\nHuman: q0\n\nAssistant: a0\n\nHuman: q\n\nAssistant: a",
        "rejected": "\n\nHuman: q0\n\nAssistant: a0\n\nHuman: q\n\nAssistant: b"},
     said("q0", "a0", "q", "a"), said("q0", "a0", "q", "b")),
    ("the prompt is the last question", {
        "prompt": "q", "chosen": [*EARLIER, USER, BOT], "rejected": [*EARLIER, USER, BAD]},
     said("q0", "a0", "q", "a"), said("q0", "a0", "q", "b")),
    ("llama-factory sharegpt, several turns", {
        "conversations": [{"from": "human", "value": "q0"}, {"from": "gpt", "value": "a0"}, HUMAN], "chosen": GPT,
        "rejected": {"from": "gpt", "value": "b"}}, said("q0", "a0", "q", "a"), said("q0", "a0", "q", "b")),
]  # fmt: skip
KTO: list[Layout] = [
    ("trl", {"prompt": "q", "completion": "a", "label": True}),
    ("trl conversational", {"prompt": [USER], "completion": [BOT], "label": True}),
    ("ms-swift", {"messages": [USER, BOT], "label": True}),
    ("llama-factory alpaca", {"instruction": "q", "input": "", "output": "a", "kto_tag": True}),
    ("llama-factory sharegpt", {"conversations": [HUMAN, GPT], "kto_tag": True}),
    ("llama-factory openai", {"messages": [USER, BOT], "kto_tag": True}),
    ("axolotl intel", {"question": "q", "completion": "a", "label": True}),
    ("axolotl argilla", {"instruction": "q", "completion": "a", "label": True}),
    ("csv", {"prompt": "q", "completion": "a", "label": "True"}),
    ("csv of numbers", {"prompt": "q", "completion": "a", "label": "1"}),
    ("columns of one's own", {"prompt": "q", "completion": "a", "good": 1}, {"good": "label"}),
]
PROMPTS: list[Layout] = [
    ("ms-swift", {"messages": [USER], "solution": "2"}),
    ("trl", {"prompt": "q", "solution": "2"}),
    ("trl conversational", {"prompt": [USER], "solution": "2"}),
    ("question", {"question": "q", "solution": "2"}),
    ("problem", {"problem": "q", "solution": "2"}),
    ("alpaca", {"instruction": "q", "input": "", "solution": "2"}),
    ("sharegpt", {"conversations": [HUMAN], "solution": "2"}),
    ("csv", {"Question": "q", "solution": "2"}),
]  # fmt: skip
EMBEDDINGS: list[Layout] = [
    ("ms-swift", {"messages": [USER], "positive_messages": [[{"role": "user", "content": "p"}]],
                  "negative_messages": [[{"role": "user", "content": "n"}]]}),
    ("ms-swift older", {"query": "q", "response": "p", "rejected_response": ["n"]}),
    ("sentence-transformers", {"anchor": "q", "positive": "p", "negative": "n"}),
    ("sentence-transformers numbered", {"anchor": "q", "positive": "p", "negative_1": "n"}),
    ("ms-marco", {"query": "q", "positive": "p", "negative": "n"}),
    ("flag-embedding", {"query": "q", "pos": ["p"], "neg": ["n"]}),
    ("question and answer", {"question": "q", "answer": "p", "negative": "n"}),
    ("columns of one's own", {"title": "q", "body": "p", "other": "n"},
     {"title": "anchor", "body": "positive", "other": "negative"}),
]  # fmt: skip
SCORED: list[Layout] = [
    ("ms-swift", {"messages": [USER], "positive_messages": [[{"role": "user", "content": "p"}]], "label": 0.5}),
    ("ms-swift older", {"query": "q", "response": "p", "label": 0.5}),
    ("sts", {"sentence1": "q", "sentence2": "p", "score": 0.5}),
    ("sts as csv", {"sentence1": "q", "sentence2": "p", "score": "0.5"}),
]
RERANKERS: list[Layout] = [
    ("ms-swift", {"messages": [USER], "positive_messages": [[{"role": "assistant", "content": "p"}]],
                  "negative_messages": [[{"role": "assistant", "content": "n"}]]}),
    ("ms-swift older", {"query": "q", "response": "p", "rejected_response": ["n"]}),
    ("lists", {"query": "q", "positive": ["p"], "negative": ["n"]}),
    ("flag-embedding", {"query": "q", "pos": ["p"], "neg": ["n"]}),
    ("ms-marco", {"query": "q", "positive": "p", "negative": "n"}),
    ("cross-encoder lists", {"query": "q", "docs": ["p", "n"], "labels": [1, 0]}),
    ("cross-encoder passages", {"question": "q", "passages": ["n", "p"], "label": [False, True]}),
]  # fmt: skip
CLASSES: list[Layout] = [
    ("ms-swift", {"messages": [USER], "label": 1}),
    ("ms-swift query", {"query": "q", "label": 1}),
    ("glue", {"sentence": "q", "label": 1, "idx": 0}),
    ("text", {"text": "q", "label": 1}),
    ("labels", {"text": "q", "labels": 1}),
    ("csv", {"text": "q", "label": "1"}),
    ("conversations", {"conversations": [HUMAN], "label": 1}),
    ("alpaca", {"instruction": "q", "input": "", "label": 1}),
    ("columns of one's own", {"review": "q", "stars": 1}, {"review": "text", "stars": "label"}),
]

PLAIN, WORSE = said("q", "a"), said("q", "b")
TABLE: list[tuple[str, Family, dict[str, Any], dict[str, str], Any]] = [
    *((name, "causal", row, dict(*columns), CausalRow(PLAIN)) for name, row, *columns in CHATS),
    *((name, "causal", row, {}, CausalRow(wanted)) for name, row, wanted in OTHER_CHATS),
    *((f"tools: {name}", "causal", row, dict(*columns), CausalRow(WITH_CALL)) for name, row, *columns in TOOLS),
    *((name, "preference", row, dict(*columns), PreferenceRow(PLAIN, (WORSE,))) for name, row, *columns in CHOSEN_BAD),
    *((f"more: {name}", "preference", row, {}, PreferenceRow(one, (two,))) for name, row, one, two in OTHER_PAIRS),
    *(
        (f"pair: {name}", "kto", row, dict(*columns), KtoRow(((PLAIN, True), (WORSE, False))))
        for name, row, *columns in CHOSEN_BAD
    ),
    *((name, "kto", row, dict(*columns), KtoRow(((PLAIN, True),))) for name, row, *columns in KTO),
    *((name, "prompt", row, {}, PromptRow(said("q"), None, {"solution": "2"})) for name, row, *_ in PROMPTS),
    *(
        (name, "embedding", row, dict(*columns), EmbeddingRow(said("q"), of("user", "p"), of("user", "n")))
        for name, row, *columns in EMBEDDINGS
    ),
    *(
        (f"scored: {name}", "embedding", row, {}, EmbeddingRow(said("q"), of("user", "p"), (), 0.5))
        for name, row, *_ in SCORED
    ),
    *(
        (name, "reranker", row, dict(*columns), RerankerRow(said("q"), of("assistant", "p"), of("assistant", "n")))
        for name, row, *columns in RERANKERS
    ),
    *(
        (name, "classification", row, dict(*columns), ClassificationRow(said("q"), 1))
        for name, row, *columns in CLASSES
    ),
]  # fmt: skip
# A text is a text, whatever the family.
TEXTS: list[tuple[str, dict[str, Any], CausalRow]] = [
    ("text", {"text": "a text", "url": "x"}, CausalRow(text="a text")),
    ("ms-swift response", {"response": "a text"}, CausalRow(text="a text")),
    ("ms-swift response and channel", {"response": "a text", "channel": "web"}, CausalRow(text="a text")),
    ("a column of one's own", {"body": "a text"}, CausalRow(text="a text")),
    ("axolotl input_output", {"segments": [{"label": False, "text": "q"}, {"label": True, "text": "a text"}]},
     CausalRow(segments=(("q", False), ("a text", True)))),
    ("input_output as json text", {"segments": '[{"label": true, "text": "a text"}]'},
     CausalRow(segments=(("a text", True),))),
]  # fmt: skip


@pytest.mark.parametrize(
    ("family", "row", "columns", "wanted"),
    [case[1:] for case in TABLE],
    ids=[f"{family}-{name}" for name, family, *_ in TABLE],
)
def test_a_layout_is_its_canonical_row(
    family: Family, row: dict[str, Any], columns: dict[str, str], wanted: Any
) -> None:
    assert parse_row(row, family, columns) == wanted


@pytest.mark.parametrize(("row", "wanted"), [case[1:] for case in TEXTS], ids=[name for name, *_ in TEXTS])
def test_texts(row: dict[str, Any], wanted: CausalRow) -> None:
    assert parse_row(row, "causal", {"body": "text"}) == wanted


def test_the_table_is_large_and_names_every_family() -> None:
    assert len({(name, family) for name, family, *_ in TABLE}) == len(TABLE) >= 60
    assert set(Counter(family for _, family, *_ in TABLE)) == {
        *("causal", "preference", "kto", "prompt", "embedding", "reranker", "classification")
    }


@pytest.mark.parametrize(("name", "family", "row", "columns", "wanted"), TABLE, ids=lambda value: "")
def test_every_layout_has_a_name_for_people(
    name: str, family: Family, row: dict[str, Any], columns: dict[str, str], wanted: Any
) -> None:
    assert format_of(row, columns) not in ("unknown", "ambiguous"), name


# ---- LLaMA-Factory's content blocks ----


def test_blocks_with_values_and_their_loss_weights() -> None:
    row = {
        "messages": [
            {"role": "system", "content": [{"type": "tools", "value": json.dumps([BARE])}], "loss_weight": 0.0},
            {"role": "user", "content": blocks("q", "value"), "loss_weight": 1.0},
            {
                "role": "assistant",
                "content": [
                    {"type": "reasoning", "value": "t"},
                    {"type": "text", "value": "a"},
                    {"type": "tool_calls", "value": '[{"name": "f", "arguments": {"x": 1}}]'},
                ],
                "loss_weight": 0.5,
            },
            {"role": "tool", "content": blocks("r", "value"), "loss_weight": 0.0},
            {"role": "assistant", "content": blocks("a", "value"), "loss_weight": 0.0},
        ]
    }
    made = parse_row(row, "causal", {})
    assert isinstance(made, CausalRow) and made.conversation
    assert made.conversation.tools == (TOOL,)
    assert made.conversation.messages == (
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "a", "reasoning_content": "t", "tool_calls": [CALL]},
        {"role": "tool", "content": "r"},
        {"role": "assistant", "content": "a"},
    )
    assert made.conversation.losses == (
        *(MessageLoss(True, 1.0), MessageLoss(True, 0.5), MessageLoss(False, 1.0), MessageLoss(False, 1.0)),
    )


def test_pairs_of_blocks() -> None:
    def side(answer: str) -> list[dict[str, Any]]:
        return [
            {"role": "user", "content": blocks("q", "value"), "loss_weight": 0.0},
            {"role": "assistant", "content": blocks(answer, "value"), "loss_weight": 1.0},
        ]

    made = parse_row({"chosen_messages": side("a"), "rejected_messages": side("b")}, "preference", {})
    assert isinstance(made, PreferenceRow)
    assert (made.chosen.messages, made.rejected[0].messages) == (PLAIN.messages, WORSE.messages)
    assert made.chosen.losses == (MessageLoss(False), MessageLoss(True))


# ---- what is refused, and what it says ----


@pytest.mark.parametrize(
    ("family", "row", "reason", "says"),
    [
        ("causal", {"messages": [USER, BOT], "images": ["a.png"]}, "unsupported content", "images"),
        ("causal", {"query": "<ref-object>?", "response": "<bbox>", "objects": {"ref": ["dog"], "bbox": [[1, 2]]}},
         "unsupported content", "objects"),
        ("causal", {"messages": [USER, BOT], "chat_template_kwargs": {"tools": []}}, "reserved names", "tools"),
        ("causal", {"query": "q", "response": "a", "image": {"bytes": b"x"}}, "unsupported content", "image"),
        ("preference", {"prompt": "q", "chosen": "a", "rejected": "b", "rejected_images": ["x"]},
         "unsupported content", "rejected_images"),
        ("prompt", {"prompt": "q", "image": "https://x/a.png?s=1"}, "unsupported content", "data.columns"),
        ("classification", {"text": "t", "label": 1, "audio": {"array": [0.0]}}, "unsupported content", "audio"),
        ("preference", {"ask": "q", "correct": "a", "incorrect": "b"}, "no known columns",
         "{ask: query, correct: chosen, incorrect: rejected}"),
        ("preference", {"a": 1}, "no known columns", "chosen + rejected"),
        ("kto", {"prompt": "q", "completion": "a"}, "bad label", "label | kto_tag"),
        ("kto", {"dialog": [USER], "tag": True}, "no known columns", "chosen + rejected"),
        ("causal", {"dialogue": [USER, BOT]}, "no known columns", "{dialogue: messages}"),
        ("causal", {"Article": "q", "summary": "a"}, "no known columns", "{article: query, summary: response}"),
        ("classification", {"review": "t", "stars": 1, "sentiment": 2}, "no known columns", "sentiment: label"),
        ("embedding", {"text1": "a", "text2": "b"}, "no known columns", "{text1: anchor, text2: positive}"),
        ("embedding", {"text": "a", "text_pair": "b"}, "no known columns", "{text: anchor, text_pair: positive}"),
        ("causal", {"text": "a", "text_pair": "b"}, "ambiguous columns", "{text: query, text_pair: response}"),
        ("reranker", {"x": "a"}, "no known columns", "query + documents + labels"),
        ("prompt", {"x": "a"}, "no known columns", "instruction"),
        ("causal", {"article": "x", "response": "a"}, "no known columns", "article: query"),
        ("causal", {"query": None, "response": "a"}, "no known columns", ""),
        ("causal", {"question": "q", "answers": ["a", "b"]}, "several answers", "2 texts"),
        ("causal", {"messages": [{"speaker": "user", "content": "q"}]}, "unknown role", "{speaker: role"),
        ("causal", {"messages": [USER, BOT | {"train_detail": [{"begin_offset": 0}]}]}, "bad loss", "train_detail"),
        ("causal", {"segments": [{"label": "yes", "text": "t"}]}, "bad segment", "true or false"),
        ("preference", {"prompt": "other", "chosen": [USER, BOT], "rejected": [USER, BAD]}, "ambiguous prompt", ""),
        ("preference", {"messages": [USER, BOT], "chosen": "a", "rejected": "b"}, "ambiguous prompt", "ends with"),
        ("preference", {"chosen": "a", "rejected": "b"}, "no known columns", "dialogues in text"),
        ("causal", {"instruction": "i", "question": "q", "answer": "a"},
         "ambiguous columns", "question and instruction"),
        ("reranker", {"query": "q", "docs": ["a"], "labels": [1, 0]}, "bad label", "2 labels for 1"),
        ("reranker", {"query": "q", "docs": ["a"], "labels": [0.5]}, "bad label", "fits"),
    ],
)  # fmt: skip
def test_what_is_refused(family: Family, row: dict[str, Any], reason: str, says: str) -> None:
    with pytest.raises(BadRow) as caught:
        parse_row(row, family, {})
    assert (caught.value.reason, says in caught.value.detail) == (reason, True), caught.value.detail


def test_a_column_of_a_media_name_may_be_of_something_else() -> None:
    row = {"prompt": "q", "image": "registry/box:1", "solution": "2", "images": []}
    assert isinstance(parse_row(row, "prompt", {}), PromptRow)
    shown = {"query": "q", "response": "a", "images": ["a.png"]}
    assert parse_row(shown, "causal", {"images": "unused"}) == CausalRow(PLAIN)


def test_nulls_that_an_author_wrote_stay() -> None:
    call = {"function": {"name": "f", "arguments": '{"x": null}'}}
    made = parse_row({"messages": calling({"tool_calls": [call]})}, "causal", {})
    assert isinstance(made, CausalRow) and made.conversation
    assert made.conversation.messages[1]["tool_calls"][0]["function"]["arguments"] == {"x": None}


def test_a_document_with_a_label_alone() -> None:
    made = parse_row({"query": "q", "document": "d", "label": 0}, "reranker", {})
    assert made == RerankerRow(said("q"), (), of("assistant", "d"))
    made = parse_row({"query": "q", "document": "d", "label": "1"}, "reranker", {})
    assert made == RerankerRow(said("q"), of("assistant", "d"), ())


def test_a_call_is_trained_as_the_turn_that_it_belongs_to() -> None:
    turns = [USER, BOT | {"loss": False}, {"role": "tool_call", "content": '{"name": "f"}'}]
    made = parse_row({"messages": turns}, "causal", {})
    assert isinstance(made, CausalRow) and made.conversation
    assert made.conversation.losses == (MessageLoss(), MessageLoss(False))
    with pytest.raises(BadRow, match="its loss differs"):
        parse_row({"messages": [*turns[:2], turns[2] | {"loss": True}]}, "causal", {})


def test_what_a_tool_returns_as_an_object_is_its_json() -> None:
    for content, text in (({"m": 5.1}, '{"m": 5.1}'), ([1, 2], "[1, 2]"), (5, "5")):
        made = parse_row({"messages": calling({"tool_calls": [CALL]}, content=content)}, "causal", {})
        assert isinstance(made, CausalRow) and made.conversation
        assert made.conversation.messages[2]["content"] == text


def test_a_value_inside_a_column_may_be_a_field_of_rewards() -> None:
    row = {"prompt": [USER], "reward_model": {"style": "rule", "ground_truth": "2"}}
    made = parse_row(row, "prompt", {"reward_model.ground_truth": "solution"})
    assert made == PromptRow(said("q"), None, {"reward_model": row["reward_model"], "solution": "2"})
