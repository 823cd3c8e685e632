"""Messages in any spelling (ms-swift, ShareGPT, OpenAI, Anthropic, ...) -> messages as chat templates take them.

Roles are system, developer, user, assistant and tool. Thoughts become `reasoning_content`; thoughts inside the content
stay there.
"""

import json
from collections.abc import Mapping
from typing import Any

from rayswift.config.checks.data import TEMPLATE_OWN
from rayswift.data.canonical_rows import Conversation, Message, MessageLoss
from rayswift.data.rows.calls import call_of, calls_of, tools_of
from rayswift.data.rows.columns import BadRow, MessageNames, NamedRow, Row
from rayswift.data.rows.values import as_list, as_number, as_text, is_list, parsed, parsed_list, shown

_ROLES = {
    **{role: role for role in ("system", "developer", "user", "assistant", "tool")},
    **{"human": "user", "prompter": "user"},
    **dict.fromkeys(("gpt", "bot", "chatgpt", "model", "ai"), "assistant"),
    **dict.fromkeys(("observation", "observations", "tool_response", "tool_result", "ipython"), "tool"),
    **{"function": "tool", "function_response": "tool"},
}
_ORDER = ("system", "developer", "user", "tool", "tool_call", "assistant")
_CALL_ROLES = ("tool_call", "tool_calls", "function_call", "function_calls")
_THOUGHTS = ("reasoning_content", "reasoning", "thinking")
_SYSTEM = ("system", "developer")
_CALL_KEYS = ("tool_calls", "function_call")
_REST = frozenset({"name", "tool_call_id", *_THOUGHTS, *_CALL_KEYS})
_LOSS_KEYS = frozenset({"loss", "loss_scale", "weight", "loss_weight", "train", "training", "train_detail"})
_NO_LOSS = MessageLoss()
_TEXT_BLOCKS = ("text", "input_text", "output_text")
_CALL_BLOCKS = ("tool_call", "tool_calls", "function_call")

Parsed = tuple[Message, MessageLoss]


def conversation(messages: Any, given: NamedRow) -> Conversation:
    """The conversation of a list of messages (or its JSON text), with the row's system prompt, tools and template
    arguments."""
    reader = _Reader(given.names)
    for position, message in enumerate(turns(messages, given.names)):
        reader.read(message, f"message {position}")
    read = reader.messages
    if not read:
        raise BadRow("no messages", "the list of messages is empty")
    row = given.columns
    own_system = row.get("system") or row.get("system_prompt") or given.system
    if own_system and read[0][0]["role"] not in _SYSTEM:
        read.insert(0, ({"role": "system", "content": _system_text(own_system)}, _NO_LOSS))
    return Conversation(
        tuple(message for message, _ in read),
        tuple(loss for _, loss in read),
        tools_of(row, reader.tools),
        _template_kwargs(row),
    )


def turns(messages: Any, names: MessageNames) -> list[Any]:
    """The items of a list of messages; an item `{"human": question, "assistant": answer}` becomes two messages."""
    items = _listed(messages) if isinstance(messages, Mapping) else parsed_list(messages, "the list of messages")
    if not items or not isinstance(items[0], Mapping) or not is_pair(items[0], names):
        return items
    made: list[Any] = []
    for item in items:
        if not isinstance(item, Mapping) or not is_pair(item, names):
            made.append(item)
            continue
        named = [{"role": key, "content": value} for key, value in item.items() if role_named(key, names)]
        made += sorted(
            (one for one in named if one["content"] is not None),
            key=lambda one: _ORDER.index(role_named(one["role"], names) or "user"),
        )
    return made


def _listed(messages: Mapping[str, Any]) -> list[Any]:
    """The messages of one message, or of an object with a list for each key, as `datasets` stores them."""
    parts = {key: as_list(value, key) for key, value in messages.items() if is_list(value)}
    lengths = {len(part) for part in parts.values()}
    if len(parts) < len(messages) or len(lengths) != 1:
        return [messages]
    return [dict(zip(parts, values, strict=True)) for values in zip(*parts.values(), strict=True)]


def is_pair(item: Mapping[str, Any], names: MessageNames) -> bool:
    """Whether an item is `{"human": question, "assistant": answer}`, as ms-swift writes it."""
    if "role" in item or "from" in item or not names.keys.keys().isdisjoint(item):
        return False
    return any(role_named(key, names) == "user" for key in item)


def role_named(role: Any, names: MessageNames) -> str | None:
    """Our name of a role, or tool_call; None for an unknown role."""
    if not isinstance(role, str):
        return None
    found = names.roles.get(role) or _ROLES.get(role)
    if found is None:
        plain = role.strip().lower().replace("-", "_")
        found = "tool_call" if plain in _CALL_ROLES else _ROLES.get(plain)
    return found


def role_of(message: Any, names: MessageNames) -> str | None:
    """Our name of a message's role; None if it has no known role."""
    if not isinstance(message, Mapping):
        return None
    if names.keys:
        message = _renamed(message, names)
    return role_named(message.get("role", message.get("from")), names)


def _renamed(message: Mapping[str, Any], names: MessageNames) -> dict[str, Any]:
    mapped = {names.keys[key]: value for key, value in message.items() if key in names.keys}
    return {key: value for key, value in message.items() if key not in names.keys} | mapped


def _system_text(value: Any) -> str:
    if is_list(value) and all(isinstance(block, Mapping) for block in value):  # Anthropic's
        made: Message = {"role": "system", "content": ""}
        _Reader(MessageNames()).blocks(made, as_list(value, "system"), "system")
        return str(made["content"])
    return as_text(value, "system")


def _template_kwargs(row: Row) -> dict[str, Any]:
    kwargs = row.get("chat_template_kwargs")
    if not kwargs:
        return {}
    kwargs = parsed(kwargs, "chat_template_kwargs")
    if not isinstance(kwargs, Mapping) or not all(isinstance(key, str) for key in kwargs):
        raise BadRow("wrong type", "chat_template_kwargs is no object")
    if own := sorted(TEMPLATE_OWN & kwargs.keys()):
        raise BadRow("reserved names", f"chat_template_kwargs holds {', '.join(own)}, which the row's columns set")
    return {key: value for key, value in kwargs.items() if value is not None}


class _Reader:
    """Reads messages one after the other; `tools` collects the tools found in messages."""

    def __init__(self, names: MessageNames):
        self._names = names
        self.messages: list[Parsed] = []
        self.tools: list[Any] = []

    def read(self, message: Any, where: str) -> None:
        """Append one message of the row."""
        if not isinstance(message, Mapping):
            raise BadRow("bad message", f"{where} is {type(message).__name__}, not an object")
        if self._names.keys:
            message = _renamed(message, self._names)
        given = message.get("role", message.get("from"))
        role = role_named(given, self._names)
        if role is None:
            raise _unknown_role(message, given, where)
        loss = _NO_LOSS if _LOSS_KEYS.isdisjoint(message) else _loss(message, where)
        content = message.get("content", message.get("value"))
        if role == "tool_call":
            self._call(content, loss, where)
            return
        made: Message = {"role": role, "content": ""}
        if isinstance(content, str):
            made["content"] = content
        elif content is not None:
            before = len(self.messages), len(self.tools)
            self._content(made, content, loss, where)
            # A message of only tool results or tools is already appended.
            if (len(self.messages), len(self.tools)) != before and len(made) == 2 and not made["content"]:
                return
        if not _REST.isdisjoint(message):
            _keep_rest(made, message, where)
        if content is None and len(made) == 2:
            raise BadRow("no content", f"{where} ({given}) has no content")
        self.messages.append((made, loss))

    def _content(self, made: Message, content: Any, loss: MessageLoss, where: str) -> None:
        blocks = [content] if isinstance(content, Mapping) and "type" in content else content
        if made["role"] == "tool" and not _are_blocks(blocks):
            made["content"] = _as_json(content, where)
        elif is_list(blocks):
            results = self.blocks(made, as_list(blocks, f"content of {where}"), where)
            self.messages += [(result, loss) for result in results]
        else:
            made["content"] = as_text(content, f"content of {where}")

    def _call(self, content: Any, loss: MessageLoss, where: str) -> None:
        """Add a message that is a call to the assistant's message before it, if there is one."""
        if _are_blocks(content):
            made: Message = {"role": "assistant", "content": ""}
            self.blocks(made, as_list(content, where), where)
            calls = made["tool_calls"] if "tool_calls" in made else calls_of(made["content"], where)
        else:
            calls = calls_of(content, where)
        if self.messages and self.messages[-1][0]["role"] == "assistant":
            turn, turn_loss = self.messages[-1]
            if loss is not _NO_LOSS and loss != turn_loss:
                raise BadRow("bad loss", f"{where} is part of the assistant's turn before it, but its loss differs")
            self.messages[-1] = {**turn, "tool_calls": [*turn.get("tool_calls", []), *calls]}, turn_loss
        else:
            self.messages.append(({"role": "assistant", "content": "", "tool_calls": calls}, loss))

    def blocks(self, made: Message, blocks: list[Any], where: str) -> list[Message]:
        """Put content blocks into a message; tool results become messages of their own, which are returned."""
        texts: list[str] = []
        thoughts: list[str] = []
        results: list[Message] = []
        for block in blocks:
            if isinstance(block, str):
                texts.append(block)
                continue
            if not isinstance(block, Mapping):
                raise BadRow("bad message", f"{where} holds a block that is {type(block).__name__}, not an object")
            kind, value = block.get("type") or "text", block.get("value")
            if kind in _TEXT_BLOCKS and isinstance(text := block.get("text", value), str):
                texts.append(text)
            elif kind in _THOUGHTS and isinstance(thought := block.get(kind, block.get("text", value)), str):
                thoughts.append(thought)
            elif kind == "tool_use":
                call = {"id": block.get("id"), "name": block.get("name"), "arguments": block.get("input")}
                made.setdefault("tool_calls", []).append(call_of(call, where))
            elif kind in _CALL_BLOCKS:
                made.setdefault("tool_calls", []).extend(calls_of(block if value is None else value, where))
            elif kind == "tools" and value is not None:
                self.tools.append(value)
            elif kind == "tool_result":
                results.append(self._result(block, where))
            else:
                detail = f"{where} holds a block of type {shown(kind)}; only text is trained"
                raise BadRow("unsupported content", detail)
        made["content"] = "".join(texts)
        if thoughts:
            made["reasoning_content"] = "".join(thoughts)
        return results

    def _result(self, block: Mapping[str, Any], where: str) -> Message:
        content = block.get("content", block.get("value"))
        if content is not None and not isinstance(content, str):
            inner: Message = {}
            self.blocks(inner, as_list(content, f"tool_result of {where}"), where)
            content = inner["content"]
        result: Message = {"role": "tool", "content": content or ""}
        if block.get("tool_use_id"):
            result["tool_call_id"] = as_text(block["tool_use_id"], f"tool_use_id of {where}")
        return result


def _unknown_role(message: Mapping[str, Any], given: Any, where: str) -> BadRow:
    if given is None:
        keys = ", ".join(sorted(map(str, message))) or "none"
        what, example = f"no role, its keys are {keys[:200]}", "speaker: role, utterance: content"
    else:
        roles = ", ".join(sorted({*_ROLES, *_CALL_ROLES}))
        what, example = f"role {shown(given)}; known: {roles}", f"{given}: user"
    return BadRow("unknown role", f"{where} has {what}; map yours with data.columns, as in {{{example}}}")


def _are_blocks(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(
        isinstance(one, str) or (isinstance(one, Mapping) and ("type" in one or "text" in one)) for one in value
    )


def _as_json(value: Any, where: str) -> str:
    """The result of a tool as text."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return as_text(value, f"content of {where}")
    try:
        return json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise BadRow("wrong type", f"content of {where} is {type(value).__name__}, and no JSON: {error}") from error


def _keep_rest(made: Message, message: Mapping[str, Any], where: str) -> None:
    for key in ("name", "tool_call_id"):
        if message.get(key):
            made[key] = as_text(message[key], f"{key} of {where}")
    thoughts = [key for key in _THOUGHTS if message.get(key)]
    if len(thoughts) > 1:
        raise BadRow("ambiguous columns", f"{where} has {' and '.join(thoughts)}; keep one")
    if thoughts:
        made["reasoning_content"] = as_text(message[thoughts[0]], f"{thoughts[0]} of {where}")
    for key in _CALL_KEYS:
        calls = message.get(key)
        if calls is not None and not (isinstance(calls, str) and not calls) and (found := calls_of(calls, where)):
            made["tool_calls"] = [*made.get("tool_calls", []), *found]


def _loss(message: Mapping[str, Any], where: str) -> MessageLoss:
    trained = message.get("loss")
    if trained is None:  # axolotl's
        trained = message.get("train", message.get("training"))
    scale, weight = message.get("loss_scale", message.get("weight")), message.get("loss_weight")
    if message.get("train_detail"):
        raise BadRow("bad loss", f"{where} has train_detail: a message is trained as a whole; use segments")
    if trained is not None and not (isinstance(trained, bool) or trained in (0, 1)):
        raise BadRow("bad loss", f"{where} has loss {shown(trained)}; it is true or false")
    if weight is not None:  # LLaMA-Factory's, in place of the other two
        if trained is not None or scale is not None:
            raise BadRow("bad loss", f"{where} has loss_weight and another weight; keep one")
        number = _not_negative(weight, "loss_weight", where)
        return MessageLoss(number > 0, number or 1.0)
    number = 1.0 if scale is None else _not_negative(scale, "loss_scale", where)
    return MessageLoss(None if trained is None else bool(trained), number)


def _not_negative(value: Any, what: str, where: str) -> float:
    number = as_number(value, f"{what} of {where}")
    if number < 0:
        raise BadRow("bad loss", f"{where} has {what} {number}; it is 0 or more")
    return number
