"""Environments with contracts of other projects, by their names in `rollout.environment`.

`swift_env:NAME`: ms-swift's `Env`, registered by a plugin in `envs`; without a name, the row's `env_config` has it.
`swift_scheduler:NAME`: ms-swift's `MultiTurnScheduler`, registered in `multi_turns`.
`openenv:URL`: a server of OpenEnv.
`file.py:Class`, where the class is an agent of OpenRLHF's.
"""

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from rayswift.config.swift import plugin_modules
from rayswift.log import UserError
from rayswift.rollout.adapters import openenv
from rayswift.rollout.adapters.openrlhf_agent import AgentSession, instance_class
from rayswift.rollout.adapters.swift_scheduler import MathTips, SchedulerSession
from rayswift.rollout.episodes.contract import ENVIRONMENT, TOOLS, EnvironmentSpec, load_environment
from rayswift.rollout.episodes.sessions import Runner, Session, ToolSession

Adapter = Callable[[], Session]
"""Makes the session of an episode."""


def is_in_no_file(written: str) -> bool:
    """Whether an environment is named by its kind, and not by its file or module."""
    return written.partition(":")[0] in _KINDS


async def make(spec: EnvironmentSpec, run: Runner) -> Adapter | None:
    """Return a function that makes the sessions of `rollout.environment`, once in a process; None: the native contract.

    Raises:
        UserError: it is missing or cannot be used.
    """
    assert spec.environment is not None
    if is_in_no_file(spec.environment):
        kind, _, name = spec.environment.partition(":")
        return await _KINDS[kind](name, spec, run)
    agent = instance_class(spec.environment, load_environment(spec.environment))
    return None if agent is None else lambda: AgentSession(run, agent, spec.max_tool_response_chars)


def schemas_of(written: str, has_tools: bool) -> list[dict[str, Any]] | None:
    """Return the JSON schemas of an environment's tools; None: it has the native contract.

    Raises:
        UserError: it is missing, cannot be used, or does not go together with `rollout.tools`.
    """
    if not is_in_no_file(written) and instance_class(written, load_environment(written)) is None:
        return None
    if has_tools:
        raise UserError(f"{TOOLS} and {ENVIRONMENT} = {written!r}: this kind answers all turns itself; leave one out")
    kind, _, name = written.partition(":")
    if kind == "openenv":
        return asyncio.run(openenv.actions_of(name.rstrip("/")))[0]
    if kind == "swift_env":
        known = plugin_modules.registry("envs")
        if name and name not in known:
            raise UserError(
                f"{ENVIRONMENT} = {written!r}: no plugin (train.plugins) registers it in `envs`{_of(known)}"
            )
    elif kind == "swift_scheduler":
        _scheduler(name)
    return []


def _of(known: Mapping[str, object]) -> str:
    return f"; there are {', '.join(known)}" if known else ""


def _scheduler(name: str) -> type:
    known = {"math_tip_trick": MathTips, **plugin_modules.registry("multi_turns")}
    if name not in known:
        raise UserError(
            f"{ENVIRONMENT} = 'swift_scheduler:{name}': no plugin (train.plugins) registers it in "
            f"`multi_turns`{_of(known)}"
        )
    found: type = known[name]
    if any("run" in vars(each) for each in found.__mro__[:-1] if each.__module__.partition(".")[0] != "swift"):
        raise UserError(
            f"{ENVIRONMENT} = 'swift_scheduler:{name}' has a method run of its own, which would sample by itself; give "
            "it step, on_turn_end and check_finished instead"
        )
    return found


async def _swift_scheduler(name: str, spec: EnvironmentSpec, run: Runner) -> Adapter:
    scheduler = _scheduler(name)(max_turns=spec.max_turns)
    return lambda: SchedulerSession(run, scheduler, spec.max_tool_response_chars)


async def _swift_env(name: str, spec: EnvironmentSpec, run: Runner) -> Adapter:
    scheduler = plugin_modules.GYMScheduler(max_turns=spec.max_turns, gym_env=name or None)
    return lambda: SchedulerSession(run, scheduler, spec.max_tool_response_chars)


async def _openenv(name: str, spec: EnvironmentSpec, run: Runner) -> Adapter:
    url = name.rstrip("/")
    schemas, is_typed = await openenv.actions_of(url)
    actions = [schema["function"]["name"] for schema in schemas]

    def made() -> Session:
        environment = openenv.Environment(url, actions, is_typed, run.timeout_s / 2)
        return ToolSession(run, {}, environment, spec.max_tool_response_chars, environment.tools)

    return made


_KINDS: Mapping[str, Callable[[str, EnvironmentSpec, Runner], Coroutine[Any, Any, Adapter]]] = {
    "openenv": _openenv,
    "swift_env": _swift_env,
    "swift_scheduler": _swift_scheduler,
}
