"""BOS, EOS, [CLS] and [SEP]: what is trained is what TRL or `transformers` feeds a model for the same row."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from rayswift.config.model import ModelConfig
from rayswift.data.encode.config import EncodeConfig, RowKind
from rayswift.data.encode.encoder import EncodedRow
from rayswift.data.encode.encoders import cached_encoder
from rayswift.data.rows import BadRow
from rayswift.data.tokenizer.folder import read_chat_template
from rayswift.data.tokenizer.training_copy import prepare_tokenizer
from tests.support.tokenizer_families import CHAT_TEMPLATE, ENCODERS, FAMILIES, write

TEXT = "It is 4, of course. 🎉"
PAIR = {"prompt": "What is 2+2?", "chosen": "It is 4.", "rejected": "It is a city."}
DECODERS = sorted(set(FAMILIES) - set(ENCODERS))
Model = tuple[Path, Any]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Model]:
    """A family's folder and `transformers`' tokenizer of it."""
    from transformers import AutoTokenizer

    made: dict[str, Model] = {}

    def get(name: str) -> Model:
        if name not in made:
            template = None if name in ENCODERS else CHAT_TEMPLATE
            folder = write(tmp_path_factory.mktemp(name), FAMILIES[name], template)
            prepared = prepare_tokenizer(ModelConfig(path=str(folder)), tmp_path_factory.mktemp(f"{name}-prepared"))
            made[name] = prepared, AutoTokenizer.from_pretrained(folder)
        return made[name]

    return get


def encode(folder: Path, row: Any, **options: Any) -> list[EncodedRow]:
    config = EncodeConfig(str(folder), "", **{"max_length": 512, **options})
    (result,) = cached_encoder(json.dumps(asdict(config))).encode([row])
    assert not isinstance(result, BadRow), result
    return result


def ids(rows: list[EncodedRow]) -> list[list[int]]:
    return [row.input_ids.tolist() for row in rows]


def trl_sft(tokenizer: Any, row: dict[str, Any]) -> list[int]:
    """What TRL's SFT trainer makes of a row: end of text once, then the tokenizer with its special tokens."""
    text = row.get("text", row.get("prompt", "") + row.get("completion", ""))
    end = tokenizer.eos_token
    return list(tokenizer(text if text.endswith(end) else text + end)["input_ids"])


# ---- pt and sft ----


@pytest.mark.parametrize("name", sorted(set(FAMILIES) - {"bert"}))
@pytest.mark.parametrize("ends", [False, True])
def test_text(model: Any, name: str, ends: bool) -> None:
    folder, tokenizer = model(name)
    row = {"text": TEXT + tokenizer.eos_token * ends}
    for options in ({}, {"loss_on": "all", "use_chat_template": False, "truncation": "split"}):
        (document,) = encode(folder, row, **options)
        assert document.input_ids.tolist() == trl_sft(tokenizer, row)
        assert document.trained.tolist() == [False] + [True] * (len(document.trained) - 1)


def test_a_text_of_a_tokenizer_without_an_end(model: Any) -> None:
    folder, tokenizer = model("bert")
    assert ids(encode(folder, {"text": TEXT})) == [tokenizer(TEXT)["input_ids"]]


@pytest.mark.parametrize("name", DECODERS)
def test_a_prompt_and_its_completion_without_a_template(model: Any, name: str) -> None:
    folder, tokenizer = model(name)
    row = {"prompt": "What is 2+2?", "completion": " It is 4."}
    (document,) = encode(folder, row, use_chat_template=False)
    assert document.input_ids.tolist() == trl_sft(tokenizer, row)
    assert document.trained[-1]
    assert not document.trained[: len(tokenizer("What is 2+2?")["input_ids"])].any()


@pytest.mark.parametrize("name", DECODERS)
def test_a_conversation_has_what_its_template_writes(model: Any, name: str) -> None:
    folder, tokenizer = model(name)
    messages = [{"role": "user", "content": "What is 2+2?"}, {"role": "assistant", "content": "It is 4."}]
    expected = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False)
    assert ids(encode(folder, {"messages": messages})) == [expected]


@pytest.mark.parametrize("name", ["llama3", "mistral"])
def test_pieces_of_a_long_text_begin_with_bos_once(model: Any, name: str) -> None:
    folder, tokenizer = model(name)
    row = {"text": " ".join([TEXT] * 20)}
    parts = ids(encode(folder, row, max_length=32, truncation="split"))
    whole = parts[0] + [token for part in parts[1:] for token in part[1:]]
    assert whole == trl_sft(tokenizer, row)


@pytest.mark.parametrize("mode", ["left", "right"])
def test_a_cut_text_is_what_trl_cuts(model: Any, mode: str) -> None:
    folder, tokenizer = model("llama3")
    whole = trl_sft(tokenizer, {"text": TEXT})
    expected = whole[:8] if mode == "right" else whole[-8:]
    assert ids(encode(folder, {"text": TEXT}, max_length=8, truncation=mode)) == [expected]


# ---- preferences ----


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("template", [False, True])
def test_pairs(model: Any, name: str, template: bool) -> None:
    from trl.data_utils import common_prefix_length

    folder, tokenizer = model(name)
    both = encode(folder, PAIR, family="preference", use_chat_template=template)
    for key, document in zip(("chosen", "rejected"), both, strict=True):
        if template:
            messages = [{"role": "user", "content": PAIR["prompt"]}, {"role": "assistant", "content": PAIR[key]}]
            expected = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False)
        else:
            expected = tokenizer(PAIR["prompt"] + PAIR[key] + tokenizer.eos_token)["input_ids"]
            prompt = tokenizer(PAIR["prompt"])["input_ids"]
            assert not document.trained[: common_prefix_length(prompt, expected)].any()
        assert document.input_ids.tolist() == expected
        assert document.trained[-1]


# ---- whole texts ----


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_classified_and_embedded_texts(model: Any, name: str) -> None:
    folder, tokenizer = model(name)
    expected = list(tokenizer(TEXT)["input_ids"])
    options = {"use_chat_template": False, "num_labels": 2}
    (classified,) = encode(folder, {"text": TEXT, "label": 1}, family="classification", **options)
    assert classified.input_ids.tolist() == expected
    pair = {"anchor": TEXT, "positive": "Berlin is a city."}
    embedded = encode(folder, pair, family="embedding", **options)
    assert ids(embedded) == [expected, tokenizer("Berlin is a city.")["input_ids"]]


@pytest.mark.parametrize("name", ["bert", "roberta", "llama3", "t5"])
@pytest.mark.parametrize("family", ["classification", "embedding"])
def test_cut_texts_keep_what_is_around_them(model: Any, name: str, family: str) -> None:
    folder, tokenizer = model(name)
    options = {"use_chat_template": False, "num_labels": 2, "max_length": 7, "truncation": "right"}
    row = {"text": TEXT, "anchor": TEXT, "positive": TEXT, "label": 1}
    document = encode(folder, row, family=family, **options)[0]
    assert document.input_ids.tolist() == tokenizer(TEXT, truncation=True, max_length=7)["input_ids"]
    assert document.cut


@pytest.mark.parametrize("name", DECODERS)
def test_a_query_and_a_document_are_what_a_cross_encoder_renders(tmp_path: Path, name: str) -> None:
    from transformers import AutoTokenizer

    source = write(tmp_path / "model", FAMILIES[name], CHAT_TEMPLATE)
    folder = prepare_tokenizer(ModelConfig(path=str(source)), tmp_path / "run", RowKind("reranker"))
    row = {"query": "What is 2+2?", "positive": ["It is 4."], "negative": ["Berlin is a city."]}
    pairs = ids(encode(folder, row, family="reranker"))
    for text, document in zip(("It is 4.", "Berlin is a city."), pairs, strict=True):
        messages = [{"role": "query", "content": "What is 2+2?"}, {"role": "document", "content": text}]
        tokenizer = AutoTokenizer.from_pretrained(folder)
        assert document == tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False)


def test_a_prompt_begins_with_bos_and_does_not_end(model: Any) -> None:
    for name in ("llama3", "t5"):
        folder, tokenizer = model(name)
        (document,) = encode(folder, {"prompt": TEXT}, family="prompt", use_chat_template=False)
        whole = tokenizer(TEXT)["input_ids"]
        assert document.input_ids.tolist() == (whole[:-1] if name == "t5" else whole)


# ---- special tokens by name ----


def test_names_in_the_older_file_count(tmp_path: Path) -> None:
    folder = write(tmp_path, FAMILIES["qwen"])
    assert read_chat_template(folder)[1] == FAMILIES["qwen"].named
    config = {"eos_token": None, "added_tokens_decoder": {}, "pad_token": "<|im_end|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    assert read_chat_template(folder)[1] == {"eos_token": "<|im_end|>", "pad_token": "<|im_end|>"}
