"""The processes for tools and environments, spread over the nodes; a lost process is replaced.

An episode survives the loss of its process once: another process repeats the call of a tool; an environment is made
there and gets the turns of the model again. If it answers as before, the episode continues.
"""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Protocol

from rayswift.data.rows import Message
from rayswift.engines.pool.pool import SampleFailed
from rayswift.log import UserError, logger
from rayswift.rollout.episodes.process import Closing, Opening
from rayswift.rollout.episodes.sessions import Answer, Start, Turn, failed_calls

_GRACE_S = 10.0
"""Time that a process may take for an answer, beyond the limit of the user's code."""
_MOST_STARTS = 3


class EpisodeFailed(SampleFailed):
    """An episode has no reward; the message says why."""

    where = "environment"


class Lost(Exception):
    """A process has died or does not answer."""


class Process(Protocol):
    """The interface of a process, see `rewards.worker.ActorWorker`."""

    async def start(self) -> None:
        """Start it."""

    async def ask(self, method: str, *arguments: Any, timeout_s: float | None) -> Any:
        """Call a method; TimeoutError: no answer in time. timeout_s None: wait as long as the process lives."""

    def kill(self) -> None:
        """End it."""


class Host:
    """A process with its number of episodes. leaving: it gets no new ones."""

    def __init__(self, process: Process, number: int):
        self.process, self.number = process, number
        self.num_episodes, self.leaving = 0, False


class Hosts:
    """The processes of a run.

    Args:
        make: Makes the process of a number.
        number: Number of processes.
        timeout_s: Longest time that a call of a tool or an environment may take.
        has_environment: Whether episodes have a state in their process.
        lost_errors: Errors that a call to a dead process raises.
    """

    def __init__(
        self,
        make: Callable[[int], Process],
        number: int,
        timeout_s: float,
        has_environment: bool,
        lost_errors: tuple[type[BaseException], ...] = (),
    ):
        self._make, self._number, self.has_environment = make, number, has_environment
        self._timeout_s = timeout_s
        self._lost_errors: tuple[type[BaseException], ...] = (TimeoutError, *lost_errors)
        self._hosts: list[Host] = []
        self._changed = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._error: UserError | None = None
        self.num_lost = 0

    async def start(self) -> None:
        """Start all.

        Raises:
            UserError: one cannot load tools or environment.
        """
        await asyncio.gather(*(self._start(number) for number in range(self._number)))

    async def close(self) -> None:
        """End all."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for host in self._hosts:
            host.process.kill()

    async def _start(self, number: int) -> None:
        process = self._make(number)
        try:
            await process.start()
        except BaseException:
            process.kill()
            raise
        self._hosts.append(Host(process, number))
        self._wake()

    def _wake(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def take(self) -> Host:
        """Add an episode to the process with the fewest episodes, and return the process.

        Raises:
            UserError: no process can be started any more.
        """
        while not (free := [host for host in self._hosts if not host.leaving]):
            if self._error is not None:
                raise self._error
            await self._changed.wait()
        host = min(free, key=lambda each: each.num_episodes)
        host.num_episodes += 1
        return host

    def leave(self, host: Host) -> None:
        """Note that an episode of a process is over."""
        host.num_episodes -= 1
        if host.leaving:
            self._wake()

    async def ask(self, host: Host, method: str, num_calls: int, *arguments: Any) -> Any:
        """Call a method of a process; a call that hangs has the process replaced.

        Raises:
            Lost: the process is lost and is being replaced.
        """
        limit_s = self._timeout_s * max(1, num_calls) + _GRACE_S
        asking = asyncio.ensure_future(host.process.ask(method, *arguments, timeout_s=None))
        try:
            # A process that answers `beat` works: calls wait for its threads, and it ends calls that hang.
            while not (await asyncio.wait({asking}, timeout=limit_s))[0]:
                await host.process.ask("beat", timeout_s=_GRACE_S)
            answer = asking.result()
        except self._lost_errors as error:
            gave_up = isinstance(error, TimeoutError)
            why = f"it did not answer within {limit_s:g} s" if gave_up else "its process ended"
            self._replace(host, why, at_once=True)
            raise Lost(why) from error
        except Exception as error:  # its answer cannot be serialized
            raise EpisodeFailed(f"{method} failed: {(str(error).strip().splitlines() or [''])[-1]}") from error
        finally:
            asking.cancel()
        if getattr(answer, "hangs", False):
            self._replace(host, f"a call hangs ({self._timeout_s:g} s, rollout.tool_timeout_s)", at_once=False)
        return answer

    def forget(self, host: Host, key: str) -> None:
        """Have a process close an episode that did not reach its end."""
        self._spawn(self._forget(host, key))

    async def _forget(self, host: Host, key: str) -> None:
        try:
            await self.ask(host, "close", 2, key)
        except (Lost, EpisodeFailed):
            pass  # its state is lost too
        finally:
            self.leave(host)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _replace(self, host: Host, why: str, at_once: bool) -> None:
        """Start another process, and end this one: at once, or when its episodes are over."""
        if host.leaving:
            if at_once:
                host.process.kill()
            return
        host.leaving = True
        self.num_lost += 1
        logger.warning("process %d of tools and environments: %s; another one takes its place", host.number, why)
        if at_once:
            host.process.kill()
        self._spawn(self._end(host))
        self._spawn(self._start_again(host.number))

    async def _end(self, host: Host) -> None:
        while host.num_episodes > 0:
            await self._changed.wait()
        host.process.kill()
        self._hosts.remove(host)

    async def _start_again(self, number: int) -> None:
        for left in reversed(range(_MOST_STARTS)):
            try:
                return await self._start(number)
            except Exception as error:  # also errors of the cluster: episodes wait for this process
                logger.warning("%s", error)
                if not left:
                    self._error = error if isinstance(error, UserError) else UserError(str(error), exit_code=1)
                    self._wake()


class RemoteSession:
    """The tools and the environment of an episode, in any process."""

    def __init__(self, hosts: Hosts, key: str, start: Start):
        self._hosts, self._key, self._start = hosts, key, start
        self._host: Host | None = None
        self._opening: Opening | None = None
        self._history: list[tuple[Turn, Answer]] = []
        self._losses = 0

    async def open(self) -> Sequence[Message] | str | None:
        """Begin the episode, and return the conversation to answer or its raw text; None: the row's.

        Raises:
            EpisodeFailed: it cannot begin.
        """
        if not self._hosts.has_environment:
            return None
        while True:
            try:
                opening = await self._opened()
            except Lost as lost:
                self._lose(lost)
            else:
                return opening.messages

    async def _opened(self) -> Opening:
        """Begin in another process, and repeat the turns of the episode there."""
        self._host = await self._hosts.take()
        opening: Opening = await self._ask("open", 2, self._start)
        if opening.problem:
            raise EpisodeFailed(opening.problem)
        for turn, before in self._history:
            if await self._ask("answer", len(turn.said.calls), turn) != before:
                raise EpisodeFailed("its process was lost, and its answers have changed: it cannot be resumed")
        if self._opening is not None and opening.messages != self._opening.messages:
            raise EpisodeFailed("its process was lost, and its beginning has changed: it cannot be resumed")
        self._opening = opening
        return opening

    async def answer(self, turn: Turn) -> Answer:
        """Return the answer to a turn.

        Raises:
            EpisodeFailed: the episode can have no reward.
        """
        if not self._hosts.has_environment and (turn.last or not turn.said.calls):
            return Answer(done=not turn.said.calls)
        while True:
            try:
                if self._host is None:
                    await self._moved()
                answer: Answer = await self._ask("answer", len(turn.said.calls), turn)
            except Lost as lost:
                if not self._hosts.has_environment and self._losses:
                    self._losses = 0
                    return failed_calls(turn, str(lost))
                self._lose(lost)
                continue
            if answer.problem:
                raise EpisodeFailed(answer.problem)
            if self._hosts.has_environment:
                self._history.append((turn, answer))
            return answer

    async def _moved(self) -> None:
        if self._hosts.has_environment:
            await self._opened()
        else:
            self._host = await self._hosts.take()

    async def reward(self) -> float | None:
        """End the episode and return the environment's reward.

        Raises:
            EpisodeFailed: the episode can have no reward.
        """
        if not self._hosts.has_environment:
            return None
        while True:
            try:
                if self._host is None:
                    await self._opened()
                closing: Closing = await self._ask("close", 2)
            except Lost as lost:
                self._lose(lost)
                continue
            self._leave()
            if closing.problem:
                raise EpisodeFailed(closing.problem)
            return closing.reward

    def _lose(self, lost: Lost) -> None:
        """Continue in another process, once."""
        self._losses += 1
        if self._losses > 1 and self._hosts.has_environment:
            raise EpisodeFailed(f"{lost}, twice")

    async def _ask(self, method: str, num_calls: int, *arguments: Any) -> Any:
        assert self._host is not None
        try:
            return await self._hosts.ask(self._host, method, num_calls, self._key, *arguments)
        except Lost:
            self._leave()
            raise

    def _leave(self) -> None:
        if self._host is not None:
            host, self._host = self._host, None
            self._hosts.leave(host)

    def close(self) -> None:
        """Leave the process, however the episode ended."""
        if self._host is not None and self._hosts.has_environment:
            host, self._host = self._host, None
            self._hosts.forget(host, self._key)
        self._leave()
