"""Render a tokenizer's chat template without importing `transformers`' tokenizers (and so torch) in data tasks.

The environment is the one `transformers` documents for chat templates; a test holds both to the same bytes.
"""

import datetime
import json
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import jinja2
import jinja2.ext
from jinja2.sandbox import ImmutableSandboxedEnvironment

from rayswift.data.rows import BadRow, Message
from rayswift.data.trace import Trace, TracedTemplate

_DICT_ATTRIBUTES = frozenset(dir(dict))
_PROBE_CALL = {"type": "function", "id": "call00000", "function": {"name": "f", "arguments": {"a": 1}}}


class _Generation(jinja2.ext.Extension):
    """`{% generation %}` marks assistant text for `transformers`; rendered, it is its body."""

    tags = {"generation"}  # noqa: RUF012 (jinja's own class attribute)

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Environment(ImmutableSandboxedEnvironment):
    """The sandbox; `message.role` asks the object first by Python's rules, which for a dict only costs an exception."""

    def getattr(self, obj: Any, attribute: str) -> Any:
        if type(obj) is dict and attribute not in _DICT_ATTRIBUTES and attribute in obj:
            return obj[attribute]
        return super().getattr(obj, attribute)


def _tojson(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, **options)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


class ChatTemplate:
    """A compiled chat template.

    Args:
        source: Jinja text.
        special_tokens: `bos_token`, `eos_token`, ... as the template may name them.
    """

    def __init__(self, source: str, special_tokens: dict[str, str]):
        environment = _Environment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
        )
        environment.filters["tojson"] = _tojson
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = lambda fmt: datetime.datetime.now().strftime(fmt)
        self._template = environment.from_string(source)
        # What every rendering is given; `Template.render` would collect the globals anew each time.
        self._given = {**self._template.globals, **special_tokens}
        self._source = source
        self._traced = TracedTemplate.of(environment, source)

    def render(
        self,
        messages: Sequence[Message],
        tools: list[Any] | None = None,
        generate: bool = False,
        kwargs: Mapping[str, Any] | None = None,
    ) -> str:
        """Text of a conversation; `generate` adds the opening of the assistant's next turn.

        Raises:
            BadRow: the template refuses the conversation.
        """
        given = self._also_given(tools, kwargs) | {"messages": messages, "add_generation_prompt": generate}
        try:
            return "".join(self._template.root_render_func(self._template.new_context(given, shared=True)))
        except Exception as error:  # a template is foreign code: whatever it raises is about this conversation
            raise BadRow("refused by the chat template", f"{str(error)[:400] or type(error).__name__}") from error

    def trace(
        self, messages: Sequence[Message], tools: list[Any] | None = None, kwargs: Mapping[str, Any] | None = None
    ) -> Trace | None:
        """One rendering that tells where each message ends; None if this template, or what it does here, forbids it."""
        if self._traced is None:
            return None
        try:
            return self._traced.trace(messages, self._also_given(tools, kwargs))
        except Exception:  # of foreign code; what is wrong, if anything is, shows in `render`
            return None

    def _also_given(self, tools: list[Any] | None, kwargs: Mapping[str, Any] | None) -> dict[str, Any]:
        return {**self._given, **(kwargs or {}), "tools": tools, "documents": None}

    def adapted(self, messages: Sequence[Message]) -> list[Message]:
        """Messages with thoughts and tool calls in the spelling that this template reads.

        Raises:
            BadRow: there are thoughts or calls, and it has no place for them.
        """
        return [self._adapt(m) if "reasoning_content" in m or "tool_calls" in m else m for m in messages]

    def _adapt(self, message: Message) -> Message:
        adapted = dict(message)
        if "reasoning_content" in message and self._thoughts_key != "reasoning_content":
            if self._thoughts_key is None:
                raise BadRow(
                    "thoughts have no place in the chat template",
                    "it does not read reasoning_content; write them into the content, or set model.chat_template",
                )
            adapted[self._thoughts_key] = adapted.pop("reasoning_content")
        if "tool_calls" in message and "tool_calls" not in self._source:
            raise BadRow(
                "tool calls have no place in the chat template",
                "it does not read tool_calls; write them into the content, or set model.chat_template",
            )
        if "tool_calls" in message and self._arguments_as_text:
            adapted["tool_calls"] = [_with_text_arguments(call) for call in message["tool_calls"]]
        return adapted

    @cached_property
    def _thoughts_key(self) -> str | None:
        """The key of a message under which the template looks for thoughts."""
        for key in ("reasoning_content", "reasoning", "thinking"):
            if re.search(rf"""[.'"]{key}\b""", self._source):
                return key
        return None

    @cached_property
    def _arguments_as_text(self) -> bool:
        """Whether the template joins arguments of tool calls to text, as DeepSeek's, and does not write JSON."""
        accepted = []
        for call in (_PROBE_CALL, _with_text_arguments(_PROBE_CALL)):
            probe: list[Message] = [
                {"role": "user", "content": "q"},
                {"role": "assistant", "content": "", "tool_calls": [call]},
                {"role": "tool", "content": "r", "tool_call_id": "call00000"},
                {"role": "assistant", "content": "a"},
            ]
            try:
                self.render(probe)
                accepted.append(True)
            except BadRow:
                accepted.append(False)
        return accepted == [False, True]


def _with_text_arguments(call: dict[str, Any]) -> dict[str, Any]:
    function = call["function"]
    return {**call, "function": {**function, "arguments": json.dumps(function["arguments"], ensure_ascii=False)}}
