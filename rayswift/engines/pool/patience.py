"""How long the pool waits for engines: the limits, and deadlines for calls to an engine that may be loading weights.

The time of a load does not count, because the engine does not answer during it. A load has a deadline of its own, after
which the engine is lost.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from rayswift.config.rollout import RolloutConfig
from rayswift.engines.engine import EngineLost

_T = TypeVar("_T")
# A timer may fire a nanosecond early, and the rest may be too short to move the clock.
_SHORTEST_WAIT_S = 1e-3
_LOOK_AGAIN_S = 5.0
_LAST_LOOK_S = 0.1


@dataclass(frozen=True)
class Limits:
    """Limits of the pool, in seconds if the name ends in `_s`.

    max_outstanding: requests that an engine holds, those it decodes and a few to follow; start_s: for an engine to
    start once it has its place; load_s: to take over weights; answer_s: for short calls; suspect_s, dead_s: silence
    after which an engine gets no new requests, is given up; stall_s: without a token although it has requests;
    drain_s: for a leaving engine to finish its requests before they move; part_tokens: new tokens of an unfinished
    request from which on they are brought here, so that no more are lost with an engine, None: never; unserved_s: that
    requests may wait while no engine can take them, and none starts or loads; max_tries: engines that may be lost under
    a request before it fails; max_loads: failed loads of a version that end an engine; max_starts, max_alike: engines
    in a row that may be lost before they serve, for any reason, for the same.
    """

    max_outstanding: int = 320
    start_s: float = 600.0
    load_s: float = 300.0
    answer_s: float = 60.0
    suspect_s: float = 10.0
    dead_s: float = 60.0
    stall_s: float = 600.0
    drain_s: float = 60.0
    part_tokens: int | None = 512
    unserved_s: float = 900.0
    max_tries: int = 5
    max_loads: int = 3
    max_starts: int = 5
    max_alike: int = 3


def limits_of(rollout: RolloutConfig, max_outstanding: int) -> Limits:
    """Return the limits of a run's config."""
    silence_s = rollout.engine_silence_timeout_s
    return Limits(
        max_outstanding=max_outstanding,
        start_s=rollout.engine_start_timeout_s,
        load_s=rollout.load_timeout_s,
        answer_s=silence_s,
        suspect_s=min(Limits.suspect_s, silence_s / 2),
        dead_s=silence_s,
        stall_s=rollout.engine_stall_timeout_s,
        unserved_s=rollout.engine_place_timeout_s,
    )


class Patience:
    """Waits for one engine, without counting the time of loads."""

    def __init__(self, clock: Callable[[], float]):
        self._clock = clock
        self._loaded_s = 0.0
        self._loads_since: float | None = None

    def now(self) -> float:
        """Return the clock without the time of loads."""
        return (self._clock() if self._loads_since is None else self._loads_since) - self._loaded_s

    @property
    def loads(self) -> bool:
        """Whether the engine is loading weights."""
        return self._loads_since is not None

    @contextmanager
    def loading(self) -> Iterator[None]:
        """Count the time of the block as a load."""
        began = self._loads_since = self._clock()
        try:
            yield
        finally:
            self._loaded_s += self._clock() - began
            self._loads_since = None

    async def wait(self, call: "asyncio.Future[Any]", deadline: float) -> bool:
        """Wait until a call is done; False: the deadline, in the time of `now`, has passed."""
        while not call.done() and (self.loads or self.now() < deadline):
            left_s = deadline - self.now()
            await asyncio.wait({call}, timeout=max(left_s, _LOOK_AGAIN_S if self.loads else _SHORTEST_WAIT_S))
        if not call.done():  # if this process itself was delayed, the answer may come in a moment
            await asyncio.wait({call}, timeout=_LAST_LOOK_S)
        return call.done()

    async def answer(self, what: str, call: Awaitable[_T], timeout_s: float, limit: str) -> _T:
        """Return the result of a call.

        Args:
            what: Names the call.
            call: To the engine.
            timeout_s: Longest wait, loads not counted.
            limit: The field that sets `timeout_s`.

        Raises:
            EngineLost: it did not answer in time, or has died.
        """
        asked = asyncio.ensure_future(call)
        try:
            if not await self.wait(asked, self.now() + timeout_s):
                raise EngineLost(f"it did not {what} within {timeout_s:g} s ({limit})")
            return await asked
        finally:
            asked.cancel()
