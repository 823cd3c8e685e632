"""Render a tokenizer's chat template without importing `transformers`' tokenizers, and so torch, in data tasks.

The environment is the one that `transformers` documents for chat templates; a test checks that the bytes are equal.
"""

import datetime
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import jinja2
import jinja2.ext
from jinja2.sandbox import ImmutableSandboxedEnvironment

from rayswift.data.encode.message_ends import Trace, TracedTemplate
from rayswift.data.rows import BadRow, Conversation, Message, MessageLoss

Tools = list[Any] | None
"""Tools as JSON schemas."""
Kwargs = Mapping[str, Any] | None
"""Variables that a template is given besides the messages."""
_DICT_ATTRIBUTES = frozenset(dir(dict))
_PROBE_CALL = {"type": "function", "id": "call00000", "function": {"name": "fff", "arguments": {"a": 1}}}
_PROBE_SYSTEM, _PROBE_QUESTION = "\ue000system\ue000", "\ue000question\ue000"
_END = "</think>"
_THOUGHTS = re.compile(r"\s*<think>(.*?)</think>\s*(.*)", re.DOTALL)
# Private-use characters in place of `</think>`, so that a template does not cut there.
_MARK = "\ue000/think\ue000"


class _Generation(jinja2.ext.Extension):
    """Renders the body of `{% generation %}`, which marks assistant text for `transformers`."""

    tags = {"generation"}  # noqa: RUF012 (jinja's own class attribute)

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Environment(ImmutableSandboxedEnvironment):
    """The sandbox, with a faster `message.role`: a dict is not asked for an attribute first."""

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
        date: The day of `strftime_now` in the template, as YYYY-MM-DD; None: today.
    """

    def __init__(self, source: str, special_tokens: dict[str, str], date: str | None = None):
        environment = _Environment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
        )
        environment.filters["tojson"] = _tojson
        environment.globals["raise_exception"] = _raise_exception
        now = datetime.datetime.fromisoformat(date) if date else datetime.datetime.now()
        environment.globals["strftime_now"] = now.strftime
        self._template = environment.from_string(source)
        # The variables of every rendering; `Template.render` would collect the globals each time.
        self._given = {**self._template.globals, **special_tokens}
        self._source = source
        self._traced = TracedTemplate.of(environment, source)

    def render(
        self, messages: Sequence[Message], tools: Tools = None, generate: bool = False, kwargs: Kwargs = None
    ) -> str:
        """The text of a conversation; `generate` adds the generation prompt.

        Raises:
            BadRow: the template refuses the conversation.
        """
        given = self._also_given(tools, kwargs) | {"messages": messages, "add_generation_prompt": generate}
        try:
            return "".join(self._template.root_render_func(self._template.new_context(given, shared=True)))
        except Exception as error:  # a template is foreign code: whatever it raises is about this conversation
            raise BadRow("refused by the chat template", f"{str(error)[:400] or type(error).__name__}") from error

    def trace(self, messages: Sequence[Message], tools: Tools = None, kwargs: Kwargs = None) -> Trace | None:
        """One rendering with the end of each message; None if the ends are not known."""
        if self._traced is None:
            return None
        try:
            return self._traced.trace(messages, self._also_given(tools, kwargs))
        except Exception:  # of the template's code; `render` reports it
            return None

    def _also_given(self, tools: Tools, kwargs: Kwargs) -> dict[str, Any]:
        return {**self._given, **(kwargs or {}), "tools": tools, "documents": None}

    def conversation(
        self, messages: Sequence[Message], tools: Tools = None, generate: bool = False, kwargs: Kwargs = None
    ) -> str:
        """As `render`, for messages in our spelling.

        Raises:
            BadRow: the template refuses the conversation, or does not render all of it.
        """
        adapted = self.adapted(messages)
        text = self.render(adapted, tools, True, kwargs) if generate else self.render_answer(adapted, tools, kwargs)
        self.check(messages, text)
        return text

    def opening(self, tools: Tools = None, kwargs: Kwargs = None) -> str:
        """The generation prompt after a question; empty if it is not what follows the question alone."""
        asked = self.adapted([{"role": "user", "content": _PROBE_QUESTION}])
        before, whole = self.render(asked, tools, kwargs=kwargs), self.render(asked, tools, True, kwargs)
        return whole.removeprefix(before) if whole.startswith(before) else ""

    def adapted(self, messages: Sequence[Message]) -> list[Message]:
        """Messages with contents, thoughts and tool calls in the spelling that this template reads."""
        if any(message["role"] == "assistant" and _END in _text_of(message) for message in messages):
            messages = [self._with_thoughts_apart(message) for message in messages]
        made = [self._adapt(m) if "reasoning_content" in m or "tool_calls" in m else m for m in messages]
        return [_in_parts(message) for message in made] if self._takes_parts else made

    def cuts(self, messages: Sequence[Message]) -> bool:
        """Whether a content has thoughts and the template removes thoughts even from the last answer."""
        has_thoughts = any(m["role"] == "assistant" and _END in _text_of(m) for m in messages)
        return has_thoughts and self._cuts_thoughts

    def render_answer(self, messages: Sequence[Message], tools: Tools = None, kwargs: Kwargs = None) -> str:
        """As `render`, but the last answer keeps its thoughts even if the template would remove them."""
        if not messages or not self.cuts(messages[-1:]):
            return self.render(messages, tools, kwargs=kwargs)
        last = messages[-1]
        content = last["content"]
        marked: Any = (
            content.replace(_END, _MARK)
            if isinstance(content, str)
            else _in_parts({"content": _text_of(last).replace(_END, _MARK)})["content"]
        )
        return self.render([*messages[:-1], {**last, "content": marked}], tools, kwargs=kwargs).replace(_MARK, _END)

    def check(self, messages: Sequence[Message], text: str, first: int = 0) -> None:
        """Raise if a text lacks the content or a tool call of a message; `first`: number of the first message."""
        at = 0
        for position, message in enumerate(messages, first):
            if message["role"] not in ("user", "assistant"):
                continue
            said = message["content"]
            found = text.find(said, at)
            if found < 0:
                said = said.rpartition(_END)[2].strip()
                found = text.find(said, at)
            if found < 0 and said not in text:
                raise BadRow(
                    "content not rendered",
                    f"the chat template leaves {said[:40]!r} of message {position} ({message['role']}) out; set "
                    f"model.chat_template to one that renders it",
                )
            at = max(at, found)
            for call in message.get("tool_calls", ()):
                if call["function"]["name"] not in text:
                    raise BadRow(
                        "tool call not rendered",
                        f"the chat template leaves the call of {call['function']['name']!r} in message {position} out; "
                        f"set model.chat_template to one that renders it",
                    )

    def _with_thoughts_apart(self, message: Message) -> Message:
        """A message with the thoughts of its content in `reasoning_content`, if the template reads them there alone."""
        found = _THOUGHTS.match(message["content"]) if message["role"] == "assistant" else None
        if found is None or "reasoning_content" in message or not self._reads_thoughts_apart:
            return message
        thoughts = found[1].strip()
        return {**message, "content": found[2], **({"reasoning_content": thoughts} if thoughts else {})}

    def _adapt(self, message: Message) -> Message:
        adapted = dict(message)
        if "reasoning_content" in message and self._thoughts_key != "reasoning_content":
            thoughts = adapted.pop("reasoning_content")
            if self._thoughts_key is not None:
                adapted[self._thoughts_key] = thoughts
            elif _END in self._source:  # the template knows thoughts inside the content
                adapted["content"] = f"<think>\n{thoughts}\n</think>\n\n{message['content']}"
            else:
                raise BadRow(
                    "thoughts have no place in the chat template",
                    "it does not read reasoning_content; write them into the content, or set model.chat_template",
                )
        if "tool_calls" in message and "tool_calls" not in self._source:
            raise BadRow(
                "tool calls have no place in the chat template",
                "it does not read tool_calls; write them into the content, or set model.chat_template",
            )
        if "tool_calls" in message and self._arguments_as_text:
            adapted["tool_calls"] = [_with_text_arguments(call) for call in message["tool_calls"]]
        if "tool_calls" in message and not message["content"] and self._calls_without_content:
            adapted["content"] = None
        return adapted

    @cached_property
    def _thoughts_key(self) -> str | None:
        """The message key under which the template reads thoughts; None if there is none."""
        for key in ("reasoning_content", "reasoning", "thinking"):
            if re.search(rf"""[.'"]{key}\b""", self._source):
                return key
        return None

    @cached_property
    def _reads_thoughts_apart(self) -> bool:
        """Whether the template would render thoughts inside the content as words of the answer."""
        asked: Message = {"role": "user", "content": "q"}
        inside, apart = (
            {"role": "assistant", "content": f"<think>\nttt\n{_END}\n\naaa"},
            {"role": "assistant", "content": "aaa", str(self._thoughts_key): "ttt"},
        )
        if not self._thoughts_key or not self._shows([asked, apart], "ttt") or not self._shows([asked, inside], "ttt"):
            return False
        return _END not in self._source or self.render([asked, inside]).count(_END) > 1

    @cached_property
    def _takes_parts(self) -> bool:
        """Whether the template reads only contents that are lists of parts, as for vision models."""
        probe: list[Message] = [{"role": "user", "content": "qqq"}, {"role": "assistant", "content": "aaa"}]
        return not self._shows(probe, "qqq", "aaa") and self._shows(list(map(_in_parts, probe)), "qqq", "aaa")

    @cached_property
    def _cuts_thoughts(self) -> bool:
        """Whether the template removes the thoughts from an answer's content even if the answer is the last message."""
        answer = f"<think>\nttt\n{_END}\n\naaa"
        probe: list[Message] = [{"role": "user", "content": "q"}, {"role": "assistant", "content": answer}]
        return _END in self._source and not self._shows(self.adapted(probe), "ttt")

    @cached_property
    def _calls_without_content(self) -> bool:
        """Whether the template renders tool calls only if the content is null."""
        empty, null = (self._probe_of_calls(content, self._arguments_as_text) for content in ("", None))
        return not self._shows(empty, "fff") and self._shows(null, "fff")

    def _shows(self, messages: Sequence[Message], *words: str) -> bool:
        try:
            text = self.render(messages)
        except BadRow:
            return False
        return all(word in text for word in words)

    @staticmethod
    def _probe_of_calls(content: str | None, as_text: bool) -> list[Message]:
        call = _with_text_arguments(_PROBE_CALL) if as_text else _PROBE_CALL
        return [
            {"role": "user", "content": "q"},
            {"role": "assistant", "content": content, "tool_calls": [call]},
            {"role": "tool", "content": "r", "tool_call_id": "call00000"},
            {"role": "assistant", "content": "a"},
        ]

    @cached_property
    def _arguments_as_text(self) -> bool:
        """Whether the template needs arguments of tool calls as text, as DeepSeek's does."""
        as_json, as_text = (
            any(self._shows(self._probe_of_calls(content, as_text), "fff") for content in ("", None))
            for as_text in (False, True)
        )
        return as_text and not as_json


def _in_parts(message: Message) -> Message:
    """A message whose text is a list of one part."""
    content = message["content"]
    return {**message, "content": [{"type": "text", "text": content}]} if isinstance(content, str) else message


def _text_of(message: Message) -> str:
    """The text of a message, whose content may be text or parts."""
    content = message["content"]
    return content if isinstance(content, str) else "".join(part["text"] for part in content or ())


def _with_text_arguments(call: dict[str, Any]) -> dict[str, Any]:
    function = call["function"]
    return {**call, "function": {**function, "arguments": json.dumps(function["arguments"], ensure_ascii=False)}}


def merged_turns(row: Conversation, bad: BadRow) -> Conversation:
    """A conversation with consecutive messages of one role merged, because the template refused it with `bad`.

    Raises:
        BadRow: there are no such messages, or they differ in their loss.
    """
    messages: list[Message] = []
    losses: list[MessageLoss] = []
    for position, (message, loss) in enumerate(zip(row.messages, row.losses, strict=True)):
        role = message["role"]
        if not messages or role != messages[-1]["role"] or role not in ("user", "assistant"):
            messages.append(message)
            losses.append(loss)
            continue
        if loss != losses[-1]:
            raise BadRow(
                "two turns in a row",
                f"messages {position - 1} and {position} are both of the {role}, which the chat template refuses, and "
                f"differ in their loss; make them one message",
            ) from bad
        first = messages.pop()
        if "tool_calls" in first or "reasoning_content" in message or first.get("name") != message.get("name"):
            raise bad
        between = "" if role == "assistant" else "\n"
        messages.append({**first, **message, "content": first["content"] + between + message["content"]})
    if len(messages) == len(row.messages):
        raise bad
    return replace(row, messages=tuple(messages), losses=tuple(losses))


def default_system(source: str, special_tokens: dict[str, str]) -> str:
    """The system message that a template writes if a conversation has none; empty if there is none."""
    asked = {"role": "user", "content": _PROBE_QUESTION}
    try:
        template = ChatTemplate(source, special_tokens)
        without = template.render([asked])
        with_system = template.render([{"role": "system", "content": _PROBE_SYSTEM}, asked])
    except (jinja2.TemplateError, BadRow):
        return ""  # the rows report what the template refuses
    before, mark, behind = with_system.partition(_PROBE_SYSTEM)
    is_filled = mark and without.startswith(before) and without.endswith(behind)
    if not is_filled or len(without) <= len(before) + len(behind):
        return ""
    return without[len(before) : len(without) - len(behind)].strip()
