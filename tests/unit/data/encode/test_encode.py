"""Rows -> tokens and mask: equal to `apply_chat_template`; exactly the assistant's words are trained."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from rayswift.data.encode.config import EncodeConfig
from rayswift.data.encode.encoder import EncodedRow, Encoder, TooLong
from rayswift.data.encode.encoders import cached_encoder
from rayswift.data.rows import BadRow
from rayswift.log import UserError
from tests.support.chat_templates import CHATML, FAMILIES, Family, write_tokenizer

TINY = Path(__file__).resolve().parents[4] / "examples" / "tiny"
WORDS = st.text("abc XYZ019.,\n\t'\"{}é中🎉✓", max_size=24).map(str.strip)


def encoder(folder: Path = TINY, max_length: int = 4096, **options: Any) -> Encoder:
    return cached_encoder(json.dumps(asdict(EncodeConfig(str(folder), "hash", max_length, **options))))


def encode(row: Any, **options: Any) -> EncodedRow | BadRow:
    (result,) = encoder(**options).encode([row])
    if isinstance(result, BadRow):
        return result
    (document,) = result
    return document


def pieces(row: Any, **options: Any) -> list[EncodedRow]:
    (result,) = encoder(**options).encode([row])
    assert isinstance(result, list), result
    return result


def good(row: Any, **options: Any) -> EncodedRow:
    result = encode(row, **options)
    assert isinstance(result, EncodedRow), result
    return result


def bad(row: Any, **options: Any) -> BadRow:
    result = encode(row, **options)
    assert isinstance(result, BadRow), result
    return result


def decode(ids: Any, folder: Path = TINY) -> str:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    return str(tokenizer.decode([int(i) for i in ids], skip_special_tokens=False))


def trained_text(row: EncodedRow, folder: Path = TINY) -> str:
    return decode(row.input_ids[row.trained], folder)


def chat(*contents: str, **last: Any) -> dict[str, Any]:
    messages = [{"role": ("user", "assistant")[i % 2], "content": c} for i, c in enumerate(contents)]
    messages[-1] |= last
    return {"messages": messages}


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    folders = {name: write_tokenizer(tmp_path_factory.mktemp(name), family) for name, family in FAMILIES.items()}
    return lambda name: folders[name]


@pytest.fixture(scope="module")
def tokenizers_of(folder_of: Any) -> dict[str, Any]:
    from transformers import AutoTokenizer

    return {name: AutoTokenizer.from_pretrained(folder_of(name)) for name in FAMILIES}


# ---- against transformers ----


@pytest.mark.parametrize("name", sorted(FAMILIES))
@settings(max_examples=25)
@given(contents=st.lists(WORDS, min_size=2, max_size=7), with_system=st.booleans())
def test_tokens_and_mask_of_every_family(
    folder_of: Any, tokenizers_of: Any, name: str, contents: list[str], with_system: bool
) -> None:
    folder, family = folder_of(name), FAMILIES[name]
    row = chat(*contents)
    system = "Be brief." if with_system and family.takes_system else None
    encoded = good(row, folder=folder, system=system)
    messages = ([{"role": "system", "content": system}] if system else []) + row["messages"]
    expected = tokenizers_of[name].apply_chat_template(messages, tokenize=True, return_dict=False)
    assert encoded.input_ids.tolist() == expected
    assert encoded.input_ids.dtype == np.int32
    assert trained_text(encoded, folder) == "".join(family.turn(content) for content in contents[1::2])


def test_the_generation_marks_agree_with_our_mask(folder_of: Any, tokenizers_of: Any) -> None:
    row = chat("q1", "a1 🎉", "q2", "the end")
    encoded = good(row, folder=folder_of("generation"))
    theirs = tokenizers_of["generation"].apply_chat_template(
        row["messages"], tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    assert encoded.trained.astype(int).tolist() == theirs["assistant_masks"]


def test_tools_are_rendered_and_tool_calls_trained(folder_of: Any) -> None:
    calls = [{"function": {"name": "add", "arguments": {"a": 1}}}]
    messages = [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "", "tool_calls": calls},
        {"role": "tool", "content": "3"},
        {"role": "assistant", "content": "It is 3."},
    ]
    encoded = good({"messages": messages, "tools": [{"name": "add"}]}, folder=folder_of("tools"))
    assert '<tools>\n{"name": "add"}\n</tools>' in decode(encoded.input_ids, folder_of("tools"))
    call = '\n<tool_call>\n{"name": "add", "arguments": {\n  "a": 1\n}}\n</tool_call><|im_end|>'
    assert trained_text(encoded, folder_of("tools")) == call + "It is 3.<|im_end|>"


# ---- what is trained ----


def test_loss_on() -> None:
    row = chat("q1", "a1", "q2", "a2")
    assert trained_text(good(row, loss_on="assistant")) == "a1<|im_end|>a2<|im_end|>"
    assert trained_text(good(row, loss_on="last_turn")) == "a2<|im_end|>"
    everything = good(row, loss_on="all")
    assert everything.trained.tolist() == [False] + [True] * (len(everything.trained) - 1)


@pytest.mark.parametrize(
    ("loss_on", "trained"), [("assistant", ["a"]), ("last_turn", ["a"]), ("all", ["q", "a0", "q1", "a"])]
)
def test_answers_in_a_prompt_are_trained_only_with_everything(loss_on: str, trained: list[str]) -> None:
    """TRL trains the completion, whatever the prompt holds."""
    prompt = chat("q", "a0", "q1")["messages"]
    for completion in ("a", [{"role": "assistant", "content": "a"}], chat("q", "a0", "q1", "a")["messages"]):
        row = good({"prompt": prompt, "completion": completion}, loss_on=loss_on)
        assert re.findall("q1|a0|q|a", re.sub("<.*?>", "", trained_text(row))) == trained
    own = chat("q", "a0", "q1")["messages"]
    own[1]["loss"] = True
    assert trained_text(good({"prompt": own, "completion": "a"})) == "a0<|im_end|>a<|im_end|>"


def test_loss_of_single_messages() -> None:
    row = chat("q1", "a1", "q2", "a2")
    row["messages"][1]["loss"] = False
    assert trained_text(good(row)) == "a2<|im_end|>"
    row["messages"][1]["loss"], row["messages"][3]["loss"] = True, False
    assert trained_text(good(row)) == "a1<|im_end|>"
    row["messages"][1]["loss"] = False
    assert bad(row).reason == "no trainable token"


def test_assistant_turns_in_a_row_and_at_the_start() -> None:
    messages = [{"role": "assistant", "content": c} for c in ("a0", "a1")]
    messages.insert(1, {"role": "user", "content": "q"})
    messages.append({"role": "assistant", "content": "a2"})
    assert trained_text(good({"messages": messages})) == "a0<|im_end|>a1<|im_end|>a2<|im_end|>"


def test_an_empty_answer_trains_the_end_of_turn() -> None:
    assert trained_text(good(chat("q", ""))) == "<|im_end|>"


def test_the_end_of_turn_is_trained_and_the_newline_behind_it_is_not(tmp_path: Path) -> None:
    lines = Family(
        "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + '<|im_end|>\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}",
        str,
    )
    encoded = good(chat("q", "a"), folder=write_tokenizer(tmp_path, lines))
    assert decode(encoded.input_ids).endswith("a<|im_end|>\n")
    assert encoded.trained.tolist()[-2:] == [True, False]


def test_text_is_trained_whole_and_ends_with_eos() -> None:
    encoded = good({"text": "some text"})
    assert decode(encoded.input_ids) == "some text<|im_end|>"
    assert encoded.trained.tolist() == [False] + [True] * (len(encoded.trained) - 1)


def test_the_first_token_is_never_trained(tmp_path: Path) -> None:
    bare = Family("{% for m in messages %}{{ m['content'] }}{% endfor %}", str)
    folder = write_tokenizer(tmp_path, bare)
    encoded = good({"messages": [{"role": "assistant", "content": "abc def"}]}, folder=folder)
    assert encoded.trained.tolist() == [False] + [True] * (len(encoded.trained) - 1)


# A template whose turns end without a token of their own.
PLAIN = Family(
    "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}",
    str,
)


def test_turns_without_an_end_token(tmp_path: Path) -> None:
    folder = write_tokenizer(tmp_path, PLAIN)
    assert trained_text(good(chat("q", "🎉 abc", "q2", "def"), folder=folder), folder) == "🎉 abcdef"


def test_a_last_character_of_several_tokens_is_trained_whole(tmp_path: Path) -> None:
    folder = write_tokenizer(tmp_path, PLAIN)
    assert trained_text(good(chat("q", "done 🎉"), folder=folder), folder) == "done 🎉"


def test_a_token_across_the_border_belongs_to_the_prompt(tmp_path: Path) -> None:
    # "[assistant] " and "the" meet in the token " the".
    spaced = Family(
        PLAIN.template.replace("[{{ m['role'] }}]", "[{{ m['role'] }}] ").replace("[assistant]{%", "[assistant] {%"),
        str,
    )
    folder = write_tokenizer(tmp_path, spaced)
    encoded = good(chat("q", "the sum"), folder=folder)
    tokens = [decode([i], folder) for i in encoded.input_ids]
    assert " the" in tokens, "the tokenizer no longer merges it: choose another word"
    assert trained_text(encoded, folder) == " sum"


# ---- length ----


def test_truncation() -> None:
    row = chat("q" * 50, "a b c d e f g h")
    whole = good(row)
    length = len(whole.input_ids)
    assert good(row, max_length=length).input_ids.tolist() == whole.input_ids.tolist()

    dropped = bad(row, max_length=length - 1)
    assert isinstance(dropped, TooLong)
    assert dropped.reason == "longer than data.max_length"
    assert dropped.detail == f"{length} tokens, the limit is {length - 1}"

    right = good(row, max_length=length - 4, truncation="right")
    assert right.input_ids.tolist() == whole.input_ids.tolist()[: length - 4]
    assert right.trained.tolist() == whole.trained.tolist()[: length - 4]

    left = good(row, max_length=8, truncation="left")
    assert left.input_ids.tolist() == whole.input_ids.tolist()[-8:]
    assert whole.trained.tolist()[-8] is True
    assert left.trained.tolist() == [False, *whole.trained.tolist()[-7:]]


def test_loss_scale_weighs_the_tokens_of_a_message() -> None:
    row = chat("q1", "a1", "q2", "a2", loss_scale=0.5)
    document = good(row)
    assert document.weights is not None
    assert trained_text(document) == "a1<|im_end|>a2<|im_end|>"
    assert document.weights.dtype == np.float32
    weights = document.weights[document.trained]
    (border,) = np.flatnonzero(np.diff(weights))
    assert (weights[0], weights[-1]) == (1, 0.5)
    assert decode(document.input_ids[document.trained][: border + 1]) == "a1<|im_end|>"
    row["messages"][3]["loss_scale"] = 1
    assert good(row).weights is None
    everything = good(chat("q1", "a1", "q2", "a2", loss=False), loss_on="all")
    assert trained_text(everything).endswith("q2<|im_end|><|assistant|>")


def test_last_turn_is_all_since_the_last_question() -> None:
    row = chat("q1", "a1", "q2", "a2")
    row["messages"] += [{"role": "tool", "content": "r"}, {"role": "assistant", "content": "a3"}]
    assert trained_text(good(row, loss_on="last_turn")) == "a2<|im_end|>a3<|im_end|>"


def test_a_loss_of_its_own_overrides_loss_on() -> None:
    row = chat("q1", "a1", "q2", "a2")
    row["messages"][1]["loss"] = True
    assert trained_text(good(row, loss_on="last_turn")) == "a1<|im_end|>a2<|im_end|>"


@pytest.mark.parametrize("options", [{"loss_on": "all"}, {}])
def test_split(options: dict[str, Any]) -> None:
    row = chat("q" * 50, "a b c d e f g h")
    if options:
        parts = pieces(row, max_length=16, truncation="split", **options)
        assert [len(part.input_ids) for part in parts[:-1]] == [16] * (len(parts) - 1)
        assert not any(part.cut for part in parts)
    else:
        result = bad(row, max_length=16, truncation="split")
        assert isinstance(result, TooLong)
        assert "only rows trained whole are split" in result.detail


def test_what_truncation_leaves_must_be_trainable() -> None:
    result = bad(chat("q" * 200, "a"), max_length=16, truncation="right")
    assert (result.reason, type(result)) == ("no trainable token", BadRow)
    assert "is trained" in result.detail


# ---- refusals ----


def test_rows_without_an_assistant_turn() -> None:
    assert bad({"messages": [{"role": "user", "content": "q"}]}).reason == "no trainable token"
    assert good({"messages": [{"role": "user", "content": "q"}]}, loss_on="all").trained.sum() > 0


def test_one_token_is_not_trainable(tmp_path: Path) -> None:
    assert bad({"text": ""}).reason == "no trainable token"  # only the end of text, and nothing predicts it


# Like the reasoning models' templates: thoughts of earlier turns are dropped.
FORGETFUL = CHATML.replace(
    "message['content']", "(message['content'] if loop.last else message['content'].split('</think>')[-1])"
)


def test_templates_that_rewrite_earlier_turns(tmp_path: Path) -> None:
    folder = write_tokenizer(tmp_path, Family(FORGETFUL, str))
    row = chat("q1", "<think>x</think>a1", "q2", "<think>y</think>a2")
    first, second = pieces(row, folder=folder)
    assert trained_text(first, folder) == "<think>x</think>a1<|im_end|>"
    assert trained_text(second, folder) == "<think>y</think>a2<|im_end|>"
    last = good(row, folder=folder, loss_on="last_turn")
    assert trained_text(last, folder) == "<think>y</think>a2<|im_end|>"
    assert "<think>x" not in decode(last.input_ids, folder)
    assert isinstance(encode(chat("q", "<think>x</think>a"), folder=folder), EncodedRow)
    assert isinstance(encode(chat("q1", "a1", "q2", "a2"), folder=folder), EncodedRow)  # nothing to rewrite


def test_a_batch_keeps_its_order() -> None:
    rows: list[Any] = [
        chat("q", "one"),
        "no row",
        chat("q", "two"),
        {"messages": []},
        {"text": "three"},
        chat("q"),
    ]
    results = encoder().encode(rows)
    shown = [r.reason if isinstance(r, BadRow) else trained_text(r[0]) for r in results]
    assert shown[:4] == ["one<|im_end|>", "not an object", "two<|im_end|>", "no messages"]
    assert shown[5] == "no trainable token"
    assert encoder().encode([]) == []


def test_columns_and_system_apply() -> None:
    encoded = good({"q": "1", "a": "2"}, columns={"q": "query", "a": "response"}, system="Sys.")
    assert decode(encoded.input_ids).startswith("<|system|>Sys.<|im_end|><|user|>1<|im_end|>")


def test_no_chat_template(tmp_path: Path) -> None:
    shutil.copyfile(TINY / "tokenizer.json", tmp_path / "tokenizer.json")
    with pytest.raises(UserError, match=r"no chat template; give one with model\.chat_template"):
        encode(chat("q", "a"), folder=tmp_path)
    assert isinstance(encode({"text": "abc abc"}, folder=tmp_path), EncodedRow)


def test_a_template_with_a_syntax_error_is_the_users(tmp_path: Path) -> None:
    folder = write_tokenizer(tmp_path, Family("{% for m in messages %}{{ m['content'] ", str))
    with pytest.raises(UserError, match="chat_template"):
        encoder(folder)


def test_a_lone_surrogate_makes_a_bad_row() -> None:
    results = encoder().encode([chat("q", "half \ud83d"), chat("q", "a")])
    assert isinstance(results[0], BadRow)
    assert isinstance(results[1], list)


MESSAGES = {"messages": [{"role": "user", "content": "ab"}, {"role": "assistant", "content": "cd"}]}


@pytest.mark.parametrize(
    ("loss_on", "trained"), [("all", ["ab", "cd", "<|im_end|>"]), ("assistant", ["cd", "<|im_end|>"])]
)
def test_messages_without_the_template_are_their_contents(loss_on: str, trained: list[str]) -> None:
    row = encode(MESSAGES, use_chat_template=False, loss_on=loss_on)
    assert isinstance(row, EncodedRow)
    tokenizer = Tokenizer.from_file(str(TINY / "tokenizer.json"))
    assert tokenizer.decode(row.input_ids.tolist(), skip_special_tokens=False) == "abcd<|im_end|>"
    text = tokenizer.decode(row.input_ids[row.trained].tolist(), skip_special_tokens=False)
    assert "".join(trained).endswith(text)
    assert int(row.trained.sum()) == len(row.input_ids) - (1 if loss_on == "all" else _tokens(tokenizer, "ab"))


def _tokens(tokenizer: Tokenizer, text: str) -> int:
    return len(tokenizer.encode(text, add_special_tokens=False).ids)


def test_thoughts_need_the_template() -> None:
    turn = {"role": "assistant", "content": "a", "reasoning_content": "b"}
    bad = encode({"messages": [turn]}, use_chat_template=False)
    assert isinstance(bad, BadRow)
    assert bad.reason == "needs the chat template"


@pytest.mark.parametrize(
    ("content", "reason"), [("a" * 99, "longer than data.max_length"), ("\ud800", "invalid UTF-8")]
)
def test_messages_without_the_template_are_refused_as_any_text(content: str, reason: str) -> None:
    turns = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": content}]}
    bad = encode(turns, use_chat_template=False, max_length=8)
    assert isinstance(bad, BadRow)
    assert bad.reason == reason
