"""A trace gives for each prefix of a conversation the result of rendering that prefix, or nothing."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayswift.config.schema import LossOn
from rayswift.data.encode.template import ChatTemplate
from rayswift.data.encode.turns import Document, Marking, documents
from rayswift.data.rows import BadRow, Conversation, MessageLoss
from tests.support.chat_templates import FAMILIES
from tests.support.model_families import KEEPING, OPENING, REWRITING

ALL = KEEPING | REWRITING | OPENING | FAMILIES
TRACED = (
    "chatml",
    "llama",
    "gemma",
    "generation",
    "qwen2.5",
    "llama2",
    "llama3.1",
    "gemma3",
    "phi4",
    "mistral",
    "glm4",
)
CALL = {"type": "function", "function": {"name": "f", "arguments": {"a": 1}}}
PLAIN = [
    {"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(["q", "a", "r\n", " b", "s", ""])
]
CALLS: list[dict[str, Any]] = [
    {"role": "system", "content": "be"},
    {"role": "user", "content": "q"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": "1"},
    {"role": "tool", "content": "2"},
    {"role": "assistant", "content": "a"},
    {"role": "user", "content": "r"},
    {"role": "assistant", "content": "b"},
]
CONVERSATIONS = {"plain": PLAIN, "system": [CALLS[0], *PLAIN], "calls": CALLS}


def num_known(template: ChatTemplate, messages: list[dict[str, Any]]) -> int:
    """How many prefixes the trace knows; each must be what is rendered."""
    trace = template.trace(messages)
    try:
        text = template.render(messages)
    except BadRow:
        assert trace is None
        return 0
    if trace is None:
        return 0
    assert trace.text == text
    for length, end in enumerate(trace.ends):
        if end is not None:
            assert template.render(messages[:length]) == text[:end]
            assert template.render(messages[:length], generate=True) == text[:end] + trace.generation
    return sum(end is not None for end in trace.ends)


@pytest.mark.parametrize("messages", CONVERSATIONS.values(), ids=CONVERSATIONS)
@pytest.mark.parametrize("name", sorted(ALL))
def test_prefixes_of_every_family(name: str, messages: list[dict[str, Any]]) -> None:
    family = ALL[name]
    tokens = {"bos_token": family.bos, "eos_token": family.eos}
    known = num_known(ChatTemplate(family.template, {k: v for k, v in tokens.items() if v}), messages)
    if name in TRACED and messages is PLAIN:
        assert known == len(messages)


# What templates do that a prefix could tell from the whole, and what none can.
HEADS = [
    "{{ messages[0].content }}",
    "{{ messages[-1].content }}",
    "{{ messages | length }}",
    "{{ messages is sequence }}",
    "{{ (messages | first).content }}",
    "{% set messages = messages[1:] %}",
    "{% set messages = messages[:-1] %}",
    "{% set messages = messages[1:] + messages[:1] %}",
    "{% if messages %}!{% endif %}",
    "{% if messages[2:] %}!{% endif %}",
    "{% if messages[3] is defined %}!{% endif %}",
    "{% if messages == [] %}!{% endif %}",
    "{{ messages }}",
    "{{ messages | tojson }}",
    "{{ messages.append is defined }}",
    "{% if messages | selectattr('role', 'equalto', 'tool') | list %}!{% endif %}",
    "{% for m in messages %}{% if m.role == 'user' %}{% set ns.x = ns.x + 1 %}{% endif %}{% endfor %}{{ ns.x }}",
    "{% macro said(m) %}<{{ m.content }}|{{ messages | length }}>{% endmacro %}",
    "{% if add_generation_prompt %}!{% endif %}",
]
BODIES = [
    "{{ m.role }}{{ m.content }};",
    "{% if loop.first %}!{% endif %}",
    "{% if loop.last %}!{% endif %}",
    "{% if not loop.last %}{% endif %}",
    "{{ loop.length }}",
    "{{ loop.revindex }}",
    "{{ loop.previtem.role }}",
    "{% if loop.nextitem is defined and loop.nextitem.role == 'user' %}!{% endif %}",
    "{{ messages[loop.index0].role }}",
    "{% if messages[loop.index0 + 1] is defined %}!{% endif %}",
    "{{ messages[loop.index0 - 1].role }}",
    "{% if m.role == 'user' %}{% continue %}{% endif %}",
    "{% if m.content == 'r' %}{% break %}{% endif %}",
    "{% set ns.x = loop.last %}",
    "{% set ns.x = loop.index %}",
    "{{ ns.x }}",
    "{% for o in messages %}{{ o.content }}{% endfor %}",
    "{% set said %}{{ m.content | trim }}{% endset %}{{ said }}",
    "{% filter upper %}{{ m.content }}{% endfilter %}",
    "{% generation %}{{ m.content }}{% endgeneration %}",
    "{% if loop.last and add_generation_prompt %}!{% endif %}",
]
REMAINDERS = [
    "{% if add_generation_prompt %}A:{% endif %}",
    "{% if add_generation_prompt %}{{ bos_token }}{{ tools }}{% else %}.{% endif %}",
    "{% if add_generation_prompt and messages[-1].role == 'user' %}A:{% endif %}",
    "{% if add_generation_prompt and ns.x %}A:{% endif %}",
    "{% if ns.x %}.{% endif %}",
    "",
]
LOOPED = ["messages", "messages[1:]", "messages | list", "messages if m.role != 'user'", "(messages | reverse)"]


@settings(max_examples=80)
@given(
    head=st.lists(st.sampled_from(HEADS), max_size=1),
    looped=st.sampled_from([*LOOPED[:1] * 4, *LOOPED]),
    body=st.lists(st.sampled_from(BODIES), min_size=1, max_size=3),
    remainder=st.sampled_from([*REMAINDERS[:1] * 4, *REMAINDERS]),
    messages=st.sampled_from(list(CONVERSATIONS.values())),
)
def test_prefixes_of_any_template(
    head: list[str], looped: str, body: list[str], remainder: str, messages: list[dict[str, Any]]
) -> None:
    source = f"{{% set ns = namespace(x=0) %}}{''.join(head)}{{% for m in {looped} %}}{''.join(body)}{{% endfor %}}"
    num_known(ChatTemplate(source + remainder, {"bos_token": "<s>"}), messages)


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("remainder", REMAINDERS[:5])
def test_prefixes_where_one_thing_depends_on_the_rest(body: str, remainder: str) -> None:
    source = f"{{% set ns = namespace(x=0) %}}{{% for m in messages %}}({body}){{% endfor %}}{remainder}"
    num_known(ChatTemplate(source, {"bos_token": "<s>"}), PLAIN)


def test_a_look_ahead_costs_only_the_prefix_that_it_sees() -> None:
    source = (
        "{% for m in messages %}{{ m.content }}{% if m.role == 'tool' and loop.last %}!{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}A:{% endif %}"
    )
    trace = ChatTemplate(source, {}).trace(CALLS)
    assert trace is not None
    assert [i for i, end in enumerate(trace.ends) if end is None] == [0, 4, 5]


@pytest.mark.parametrize("name", sorted(ALL))
def test_documents_are_the_same_without_a_trace(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    family = ALL[name]
    tokens = {"bos_token": family.bos, "eos_token": family.eos}
    template = ChatTemplate(family.template, {k: v for k, v in tokens.items() if v})

    def made(loss_on: LossOn) -> list[Document] | str:
        row = Conversation(tuple(PLAIN), tuple(MessageLoss() for _ in PLAIN))
        try:
            return documents(template, row, Marking(loss_on), lambda text, whole, num_messages: None)
        except BadRow as bad:
            return str(bad)

    traced = [made("assistant"), made("last_turn")]
    monkeypatch.setattr("rayswift.data.encode.turns._UNTRACED_MESSAGES", len(PLAIN))
    assert traced == [made("assistant"), made("last_turn")]
