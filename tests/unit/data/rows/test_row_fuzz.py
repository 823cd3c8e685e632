"""Any row becomes documents, is too long, or is bad with a reason; it never raises another exception."""

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayswift.data.encode.config import EncodeConfig
from rayswift.data.encode.encoder import EncodedRow, Encoder, TooLong
from rayswift.data.encode.encoders import cached_encoder
from rayswift.data.rows import BadRow, format_of, parse_row

TINY = Path(__file__).resolve().parents[4] / "examples" / "tiny"
NAMES = [
    *("messages", "conversations", "prompt", "completion", "instruction", "input", "output", "query", "question"),
    *("response", "answer", "text", "history", "system", "tools", "chosen", "rejected", "rejected_response", "label"),
    *(
        "anchor",
        "positive",
        "negative",
        "margin",
        "positive_messages",
        "conversation",
        "segments",
        "functions",
        "images",
    ),
    *(
        "kto_tag",
        "labels",
        "docs",
        "chosen_messages",
        "context",
        "answers",
        "negative_1",
        "preferred_output",
        "Question",
    ),
]
FAMILIES = ("causal", "preference", "kto", "embedding", "reranker", "classification", "prompt")

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=8)
junk = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
)
message = st.fixed_dictionaries(
    {},
    optional={
        "role": st.sampled_from(["user", "assistant", "system", "tool", "tool_call", "gpt", 3, None]),
        "from": st.sampled_from(["human", "gpt"]),
        "content": junk | st.lists(st.fixed_dictionaries({"type": scalars, "text": scalars}), max_size=2),
        "human": scalars,
        "assistant": scalars,
        "loss_weight": scalars,
        "function_call": junk | st.just({"name": "f", "arguments": "{}"}),
        "tool_calls": junk | st.just([{"name": "f", "arguments": "{}"}]),
        "reasoning_content": scalars,
        "loss": scalars,
        "loss_scale": scalars,
    },
)
values = junk | st.lists(message | junk, max_size=4)
rows = st.dictionaries(st.sampled_from(NAMES), values, max_size=5) | junk


def encoder(**options: Any) -> Encoder:
    config = EncodeConfig(str(TINY), "hash", **{"max_length": 32, **options})
    return cached_encoder(json.dumps(asdict(config)))


@pytest.mark.parametrize("truncation", ["drop", "split", "left"])
@settings(max_examples=80, deadline=None)
@given(batch=st.lists(rows, min_size=1, max_size=4))
def test_every_row_has_an_outcome(truncation: str, batch: list[Any]) -> None:
    results = encoder(truncation=truncation).encode(batch)
    assert len(results) == len(batch)
    for result in results:
        if isinstance(result, BadRow):
            assert result.reason
            assert len(str(result)) < 2000
            continue
        assert result
        for document in result:
            assert isinstance(document, EncodedRow)
            assert 0 < len(document.input_ids) == len(document.trained) <= 32
            assert document.trained.any()
            assert not document.trained[0]


@settings(max_examples=150, deadline=None)
@given(row=rows, family=st.sampled_from(FAMILIES))
def test_every_family_parses_or_refuses(row: Any, family: Any) -> None:
    assert format_of(row)
    try:
        parse_row(row, family, {})
    except BadRow as bad:
        assert bad.reason


def test_deep_nesting_and_duplicate_keys() -> None:
    deep: Any = "x"
    for _ in range(5000):
        deep = [deep]
    call = {"role": "assistant", "content": "", "tool_calls": [{"name": "f", "arguments": {"a": deep}}]}
    duplicate = json.loads('{"text": "one", "text": "two two"}')
    results = encoder().encode(
        [{"text": deep}, {"messages": deep}, {"messages": [call]}, {"query": 10**5000}, duplicate]
    )
    assert [isinstance(result, list) for result in results] == [False] * 4 + [True]


@pytest.mark.parametrize("truncation", ["drop", "left", "right"])
def test_a_row_of_a_hundred_million_characters_takes_seconds(truncation: str) -> None:
    words = "a word " * (100_000_000 // 7)
    began = time.process_time()
    text, conversation = encoder(truncation=truncation).encode(
        [{"text": words}, {"query": "q", "response": words}],
    )
    assert time.process_time() - began < 20
    if truncation == "drop":
        assert isinstance(text, TooLong)
        assert "at least" in text.detail
        assert isinstance(conversation, TooLong)
    else:
        assert isinstance(text, list)
        assert isinstance(conversation, list)
        assert text[0].cut
        assert len(text[0].input_ids) == 32


def test_a_conversation_of_ten_thousand_messages_takes_seconds() -> None:
    began = time.process_time()
    (result,) = encoder().encode(
        [{"messages": [{"role": ("user", "assistant")[i % 2], "content": "x"} for i in range(10_000)]}]
    )
    assert isinstance(result, TooLong)
    assert time.process_time() - began < 5


@settings(max_examples=40, deadline=None)
@given(st.text("ab \n🎉é", min_size=0, max_size=300), st.integers(2, 40))
def test_pieces_together_train_every_token_once(text: str, max_length: int) -> None:
    (whole,) = encoder(max_length=100_000).encode([{"text": "x" + text}])
    (pieces,) = encoder(max_length=max_length, truncation="split").encode([{"text": "x" + text}])
    assert isinstance(whole, list)
    assert isinstance(pieces, list)
    trained = [int(i) for piece in pieces for i in piece.input_ids[piece.trained]]
    assert trained == whole[0].input_ids[1:].tolist()


@settings(max_examples=40, deadline=None)
@given(st.text(st.characters(exclude_categories=("Cs",)), max_size=200))
def test_the_bound_never_exceeds_the_truth(text: str) -> None:
    side = encoder(max_length=100_000)
    result = side.encode([{"text": "xy" + text}])[0]
    assert isinstance(result, list)
    assert side._bound.min_tokens("xy" + text + side._eos) <= len(result[0].input_ids)
