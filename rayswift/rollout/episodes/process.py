"""The processes in which tools and environments run: asynchronous actors, each with many episodes at a time."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from rayswift.config import user_code
from rayswift.data.rows import Message
from rayswift.log import logger, setup_worker
from rayswift.rollout.adapters import named
from rayswift.rollout.episodes.contract import EnvironmentSpec, load_environment, load_tools
from rayswift.rollout.episodes.sessions import Answer, Hangs, Runner, Session, Start, ToolSession, Turn, described


@dataclass(frozen=True)
class Opening:
    """The start of an episode. messages: the conversation to answer, or its raw text, None: the row's; problem: why it
    cannot begin."""

    messages: Sequence[Message] | str | None = None
    problem: str = ""
    hangs: bool = False


@dataclass(frozen=True)
class Closing:
    """The end of an episode. reward: None: no opinion; problem: why the reward is missing."""

    reward: float | None = None
    problem: str = ""
    hangs: bool = False


class EnvironmentProcess:
    """The actor that runs tools and environments."""

    def __init__(self, spec: EnvironmentSpec, work_dir: Path, log_dir: Path, name: str):
        self._spec, self._work_dir, self._log_dir, self._name = spec, work_dir, log_dir, name
        self._sessions: dict[str, Session] = {}

    async def load(self) -> None:
        """Import tools and environment.

        Raises:
            UserError: one of them is missing or cannot be used.
        """
        spec = self._spec
        setup_worker(self._log_dir, self._name)
        if self._work_dir.is_dir():
            os.chdir(self._work_dir)
        for plugin in spec.plugins:
            user_code.load("train.plugins", plugin)
        self._tools = load_tools(spec.tools)
        self._run = Runner(ThreadPoolExecutor(spec.tool_threads, "tools"), spec.tool_timeout_s)
        own = spec.environment
        self._adapter = await named.make(spec, self._run) if own else None
        self._make = load_environment(own) if own and self._adapter is None else None
        # For episodes without an environment: they have no state.
        self._tools_alone = ToolSession(self._run, self._tools, None, spec.max_tool_response_chars)

    async def open(self, key: str, start: Start) -> Opening:
        """Begin an episode."""
        try:
            session = await self._made()
            self._sessions[key] = session
            return Opening(await session.reset(start))
        except Hangs as error:
            return Opening(problem=f"reset: {error}", hangs=error.in_thread)
        except (Exception, SystemExit) as error:
            return Opening(problem=f"reset raised {described(error)}")

    async def beat(self) -> None:
        """Answer, to show that the process is alive."""

    async def _made(self) -> Session:
        if self._adapter is not None:
            return self._adapter()
        assert self._make is not None
        environment = await self._run(self._make)
        return ToolSession(self._run, self._tools, environment, self._spec.max_tool_response_chars)

    async def answer(self, key: str, turn: Turn) -> Answer:
        """Answer a turn; without an environment, `open` is not needed before."""
        try:
            return await self._sessions.get(key, self._tools_alone).answer(turn)
        except Hangs as error:
            return Answer(done=True, problem=str(error), hangs=error.in_thread)
        except (Exception, SystemExit) as error:
            return Answer(done=True, problem=f"it raised {described(error)}")

    async def close(self, key: str) -> Closing:
        """End an episode."""
        session = self._sessions.pop(key, None)
        if session is None:
            return Closing()
        try:
            return Closing(await session.reward())
        except Hangs as error:
            return Closing(problem=f"get_reward: {error}", hangs=error.in_thread)
        except (Exception, SystemExit) as error:
            return Closing(problem=f"get_reward raised {described(error)}")
        finally:
            try:
                await session.close()
            except (Exception, SystemExit) as error:
                logger.warning("an environment could not be closed: %s", described(error))
