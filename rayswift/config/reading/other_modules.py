"""Stand-ins for the modules that files with OpenRLHF's agents or verl's function tools import, if not installed.

They have the names that such files use: base classes, the decorator and its registry, types of schemas and answers
(OpenRLHF 0.11, verl 0.9).
"""

import importlib.util
import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from pydantic import BaseModel, ConfigDict


class AgentInstanceBase:
    """An agent's environment; its coroutines are `reset(states)` and `step(states)`."""

    async def reset(self, states: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """Return the prompt of the episode."""
        return states


class AgentExecutorBase:
    """Runs an agent."""


class MultiTurnAgentExecutor(AgentExecutorBase):
    """Runs an agent turn by turn."""

    def __init__(self, agent_instance_cls: type):
        self.agent_instance_cls = agent_instance_cls


class ToolResponse(BaseModel):
    """The answer of a tool."""

    text: str | None = None
    image: list[Any] | None = None
    video: list[Any] | None = None


class OpenAIFunctionToolSchema(BaseModel):
    """The JSON schema of a tool, or a part of one."""

    model_config = ConfigDict(extra="allow")


@dataclass
class FunctionTool:
    """A tool that is registered. tool_schema: None: that of its type hints and docstring."""

    name: str
    fn: Callable[..., Any]
    tool_schema: Any


FUNCTION_TOOLS: dict[str, FunctionTool] = {}


def function_tool(name: Any = None, *, schema: Any = None) -> Any:
    """verl's decorator; it leaves the function as it is.

    Args:
        name: Of the tool, or the function itself.
        schema: Its JSON schema.
    """
    if callable(name):
        return function_tool()(name)

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        made = FunctionTool(name or function.__name__, function, schema)
        known = FUNCTION_TOOLS.setdefault(made.name, made)
        if known.fn is not function:
            raise ValueError(f"function tool {made.name!r} is already registered")
        return function

    return register


_SCHEMAS = "OpenAIFunctionToolSchema OpenAIFunctionSchema OpenAIFunctionParametersSchema OpenAIFunctionPropertySchema"
_MODULES: dict[str, dict[str, Any]] = {
    "openrlhf": {},
    "openrlhf.utils": {},
    "openrlhf.utils.agent": {
        each.__name__: each for each in (AgentExecutorBase, AgentInstanceBase, MultiTurnAgentExecutor)
    },
    "openrlhf.utils.logging_utils": {"init_logger": logging.getLogger},
    "verl": {},
    "verl.tools": {},
    "verl.tools.function_tool": {"FUNCTION_TOOL_REGISTRY": FUNCTION_TOOLS, "function_tool": function_tool},
    "verl.tools.schemas": {"ToolResponse": ToolResponse, **dict.fromkeys(_SCHEMAS.split(), OpenAIFunctionToolSchema)},
}


def install() -> None:
    """Make them importable for the user's files."""
    missing = {
        package
        for package in ("openrlhf", "verl")
        if package not in sys.modules and importlib.util.find_spec(package) is None
    }
    for name, attributes in _MODULES.items():
        if name.partition(".")[0] in missing:
            module = ModuleType(name)
            module.__path__ = []
            module.__dict__.update(attributes)
            sys.modules[name] = module


def of(module: str, attribute: str) -> Any:
    """The object of this name in this module, real or a stand-in; None: no file imported it."""
    return getattr(sys.modules.get(module), attribute, None)
