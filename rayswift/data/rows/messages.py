"""Messages of any spelling (ms-swift, ShareGPT, OpenAI, Anthropic) -> messages as chat templates take them.

Roles are system, developer, user, assistant and tool. Tool calls have the shape `{"type": "function", "function":
{"name": str, "arguments": object}}`, arguments given as JSON text included. Thoughts are `reasoning_content`, or stay
where they are inside the content.
"""

import json
from collections.abc import Mapping
from typing import Any

from rayswift.data.rows.columns import BadRow, Row, as_list, as_number, as_text, shown
from rayswift.data.rows.families import Conversation, Message, MessageLoss

_ROLES = {
    **{role: role for role in ("system", "developer", "user", "assistant", "tool")},
    **{"human": "user", "gpt": "assistant", "bot": "assistant", "chatgpt": "assistant", "model": "assistant"},
    **{"observation": "tool", "tool_response": "tool", "function": "tool", "function_response": "tool"},
}
_CALL_ROLES = ("tool_call", "function_call")
_THOUGHTS = ("reasoning_content", "reasoning", "thinking")
_SYSTEM = ("system", "developer")

Parsed = tuple[Message, MessageLoss]


def conversation(messages: Any, row: Row, system: str | None = None) -> Conversation:
    """A conversation from a list of messages, and the row's own system prompt, tools and template arguments.

    Args:
        messages: The list, as it stands in the row.
        row: Where `system`, `tools` and `chat_template_kwargs` are looked up.
        system: The system prompt of rows that bring none.

    Raises:
        BadRow: something in it is of a wrong type or unknown.
    """
    parsed: list[Parsed] = []
    for position, message in enumerate(as_list(messages, "the list of messages")):
        _append(parsed, message, position)
    if not parsed:
        raise BadRow("no messages", "the list of messages is empty")
    own_system = row.get("system") or row.get("system_prompt") or system
    if own_system and parsed[0][0]["role"] not in _SYSTEM:
        parsed.insert(0, ({"role": "system", "content": as_text(own_system, "system")}, MessageLoss()))
    tools = row.get("tools")
    kwargs = row.get("chat_template_kwargs") or {}
    if not isinstance(kwargs, Mapping) or not all(isinstance(key, str) for key in kwargs):
        raise BadRow("wrong type", "chat_template_kwargs is no object")
    return Conversation(
        tuple(message for message, _ in parsed),
        tuple(loss for _, loss in parsed),
        _tools(tools) if tools is not None else None,
        {key: value for key, value in kwargs.items() if value is not None},
    )


def _append(parsed: list[Parsed], message: Any, position: int) -> None:
    where = f"message {position}"
    if not isinstance(message, Mapping):
        raise BadRow("bad message", f"{where} is {type(message).__name__}, not an object")
    role = message.get("role", message.get("from"))
    loss = _loss(message, where)
    if role in _CALL_ROLES:
        _append_call(parsed, message, loss, where)
        return
    known = _ROLES.get(role) if isinstance(role, str) else None
    if known is None:
        roles = ", ".join(sorted({*_ROLES, *_CALL_ROLES}))
        raise BadRow("unknown role", f"{where} has role {shown(role)}; known: {roles}")
    content = message.get("content", message.get("value"))
    made: Message = {"role": known, "content": ""}
    if isinstance(content, str):
        made["content"] = content
    elif content is not None and (isinstance(content, list | tuple) or hasattr(content, "tolist")):
        results = _blocks(made, as_list(content, f"content of {where}"), where)
        parsed += [(result, loss) for result in results]
        if results and not made["content"]:
            return
    elif content is not None:
        made["content"] = as_text(content, f"content of {where}")
    _keep_rest(made, message, where)
    if content is None and len(made) == 2:
        raise BadRow("no content", f"{where} ({role}) has no content")
    parsed.append((made, loss))


def _keep_rest(made: Message, message: Mapping[str, Any], where: str) -> None:
    for key in ("name", "tool_call_id"):
        if message.get(key):
            made[key] = as_text(message[key], f"{key} of {where}")
    thoughts = [key for key in _THOUGHTS if message.get(key)]
    if len(thoughts) > 1:
        raise BadRow("ambiguous columns", f"{where} has {' and '.join(thoughts)}; keep one")
    if thoughts:
        made["reasoning_content"] = as_text(message[thoughts[0]], f"{thoughts[0]} of {where}")
    calls = message.get("tool_calls")
    if calls is not None and len(calls := as_list(calls, f"tool_calls of {where}")):
        made["tool_calls"] = [*made.get("tool_calls", []), *(_call(call, where) for call in calls)]


def _append_call(parsed: list[Parsed], message: Mapping[str, Any], loss: MessageLoss, where: str) -> None:
    """A message that is a call belongs to the assistant's turn before it, if there is one."""
    call = _call(message.get("content", message.get("value")), where)
    if parsed and parsed[-1][0]["role"] == "assistant":
        turn, turn_loss = parsed[-1]
        if loss != turn_loss:
            raise BadRow("bad loss", f"{where} is part of the assistant's turn before it, but its loss differs")
        parsed[-1] = {**turn, "tool_calls": [*turn.get("tool_calls", []), call]}, turn_loss
    else:
        parsed.append(({"role": "assistant", "content": "", "tool_calls": [call]}, loss))


def _blocks(made: Message, blocks: list[Any], where: str) -> list[Message]:
    """Put content blocks into a message; tool results among them are messages of their own and come back."""
    texts, thoughts, results = [], [], []
    for block in blocks:
        kind = block.get("type", "text") if isinstance(block, Mapping) else "text"
        if isinstance(block, str):
            texts.append(block)
        elif not isinstance(block, Mapping):
            raise BadRow("bad message", f"{where} holds a block that is {type(block).__name__}, not an object")
        elif kind == "text" and isinstance(block.get("text"), str):
            texts.append(block["text"])
        elif kind == "thinking" and isinstance(block.get("thinking"), str):
            thoughts.append(block["thinking"])
        elif kind == "tool_use":
            call = {"id": block.get("id"), "name": block.get("name"), "arguments": block.get("input") or {}}
            made.setdefault("tool_calls", []).append(_call(call, where))
        elif kind == "tool_result":
            results.append(_result(block, where))
        else:
            raise BadRow("unsupported content", f"{where} holds a block of type {shown(kind)}; only text is trained")
    made["content"] = "".join(texts)
    if thoughts:
        made["reasoning_content"] = "".join(thoughts)
    return results


def _result(block: Mapping[str, Any], where: str) -> Message:
    content = block.get("content")
    if content is not None and not isinstance(content, str):
        inner: Message = {}
        _blocks(inner, as_list(content, f"tool_result of {where}"), where)
        content = inner["content"]
    result: Message = {"role": "tool", "content": content or ""}
    if block.get("tool_use_id"):
        result["tool_call_id"] = as_text(block["tool_use_id"], f"tool_use_id of {where}")
    return result


def _call(call: Any, where: str) -> dict[str, Any]:
    call = _from_json(call, f"tool call of {where}")
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise BadRow("bad tool call", f"{where}: a call is an object with a name and arguments")
    arguments = function.get("arguments", function.get("parameters"))
    arguments = {} if arguments in (None, "") else _from_json(arguments, f"arguments of a call of {where}")
    if not isinstance(arguments, Mapping):
        raise BadRow("bad tool call", f"{where}: arguments are {type(arguments).__name__}, expected an object")
    made: dict[str, Any] = {"type": "function", "function": {"name": function["name"], "arguments": arguments}}
    return made | ({"id": call["id"]} if call.get("id") else {})


def _tools(tools: Any) -> tuple[Any, ...] | None:
    made = []
    for tool in as_list(_from_json(tools, "tools"), "tools"):
        tool = _from_json(tool, "a tool")
        if not isinstance(tool, Mapping):
            raise BadRow("wrong type", f"a tool is {type(tool).__name__}, expected an object")
        if "input_schema" in tool:  # Anthropic's
            function = {"name": tool.get("name"), "description": tool.get("description", "")}
            tool = {"type": "function", "function": {**function, "parameters": tool["input_schema"]}}
        made.append(tool)
    return tuple(made) or None


def _from_json(value: Any, what: str) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise BadRow("malformed JSON", f"{what}: {error}") from error


def _loss(message: Mapping[str, Any], where: str) -> MessageLoss:
    trained, scale = message.get("loss"), message.get("loss_scale", message.get("weight"))
    if trained is None and scale is None:
        return MessageLoss()
    if trained is not None and not (isinstance(trained, bool) or trained in (0, 1)):
        raise BadRow("bad loss", f"{where} has loss {shown(trained)}; it is true or false")
    weight = 1.0 if scale is None else as_number(scale, f"loss_scale of {where}")
    if weight < 0:
        raise BadRow("bad loss", f"{where} has loss_scale {weight}; it is 0 or more")
    return MessageLoss(None if trained is None else bool(trained), weight)
