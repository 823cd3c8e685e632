"""The pool of engines: requests in, completions out, even if engines are lost.

    pool = Pool(factory, limits, resume_partial=True)
    pool.scale_to(2)
    await pool.set_weights(version, weights)
    completions = await asyncio.gather(*pool.sample(requests, min_step=0))

Each request is answered once: by a whole completion, or by an error with the reason. A request whose engine is lost
moves to another one: it continues after the tokens that had arrived (`resume_partial`), or starts again with the same
seed, which gives the same completion. `queues` decides which engine takes a request.

The pool consists of plain objects in one event loop; a factory makes the engines.
"""

import asyncio
import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rayswift.engines.engine import Factory
from rayswift.engines.pool.membership import Joins, change
from rayswift.engines.pool.merge_parts import joined, num_tokens
from rayswift.engines.pool.patience import Limits
from rayswift.engines.pool.probing import Probed, ask_all
from rayswift.engines.pool.queues import Queues
from rayswift.engines.pool.replica import Replica
from rayswift.engines.pool.statistics import PoolStatistics, statistics
from rayswift.engines.pool.work import Work
from rayswift.engines.samples import Completion, PolicyVersion, SampleRequest
from rayswift.log import UserError, logger

_WATCH_S = 1.0
_MAX_COLLECTS_PER_S = 1000


class SampleFailed(Exception):
    """No engine could answer a request; has the reason of each try. where: what failed, for the accounting."""

    where = "engines"


class EnginesFailed(UserError):
    """The pool cannot answer any request any more."""


class Pool:
    """Engines of one policy.

    Args:
        factory: Makes an engine, given its name.
        limits: Deadlines and bounds.
        resume_partial: Whether a request of a lost engine continues after its tokens; if not, it starts again.
        prefix: Beginning of the engines' names, before their number.
    """

    def __init__(self, factory: Factory, limits: Limits, resume_partial: bool, prefix: str = "engine"):
        if not resume_partial:
            limits = replace(limits, part_tokens=None)
        self._factory, self._limits, self._resume_partial, self._prefix = factory, limits, resume_partial, prefix
        self._replicas: dict[str, Replica] = {}
        self._wanted = 0
        self._numbers, self._orders = itertools.count(), itertools.count()
        self._queues = Queues()
        self._unfinished: set[Work] = set()
        self._version: PolicyVersion | None = None
        self._weights: Any = None
        self._error: EnginesFailed | None = None
        self._counts: Counter[str] = Counter()
        self._joins = Joins(limits.max_starts, limits.max_alike)
        self._replace_at = 0.0
        self._unserved_since: float | None = None
        self._dispatch_due = False
        self._bell = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self.moved_at = self._loop.time()
        """When an engine came forward last: by a token, by weights, by its start."""
        self._watcher = self._loop.create_task(self._watch(), name=f"{prefix} pool")

    # ---- what the coordinator calls ----

    def scale_to(self, wanted: int) -> None:
        """Start new engines up to this number, or let the newest ones finish their requests and leave."""
        self._wanted = wanted
        planned = change([(name, replica.status) for name, replica in self._replicas.items()], wanted)
        for name in planned.keep:
            self._replicas[name].drain(False)
        for name in planned.drain:
            self._replicas[name].drain()
        if self._error is None and self._loop.time() >= self._replace_at:
            for _ in range(planned.start):
                self._start_engine()

    def sample(self, requests: Sequence[SampleRequest], min_step: int) -> list[asyncio.Future[Completion]]:
        """Sample completions with weights of at least `min_step` rounds.

        Returns:
            A future for each request: its whole completion, or `SampleFailed`, or `EnginesFailed`. Cancelling it
            aborts the request.

        Raises:
            EnginesFailed: no engine is left that could answer.
        """
        self.check()
        works = [Work(request, min_step, next(self._orders), self._loop.create_future()) for request in requests]
        for work in works:
            work.future.add_done_callback(partial(self._settled, work))
            self._unfinished.add(work)
            self._queues.put(work)
        self._dispatch_soon()
        return [work.future for work in works]

    async def set_weights(self, version: PolicyVersion, weights: Any) -> dict[str, float]:
        """Have all engines load weights at the same time; requests in flight continue.

        Weights of a new worker group end the requests of the group before. The same version once more changes only
        where late engines get it from.

        Returns:
            Seconds that sampling paused, by engine, once each has loaded them (or newer ones), or is lost.
        """
        self.check()
        if self._version is not None:
            if version < self._version:
                raise ValueError(f"weights of {version} after those of {self._version}")
            if version.attempt != self._version.attempt:
                self.abandon()
        self._version, self._weights = version, weights
        replicas = [replica for replica in self._replicas.values() if replica.status.started]
        for replica in self._replicas.values():
            replica.publish(version, weights)
        await self._until(lambda: all(_has(replica, version) for replica in replicas))
        return {replica.name: replica.pauses_s[version] for replica in replicas if version in replica.pauses_s}

    async def score(self, token_ids: NDArray[np.int32]) -> Probed:
        """Have every started engine score a text [T], as soon as it holds the current weights."""
        return await ask_all(self._replicas, self._until, token_ids)

    def abandon(self) -> None:
        """Abort all requests: their futures are cancelled."""
        for work in list(self._unfinished):
            work.future.cancel()

    def check(self) -> None:
        """Raise `EnginesFailed` if no engine will ever serve."""
        if self._error is not None:
            raise self._error

    def statistics(self) -> PoolStatistics:
        """Return counts since the start, and the present state."""
        return statistics(self._counts, self._replicas.values(), len(self._unfinished))

    def describe(self) -> str:
        """Describe the state of each engine, and why others were lost before they served."""
        engines = "; ".join(map(str, self._replicas.values())) or "no engine"
        return f"{engines}; {self._joins}" if self._joins.num_failed else engines

    def summary(self) -> str:
        """Describe the engines in one line, however many there are."""
        stands = self.statistics()
        engines = {"serve": stands.serving, "join": stands.joining, "do not answer": stands.suspect}
        counts = [f"{number} engines {what}" for what, number in engines.items() if number or what == "serve"]
        return f"{', '.join(counts)}, {stands.running} requests are with them and {stands.queued} wait"

    async def close(self) -> None:
        """End all engines and cancel all requests."""
        self._watcher.cancel()
        self._wanted = 0
        self.abandon()
        await asyncio.gather(*(replica.close() for replica in self._replicas.values()))
        await asyncio.wait({self._watcher})

    # ---- what a replica calls ----

    def changed(self, replica: Replica) -> None:
        self.moved()
        self._dispatch_soon()
        self._ring()

    def joined(self, replica: Replica) -> None:
        if replica.status.version == self._version:
            self._joins.joined()

    def finished(self, work: Work, completion: Completion) -> None:
        self._answer(work, [*work.carried, completion], completion)

    def refused(self, work: Work, why: str) -> None:
        self._fail(work, [why])

    def returned(self, replica: Replica, works: Sequence[Work], num_made: int, why: str | None) -> None:
        kept = sum(num_tokens(work.current) for work in works) if self._resume_partial else 0
        self._counts["regenerated_tokens"] += max(0, num_made - kept)
        for work in works:
            work.replica = None
            if work.future.done():
                continue
            self._counts["moved"] += 1
            if self._resume_partial:
                work.carried += work.current
            work.current = []
            if why is not None:
                work.tries.append(f"{replica.name}: {why}")
            if work.room <= 0:
                self._answer(work, work.carried, None)
            elif len(work.tries) >= self._limits.max_tries:
                self._fail(work, work.tries)
            else:
                self._queues.put(work)
        if why is not None:
            self._counts["lost"] += 1
            if replica.status.version is None or replica.status.version != self._version:
                self._joins.failed(replica.generation, why)
                self._replace_at = self._loop.time() + self._joins.backoff_s
        self._dispatch_soon()

    def gone(self, replica: Replica) -> None:
        del self._replicas[replica.name]
        if self._joins.hopeless([(other.generation, other.status) for other in self._replicas.values()]):
            what = "come to serve" if replica.status.started else "start"
            self._break(
                f"{self._joins.num_failed} engines in a row could not {what}; {replica.name}: {replica.status.died}"
            )
        self.scale_to(self._wanted)
        self._ring()

    def moved(self) -> None:
        self.moved_at = self._loop.time()

    def pace_s(self) -> float:
        """See `work.Owner`: all engines together take a bounded share of this process's time."""
        return len(self._replicas) / _MAX_COLLECTS_PER_S

    # ---- requests ----

    def _dispatch_soon(self) -> None:
        # Once for all that happens in one turn of the event loop, so that requests travel in batches.
        if not self._dispatch_due:
            self._dispatch_due = True
            self._loop.call_soon(self._dispatch)

    def _dispatch(self) -> None:
        self._dispatch_due = False
        self._queues.hand_out(self._replicas.values())

    def _answer(self, work: Work, parts: Sequence[Completion], last: Completion | None) -> None:
        if work.future.done():
            return
        finish = last.finish if last is not None and last.finish is not None else "length"
        whole = joined(work.request.key, parts, finish)
        self._counts["requests"] += 1
        self._counts["tokens"] += len(whole.token_ids)
        self._counts["resumed_tokens"] += num_tokens(work.carried)
        work.future.set_result(whole)

    def _fail(self, work: Work, reasons: Sequence[str]) -> None:
        if not work.future.done():
            self._counts["failed"] += 1
            work.future.set_exception(SampleFailed(f"{work.request.key}: {'; '.join(reasons)}"))

    def _settled(self, work: Work, future: asyncio.Future[Completion]) -> None:
        self._unfinished.discard(work)
        if future.cancelled() and work.replica is not None:
            work.replica.give_up(work)

    # ---- engines ----

    def _start_engine(self) -> None:
        name = f"{self._prefix}-{next(self._numbers)}"
        replica = Replica(name, self._factory(name), self._limits, self, self._joins.generation)
        self._replicas[name] = replica
        if self._version is not None:
            replica.publish(self._version, self._weights)

    async def _watch(self) -> None:
        """Replace lost engines after their delay, and make sure that requests do not wait for ever."""
        while True:
            await asyncio.sleep(_WATCH_S)
            if self._error is not None:
                continue
            self.scale_to(self._wanted)
            now = self._loop.time()
            statuses = [replica.status for replica in self._replicas.values()]
            served = all(any(status.takes(step) for status in statuses) for step in self._queues.min_steps)
            coming = any(status.is_coming for status in statuses)
            if coming and not served:
                self.moved()  # starts and loads have their own deadlines
            if served or coming:
                self._unserved_since = None
            elif self._unserved_since is None:
                self._unserved_since = now
            elif now - self._unserved_since > self._limits.unserved_s:
                waited = f"{self._limits.unserved_s:g} s (rollout.engine_place_timeout_s)"
                self._break(f"no engine could take requests for {waited}: {self.describe()}")

    def _break(self, why: str) -> None:
        self._error = EnginesFailed(why, exit_code=1)
        logger.error("%s", why)
        for work in list(self._unfinished):
            if not work.future.done():
                work.future.set_exception(self._error)
        self._ring()

    def _ring(self) -> None:
        self._bell.set()
        self._bell = asyncio.Event()

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self.check()
            await self._bell.wait()


def _has(replica: Replica, version: PolicyVersion) -> bool:
    held = replica.status.version
    return not replica.status.alive or (held is not None and held >= version)
