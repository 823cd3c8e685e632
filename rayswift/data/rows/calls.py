"""Tools and tool calls in any spelling (OpenAI, older OpenAI, Anthropic, ms-swift, LLaMA-Factory) -> one spelling.

A call becomes `{"type": "function", "function": {"name": str, "arguments": object}}`, with its `id` if it has one. A
function becomes `{"type": "function", "function": {"name": str, "description": str, "parameters": schema}}`.
"""

from collections.abc import Mapping
from typing import Any

from rayswift.data.rows.columns import BadRow, Row
from rayswift.data.rows.values import as_list, is_list, parsed, without_nulls


def calls_of(value: Any, where: str) -> list[dict[str, Any]]:
    """One call or a list of calls, as objects or as JSON text."""
    value = parsed(value, f"tool call of {where}")
    return [call_of(call, where) for call in (as_list(value, "tool calls") if is_list(value) else [value])]


def call_of(call: Any, where: str) -> dict[str, Any]:
    """One call; arguments may be an object or JSON text and become an object."""
    call = parsed(call, f"tool call of {where}")
    function = parsed(call.get("function", call), f"tool call of {where}") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise BadRow("bad tool call", f"{where}: a call is an object with a name and arguments")
    arguments = function.get("arguments", function.get("parameters"))
    if isinstance(arguments, str):
        # Nulls in JSON text were written on purpose, so they stay.
        arguments = parsed(arguments, f"arguments of a call of {where}") if arguments else {}
    elif isinstance(arguments, list) and arguments and all(isinstance(a, tuple) and len(a) == 2 for a in arguments):
        arguments = dict(arguments)  # a map, as Arrow returns it
    else:
        arguments = without_nulls({} if arguments is None else arguments, f"arguments of a call of {where}")
    if not isinstance(arguments, Mapping):
        raise BadRow("bad tool call", f"{where}: arguments are {type(arguments).__name__}, expected an object")
    made: dict[str, Any] = {"type": "function", "function": {"name": function["name"], "arguments": arguments}}
    return made | ({"id": call["id"]} if call.get("id") else {})


def tools_of(row: Row, in_messages: list[Any]) -> tuple[Any, ...] | None:
    """The tools of a row: from its columns `tools` and `functions` (OpenAI's older name) and from its messages."""
    if "tools" not in row and "functions" not in row and not in_messages:
        return None
    given: list[Any] = []
    for value in (row.get("tools"), _functions(row.get("functions")), *in_messages):
        if value is None or value == "":
            continue
        value = parsed(value, "tools")
        given += [value] if isinstance(value, Mapping) and "name" in value else as_list(value, "tools")
    return tuple(_tool(tool) for tool in given) or None


def _functions(value: Any) -> Any:
    """The column `functions` in OpenAI's older spelling; None if the column holds something else."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        value = parsed(value, "functions")
    holds = isinstance(value, list) and all(isinstance(one, Mapping) and "name" in one for one in value)
    return value if holds else None


def _tool(tool: Any) -> Any:
    as_given = parsed(tool, "a tool")
    if not isinstance(as_given, Mapping):
        raise BadRow("wrong type", f"a tool is {type(as_given).__name__}, expected an object")
    # Nulls in JSON text were written on purpose, so they stay.
    tool = as_given if isinstance(tool, str) else without_nulls(as_given, "a tool")
    if "input_schema" in tool:  # Anthropic's
        function = {"name": tool.get("name"), "description": tool.get("description", "")}
        return {"type": "function", "function": {**function, "parameters": tool["input_schema"]}}
    if "function" not in tool and "name" in tool and ("parameters" in tool or "description" in tool):
        return {"type": "function", "function": {key: value for key, value in tool.items() if key != "type"}}
    return tool
