"""Pairs without a chat template: tokens, token types and cuts are those of the tokenizer for two texts."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rayswift.config.model import ModelConfig
from rayswift.data.collate.padded import class_batch, text_batch
from rayswift.data.encode.config import EncodeConfig, RowKind
from rayswift.data.encode.encoder import EncodedRow
from rayswift.data.encode.encoders import cached_encoder
from rayswift.data.encode.truncation import longest_first
from rayswift.data.rows import BadRow
from rayswift.data.sequence.windows import PackedRow
from rayswift.data.tokenizer.training_copy import prepare_tokenizer
from tests.support.tokenizer_families import FAMILIES, write

QUERY, FITS, OTHER = "What is 2+2?", "It is 4, of course. 🎉", "Berlin is a city"
LONG = " ".join(["the quick brown fox jumps over the lazy dog"] * 6)
MANY = "q z " * 60
"""Of tokens that are far shorter than the longest of a vocabulary."""
CUT = [(QUERY, LONG), (LONG, OTHER), (f"{LONG} {LONG}", LONG), (f"{LONG} " * 6, MANY * 2)]
Model = tuple[Path, Any]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Model]:
    """A family's folder without a chat template, as a run prepares it, and `transformers`' tokenizer of it."""
    from transformers import AutoTokenizer

    made: dict[str, Model] = {}

    def get(name: str) -> Model:
        if name not in made:
            folder = write(tmp_path_factory.mktemp(name), FAMILIES[name])
            prepared = tmp_path_factory.mktemp(f"{name}-prepared")
            prepare_tokenizer(ModelConfig(path=str(folder)), prepared, RowKind("reranker", renders=False))
            made[name] = prepared, AutoTokenizer.from_pretrained(folder)
        return made[name]

    return get


def encode(folder: Path, row: Any, **options: Any) -> list[EncodedRow] | BadRow:
    given = {"max_length": 512, "truncation": "right", "use_chat_template": False, "family": "reranker", **options}
    config = EncodeConfig(str(folder), "", **given)
    (result,) = cached_encoder(json.dumps(asdict(config))).encode([row])
    return result


def pairs(folder: Path, row: Any, **options: Any) -> list[EncodedRow]:
    result = encode(folder, row, **options)
    assert not isinstance(result, BadRow), result
    return result


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_a_pair_is_what_the_tokenizer_makes_of_two_texts(model: Any, name: str) -> None:
    folder, tokenizer = model(name)
    made = pairs(folder, {"query": QUERY, "positive": [FITS], "negative": [OTHER]})
    assert [dict(each.numbers)["label"] for each in made] == [1.0, 0.0]
    for each, document in zip(made, (FITS, OTHER), strict=True):
        expected = tokenizer(QUERY, document, return_token_type_ids=True)
        assert each.input_ids.tolist() == expected["input_ids"]
        if any(expected["token_type_ids"]) and "token_type_ids" in tokenizer.model_input_names:
            begin = int(dict(each.numbers)["second"])
            assert (np.arange(len(each.input_ids)) >= begin).astype(int).tolist() == expected["token_type_ids"]


@pytest.mark.parametrize("name", sorted(FAMILIES))
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize(("query", "document"), CUT)
def test_a_cut_takes_from_the_longer_text(model: Any, name: str, side: str, query: str, document: str) -> None:
    folder, tokenizer = model(name)
    tokenizer.truncation_side = side
    whole = len(tokenizer(query, document)["input_ids"])
    for length in (whole - 1, whole * 2 // 3, whole // 2 + 1, max(6, whole // 3), 12, 13):
        if length >= whole:
            continue
        (made,) = pairs(folder, {"query": query, "positive": document}, max_length=length, truncation=side)
        assert made.cut
        assert made.input_ids.tolist() == tokenizer(query, document, truncation=True, max_length=length)["input_ids"]


def test_the_longer_text_is_cut_as_the_library_does_it() -> None:
    """`transformers` by way of the tokenizers library, over all lengths."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({"q": 0, "d": 1}, unk_token="q"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    for room in range(2, 12):
        tokenizer.enable_truncation(room)
        for first in range(1, 14):
            for second in range(max(1, room + 1 - first), 14):
                ids = tokenizer.encode("q " * first, "d " * second).ids
                assert longest_first(first, second, room) == (ids.count(0), ids.count(1)), (first, second, room)


def test_a_pair_that_is_not_to_be_cut_is_left_out(model: Any) -> None:
    folder, _ = model("bert")
    bad = encode(folder, {"query": QUERY, "positive": LONG}, max_length=24, truncation="drop")
    assert isinstance(bad, BadRow)
    assert bad.reason == "longer than data.max_length"


def test_a_prompt_stands_before_the_query(model: Any) -> None:
    folder, tokenizer = model("bert")
    (made,) = pairs(folder, {"query": QUERY, "positive": FITS}, system="query: ")
    assert made.input_ids.tolist() == tokenizer("query: " + QUERY, FITS)["input_ids"]


def test_prompts_of_queries_and_documents(model: Any) -> None:
    folder, tokenizer = model("bert")
    row = {"anchor": QUERY, "positive": FITS, "negative": OTHER}
    made = pairs(folder, row, family="embedding", system="query: ", document_prompt="passage: ")
    expected = ["query: " + QUERY, "passage: " + FITS, "passage: " + OTHER]
    assert [each.input_ids.tolist() for each in made] == [tokenizer(text)["input_ids"] for text in expected]
    own = encode(folder, row | {"system": "mine: "}, family="embedding", system="query: ", pools_prompt=False)
    assert isinstance(own, BadRow)
    assert own.reason == "prompt of its own"


def test_a_batch_has_token_types(model: Any) -> None:
    folder, tokenizer = model("bert")
    made = pairs(folder, {"query": QUERY, "positive": [FITS], "negative": [OTHER]})
    batch = text_batch([_packed(made)], tokenizer.pad_token_id, "rows")
    expected = tokenizer([QUERY, QUERY], [FITS, OTHER], padding=True, return_tensors="pt")
    assert {name: tensor.tolist() for name, tensor in batch.items()} == {
        name: tensor.tolist() for name, tensor in expected.items()
    }


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_a_classified_pair_is_what_the_tokenizer_makes_of_two_texts(model: Any, name: str) -> None:
    folder, tokenizer = model(name)
    options = {"family": "classification", "num_labels": 3, "problem_type": "single_label_classification"}
    rows = [{"query": QUERY, "response": FITS, "label": 2}, {"text": OTHER, "label": 0}]
    made = [one for row in rows for one in pairs(folder, row, **options)]
    batch = class_batch([_packed([one]) for one in made], tokenizer.pad_token_id or 0, "rows")
    expected = [tokenizer(QUERY, FITS, return_token_type_ids=True), tokenizer(OTHER, return_token_type_ids=True)]
    assert [one.input_ids.tolist() for one in made] == [one["input_ids"] for one in expected]
    assert batch["labels"].tolist() == [2, 0]
    if "token_type_ids" in tokenizer.model_input_names and any(expected[0]["token_type_ids"]):
        for types, wanted in zip(batch["token_type_ids"].tolist(), expected, strict=True):
            assert types[: len(wanted["input_ids"])] == wanted["token_type_ids"]
    tokenizer.truncation_side = "right"
    length = len(tokenizer(QUERY, LONG)["input_ids"]) * 2 // 3
    (cut,) = pairs(folder, {"query": QUERY, "response": LONG, "label": 1}, **options, max_length=length)
    assert cut.cut
    assert cut.input_ids.tolist() == tokenizer(QUERY, LONG, truncation=True, max_length=length)["input_ids"]


def _packed(made: list[EncodedRow]) -> PackedRow:
    ids, trained = (np.concatenate([getattr(each, name) for each in made]) for name in ("input_ids", "trained"))
    lengths, numbers = tuple(len(each.input_ids) for each in made), tuple(n for each in made for n in each.numbers)
    return PackedRow(ids, trained, lengths, 1, numbers=numbers)


@pytest.mark.parametrize("side", ["right", "left"])
def test_a_rendered_text_keeps_what_the_template_writes_behind_it(model: Any, side: str) -> None:
    """As sentence-transformers restores it: a last-token embedding is read there."""
    folder, tokenizer = model("llama3")
    template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}<|eot_id|>{% endfor %}"
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    row = {"anchor": LONG, "positive": FITS}
    options = {"family": "embedding", "use_chat_template": True, "max_length": 12, "truncation": side}
    whole = tokenizer(f"<user>{LONG}<|eot_id|>", add_special_tokens=False)["input_ids"]
    anchor = pairs(folder, row, **options)[0]
    assert anchor.input_ids.tolist() == (whole[:11] + whole[-1:] if side == "right" else whole[-12:])
