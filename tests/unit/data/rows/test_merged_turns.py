"""Consecutive messages of one role, for templates that refuse them: merged, or the row is refused."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from rayswift.data.encode.config import EncodeConfig
from rayswift.data.encode.encoders import encoder_of
from rayswift.data.encode.template import ChatTemplate
from rayswift.data.encode.turns import Marking, documents
from rayswift.data.rows import BadRow, CausalRow, parse_row
from tests.support.streams import TINY

ALTERNATES = """\
{%- for m in messages %}
{%- if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}
{{- '[' + m.role + ']' + m.content + '<e>' }}
{%- endfor %}
{%- if add_generation_prompt %}[assistant]{% endif %}"""
ANY = """\
{%- for m in messages %}[{{ m.role }}]{{ m.content }}<e>{% endfor %}
{%- if add_generation_prompt %}[assistant]{% endif %}"""


def trained(template: str, turns: list[dict[str, Any]]) -> list[tuple[str, list[str]]]:
    """Texts and their trained parts."""
    row = parse_row({"messages": turns}, "causal", {})
    assert isinstance(row, CausalRow) and row.conversation
    made = documents(ChatTemplate(template, {}), row.conversation, Marking("assistant"), lambda *_: None)
    return [(d.text, [d.text[span.begin : span.end] for span in d.spans]) for d in made]


def turn(role: str, content: str, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


def test_parts_of_a_turn_are_one_where_the_template_takes_no_two() -> None:
    turns = [turn("user", "a"), turn("user", "b"), turn("assistant", "<t>x</t>\n"), turn("assistant", "y")]
    assert trained(ALTERNATES, turns) == [("[user]a\nb<e>[assistant]<t>x</t>\ny<e>", ["<t>x</t>\ny<e>"])]
    both = "[user]a<e>[user]b<e>[assistant]<t>x</t>\n<e>[assistant]y<e>"
    assert trained(ANY, turns) == [(both, ["<t>x</t>\n<e>", "y<e>"])]


def test_equal_losses_are_kept() -> None:
    turns = [turn("user", "a"), turn("assistant", "x", loss=False), turn("assistant", "y", loss=False)]
    with pytest.raises(BadRow, match="no trainable token"):
        trained(ALTERNATES, turns)


def test_parts_that_differ_in_their_loss_are_refused_by_name() -> None:
    turns = [turn("user", "a"), turn("assistant", "x", loss_scale=1.0), turn("assistant", "y", loss_scale=2.0)]
    with pytest.raises(BadRow, match="messages 1 and 2 are both of the assistant") as caught:
        trained(ALTERNATES, turns)
    assert caught.value.reason == "two turns in a row"
    assert [spans for _, spans in trained(ANY, turns)] == [["x<e>", "y<e>"]]


def test_what_is_refused_for_another_reason_stays_refused() -> None:
    with pytest.raises(BadRow, match="roles must alternate"):
        trained(ALTERNATES, [turn("assistant", "x")])


def test_prompts_and_texts_are_merged_too(tmp_path: Path) -> None:
    shutil.copytree(TINY, tmp_path / "tokenizer")
    (tmp_path / "tokenizer" / "chat_template.jinja").write_text(ALTERNATES, encoding="utf-8")
    turns = [turn("user", "a"), turn("user", "b")]
    for family, row in (("prompt", {}), ("classification", {"label": 1})):
        config = EncodeConfig(str(tmp_path / "tokenizer"), "hash", 64, family=family, num_labels=2)
        (document,) = encoder_of(config).documents({"messages": turns, **row})
        assert document.text.startswith("[user]a\nb<e>")
