"""The process of test_pool.py: a pool over engines in Ray actors, some of which are killed."""

import asyncio
import json
import os
import signal
import sys
from typing import Any

import numpy as np
import ray

from rayswift.engines.pool.actors import ray_engines
from rayswift.engines.pool.patience import Limits
from rayswift.engines.pool.pool import EnginesFailed, Pool
from rayswift.engines.samples import Completion, PolicyVersion, SampleRequest
from tests.support.fake_engine import FakeEngine, FakeSettings

SPEED = FakeSettings(start_s=0.1, load_s=0.05, pause_s=0.01, step_s=0.004, median_length=200, max_num_seqs=64)
LIMITS = Limits(max_outstanding=80, suspect_s=3, dead_s=10, drain_s=1, part_tokens=50)
OPTIONS = {"num_cpus": 0}


class Talking(FakeEngine):
    """Prints a line and dies."""

    async def start(self) -> None:
        """See Engine."""
        print("segmentation fault in a kernel", file=sys.stderr, flush=True)  # noqa: T201
        os._exit(1)


class Refusing(FakeEngine):
    """Its constructor fails."""

    def __init__(self, settings: FakeSettings):
        super().__init__(settings)
        raise RuntimeError("no device")


def requests() -> list[SampleRequest]:
    """Completions for some ten seconds of two engines."""
    prompts = [np.arange(n, n + 5, dtype=np.int32) for n in range(300)]
    return [
        SampleRequest(f"{n}:{sample}", prompt, 600, seed=n * 8 + sample)
        for n, prompt in enumerate(prompts)
        for sample in range(2)
    ]


async def killed() -> dict[str, Any]:
    """One engine is killed and one stopped under their requests."""
    pool = Pool(ray_engines(FakeEngine, (SPEED,), OPTIONS), LIMITS, resume_partial=True)
    pool.scale_to(2)
    await pool.set_weights(PolicyVersion(1, 0), "weights")
    futures = pool.sample(requests(), 0)
    await asyncio.wait(futures, return_when=asyncio.FIRST_COMPLETED)
    for replica, signum in zip(list(pool._replicas.values()), (signal.SIGKILL, signal.SIGSTOP), strict=True):
        async with asyncio.timeout(60):
            while not any(work.current for work in replica.works.values()):  # parts have been brought here
                await asyncio.sleep(0.01)
        os.kill(replica.handle._process.pid, signum)
    completions = await asyncio.gather(*futures)
    await pool.set_weights(PolicyVersion(1, 1), "weights")
    pool.scale_to(1)
    async with asyncio.timeout(60):
        while len(pool._replicas) > 1:
            await asyncio.sleep(0.01)
    stands = pool.statistics()
    await pool.close()
    return {
        "hash": digest(completions),
        "lost": stands.lost,
        "resumed": stands.resumed_tokens,
        "serving": stands.serving,
    }


async def undisturbed() -> dict[str, Any]:
    """The same by an engine in this process."""
    pool = Pool(lambda name: FakeEngine(SPEED), Limits(max_outstanding=10_000), resume_partial=True)
    pool.scale_to(4)
    await pool.set_weights(PolicyVersion(1, 0), "weights")
    completions = await asyncio.gather(*pool.sample(requests(), 0))
    await pool.close()
    return {"hash": digest(completions)}


async def failing(engine: type[FakeEngine]) -> dict[str, Any]:
    """The pool's error about engines that cannot start."""
    pool = Pool(ray_engines(engine, (SPEED,), OPTIONS), Limits(max_starts=1), resume_partial=True)
    pool.scale_to(1)
    try:
        await pool.sample(requests()[:1], 0)[0]
    except EnginesFailed as error:
        return {"error": str(error)}
    finally:
        await pool.close()
    return {}


def digest(completions: list[Completion]) -> int:
    """Of keys, tokens and log-probabilities."""
    return hash(tuple((c.key, c.token_ids.tobytes(), c.logprobs.tobytes(), c.finish) for c in completions))


def main() -> None:
    """Print what happened as JSON."""
    results = {"undisturbed": asyncio.run(undisturbed())}
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    results["killed"] = asyncio.run(killed())
    results["talking"] = asyncio.run(failing(Talking))
    results["refusing"] = asyncio.run(failing(Refusing))
    ray.shutdown()
    print(json.dumps(results))  # noqa: T201


if __name__ == "__main__":
    main()
