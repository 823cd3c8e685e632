"""The tools and the environment of one episode, in the process that runs the user's code; without Ray.

Functions and methods may be coroutine functions; others run in threads. An exception is their answer, as in TRL.
"""

import asyncio
import inspect
import math
import traceback
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from rayswift.data.rows import Message
from rayswift.engines.samples import Finish
from rayswift.rollout.episodes.calls import Call, Said
from rayswift.rollout.episodes.contract import Tool, methods_of

_MOST_PROBLEM_CHARS = 500


@dataclass(frozen=True)
class Start:
    """The start of an episode: the prompt's messages, the row's columns, the seed of the prompt's group; text: the
    prompt as the chat template renders it."""

    messages: Sequence[Message]
    columns: Mapping[str, Any]
    seed: int
    text: str = ""


@dataclass(frozen=True)
class Turn:
    """A turn of the model.

    number: from 0; text: all of it, without the end token; said: content and calls; finish: see `Completion`;
    last: no turn follows; end: the end token's text, if it has one.
    """

    number: int
    text: str
    said: Said
    token_ids: Sequence[int]
    finish: Finish
    last: bool
    end: str = ""


@dataclass(frozen=True)
class Answer:
    """The answer to a turn.

    messages: follow the turn; raw: a raw text that the model continues instead: it follows the first `kept` characters
    of the turn, None: all of the turn with its end token; done: the episode is over; calls, failed_calls: of tools;
    problem: why the episode can have no reward; hangs: a thread still hangs; infos: for reward functions.
    """

    messages: tuple[Message, ...] = ()
    raw: str | None = None
    kept: int | None = 0
    done: bool = False
    calls: int = 0
    failed_calls: int = 0
    problem: str = ""
    hangs: bool = False
    infos: Mapping[str, Any] = field(default_factory=dict)


class Session(Protocol):
    """The side of an episode that answers the model."""

    async def reset(self, start: Start) -> Sequence[Message] | str | None:
        """Begin, and return the conversation to answer, or its raw text; None: that of the row."""

    async def answer(self, turn: Turn) -> Answer:
        """Answer a turn."""

    async def reward(self) -> float | None:
        """Return the reward of the episode; None: no opinion."""

    async def close(self) -> None:
        """End the session, however the episode ended."""


class Runner:
    """Runs the user's functions, within a time limit.

    Args:
        threads: For functions that are not coroutine functions.
        timeout_s: Longest time of a call, from when it has a thread; and that a call waits for one while no other ends.
    """

    def __init__(self, threads: Executor, timeout_s: float):
        self._threads, self.timeout_s = threads, timeout_s
        self._num_ended = 0

    async def __call__(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Return the result of a function.

        Raises:
            Hangs: it does not return in time.
            Exception: the function raises it.
        """
        is_async = inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)
        if is_async:
            return await self._within(function(*args, **kwargs), False)
        found = await self._in_thread(partial(function, *args, **kwargs))
        return await self._within(found, False) if inspect.isawaitable(found) else found

    async def _in_thread(self, function: Callable[[], Any]) -> Any:
        loop, has_begun = asyncio.get_running_loop(), asyncio.Event()

        def called() -> Any:
            loop.call_soon_threadsafe(has_begun.set)
            return function()

        work = loop.run_in_executor(self._threads, called)
        waits = asyncio.ensure_future(has_begun.wait())
        try:
            num_ended = -1
            while not waits.done() and num_ended != self._num_ended:
                num_ended = self._num_ended
                await asyncio.wait({waits}, timeout=self.timeout_s)
        finally:
            waits.cancel()
        try:
            return await self._within(work, True)
        finally:
            self._num_ended += work.done() and not work.cancelled()

    async def _within(self, work: Awaitable[Any], in_thread: bool) -> Any:
        task = asyncio.ensure_future(work)
        done, _ = await asyncio.wait({task}, timeout=self.timeout_s)
        if not done:
            task.cancel()
            raise Hangs(f"no answer within {self.timeout_s:g} s (rollout.tool_timeout_s)", in_thread)
        return task.result()


class Hangs(Exception):
    """A call has no answer. in_thread: it does not return, and only the end of its process ends it."""

    def __init__(self, message: str, in_thread: bool):
        super().__init__(message)
        self.in_thread = in_thread


def described(error: BaseException) -> str:
    """Describe an exception, with its place in the user's code."""
    where = traceback.extract_tb(error.__traceback__)
    at = f" ({Path(where[-1].filename).name}:{where[-1].lineno})" if where else ""
    return f"{type(error).__name__}: {cut(str(error), _MOST_PROBLEM_CHARS)}{at}"


def cut(text: str, most: int) -> str:
    """Make a text safe to tokenise: remove halves of surrogate pairs, and the middle if it is too long."""
    if len(text) > most:
        half = most // 2
        text = f"{text[:half]} [{len(text) - 2 * half} characters left out] {text[len(text) - half :]}"
    return text.encode("utf-8", "replace").decode("utf-8")


class ToolSession:
    """Tools and a TRL environment; see `contract`.

    Args:
        run: Runs their functions.
        tools: By name.
        environment: An instance of its own; None: tools alone.
        max_chars: Longest answer.
        own: The callable methods of the environment; None: its public methods.
    """

    def __init__(
        self,
        run: Runner,
        tools: Mapping[str, Tool],
        environment: Any,
        max_chars: int,
        own: Mapping[str, Tool] | None = None,
    ):
        self._run, self._environment, self._max_chars = run, environment, max_chars
        if own is None:
            own = methods_of(environment) if environment is not None else {}
        self._tools: Mapping[str, Tool] = {**tools, **own}
        self._own = frozenset(own)

    async def reset(self, start: Start) -> Sequence[Message] | None:
        """See Session; a text that `reset` returns is appended to the last message of the user."""
        if self._environment is None:
            return None
        row = {**start.columns, "prompt": list(start.messages), "seed": start.columns.get("seed", start.seed)}
        observation = await self._run(self._environment.reset, **_taken(self._environment.reset, row))
        if observation is None:
            return None
        if not isinstance(observation, str):
            raise TypeError(f"reset returned {type(observation).__name__}, wanted a text or None")
        return with_observation(start.messages, cut(observation, self._max_chars))

    async def answer(self, turn: Turn) -> Answer:
        """See Session. Calls run one after the other, because they may depend on each other; after a call that ends
        the episode, none is made."""
        calls = () if turn.finish == "length" else turn.said.calls
        # Answers of tools to the last turn are not used, but a call may still change an environment.
        if turn.last and not any(call.name in self._own for call in calls):
            calls = ()
        messages, num_failed, problem, hangs = [], 0, "", False
        for call in calls:
            try:
                content = await self._called(call)
            except Hangs as error:
                hangs |= error.in_thread
                if call.name in self._own:
                    problem = f"{call.name}: {error}"
                content, num_failed = _failed(str(error)), num_failed + 1
            except (Exception, SystemExit) as error:
                reason = cut(str(error) or type(error).__name__, self._max_chars)
                content, num_failed = _failed(reason), num_failed + 1
            messages.append({"role": "tool", "name": call.name or "unknown", "content": cut(content, self._max_chars)})
            if problem or self._is_done():
                break
        done = not turn.said.calls or self._is_done()
        return Answer(tuple(messages), None, 0, done, len(messages), num_failed, problem, hangs)

    def _is_done(self) -> bool:
        done = getattr(self._environment, "done", False)
        return not callable(done) and bool(done)

    async def _called(self, call: Call) -> str:
        """Return a tool's result as its answer: a text unchanged, other values as Python prints them, as in TRL."""
        if call.arguments is None:
            raise ValueError(call.problem)
        if call.name not in self._tools:
            raise ValueError(f"there is no tool {call.name}; there are {', '.join(self._tools)}")
        value = await self._run(self._tools[call.name], **call.arguments)
        return value if isinstance(value, str) else str(await self._run(str, value))

    async def reward(self) -> float | None:
        function = getattr(self._environment, "get_reward", None)
        return None if function is None else as_reward(await self._run(function))

    async def close(self) -> None:
        function = getattr(self._environment, "close", None)
        if callable(function):
            await self._run(function)


def _failed(reason: str) -> str:
    return str({"error": reason})


def as_reward(value: Any) -> float | None:
    """Check a reward of an environment and return it.

    Raises:
        TypeError: it is no finite number.
    """
    if value is None:
        return None
    number = math.nan if isinstance(value, str | bytes) else float(value)
    if not math.isfinite(number):
        raise TypeError(f"the reward is {str(value)[:80]!r}, wanted a number")
    return number


def with_observation(messages: Sequence[Message], observation: str) -> list[Message]:
    """Append a text to the last message of the user, or add a message if there is none."""
    places = [place for place, message in enumerate(messages) if message["role"] == "user"]
    if not places:
        return [*messages, {"role": "user", "content": observation}]
    last = messages[places[-1]]
    changed = last | {"content": f"{last['content']}{observation}"}
    return [*messages[: places[-1]], changed, *messages[places[-1] + 1 :]]


def _taken(function: Callable[..., Any], values: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the arguments that a function accepts."""
    parameters = inspect.signature(function).parameters.values()
    if any(each.kind is each.VAR_KEYWORD for each in parameters):
        return values
    return {name: value for name, value in values.items() if name in {each.name for each in parameters}}


def failed_calls(turn: Turn, reason: str) -> Answer:
    """Return the answer to calls whose process is lost."""
    messages = tuple(
        {"role": "tool", "name": call.name or "unknown", "content": _failed(reason)} for call in turn.said.calls
    )
    return Answer(messages, calls=len(messages), failed_calls=len(messages))
