"""One engine of the pool, from its start to its end: gives it weights and requests, and collects completions.

Every call to it has a deadline. `collect` shows that it is alive: it answers every few seconds even without
completions, except during a load. However the engine ends, its requests go back to the pool, with the tokens that had
arrived.
"""

import asyncio
from collections.abc import Awaitable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from rayswift.engines.engine import Collected, EngineHandle, EngineLost, LoadFailed, NoWeights, RequestRefused
from rayswift.engines.pool.assigned import Assigned
from rayswift.engines.pool.membership import Left, ReplicaStatus, name_of, why_lost
from rayswift.engines.pool.merge_parts import alone, num_tokens
from rayswift.engines.pool.patience import Limits, Patience
from rayswift.engines.pool.work import Owner, Work
from rayswift.engines.samples import Completion, PolicyVersion, SampleRequest
from rayswift.log import logger

_T = TypeVar("_T")
_COLLECT_S = 1.0, 5.0
"""An answer is there at the latest after the first; where there are many engines, later, up to the second."""
_RETRY_LOAD_S = 1.0
_LAST_LINES_S = 5.0
_SCORE_GRACE_S = 5.0


class Replica:
    """An engine and its requests.

    Args:
        handle: The engine; its process may still have to start.
        owner: Gets all events.
        generation: See `membership.Joins`.
    """

    def __init__(self, name: str, handle: EngineHandle, limits: Limits, owner: Owner, generation: int):
        self.name, self.handle, self.generation = name, handle, generation
        self.status = ReplicaStatus()
        self._clock = asyncio.get_running_loop().time
        self._since = self._clock()
        self._patience = Patience(self._clock)
        self._assigned = Assigned()
        self.num_unfinished = 0
        """Tokens of its unfinished requests, by its last report."""
        self._num_made = 0
        self.pauses_s: dict[PolicyVersion, float] = {}
        self._limits, self._owner = limits, owner
        self._weights: Any = None
        self._to_load, self._to_leave = asyncio.Event(), asyncio.Event()
        self._token_at = 0.0
        self._life = asyncio.get_running_loop().create_task(self._live(), name=name)

    @property
    def works(self) -> Mapping[str, Work]:
        """Return its requests."""
        return self._assigned.works

    @property
    def num_tokens_ahead(self) -> int:
        """Prompt and completion tokens that its requests may still need, at most."""
        return max(0, self._assigned.num_tokens - self.num_unfinished)

    @property
    def has_room(self) -> bool:
        """Whether it has room for one more request."""
        return len(self._assigned.works) < self._limits.max_outstanding

    def give(self, work: Work, try_key: str) -> None:
        """Give it a request; it continues after the tokens that exist."""
        if not self.works:
            self._token_at = self._patience.now()
        work.replica = self
        self._assigned.add(work, try_key)

    def give_up(self, work: Work) -> None:
        """Have it abort a request."""
        self._assigned.give_up(work)

    def publish(self, version: PolicyVersion, weights: Any) -> None:
        """Have it load these weights, unless it holds that version; they replace those asked for before."""
        self._weights = weights
        self._become(current=version)
        self._to_load.set()

    def drain(self, draining: bool = True) -> None:
        """Let it finish its requests and leave, or stay after all."""
        self._become(draining=draining)
        if draining:
            self._to_leave.set()
            if not self.status.started:
                self.status = self.status.has_died("left")
                self._life.cancel()
        else:
            self._to_leave.clear()
        self._owner.changed(self)

    async def close(self) -> None:
        """End it and all of its work."""
        self._life.cancel()
        await asyncio.wait({self._life})

    def __str__(self) -> str:
        return f"{self.name}: {self.status} for {self._clock() - self._since:.0f} s, {len(self.works)} requests"

    def _become(self, **changes: Any) -> None:
        before, self.status = self.status.state, replace(self.status, **changes)
        if self.status.state is not before:
            self._since = self._clock()

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
            why = None  # closed, or asked to leave before it had started
        except Exception as error:  # an engine may fail in any way; the pool must continue
            why, read_log = why_lost(error)
        self.status = self.status.has_died(why or "left")
        works = self._assigned.take_all()
        self._owner.returned(self, works, self.num_unfinished, why)
        try:
            if read_log and (lines := await self._last_lines()):
                why = f"{why}; its last lines:\n{lines}"
                self.status = replace(self.status, died=why)
        finally:
            self.handle.kill()
            if why is not None:
                logger.warning("%s is lost, %d requests move: %s", self.name, len(works), why)
            self._owner.gone(self)

    async def _start(self) -> None:
        # The pool decides how long a place may take: other engines may serve meanwhile.
        await self.handle.placed()
        self._since = self._clock()
        self._become(placed=True)
        limit = "rollout.engine_start_timeout_s"
        await self._patience.answer("start", self.handle.start(), self._limits.start_s, limit)
        self._become(started=True)
        self._owner.changed(self)

    async def _last_lines(self) -> str:
        try:
            async with asyncio.timeout(_LAST_LINES_S):
                lines = await self.handle.last_lines()
            return "\n".join(f"  {line}" for line in lines.splitlines())
        except Exception as error:  # a failure here must not hide the error that it should explain
            return f"  (cannot be read: {type(error).__name__}: {error})"

    async def _answer(self, what: str, call: Awaitable[_T]) -> _T:
        what, timeout_s = f"answer `{what}`", self._limits.answer_s
        return await self._patience.answer(what, call, timeout_s, "rollout.engine_silence_timeout_s")

    async def score(self, token_ids: NDArray[np.int32]) -> NDArray[np.float32]:
        """See `Engine`.

        Raises:
            EngineLost: it died.
            TimeoutError: it did not answer in time, and has aborted the work.
            NoWeights: it has lost its weights.
        """
        limit_s = self._limits.answer_s
        asked = asyncio.ensure_future(self.handle.score(token_ids, limit_s))
        try:
            if not await self._patience.wait(asked, self._patience.now() + limit_s + _SCORE_GRACE_S):
                raise TimeoutError(f"a text was not scored within {limit_s:g} s")
            return await asked
        finally:
            asked.cancel()

    # ---- weights ----

    async def _load(self) -> None:
        while True:
            await self._to_load.wait()
            self._to_load.clear()
            if self.status.current is not None:
                await self._take_over(self.status.current, self._weights)

    async def _take_over(self, wanted: PolicyVersion, weights: Any) -> None:
        """Have it load a version, and try again after a failure, until there is a newer version."""
        began, num_failed = self._clock(), 0
        while wanted != self.status.version and not self._to_load.is_set():
            try:
                pause_s = await self._loaded(wanted, weights)
            except EngineLost:
                raise
            except LoadFailed as error:
                num_failed += 1
                self._hand_back(error.parts)
                failure: Exception = error
                if num_failed >= self._limits.max_loads:
                    why = f"it could not load {name_of(wanted)} in {num_failed} tries: {error}"
                    raise EngineLost(why) from error
            except Exception as error:  # its publisher may be dead: wait for newer weights
                failure = error
                if self._clock() - began > self._limits.load_s:
                    raise EngineLost(f"it could not load {name_of(wanted)}: {error}") from error
            else:
                self.status = self.status.has_loaded(wanted)
                self.pauses_s = {wanted: pause_s}
                self._owner.joined(self)
                self._owner.changed(self)
                return
            logger.warning("%s could not load %s, and tries again: %s", self.name, name_of(wanted), failure)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._to_load.wait(), _RETRY_LOAD_S)

    async def _loaded(self, version: PolicyVersion, weights: Any) -> float:
        call = asyncio.ensure_future(self.handle.load(version, weights))
        self._become(loading=version)
        try:
            with self._patience.loading():
                await asyncio.wait({call}, timeout=self._limits.load_s)
        finally:
            self._become(loading=None)
            if not call.done():
                call.cancel()
        if call.cancelled() or not call.done():
            limit = f"{self._limits.load_s:g} s (rollout.load_timeout_s)"
            raise EngineLost(f"it did not load {name_of(version)} within {limit}")
        return call.result()

    def _hand_back(self, parts: Sequence[Completion]) -> None:
        """Return its requests, sent and unsent, to the pool with their `parts`, because it has lost its weights."""
        self._become(version=None)
        self._return([*self._assigned.take_unsent(), *self._taken_back(parts)])

    def _return(self, works: Sequence[Work]) -> None:
        """Return requests to the pool, with all of their tokens."""
        self.num_unfinished = 0
        self._owner.returned(self, works, sum(num_tokens(work.current) for work in works), None)

    def _taken_back(self, parts: Sequence[Completion]) -> list[Work]:
        """Return the requests that it has aborted, with all of their tokens; finished ones are reported as done."""
        works = []
        for part in parts:
            if (work := self._assigned.take(part.key)) is None:
                continue  # given up meanwhile
            self._check_versions(work, part)
            if part.finish is not None:
                self._owner.finished(work, part)
            else:
                work.current = [part]
                works.append(work)
        return works

    # ---- requests ----

    async def _send(self) -> None:
        while True:
            unwanted, batch = await self._assigned.news()
            if unwanted:
                await self._answer("abort", self.handle.abort(unwanted))
            if batch:
                await self._submit(batch)

    async def _submit(self, batch: Sequence[SampleRequest]) -> None:
        try:
            await self._answer("submit", self.handle.submit(batch))
        except NoWeights:  # a load has failed; the requests are valid
            self._return([work for request in batch if (work := self._assigned.take(request.key)) is not None])
        except RequestRefused as error:
            if len(batch) > 1:  # one of them is invalid, and the engine has taken none
                await self._submit(batch[: len(batch) // 2])
                await self._submit(batch[len(batch) // 2 :])
            elif (work := self._assigned.take(batch[0].key)) is not None:
                self._owner.refused(work, str(error))

    async def _collect(self) -> None:
        while True:
            self._take(await self._collected())
            now, limit_s = self._patience.now(), self._limits.stall_s
            if not self.works:
                self._token_at = now
            elif now - self._token_at > limit_s:
                limit = f"{limit_s:g} s (rollout.engine_stall_timeout_s)"
                raise EngineLost(f"it has made no token of {len(self.works)} requests for {limit}")
            await asyncio.sleep(self._owner.pace_s())

    async def _collected(self) -> Collected:
        limits, asked_at = self._limits, self._patience.now()
        within_s = min(max(_COLLECT_S[0], 5 * self._owner.pace_s()), _COLLECT_S[1])
        call = asyncio.ensure_future(self.handle.collect(within_s, limits.part_tokens))
        try:
            await asyncio.wait({call}, timeout=within_s + limits.suspect_s)
            if not call.done():
                self._become(silent=True)
                if not self._patience.loads:
                    logger.warning("%s has not answered for %g s", self.name, limits.suspect_s)
                self._owner.changed(self)
            if not await self._patience.wait(call, asked_at + within_s + limits.dead_s):
                raise EngineLost(f"it did not answer for {limits.dead_s:g} s (rollout.engine_silence_timeout_s)")
        finally:
            call.cancel()
        if self.status.silent:
            self._become(silent=False)
            self._owner.changed(self)
        return call.result()

    def _take(self, collected: Collected) -> None:
        if collected.finished or collected.num_made != self._num_made:
            self._token_at = self._patience.now()
            self._owner.moved()
        self._num_made, self.num_unfinished = collected.num_made, collected.num_unfinished
        for part in collected.parts:
            if (work := self.works.get(part.key)) is not None:
                self._check_versions(work, part)
                work.current.append(alone(part))
        for completion in collected.finished:
            if (work := self.works.get(completion.key)) is not None:
                self._check_versions(work, completion)
                self._assigned.take(completion.key)
                self._owner.finished(work, completion)
        if collected.finished:
            self._owner.changed(self)

    def _check_versions(self, work: Work, part: Completion) -> None:
        current = self.status.current
        for span in part.spans:
            if current is None or span.version.attempt != current.attempt or span.version.step < work.min_step:
                raise EngineLost(f"it sampled with {span.version} where step {work.min_step} or later was asked")

    # ---- leaving ----

    async def _leave(self) -> None:
        while True:
            await self._to_leave.wait()
            deadline = self._clock() + self._limits.drain_s
            while self.works and self.status.draining and self._clock() < deadline:
                await asyncio.sleep(0.1)
            if not self.status.draining:
                continue
            if self.works:
                parts = await self._answer("abort", self.handle.abort(list(self.works)))
                self._return(self._taken_back(parts))
            raise Left
