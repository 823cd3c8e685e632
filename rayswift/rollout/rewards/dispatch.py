"""Groups of completions -> batches for workers; isolates the completions that make a batch fail.

A free worker gets a fair share of all waiting completions in one call, so the number of calls does not grow with the
number of groups. The time of a completion is measured: a call has only as many completions as fit well within its
deadline, and the deadline grows with their number. A failed batch is cut in parts until the failing completion is
alone; each completion is tried at least twice before it fails. Plain asyncio: a worker is any object that scores a
batch.
"""

import asyncio
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from rayswift.rollout.rewards.functions import Item, Value

_MOST_ITEMS = 1024
_NUM_PARTS = 8
# A call that is shorter is not worth sharing; the longest takes this share of the time that one completion may take.
_SHORTEST_S = 0.05
_LONGEST = 0.5
# The time limit of a call, as a multiple of the usual time of its completions.
_SLACK = 3.0


class Worker(Protocol):
    """Scores one batch at a time."""

    async def score(self, source: int, items: Sequence[Item], timeout_s: float) -> list[Value] | str:
        """Return a value for each item, or why there is none; always within bounded time.

        Args:
            source: Number of the function that scores.
            items: The completions.
            timeout_s: Time limit of the call.

        Raises:
            UserError: the worker cannot score any more.
        """


@dataclass(eq=False)
class _Request:
    """Items of one call of `score`; left: those without a value."""

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
    """Jobs for one call; tried: they were in a failed call, so they share no call with other jobs."""

    source: int
    jobs: tuple[_Job, ...]
    tried: bool = False


class Dispatcher:
    """Gives items to free workers.

    Args:
        workers: Each scores for any source.
        timeout_s: Time limit of one item.
    """

    def __init__(self, workers: Sequence[Worker], timeout_s: float):
        self._workers, self._timeout_s = workers, timeout_s
        self._pace_s: dict[int, float] = {}  # of each source: seconds an item, as of its last calls
        self._waiting: deque[_Part] = deque()
        self._wakeup = asyncio.Event()
        self._requests: set[_Request] = set()
        self._error: BaseException | None = None
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Let the workers work."""
        self._tasks = [asyncio.create_task(self._work(worker)) for worker in self._workers]

    async def score(self, source: int, items: Sequence[Item]) -> list[Value]:
        """Return a value for each item.

        Raises:
            UserError: the workers cannot score any more.
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
        """Stop, and cancel waiting calls."""
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
                began = asyncio.get_running_loop().time()
                limit_s = self._timeout_s + _SLACK * self._pace_s.get(part.source, 0.0) * (len(part.jobs) - 1)
                outcome = await worker.score(part.source, [job.item for job in part.jobs], limit_s)
                if not isinstance(outcome, str):
                    self._note(part, asyncio.get_running_loop().time() - began)
                self._settle(part, outcome)
        except Exception as error:  # raised in all callers that wait for a reward
            self._error = error
            for request in list(self._requests):
                if not request.done.done():
                    request.done.set_exception(error)

    def _take(self) -> _Part | None:
        """Take the jobs to score next: the oldest part, and similar ones up to this worker's fair share."""
        alive = (_without_cancelled(part) for part in self._waiting)
        self._waiting = deque(part for part in alive if part.jobs)
        if not self._waiting:
            return None
        first = self._waiting.popleft()
        if first.tried:
            return first
        num_waiting = len(first.jobs) + sum(len(part.jobs) for part in self._waiting if _is_like(part, first))
        size = self._size(first, num_waiting)
        jobs, left = list(first.jobs), deque[_Part]()
        for part in self._waiting:
            room = size - len(jobs) if _is_like(part, first) else 0
            jobs += part.jobs[: max(0, room)]
            if len(part.jobs) > room:
                left.append(replace(part, jobs=part.jobs[max(0, room) :]))
        if len(jobs) > size:
            left.appendleft(replace(first, jobs=tuple(jobs[size:])))
        self._waiting = left
        return _Part(first.source, tuple(jobs[:size]))

    def _size(self, first: _Part, num_waiting: int) -> int:
        """Return the size of a call: the items of one request for a new source, else this worker's fair share."""
        pace = self._pace_s.get(first.source)
        if pace is None:
            return min(_MOST_ITEMS, len(first.jobs))
        fair = -(-num_waiting // len(self._workers))
        if pace > 0:
            worthwhile, longest = math.ceil(_SHORTEST_S / pace), int(_LONGEST * self._timeout_s / pace)
            fair = max(1, min(longest, max(fair, worthwhile)))
        return min(_MOST_ITEMS, fair)

    def _note(self, part: _Part, seconds: float) -> None:
        """Note how long a call took; it counts half in the new estimate."""
        pace = seconds / len(part.jobs)
        self._pace_s[part.source] = (self._pace_s.get(part.source, pace) + pace) / 2

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


def _is_like(part: _Part, first: _Part) -> bool:
    return part.source == first.source and not part.tried


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
