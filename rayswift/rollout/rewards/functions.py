"""Loads reward functions by name, calls them as TRL does, and checks the results.

`worker.py` runs this in a process of its own, where a function that hangs or dies harms nothing else.
"""

import asyncio
import difflib
import functools
import inspect
import math
import traceback
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from rayswift.config import user_code
from rayswift.config.rollout import RolloutConfig
from rayswift.config.swift import plugin_modules
from rayswift.data.rows import Message
from rayswift.log import UserError
from rayswift.rollout.episodes.contract import environment_name
from rayswift.rollout.rewards.builtin import BUILT_IN

FIELD = "rollout.reward_funcs"
_OURS = ("prompts", "completions", "completion_ids")
_OF_TRL = {
    "environments": "give the environment a get_reward()",
    **dict.fromkeys(("trainer_state", "log_extra", "log_metric"), "give it a default"),
}
"""Arguments that only TRL's trainer passes, because its rewards run beside it, and what to do instead."""
RewardFunction = Callable[..., Any]

Value = float | None | str
"""The result for one completion: its reward, None for no opinion, or a text that says why there is none."""


class Item(NamedTuple):
    """The input of a reward for a completion: the prompt's messages, the row's columns, its text and its tokens.

    turns: its messages if it has several.
    """

    messages: Sequence[Message]
    columns: Mapping[str, Any]
    text: str
    ids: list[int]
    turns: Sequence[Message] = ()

    @property
    def answer(self) -> Sequence[Message]:
        """Return the completion as messages."""
        return self.turns or ({"role": "assistant", "content": self.text},)


@dataclass(frozen=True)
class RewardSpec:
    """A reward as the config names it. name: unique among a run's rewards, for metrics; written: see the field."""

    name: str
    written: str
    kwargs: Mapping[str, Any] = field(default_factory=dict)


def names_of(rollout: RolloutConfig) -> list[str]:
    """Return the name of each reward, functions first: a function's name, a model's folder, the environment's class; a
    number makes equal names unique."""
    short = [written.rpartition(":")[2] for written in rollout.reward_funcs]
    short += [Path(path).name or path for path in rollout.reward_models]
    own = environment_name(rollout)
    short += [] if own is None else [own]
    return [name if name not in short[:i] else f"{name}_{short[:i].count(name) + 1}" for i, name in enumerate(short)]


def specs_of(rollout: RolloutConfig) -> list[RewardSpec]:
    """Return the reward functions of a config; limits of length default to those of the run."""
    lengths = {"cosine": {"max_len": rollout.max_completion_length}}
    lengths["soft_overlong"] = {"max_length": rollout.max_completion_length}
    found = []
    for written, name in zip(rollout.reward_funcs, names_of(rollout), strict=False):
        given = rollout.reward_kwargs.get(written, rollout.reward_kwargs.get(name, {}))
        found.append(RewardSpec(name, written, {**lengths.get(written, {}), **given}))
    return found


def problems(rollout: RolloutConfig) -> list[str]:
    """Return a line for each problem that shows without an import of the user's code."""
    found = []
    known = {*names_of(rollout)[: len(rollout.reward_funcs)], *rollout.reward_funcs}
    for name in rollout.reward_kwargs:
        if name not in known:
            found.append(f"rollout.reward_kwargs.{name} is of no function in {FIELD} = {rollout.reward_funcs}")
    for spec in specs_of(rollout):
        if ":" not in spec.written:
            try:
                load(spec)
            except UserError as error:
                found.append(str(error))
    return found


def load(spec: RewardSpec) -> RewardFunction:
    """Load the function of a name, with its `rollout.reward_kwargs`; of a class, make an instance with them.

    Raises:
        UserError: no such name, its import fails, or it does not take these arguments.
    """
    if ":" not in spec.written and spec.written not in BUILT_IN:
        close = difflib.get_close_matches(spec.written, BUILT_IN, 1)
        hint = f"did you mean {close[0]}? " if close else ""
        raise UserError(
            f"{FIELD} = {spec.written!r} is no built-in reward; {hint}there are {', '.join(BUILT_IN)}; name your own "
            "as module:function or file.py:function"
        )
    value = BUILT_IN[spec.written] if ":" not in spec.written else user_code.load(FIELD, spec.written)
    if not callable(value):
        raise UserError(f"{FIELD} = {spec.written!r} is of type {type(value).__name__}, wanted a function")
    try:
        made = value(**spec.kwargs) if inspect.isclass(value) else functools.partial(value, **spec.kwargs)
        _check_arguments(value, spec)
    except Exception as error:
        raise UserError(f"{FIELD} = {spec.written!r} with {dict(spec.kwargs)}: {error}") from error
    if not callable(made):
        raise UserError(f"{FIELD} = {spec.written!r} makes a {type(made).__name__} that cannot be called")
    for name in set(_needed(made)) & set(_OF_TRL):
        raise UserError(f"{FIELD} = {spec.written!r} needs `{name}`, which is not passed here; {_OF_TRL[name]}")
    return made


def _check_arguments(value: Any, spec: RewardSpec) -> None:
    """Refuse arguments that a function does not take, and missing arguments of a built-in."""
    if inspect.isclass(value):
        return
    signature = inspect.signature(value)
    signature.bind_partial(**spec.kwargs)
    needed = [p.name for p in signature.parameters.values() if p.kind is p.KEYWORD_ONLY and p.default is p.empty]
    missing = [name for name in needed if name not in spec.kwargs] if spec.written in BUILT_IN else []
    if missing:
        raise UserError(f"it needs {', '.join(missing)}; set rollout.reward_kwargs.{spec.name}.{missing[0]}")


def call(
    spec: RewardSpec,
    function: RewardFunction,
    items: Sequence[Item],
    conversational: bool,
    loop: asyncio.AbstractEventLoop,
) -> list[Value] | str:
    """Score completions: return a value for each, or why the whole call failed.

    Args:
        spec: The reward.
        function: From `load`; may be a coroutine function.
        items: The completions.
        conversational: Pass prompts and completions as lists of messages, not as texts.
        loop: One loop of this process, so that clients that a function keeps stay usable.
    """
    who = f"reward {spec.name}"
    if plugin_modules.is_reward(function):
        conversational = False
        items = [each._replace(columns={**each.columns, "messages": [*each.messages, *each.answer]}) for each in items]
    lacks = _lacks(function, items)
    try:
        returned = function(**_arguments(spec, function, items, conversational))
        if inspect.isawaitable(returned):
            returned = loop.run_until_complete(_finished(returned))
    except (Exception, SystemExit) as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        why = "; ".join(dict.fromkeys([f"{type(error).__name__}: {error}", *filter(None, lacks)]))
        return f"{who} raised {why} ({Path(where.filename).name}:{where.lineno})"
    try:
        values = list(returned)
    except TypeError:
        return f"{who} returned garbage: {type(returned).__name__}, wanted a list of numbers"
    if len(values) != len(items):
        return f"{who} returned garbage: {len(values)} values for {len(items)} completions"
    checked = [_checked(who, value) for value in values]
    # Where a row lacks what the function needs, the function may have no opinion; a number means nothing.
    return [
        f"{who} gave a number: {lacking}" if lacking and isinstance(value, float) else value
        for value, lacking in zip(checked, lacks, strict=True)
    ]


async def _finished(awaitable: Any) -> Any:
    return await awaitable


def _checked(who: str, value: Any) -> Value:
    if value is None:
        return None
    try:
        number = math.nan if isinstance(value, str | bytes) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    return number if math.isfinite(number) else f"{who} returned garbage: {str(value)[:80]!r} for a number"


def _parameters(function: RewardFunction) -> Sequence[inspect.Parameter] | None:
    """Return the parameters of a function; None: it is a builtin that does not tell."""
    try:
        return list(inspect.signature(function).parameters.values())
    except ValueError:
        return None


def _needed(function: RewardFunction) -> list[str]:
    """Return the columns that a function needs: its arguments without a default."""
    return [
        p.name
        for p in _parameters(function) or ()
        if p.default is p.empty and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and p.name not in _OURS
    ]


def _lacks(function: RewardFunction, items: Sequence[Item]) -> list[str]:
    """Say for each item which column that the function needs its row lacks; "": none."""
    needed, found = _needed(function), []
    for item in items:
        missing = next((name for name in needed if name not in item.columns), None)
        there = ", ".join(sorted(item.columns)) or "none"
        what = f"no column `{missing}` in the row, there are: {there}; map yours with data.columns, or return None"
        found.append("" if missing is None else what)
    return found


def _arguments(
    spec: RewardSpec, function: RewardFunction, items: Sequence[Item], conversational: bool
) -> dict[str, Any]:
    """Return TRL's arguments that the function takes: prompts, completions, completion_ids and each column, as lists,
    with None where a row lacks the column."""
    columns = {name for item in items for name in item.columns} - {*_OURS, *spec.kwargs}
    names, parameters = {*_OURS, *columns, *_needed(function)}, _parameters(function)
    if parameters is not None and not any(p.kind is p.VAR_KEYWORD for p in parameters):
        names &= {p.name for p in parameters}
    # Completions of a prompt share its row: a function that changes a value must not change that of the next one.
    values: dict[str, Any] = {name: [deepcopy(item.columns.get(name)) for item in items] for name in names - {*_OURS}}
    if "prompts" in names:
        values["prompts"] = [_prompt(item, conversational) for item in items]
    if "completions" in names:
        values["completions"] = [_completion(item, conversational) for item in items]
    if "completion_ids" in names:
        values["completion_ids"] = [item.ids for item in items]
    return values


def _prompt(item: Item, conversational: bool) -> Any:
    return deepcopy(list(item.messages)) if conversational else "".join(message["content"] for message in item.messages)


def _completion(item: Item, conversational: bool) -> Any:
    return list(item.answer) if conversational else item.text
