"""`ChatTemplate` gives the bytes that `transformers` gives, for templates of well-known families' style."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayswift.data.encode.template import ChatTemplate
from rayswift.data.rows import BadRow
from rayswift.data.tokenizer.folder import read_chat_template
from tests.support.chat_templates import CHATML, FAMILIES, MISTRAL, write_tokenizer

CONTENT = st.text(st.characters(exclude_categories=("Cs",)), max_size=20)
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "wetter",
            "description": 'Wie wird\'s in <München> & "Köln"?',
            "parameters": {
                "type": "object",
                "properties": {"x": {"type": "number", "enum": [1, 2.5, None, True]}},
            },
        },
    }
]
CALL = {"function": {"name": "wetter", "arguments": {"x": 1, "ort": "Zürich", "<b>": [1, {"c": None}]}}}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[ChatTemplate, Any]]:
    """A family's template as ours and as `transformers`' tokenizer."""
    from transformers import AutoTokenizer

    made: dict[str, tuple[ChatTemplate, Any]] = {}

    def get(name: str) -> tuple[ChatTemplate, Any]:
        if name not in made:
            folder = write_tokenizer(tmp_path_factory.mktemp(name), FAMILIES[name])
            source, special_tokens = read_chat_template(folder)
            assert source
            made[name] = (ChatTemplate(source, special_tokens), AutoTokenizer.from_pretrained(folder))
        return made[name]

    return get


def conversation(contents: list[str], with_system: bool) -> list[dict[str, Any]]:
    roles = (["system"] if with_system else []) + ["user", "assistant"] * len(contents)
    return [{"role": role, "content": content} for role, content in zip(roles, contents, strict=False)]


@pytest.mark.parametrize("name", sorted(FAMILIES))
@settings(max_examples=12)
@given(contents=st.lists(CONTENT, min_size=1, max_size=6), with_system=st.booleans(), generate=st.booleans())
def test_same_bytes_as_transformers(
    pair: Any, name: str, contents: list[str], with_system: bool, generate: bool
) -> None:
    ours, theirs = pair(name)
    messages = conversation(contents, with_system and FAMILIES[name].takes_system)
    expected = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=generate)
    assert ours.render(messages, None, generate).encode() == expected.encode()


@pytest.mark.parametrize("generate", [False, True])
def test_same_bytes_with_tools_and_tool_calls(pair: Any, generate: bool) -> None:
    ours, theirs = pair("tools")
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "", "tool_calls": [CALL, CALL]},
        {"role": "tool", "content": "3 °C"},
        {"role": "assistant", "content": "a"},
    ]
    expected = theirs.apply_chat_template(messages, tools=TOOLS, tokenize=False, add_generation_prompt=generate)
    rendered = ours.render(messages, TOOLS, generate)
    assert rendered == expected
    assert "München" in rendered
    assert "'s in <" in rendered  # not escaped for HTML, as jinja's own tojson would


def test_the_examples_template(tokenizer_dir: Path) -> None:
    source, special_tokens = read_chat_template(tokenizer_dir)
    assert source is not None
    rendered = ChatTemplate(source, special_tokens).render(conversation(["s", "q", "a"], with_system=True))
    assert rendered == "<|system|>s<|im_end|><|user|>q<|im_end|><|assistant|>a<|im_end|>"


def test_a_template_may_refuse() -> None:
    template = ChatTemplate(MISTRAL, {"bos_token": "<s>", "eos_token": "</s>"})
    with pytest.raises(BadRow, match="refused by the chat template: roles must alternate"):
        template.render([{"role": "assistant", "content": "a"}])


@pytest.mark.parametrize(
    "source",
    ["{{ messages[5]['content'] }}", "{{ messages + 1 }}", "{{ messages.pop() }}", "{{ none_such.field }}"],
)
def test_a_template_that_fails_on_a_row_makes_it_a_bad_row(source: str) -> None:
    with pytest.raises(BadRow, match="refused by the chat template"):
        ChatTemplate(source, {}).render([{"role": "user", "content": "q"}])


@pytest.mark.parametrize("source", ["{{ 'abc'.index('z') }}", "{{ ['a'].index('z') }}"])
def test_a_value_error_in_a_template_makes_a_bad_row(source: str) -> None:
    with pytest.raises(BadRow):
        ChatTemplate(source, {}).render([{"role": "user", "content": "q"}])


def test_a_template_cannot_reach_outside() -> None:
    with pytest.raises(BadRow):
        ChatTemplate("{{ ''.__class__.__mro__[1].__subclasses__() }}", {}).render([])


def test_rendering_leaves_the_messages_alone() -> None:
    messages = [{"role": "user", "content": " q "}]
    ChatTemplate(CHATML, {}).render(messages, generate=True)
    assert messages == [{"role": "user", "content": " q "}]


# ---- reading a tokenizer folder ----


def test_the_jinja_file_wins_over_the_config(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text('{"chat_template": "old", "eos_token": {"content": "</s>"}}')
    assert read_chat_template(tmp_path) == ("old", {"eos_token": "</s>"})
    (tmp_path / "chat_template.jinja").write_text("new")
    assert read_chat_template(tmp_path)[0] == "new"


def test_of_several_named_templates_the_default_counts(tmp_path: Path) -> None:
    named = '[{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]'
    (tmp_path / "tokenizer_config.json").write_text(f'{{"chat_template": {named}, "add_bos_token": true}}')
    assert read_chat_template(tmp_path) == ("d", {})
    (tmp_path / "tokenizer_config.json").write_text('{"chat_template": [{"name": "x", "template": "t"}]}')
    assert read_chat_template(tmp_path)[0] is None


def test_no_template(tmp_path: Path) -> None:
    assert read_chat_template(tmp_path) == (None, {})
