"""Groups of completions -> batches for workers, and of a batch that fails exactly the guilty completions.

What is waiting when a worker becomes free goes to it in one call, so that a call costs the same whether a group or a
thousand completions arrive. A batch that fails is cut in parts until the guilty completion is alone; each
completion is tried at least twice before it fails. Plain asyncio: a worker is whatever scores a batch.
"""

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from rayswift.rollout.rewards.functions import Item, Value

_MOST_ITEMS = 1024
_NUM_PARTS = 8


class Worker(Protocol):
    """Scores one batch at a time."""

    async def score(self, source: int, items: Sequence[Item]) -> list[Value] | str:
        """A value for each item, or why there is none at all; within bounded time, whatever happens.

        Args:
            source: Number of the function that scores.
            items: The completions.

        Raises:
            UserError: it can score nothing any more.
        """


@dataclass(eq=False)
class _Request:
    """Items that were handed in together; left: those without a value."""

    values: list[Value]
    left: int
    done: asyncio.Future[list[Value]]


@dataclass(frozen=True, eq=False)
class _Job:
    item: Item
    request: _Request
    index: int


@dataclass(frozen=True, eq=False)
class _Part:
    """Jobs for one call; tried: they were in a call that failed, and so share no further one with others."""

    source: int
    jobs: tuple[_Job, ...]
    tried: bool = False


class Dispatcher:
    """Gives items to workers as these become free.

    Args:
        workers: Any one of them scores for any source.
    """

    def __init__(self, workers: Sequence[Worker]):
        self._workers = workers
        self._waiting: deque[_Part] = deque()
        self._wakeup = asyncio.Event()
        self._requests: set[_Request] = set()
        self._error: BaseException | None = None
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Let the workers work."""
        self._tasks = [asyncio.create_task(self._work(worker)) for worker in self._workers]

    async def score(self, source: int, items: Sequence[Item]) -> list[Value]:
        """A value for each item.

        Raises:
            UserError: the workers can score nothing any more.
        """
        if self._error is not None:
            raise self._error
        if not items:
            return []
        done: asyncio.Future[list[Value]] = asyncio.get_running_loop().create_future()
        request = _Request([None] * len(items), len(items), done)
        self._requests.add(request)
        self._waiting.append(_Part(source, tuple(_Job(item, request, i) for i, item in enumerate(items))))
        self._wakeup.set()
        try:
            return await request.done
        finally:
            self._requests.discard(request)

    async def close(self) -> None:
        """Stop; what waits is cancelled."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for request in list(self._requests):
            request.done.cancel()

    async def _work(self, worker: Worker) -> None:
        try:
            while True:
                part = self._take()
                if part is None:
                    self._wakeup.clear()
                    await self._wakeup.wait()
                    continue
                outcome = await worker.score(part.source, [job.item for job in part.jobs])
                self._settle(part, outcome)
        except Exception as error:  # whoever waits for a reward must hear of it
            self._error = error
            for request in list(self._requests):
                if not request.done.done():
                    request.done.set_exception(error)

    def _take(self) -> _Part | None:
        """What to score next: the oldest part, and with it as many like it as are this worker's fair share."""
        alive = (_without_cancelled(part) for part in self._waiting)
        self._waiting = deque(part for part in alive if part.jobs)
        if not self._waiting:
            return None
        first = self._waiting.popleft()
        if first.tried:
            return first
        like = [part for part in self._waiting if part.source == first.source and not part.tried]
        num_waiting = len(first.jobs) + sum(len(part.jobs) for part in like)
        fair = min(_MOST_ITEMS, -(-num_waiting // len(self._workers)))
        jobs, taken = list(first.jobs), set()
        for part in like:
            if len(jobs) + len(part.jobs) > fair:
                break
            jobs += part.jobs
            taken.add(part)
        self._waiting = deque(part for part in self._waiting if part not in taken)
        return _Part(first.source, tuple(jobs))

    def _settle(self, part: _Part, outcome: list[Value] | str) -> None:
        if isinstance(outcome, str) and (len(part.jobs) > 1 or not part.tried):
            size = -(-len(part.jobs) // _NUM_PARTS)
            self._retry([part.jobs[i : i + size] for i in range(0, len(part.jobs), size)], part.source)
            return
        values: list[Value] = [outcome] if isinstance(outcome, str) else outcome
        again = []
        for job, value in zip(part.jobs, values, strict=True):
            if isinstance(value, str) and not part.tried:
                again.append(job)
            else:
                _give(job, value)
        if again:
            self._retry([tuple(again)], part.source)

    def _retry(self, parts: Sequence[tuple[_Job, ...]], source: int) -> None:
        self._waiting.extendleft(_Part(source, jobs, tried=True) for jobs in reversed(parts))
        self._wakeup.set()


def _without_cancelled(part: _Part) -> _Part:
    if not any(job.request.done.done() for job in part.jobs):
        return part
    return _Part(part.source, tuple(job for job in part.jobs if not job.request.done.done()), part.tried)


def _give(job: _Job, value: Value) -> None:
    request = job.request
    request.values[job.index] = value
    request.left -= 1
    if not request.left and not request.done.done():
        request.done.set_result(request.values)
