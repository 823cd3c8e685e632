"""A pool over simulated engines in virtual time, for tests that decide what happens to the engines."""

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np

from rayswift.engines.pool.patience import Limits
from rayswift.engines.pool.pool import Pool
from rayswift.engines.samples import Completion, PolicyVersion, SampleRequest
from tests.support.fake_engine import FakeEngine, FakeSettings, Load
from tests.virtual_time import run

V0, V1 = PolicyVersion(1, 0), PolicyVersion(1, 1)
SPEED = FakeSettings(
    start_s=20, load_s=0.5, pause_s=0.1, step_s=0.02, median_length=60, length_sigma=0.5, max_num_seqs=8
)
LIMITS = Limits(
    max_outstanding=12,
    start_s=60,
    load_s=30,
    answer_s=20,
    suspect_s=5,
    dead_s=30,
    stall_s=60,
    drain_s=2,
    max_starts=3,
    part_tokens=1,
)


class Engines:
    """A factory that keeps its engines, in order."""

    def __init__(self, speed: FakeSettings = SPEED, kind: type[FakeEngine] = FakeEngine, **options: Any):
        self.made: list[Any] = []
        self._speed, self._kind, self._options = speed, kind, options

    def __call__(self, name: str) -> FakeEngine:
        self.made.append(self._kind(self._speed, **self._options))
        return self.made[-1]  # type: ignore[no-any-return]

    def spoil_loads(self, what: Load) -> None:
        """Make every load of every present and future engine end like this."""
        self._options["loads"] = itertools.repeat(what)
        for engine in self.made:
            engine.spoil_loads(itertools.repeat(what))


def requests(num_prompts: int, num_samples: int = 1, room: int = 120) -> list[SampleRequest]:
    prompts = [np.arange(n, n + 5, dtype=np.int32) for n in range(num_prompts)]
    return [
        SampleRequest(f"{n}:{sample}", prompt, room, seed=1000 * n + sample)
        for n, prompt in enumerate(prompts)
        for sample in range(num_samples)
    ]


def in_pool(
    story: Callable[[Pool, Engines], Awaitable[Any]],
    engines: Engines | None = None,
    size: int = 2,
    resume_partial: bool = True,
    limits: Limits = LIMITS,
) -> Any:
    """Run a story in virtual time, with a pool that has its first weights, and close the pool."""

    async def answer() -> Any:
        factory = engines or Engines()
        pool = Pool(factory, limits, resume_partial)
        pool.scale_to(size)
        await pool.set_weights(V0, "weights")
        try:
            return await story(pool, factory)
        finally:
            await pool.close()
            assert all(engine.dead for engine in factory.made)
            assert len(asyncio.all_tasks()) == 1

    return run(answer())


def same(one: Completion, other: Completion) -> bool:
    return (
        one.key == other.key
        and one.token_ids.tobytes() == other.token_ids.tobytes()
        and one.logprobs.tobytes() == other.logprobs.tobytes()
        and (one.spans, one.finish) == (other.spans, other.finish)
    )
