"""Environments of other projects' contracts, by how `rollout.environment` names them: `kind:name`.

swift_env: ms-swift's `Env`, registered by a plugin in `envs`; without a name, the row's `env_config` has it.
swift_scheduler: ms-swift's `MultiTurnScheduler`, registered in `multi_turns`.
"""

from collections.abc import Callable, Mapping

from rayswift.config.swift import plugin_modules
from rayswift.log import UserError
from rayswift.rollout.adapters.swift_scheduler import MathTips, SchedulerSession
from rayswift.rollout.episodes.contract import ENVIRONMENT, EnvironmentSpec
from rayswift.rollout.episodes.sessions import Runner, Session

Adapter = Callable[[], Session]
"""Makes the other side of an episode."""


def is_adapted(written: str) -> bool:
    """Whether an environment is not of the native contract."""
    return written.partition(":")[0] in _KINDS


def make(spec: EnvironmentSpec, run: Runner) -> Adapter:
    """What makes the episodes of `rollout.environment`; once in a process.

    Raises:
        UserError: it cannot be had.
    """
    assert spec.environment is not None
    kind, _, name = spec.environment.partition(":")
    return _KINDS[kind](name, spec, run)


def check(written: str) -> None:
    """Stop where it cannot be had.

    Raises:
        UserError: why.
    """
    kind, _, name = written.partition(":")
    if kind == "swift_env":
        known = plugin_modules.registry("envs")
        if name and name not in known:
            raise UserError(
                f"{ENVIRONMENT} = {written!r}: no plugin (train.plugins) registers it in `envs`{_of(known)}"
            )
    else:
        _scheduler(name)


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


def _swift_scheduler(name: str, spec: EnvironmentSpec, run: Runner) -> Adapter:
    scheduler = _scheduler(name)(max_turns=spec.max_turns)
    return lambda: SchedulerSession(run, scheduler, spec.max_tool_response_chars)


def _swift_env(name: str, spec: EnvironmentSpec, run: Runner) -> Adapter:
    scheduler = plugin_modules.GYMScheduler(max_turns=spec.max_turns, gym_env=name or None)
    return lambda: SchedulerSession(run, scheduler, spec.max_tool_response_chars)


_KINDS: Mapping[str, Callable[[str, EnvironmentSpec, Runner], Adapter]] = {
    "swift_env": _swift_env,
    "swift_scheduler": _swift_scheduler,
}
