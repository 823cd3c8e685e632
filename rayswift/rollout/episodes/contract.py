"""The user's tools and environment by name, and their JSON schemas; the contract is that of TRL's GRPOTrainer.

A tool is a function with type hints and a docstring. An environment is a class; each episode has an instance, made
without arguments. Its `reset(**row)` may return a text, which is appended to the last message of the user. Its public
methods are tools. Its `get_reward()`, if it has one, is a reward. In addition to TRL's contract, an attribute `done`
that is true ends the episode.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rayswift.config import user_code
from rayswift.config.rollout import RolloutConfig
from rayswift.log import UserError, first_line
from rayswift.rollout.adapters import verl_tools
from rayswift.rollout.environments import sandbox

TOOLS, ENVIRONMENT = "rollout.tools", "rollout.environment"
_SHIPPED = "rayswift.rollout.environments"
BUILT_IN_TOOLS: Mapping[str, str] = {
    "calculator": f"{_SHIPPED}.calculator:calculator",
    "python": f"{_SHIPPED}.sandbox:python",
}
BUILT_IN_ENVIRONMENTS: Mapping[str, str] = {"guess_number": f"{_SHIPPED}.guess_number:GuessNumber"}
Tool = Callable[..., Any]


@dataclass(frozen=True)
class EnvironmentSpec:
    """The setup of a process that plays episodes, as plain values; names as in section `rollout`.

    plugins: modules to import first.
    """

    tools: tuple[str, ...]
    environment: str | None
    tool_timeout_s: float
    max_tool_response_chars: int
    tool_threads: int
    max_turns: int | None
    plugins: tuple[str, ...] = ()


def spec_of(rollout: RolloutConfig, plugins: Sequence[str]) -> EnvironmentSpec:
    """Return the spec of a config."""
    return EnvironmentSpec(
        tuple(rollout.tools),
        rollout.environment,
        rollout.tool_timeout_s,
        rollout.max_tool_response_chars,
        rollout.tool_threads,
        rollout.max_turns,
        tuple(plugins),
    )


def environment_name(rollout: RolloutConfig) -> str | None:
    """Return the name of the environment's reward: that of its class, or ms-swift's name."""
    if rollout.environment is None:
        return None
    if rollout.environment.startswith("swift_"):
        return "gym_reward"
    if rollout.environment.startswith("openenv:"):
        return "openenv"
    return BUILT_IN_ENVIRONMENTS.get(rollout.environment, rollout.environment).rpartition(":")[2]


def load_tools(names: Sequence[str]) -> dict[str, Tool]:
    """Load the functions of `rollout.tools`, by the names that the model uses in calls.

    Raises:
        UserError: one is missing or no function, or two have one name.
    """
    found: dict[str, Tool] = {}
    for written in names:
        for name, tool in _tools_of(written).items():
            if name in found:
                raise UserError(f"{TOOLS}: two tools are called {name}; rename one")
            found[name] = tool
    return found


def _tools_of(written: str) -> dict[str, Tool]:
    if written.endswith(".py"):
        return verl_tools.tools_of(TOOLS, written)
    tool = _load(TOOLS, written, BUILT_IN_TOOLS, "tool")
    if not inspect.isroutine(tool):
        raise UserError(f"{TOOLS} = {written!r} is of type {type(tool).__name__}, wanted a function")
    if written == "python" and (missing := sandbox.problem()):
        raise UserError(f"{TOOLS} = {written!r}: {missing}; give a tool of your own")
    return {tool.__name__: tool}


def load_environment(written: str) -> Any:
    """Load the class of `rollout.environment`, or another function that makes instances.

    Raises:
        UserError: it is missing or cannot be used.
    """
    made = _load(ENVIRONMENT, written, BUILT_IN_ENVIRONMENTS, "environment")
    if not callable(made):
        raise UserError(f"{ENVIRONMENT} = {written!r} is of type {type(made).__name__}, wanted a class")
    return made


def _load(field: str, written: str, built_in: Mapping[str, str], kind: str) -> Any:
    if ":" not in written and written not in built_in:
        raise UserError(
            f"{field} = {written!r} is no built-in {kind}; there are {', '.join(built_in)}; name your own as "
            f"file.py:name or module:name"
        )
    return user_code.load(field, built_in.get(written, written))


def methods_of(environment: Any) -> dict[str, Tool]:
    """Return the public methods of an environment, which are tools; taken from its class, to leave out properties."""
    found = inspect.getmembers(type(environment), predicate=inspect.isfunction)
    own = ("reset", "get_reward", "close")
    return {name: getattr(environment, name) for name, _ in found if not name.startswith("_") and name not in own}


def schemas_of(tools: Mapping[str, Tool], where: str) -> list[dict[str, Any]]:
    """Return JSON schemas, made from type hints and docstrings as `transformers` documents it.

    Raises:
        UserError: one of them has no types, or an argument without a description.
    """
    from transformers.utils import get_json_schema

    found = []
    for name, tool in tools.items():
        try:
            _refuse_what_cannot_be_called(tool)
            found.append(getattr(tool, "tool_schema", None) or get_json_schema(tool))
        except Exception as error:  # any error of the user's code and docstrings
            raise UserError(
                f"{where}: {name} cannot be shown to the model: {first_line(error)}. A tool has a type hint for each "
                "argument, and a docstring that says what it does and, under `Args:`, what each argument is"
            ) from error
    return found


def _refuse_what_cannot_be_called(tool: Tool) -> None:
    """Refuse functions that a call cannot use: it gives arguments by name, and takes one answer."""
    if inspect.isgeneratorfunction(tool) or inspect.isasyncgenfunction(tool):
        raise TypeError("it is a generator (it has yield); return the answer")
    for each in inspect.signature(tool).parameters.values():
        if each.kind not in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY):
            raise TypeError(f"its argument {each} cannot be given by a name; name each argument")


def checked(rollout: RolloutConfig) -> list[dict[str, Any]]:
    """Load tools and environment of a config and return the schemas of all tools.

    Raises:
        UserError: tools or environment cannot be used.
    """
    from rayswift.rollout.adapters import named  # which needs this module

    tools = load_tools(rollout.tools)
    found = schemas_of(tools, TOOLS)
    if rollout.environment is None:
        return found
    schemas = named.schemas_of(rollout.environment, bool(tools))
    if schemas is not None:
        return schemas
    made = _made(rollout.environment)
    where = f"{ENVIRONMENT} = {rollout.environment!r}"
    if not callable(getattr(made, "reset", None)):
        raise UserError(f"{where} has no method reset(**row)")
    if not hasattr(made, "get_reward") and not rollout.reward_funcs and not rollout.reward_models:
        raise UserError(f"{where} has no get_reward(), and there is no other reward; set rollout.reward_funcs")
    methods = methods_of(made)
    twice = sorted(set(methods) & set(tools))
    if twice:
        raise UserError(f"{where}: {twice[0]} is in {TOOLS} too; rename one")
    return found + schemas_of(methods, where)


def _made(written: str) -> Any:
    try:
        return load_environment(written)()
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        raise UserError(
            f"{ENVIRONMENT} = {written!r} cannot be made without arguments: {type(error).__name__}: {error}"
        ) from error
