"""Finds tool calls in the text of a model, in the formats of chat templates; pure.

The formats are: JSON between `<tool_call>` and `</tool_call>` (Hermes, Qwen), the XML of Qwen3-Coder between the same
tags, a JSON object that is the whole answer, with its arguments under `parameters` (Llama 3), and `[TOOL_CALLS]` before
a JSON list or before names with their arguments (Mistral). A call that cannot be read is a failed call: its answer is
the problem.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from rayswift.data.encode.template import ChatTemplate
from rayswift.data.rows import BadRow, Message

CallFormat = Literal["hermes", "llama3_json", "mistral"]
"""Formats by vLLM's names; `hermes` reads the XML of `qwen3_coder` too."""

_HERMES = re.compile(r"<tool_call>(.*?)(?:</tool_call>|\Z)", re.DOTALL)
_FUNCTION = re.compile(r"<function=([^>\s]+)>(.*?)(?:</function>|\Z)", re.DOTALL)
_PARAMETER = re.compile(r"<parameter=([^>\s]+)>\n?(.*?)\n?(?:</parameter>|(?=<parameter=)|\Z)", re.DOTALL)
_MISTRAL = "[TOOL_CALLS]"
_MISTRAL_NAMED = re.compile(r"\s*([^\s\[\]{}]+)\s*(?:\[CALL_ID\][^\[]*)?(?:\[ARGS\]|(?=\{))")
_PYTHON_TAG = "<|python_tag|>"
_PROBE = "probe_tool"
_NO_JSON = (ValueError, RecursionError)
"""Errors of the `json` module; ValueError also for integers of more digits than Python converts."""


@dataclass(frozen=True)
class Call:
    """A tool call. arguments: None if it cannot be read; problem: why it cannot be read."""

    name: str
    arguments: Mapping[str, Any] | None
    problem: str = ""


@dataclass(frozen=True)
class Said:
    """A turn of the model. content: the text without calls."""

    content: str
    calls: tuple[Call, ...] = ()

    @property
    def message(self) -> Message:
        """Return the turn as a message for chat templates and reward functions."""
        called = [
            {"type": "function", "function": {"name": call.name, "arguments": dict(call.arguments or {})}}
            for call in self.calls
        ]
        made: Message = {"role": "assistant", "content": self.content}
        return made | ({"tool_calls": called} if called else {})


def format_of(template: ChatTemplate, tools: Sequence[Any]) -> CallFormat | None:
    """Return the format in which a template renders calls; None: an unknown format."""
    call = {"type": "function", "id": "call00000", "function": {"name": _PROBE, "arguments": {"a": 1}}}
    asked: Message = {"role": "user", "content": "q"}
    try:
        said: Message = {"role": "assistant", "content": "", "tool_calls": [call]}
        text = template.render(template.adapted([asked, said]), list(tools))
    except BadRow:
        return None
    if "<tool_call>" in text:
        return "hermes"
    if _MISTRAL in text:
        return "mistral"
    return "llama3_json" if re.search(rf'"name":\s*"{_PROBE}",\s*"parameters"', text) else None


def parse(text: str, call_format: CallFormat) -> Said:
    """Split a text of the model into content and calls."""
    return _READERS[call_format](text)


def _hermes(text: str) -> Said:
    calls: list[Call] = []
    for body in _HERMES.findall(text):
        calls += _from_xml(body) if _FUNCTION.search(body) else _from_json(body)
    return Said(_HERMES.sub("", text).strip() if calls else text, tuple(calls))


def _from_xml(body: str) -> list[Call]:
    return [
        _sendable(name, {key: _value(value) for key, value in _PARAMETER.findall(inside)})
        for name, inside in _FUNCTION.findall(body)
    ]


def _value(text: str) -> Any:
    """Parse a parameter as JSON, or else return its text."""
    try:
        return json.loads(text)
    except _NO_JSON:
        return text


def _llama(text: str) -> Said:
    body = text.strip().removeprefix(_PYTHON_TAG).lstrip()
    if not (body.startswith("{") and re.search(r'"name"\s*:', body)):
        return Said(text)
    return Said("", tuple(_several(body, "[;,\\s]*")))


def _mistral(text: str) -> Said:
    content, mark, body = text.partition(_MISTRAL)
    if not mark:
        return Said(text)
    if not _MISTRAL_NAMED.match(body):
        return Said(content.strip(), tuple(_from_json(body)))
    calls: list[Call] = []
    for part in body.split(_MISTRAL):
        named = _MISTRAL_NAMED.match(part)
        calls += [_named(named[1], part[named.end() :])] if named else []
    return Said(content.strip(), tuple(calls))


def _named(name: str, body: str) -> Call:
    try:
        return _call({"name": name, "arguments": json.JSONDecoder().raw_decode(body.lstrip())[0]})
    except _NO_JSON as error:
        return Call(name, None, f"the arguments are no JSON: {error}")


def _from_json(body: str) -> list[Call]:
    """Return the call in a JSON object, or the calls in a list."""
    try:
        found = json.loads(body)
    except _NO_JSON as error:
        return [Call("", None, f"the call is no JSON: {error}")]
    return [_call(each) for each in (found if isinstance(found, list) else [found])]


def _several(body: str, between: str) -> list[Call]:
    """Return the calls in consecutive JSON objects."""
    decoder, calls, at = json.JSONDecoder(), list[Call](), 0
    while at < len(body):
        try:
            found, end = decoder.raw_decode(body, at)
        except _NO_JSON as error:
            return [*calls, Call("", None, f"the call is no JSON: {error}")]
        calls.append(_call(found))
        space = re.compile(between).match(body, end)
        at = space.end() if space else end
    return calls


def _call(found: Any) -> Call:
    if not isinstance(found, Mapping) or not isinstance(found.get("name"), str):
        return Call("", None, "the call is no object with a name and arguments")
    arguments = found.get("arguments", found.get("parameters", {}))
    if isinstance(arguments, str):
        arguments = _value(arguments)
    if not isinstance(arguments, Mapping):
        return replace(_sendable(found["name"], {}), arguments=None, problem="the arguments are no object")
    return _sendable(found["name"], arguments)


def _sendable(name: str, arguments: Mapping[str, Any]) -> Call:
    """Make the texts of a call valid UTF-8, because JSON's escapes can make halves of surrogate pairs."""
    try:
        json.dumps([name, arguments], ensure_ascii=False).encode()
    except _NO_JSON as error:
        return Call("", None, f"the call cannot be written: {error}")
    return Call(name, arguments)


_READERS: Mapping[CallFormat, Callable[[str], Said]] = {"hermes": _hermes, "llama3_json": _llama, "mistral": _mistral}
