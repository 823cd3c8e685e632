"""verl's function tools: all functions of a file with `@function_tool`, by the names that it gives them (verl 0.9)."""

import functools
import inspect
import json
from typing import Any

from rayswift.config import user_code
from rayswift.config.reading import other_modules
from rayswift.log import UserError, logger


def tools_of(field: str, file: str) -> dict[str, Any]:
    """Return the function tools of a file; `tool_schema` of each is its JSON schema if it has one of its own.

    Raises:
        UserError: the file cannot be imported, or has no tools.
    """
    module = user_code.load(field, file)
    registry = other_modules.of("verl.tools.function_tool", "FUNCTION_TOOL_REGISTRY") or {}
    found = [each for each in registry.values() if any(value is each.fn for value in vars(module).values())]
    if not found:
        raise UserError(f"{field} = {file!r} has no function with verl's @function_tool; name one as {file}:name")
    return {each.name: _answering(each) for each in found}


def _answering(entry: Any) -> Any:
    """Return a tool that converts the result of verl's tool to a text."""

    @functools.wraps(entry.fn)
    def answered(**arguments: Any) -> Any:
        return _text(entry.name, entry.fn(**arguments))

    @functools.wraps(entry.fn)
    async def awaited(**arguments: Any) -> Any:
        return _text(entry.name, await entry.fn(**arguments))

    tool: Any = awaited if inspect.iscoroutinefunction(entry.fn) else answered
    tool.__name__ = entry.name
    schema = entry.tool_schema
    tool.tool_schema = schema if schema is None or isinstance(schema, dict) else schema.model_dump(exclude_none=True)
    return tool


def _text(name: str, value: Any) -> str:
    """See verl's `normalize_function_tool_return`: a text, a dictionary, a ToolResponse, or a tuple that begins so."""
    if isinstance(value, tuple):
        if not 1 <= len(value) <= 3:
            raise TypeError(f"a tuple of {len(value)}, wanted (response, reward, metrics) or a part of it")
        if any(each is not None for each in value[1:]):
            _say_what_is_left(name)
        value = value[0]
    response = other_modules.of("verl.tools.schemas", "ToolResponse")
    if response is not None and isinstance(value, response):
        if value.image or value.video:
            raise TypeError("images and videos cannot be shown to a model of texts")
        return value.text or ""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict) else str(value)


@functools.cache
def _say_what_is_left(name: str) -> None:
    logger.warning("tool %s: the reward and metrics beside its answer are left out; no reward is made of them", name)
