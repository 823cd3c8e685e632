"""Tokens and mask over the chat templates of well-known families, against `transformers`' own rendering."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from rayswift.data.encode.config import EncodeConfig
from rayswift.data.encode.encoder import EncodedRow
from rayswift.data.encode.encoders import cached_encoder
from rayswift.data.rows import BadRow
from tests.support.chat_templates import Family, write_tokenizer
from tests.support.model_families import KEEPING, OPENING, REWRITING

ALL = KEEPING | REWRITING | OPENING
WORDS = st.text("abc XYZ019.,\n\t'\"{}é中🎉✓", max_size=24).map(str.strip)
SETTINGS = settings(max_examples=6, deadline=None)

Pair = tuple[Path, Any]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Pair]:
    """A family's folder and `transformers`' tokenizer of it."""
    from transformers import AutoTokenizer

    made: dict[str, Pair] = {}

    def get(name: str) -> Pair:
        if name not in made:
            folder = write_tokenizer(tmp_path_factory.mktemp(name), ALL[name])
            made[name] = folder, AutoTokenizer.from_pretrained(folder)
        return made[name]

    return get


def encode(folder: Path, row: Any, **options: Any) -> list[EncodedRow] | BadRow:
    config = EncodeConfig(str(folder), "hash", 4096, **options)
    (result,) = cached_encoder(json.dumps(asdict(config))).encode([row])
    return result


def chat(contents: list[str], system: str | None = None) -> list[dict[str, Any]]:
    turns = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(contents)]
    return ([{"role": "system", "content": system}] if system else []) + turns


def decoded(folder: Path, ids: Any) -> str:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    return str(tokenizer.decode([int(i) for i in ids], skip_special_tokens=False))


def trained(folder: Path, row: EncodedRow) -> str:
    return decoded(folder, row.input_ids[row.trained])


def rendered(tokenizer: Any, messages: list[Any], **options: Any) -> list[int]:
    return list(tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False, **options))


@pytest.mark.parametrize("name", sorted(KEEPING))
@SETTINGS
@given(contents=st.lists(WORDS, min_size=2, max_size=7), with_system=st.booleans())
def test_one_document_of_the_same_tokens(model: Any, name: str, contents: list[str], with_system: bool) -> None:
    folder, tokenizer = model(name)
    if name == "glm4":  # its answers end without a token of their own, so an empty one is nothing
        contents = [text or "empty" for text in contents]
    messages = chat(contents, "Be brief." if with_system else None)
    result = encode(folder, {"messages": messages})
    assert isinstance(result, list), result
    (document,) = result
    assert document.input_ids.tolist() == rendered(tokenizer, messages)
    assert trained(folder, document) == "".join(ALL[name].turn(text) for text in contents[1::2])
    assert document.weights is None


# What of an answer is trained where others follow: no empty block of thoughts, no token that ends the last one alone.
EARLIER = {
    "qwen3": lambda text: f"{text}<|im_end|>",
    "gpt-oss": lambda text: f"<|channel|>final<|message|>{text}",
    "phi3": lambda text: f"{text}<|end|>",
}


@pytest.mark.parametrize("name", sorted(EARLIER))
@SETTINGS
@given(contents=st.lists(WORDS, min_size=2, max_size=7), with_system=st.booleans())
def test_answers_without_thoughts_are_one_document(
    model: Any, name: str, contents: list[str], with_system: bool
) -> None:
    folder, tokenizer = model(name)
    messages = chat(contents, "Be brief." if with_system else None)
    result = encode(folder, {"messages": messages})
    assert isinstance(result, list), result
    (document,) = result
    assert document.input_ids.tolist() == rendered(tokenizer, messages)
    expected = [EARLIER[name](text) for text in contents[1::2]]
    if len(contents) % 2 == 0:
        expected[-1] = ALL[name].turn(contents[-1])
    assert trained(folder, document) == "".join(expected)


@SETTINGS
@given(contents=st.lists(WORDS, min_size=2, max_size=7), with_system=st.booleans())
def test_each_answer_once_as_it_renders_last(model: Any, contents: list[str], with_system: bool) -> None:
    name = "mistral-nemo"  # the system prompt moves on with the last question
    folder, tokenizer = model(name)
    messages = chat(contents, "Be brief." if with_system else None)
    result = encode(folder, {"messages": messages})
    assert isinstance(result, list), result
    assert "".join(trained(folder, document) for document in result) == "".join(
        ALL[name].turn(text) for text in contents[1::2]
    )
    prefixes = [rendered(tokenizer, messages[:n]) for n in range(1 + with_system, len(messages) + 1)]
    assert all(document.input_ids.tolist() in prefixes for document in result)
    if not with_system:
        assert len(result) == 1  # nothing to rewrite


@pytest.mark.parametrize("name", sorted(EARLIER))
def test_forty_turns_without_thoughts_are_one_document(model: Any, name: str) -> None:
    folder, tokenizer = model(name)
    messages = chat([f"{'question' if i % 2 == 0 else 'answer'} {i}" for i in range(80)])
    (document,) = encode(folder, {"messages": messages})
    assert document.input_ids.tolist() == rendered(tokenizer, messages)
    assert all(f"answer {i}" in trained(folder, document) for i in range(1, 80, 2))


def test_of_forty_turns_one_with_thoughts_has_a_document_of_its_own(model: Any) -> None:
    folder, _ = model("qwen3")
    messages = chat([f"{'question' if i % 2 == 0 else 'answer'} {i}" for i in range(80)])
    messages[41]["reasoning_content"] = "why"
    first, second = encode(folder, {"messages": messages})
    assert trained(folder, first).endswith("<think>\nwhy\n</think>\n\nanswer 41<|im_end|>")
    assert trained(folder, second).startswith("answer 43<|im_end|>")
    (document,) = encode(folder, {"messages": messages}, keep_history=True)
    assert document.input_ids.tolist() == second.input_ids.tolist()
    assert "answer 39<|im_end|>answer 41<|im_end|>answer 43<|im_end|>" in trained(folder, document)


@pytest.mark.parametrize("name", ["qwen3", "gpt-oss"])
def test_history_as_it_is_is_one_document_with_thoughts_too(model: Any, name: str) -> None:
    folder, _ = model(name)
    messages = chat(["q1", "a1", "q2", "a2"])
    messages[1]["reasoning_content"], messages[3]["reasoning_content"] = "t1", "t2"
    assert len(encode(folder, {"messages": messages})) == 2
    (document,) = encode(folder, {"messages": messages}, keep_history=True)
    assert "t1" not in decoded(folder, document.input_ids)
    assert trained(folder, document).startswith(EARLIER[name]("a1"))
    assert "t2" in trained(folder, document)


@pytest.mark.parametrize("options", [{"ignore_empty_think": True}, {"loss_scale": ("ignore_empty_think",)}])
def test_an_empty_block_of_thoughts_may_be_left_untrained(model: Any, options: dict[str, Any]) -> None:
    folder, tokenizer = model("qwen3")
    messages = chat(["q", "a"])
    (document,) = encode(folder, {"messages": messages}, **options)
    assert document.input_ids.tolist() == rendered(tokenizer, messages)
    assert trained(folder, document) == "a<|im_end|>"
    assert document.weights is None
    messages[1]["reasoning_content"] = "why"
    (document,) = encode(folder, {"messages": messages}, **options)
    assert trained(folder, document) == "<think>\nwhy\n</think>\n\na<|im_end|>"


def test_thoughts_are_trained_in_every_answer(model: Any) -> None:
    folder, _ = model("qwen3")
    inline = chat(["q1", "<think>\nt1\n</think>\n\na1", "q2", "<think>\nt2\n</think>\n\na2"])
    apart = chat(["q1", "a1", "q2", "a2"])
    apart[1]["reasoning_content"], apart[3]["reasoning_content"] = "t1", "t2"
    for messages in (inline, apart):
        first, second = encode(folder, {"messages": messages})
        assert trained(folder, first) == "<think>\nt1\n</think>\n\na1<|im_end|>"
        assert trained(folder, second) == "<think>\nt2\n</think>\n\na2<|im_end|>"
        assert "t1" not in decoded(folder, second.input_ids)


def test_calls_between_question_and_answer_share_a_document(model: Any) -> None:
    folder, tokenizer = model("qwen3")
    call = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "", "reasoning_content": "t1", "tool_calls": [call]},
        {"role": "tool", "content": "3"},
        {"role": "assistant", "content": "a", "reasoning_content": "t2"},
    ]
    (document,) = encode(folder, {"messages": messages})
    assert document.input_ids.tolist() == rendered(tokenizer, messages)
    assert trained(folder, document).count("<|im_end|>") == 2
    (last,) = encode(folder, {"messages": messages}, loss_on="last_turn")
    assert last.trained.tolist() == document.trained.tolist()


def test_template_arguments_of_a_row(model: Any) -> None:
    folder, _ = model("qwen3")
    row = {"messages": chat(["q", "a"]), "chat_template_kwargs": {"enable_thinking": False}}
    (document,) = encode(folder, row)
    assert trained(folder, document) == "a<|im_end|>"  # the empty block is part of what is generated from


def test_thoughts_for_a_template_that_calls_them_otherwise(model: Any) -> None:
    folder, _ = model("gpt-oss")
    messages = chat(["q", "a"])
    messages[1]["reasoning_content"] = "t"
    (document,) = encode(folder, {"messages": messages})
    assert "<|channel|>analysis<|message|>t<|end|>" in trained(folder, document)


def test_thoughts_without_a_place_are_not_lost_silently(model: Any) -> None:
    messages = chat(["q", "a"])
    messages[1]["reasoning_content"] = "t"
    refused = encode(model("llama3.1")[0], {"messages": messages})
    assert isinstance(refused, BadRow)
    assert refused.reason == "thoughts have no place in the chat template"


def test_calls_without_a_place_are_not_lost_silently(model: Any) -> None:
    messages = chat(["q", "a"])
    messages[1]["tool_calls"] = [{"name": "f", "arguments": {}}]
    refused = encode(model("zephyr")[0], {"messages": messages})
    assert isinstance(refused, BadRow)
    assert refused.reason == "tool calls have no place in the chat template"


@pytest.mark.parametrize("given", ['{"x": 1}', {"x": 1}])
@pytest.mark.parametrize("name", ["qwen2.5", "llama3.1", "deepseek-v3", "qwen3"])
def test_arguments_of_calls_as_text_and_as_objects(model: Any, name: str, given: Any) -> None:
    folder, _ = model(name)
    messages: list[dict[str, Any]] = chat(["q", ""])
    messages[1]["tool_calls"] = [{"type": "function", "function": {"name": "f", "arguments": given}}]
    (document,) = encode(folder, {"messages": messages})
    assert '{"x": 1}' in trained(folder, document)


@pytest.mark.parametrize(("answer", "wanted"), [("a", "a"), ("<think>\nt\n</think>\n\na", "t\n</think>\n\na")])
def test_thoughts_that_a_template_cuts_off_are_kept_in_the_last_answer(model: Any, answer: str, wanted: str) -> None:
    folder, tokenizer = model("deepseek-r1")
    end = ALL["deepseek-r1"].eos
    messages = chat(["q1", "<think>\nt0\n</think>\n\na1", "q", answer])
    first, second = encode(folder, {"messages": messages})
    assert trained(folder, first) == f"t0\n</think>\n\na1{end}"
    assert trained(folder, second) == wanted + end
    prompt = rendered(tokenizer, messages[:3], add_generation_prompt=True)
    if "t" in wanted:
        assert second.input_ids[: len(prompt)].tolist() == prompt
    apart = chat(["q", "a"])
    apart[1]["reasoning_content"] = "t"
    (document,) = encode(folder, {"messages": apart})
    assert trained(folder, document) == f"t\n</think>\n\na{end}"


def test_a_template_that_cannot_be_trained_is_refused_with_the_reason(tmp_path: Path) -> None:
    source = (
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}{% if add_generation_prompt %}[bot]{% endif %}"
    )
    folder = write_tokenizer(tmp_path, Family(source, str))
    refused = encode(folder, {"messages": chat(["q", "a"])})
    assert isinstance(refused, BadRow)
    assert refused.reason == "chat template cannot be trained"
    assert "model.chat_template" in refused.detail


def test_a_template_that_drops_every_thought_is_refused(tmp_path: Path) -> None:
    source = (
        "{% for m in messages %}[{{ m.role }}]{% if m.reasoning_content and m.tool_calls %}{{ m.reasoning_content }}"
        "{% endif %}{{ m.content }}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    folder = write_tokenizer(tmp_path, Family(source, str))
    assert isinstance(encode(folder, {"messages": chat(["q", "a"])}), list)
    messages = chat(["q", "a"])
    messages[1]["reasoning_content"] = "why"
    refused = encode(folder, {"messages": messages})
    assert isinstance(refused, BadRow)
    assert refused.reason == "chat template drops thoughts"
