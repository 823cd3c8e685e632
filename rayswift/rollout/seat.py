"""One engine of the pool, from its making to its end: it is started, kept on the current weights, fed, listened to.

Every call to it has a deadline. Its sign of life is `collect`, which answers once a second also when there is
nothing. However it ends, what it was working on goes back to the pool, with the tokens that had arrived.
"""

import asyncio
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from rayswift.log import UserError, logger
from rayswift.rollout.engine import Collected, EngineHandle, EngineLost
from rayswift.rollout.membership import Member
from rayswift.rollout.salvage import num_tokens
from rayswift.rollout.samples import Completion, PolicyVersion, SampleRequest

_T = TypeVar("_T")
_COLLECT_S = 1.0
_RETRY_LOAD_S = 1.0
_LAST_LINES_S = 5.0


@dataclass(frozen=True)
class Limits:
    """Bounds of the pool, in seconds where the name ends in `_s`.

    max_outstanding: requests that an engine holds, those it decodes and a few to follow; start_s: for an engine to
    start once it has its place; load_s: to take over weights; answer_s: for short calls; suspect_s, dead_s: silence
    after which an engine gets no new requests, is given up; stall_s: without a token although it has requests;
    drain_s: for a leaving engine to finish its requests before they move; unserved_s: that requests may wait while no
    engine can take them; max_tries: engines that may be lost under a request before it fails; max_starts: engines in
    a row that may fail to start.
    """

    max_outstanding: int = 320
    start_s: float = 600.0
    load_s: float = 300.0
    answer_s: float = 60.0
    suspect_s: float = 10.0
    dead_s: float = 60.0
    stall_s: float = 600.0
    drain_s: float = 60.0
    unserved_s: float = 900.0
    max_tries: int = 5
    max_starts: int = 5


@dataclass(eq=False)
class Work:
    """A request on its way.

    order: its place among all; future: what the caller waits for; carried: parts of engines that are gone; current:
    what has arrived of its present try; tries: why earlier ones failed; seat, wire_key: where it is, under what key.
    """

    request: SampleRequest
    min_step: int
    order: int
    future: asyncio.Future[Completion]
    carried: list[Completion] = field(default_factory=list)
    current: list[Completion] = field(default_factory=list)
    tries: list[str] = field(default_factory=list)
    seat: "Seat | None" = None
    wire_key: str = ""

    @property
    def room(self) -> int:
        """Tokens that the engine it goes to may still make."""
        return self.request.max_tokens - len(self.request.begun) - num_tokens(self.carried)


class Owner(Protocol):
    """What a seat tells the pool."""

    def changed(self, seat: "Seat") -> None:
        """It may take more requests, or fewer."""

    def finished(self, work: Work, completion: Completion) -> None:
        """A request is done; `completion` is what the last engine made."""

    def refused(self, work: Work, why: str) -> None:
        """The engine will not do this request, nor would another."""

    def returned(self, seat: "Seat", works: Sequence[Work], why: str | None) -> None:
        """Requests that the engine will not finish; why: it is lost, None: it leaves as asked."""

    def gone(self, seat: "Seat") -> None:
        """It has ended; nothing follows."""

    def pace_s(self) -> float:
        """How long to let completions gather between two calls of `collect`."""


class Seat:
    """An engine with what it is working on.

    Args:
        name: Of the engine, in messages.
        handle: The engine; its process may still have to start.
        limits: Deadlines.
        owner: Hears of everything.
    """

    def __init__(self, name: str, handle: EngineHandle, limits: Limits, owner: Owner):
        self.name, self.handle = name, handle
        self.member = Member()
        self.works: dict[str, Work] = {}
        self.num_tokens_ahead = 0
        """Prompt and completion tokens that its requests may still need, at most."""
        self.pauses_s: dict[PolicyVersion, float] = {}
        self._limits, self._owner = limits, owner
        self._weights: Any = None
        self._outbox: list[SampleRequest] = []
        self._unwanted: list[str] = []
        self._to_send, self._to_load, self._to_leave = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._token_at = 0.0
        self._life = asyncio.get_running_loop().create_task(self._live(), name=name)

    @property
    def has_room(self) -> bool:
        """Whether it may hold one more request."""
        return len(self.works) < self._limits.max_outstanding

    def give(self, work: Work, wire_key: str) -> None:
        """Have it do a request, behind what is there of it."""
        parts = [part.token_ids for part in work.carried if len(part.token_ids)]
        request = replace(work.request, key=wire_key)
        if parts:
            request = replace(request, begun=np.concatenate([work.request.begun, *parts]))
        if not self.works:
            self._token_at = asyncio.get_running_loop().time()
        self.works[wire_key] = work
        work.seat, work.wire_key = self, wire_key
        self.num_tokens_ahead += len(request.prompt_ids) + work.room
        self._outbox.append(request)
        self._to_send.set()

    def give_up(self, work: Work) -> None:
        """Have it forget a request."""
        if self._take_out(work.wire_key) is not None:
            kept = [request for request in self._outbox if request.key != work.wire_key]
            if len(kept) == len(self._outbox):
                self._unwanted.append(work.wire_key)
                self._to_send.set()
            self._outbox = kept

    def publish(self, version: PolicyVersion, weights: Any) -> None:
        """Have it take over these weights, unless it holds that version; in place of those asked for before."""
        self._weights = weights
        self.member = replace(self.member, current=version)
        self._to_load.set()

    def drain(self, draining: bool = True) -> None:
        """Let it finish what it has and leave; or stay after all."""
        self.member = replace(self.member, draining=draining)
        if draining:
            self._to_leave.set()
            if not self.member.started:
                self.member = self.member.has_died("left")
                self._life.cancel()
        else:
            self._to_leave.clear()
        self._owner.changed(self)

    async def close(self) -> None:
        """End it, and whatever it is doing."""
        self._life.cancel()
        await asyncio.wait({self._life})

    def __str__(self) -> str:
        return f"{self.name}: {self.member}, {len(self.works)} requests"

    # ---- its life ----

    async def _live(self) -> None:
        why: str | None = None
        read_log = False
        try:
            await self._start()
            async with asyncio.TaskGroup() as group:
                for loop in (self._load, self._send, self._collect, self._leave):
                    group.create_task(loop())
        except asyncio.CancelledError:
            why = None  # closed, or told to leave before it had started
        except Exception as error:  # an engine may fail in any way, the pool must not
            first = _first(error)
            if not isinstance(first, _Left):
                why = str(first) if isinstance(first, EngineLost | UserError) else f"{type(first).__name__}: {first}"
                read_log = isinstance(first, EngineLost)
        self.member = self.member.has_died(why or "left")
        works, self.works = list(self.works.values()), {}
        self._owner.returned(self, works, why)
        try:
            if read_log and (lines := await self._last_lines()):
                why = f"{why}; its last lines:\n{lines}"
                self.member = replace(self.member, died=why)
        finally:
            self.handle.kill()
            if why is not None:
                logger.warning("%s is lost, %d requests move: %s", self.name, len(works), why)
            self._owner.gone(self)

    async def _start(self) -> None:
        # How long a place may take is the pool's to judge: other engines may serve meanwhile.
        await self.handle.placed()
        self.member = replace(self.member, placed=True)
        await self._answer("start", self.handle.start(), self._limits.start_s)
        self.member = replace(self.member, started=True)
        self._owner.changed(self)

    async def _last_lines(self) -> str:
        try:
            async with asyncio.timeout(_LAST_LINES_S):
                return _indented(await self.handle.last_lines())
        except Exception as error:  # an explanation that cannot be had must not hide what it was to explain
            return f"  (not to be had: {type(error).__name__}: {error})"

    async def _answer(self, what: str, call: Awaitable[_T], timeout_s: float) -> _T:
        try:
            async with asyncio.timeout(timeout_s):
                return await call
        except TimeoutError as error:
            raise EngineLost(f"it did not answer `{what}` within {timeout_s:g} s") from error

    async def score(self, token_ids: NDArray[np.int32]) -> NDArray[np.float32]:
        """See `Engine`.

        Raises:
            EngineLost: it died, or did not answer.
        """
        return await self._answer("score", self.handle.score(token_ids), self._limits.answer_s)

    # ---- weights ----

    async def _load(self) -> None:
        clock = asyncio.get_running_loop().time
        while True:
            await self._to_load.wait()
            self._to_load.clear()
            wanted, weights, began = self.member.current, self._weights, clock()
            while wanted is not None and wanted != self.member.version and not self._to_load.is_set():
                try:
                    pause_s = await self._answer("load", self.handle.load(wanted, weights), self._limits.load_s)
                except EngineLost:
                    raise
                except Exception as error:  # perhaps its publisher is dead: wait for the next one's weights
                    if clock() - began > self._limits.load_s:
                        raise EngineLost(f"it could not load version {wanted}: {error}") from error
                    logger.warning("%s could not load version %s, and tries again: %s", self.name, wanted, error)
                    await self._sooner(self._to_load, _RETRY_LOAD_S)
                    continue
                self.member = self.member.has_loaded(wanted)
                self.pauses_s = {wanted: pause_s}
                self._owner.changed(self)

    # ---- requests ----

    async def _send(self) -> None:
        while True:
            await self._to_send.wait()
            self._to_send.clear()
            unwanted, self._unwanted = self._unwanted, []
            batch, self._outbox = self._outbox, []
            if unwanted:
                await self._answer("abort", self.handle.abort(unwanted), self._limits.answer_s)
            if batch:
                await self._submit(batch)

    async def _submit(self, batch: Sequence[SampleRequest]) -> None:
        try:
            await self._answer("submit", self.handle.submit(batch), self._limits.answer_s)
        except (ValueError, UserError) as error:
            if len(batch) > 1:  # one of them is to blame, and the engine has taken none
                await self._submit(batch[: len(batch) // 2])
                await self._submit(batch[len(batch) // 2 :])
            elif (work := self._take_out(batch[0].key)) is not None:
                self._owner.refused(work, str(error))

    async def _collect(self) -> None:
        while True:
            self._take(await self._collected())
            if not self.works:
                self._token_at = asyncio.get_running_loop().time()
            elif asyncio.get_running_loop().time() - self._token_at > self._limits.stall_s:
                raise EngineLost(f"it has made no token of {len(self.works)} requests for {self._limits.stall_s:g} s")
            await asyncio.sleep(self._owner.pace_s())

    async def _collected(self) -> Collected:
        limits = self._limits
        call = asyncio.ensure_future(self.handle.collect(_COLLECT_S))
        try:
            await asyncio.wait({call}, timeout=_COLLECT_S + limits.suspect_s)
            if not call.done():
                self.member = replace(self.member, silent=True)
                logger.warning("%s has not answered for %g s", self.name, limits.suspect_s)
                self._owner.changed(self)
                await asyncio.wait({call}, timeout=limits.dead_s - limits.suspect_s)
            if not call.done():
                raise EngineLost(f"it did not answer for {limits.dead_s:g} s")
        finally:
            if not call.done():
                call.cancel()
        if self.member.silent:
            self.member = replace(self.member, silent=False)
            self._owner.changed(self)
        return call.result()

    def _take(self, collected: Collected) -> None:
        if collected.finished or collected.progress:
            self._token_at = asyncio.get_running_loop().time()
        for part in collected.progress:
            if (work := self.works.get(part.key)) is not None:
                self._check_versions(work, part)
                work.current.append(part)
                self.num_tokens_ahead -= len(part.token_ids)
        for completion in collected.finished:
            if (work := self.works.get(completion.key)) is not None:
                self._check_versions(work, completion)
                self._take_out(completion.key)
                self._owner.finished(work, completion)
        if collected.finished:
            self._owner.changed(self)

    def _take_out(self, wire_key: str) -> Work | None:
        work = self.works.pop(wire_key, None)
        if work is not None:
            self.num_tokens_ahead -= len(work.request.prompt_ids) + work.room - num_tokens(work.current)
            work.seat = None
        return work

    def _check_versions(self, work: Work, part: Completion) -> None:
        current = self.member.current
        for span in part.spans:
            if current is None or span.version.attempt != current.attempt or span.version.step < work.min_step:
                raise EngineLost(f"it sampled with {span.version} where step {work.min_step} or later was asked")

    # ---- leaving ----

    async def _leave(self) -> None:
        clock = asyncio.get_running_loop().time
        while True:
            await self._to_leave.wait()
            deadline = clock() + self._limits.drain_s
            while self.works and self.member.draining and clock() < deadline:
                await asyncio.sleep(0.1)
            if not self.member.draining:
                continue
            if self.works:
                keys = list(self.works)
                for part in await self._answer("abort", self.handle.abort(keys), self._limits.answer_s):
                    self.works[part.key].current.append(part)
            raise _Left

    async def _sooner(self, event: asyncio.Event, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await event.wait()
        except TimeoutError:
            pass


class _Left(Exception):
    """It has drained."""


def _first(error: BaseException) -> BaseException:
    """The first error of a group of tasks; the others were cancelled for it."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _indented(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.splitlines())
