"""The control plane under load: 256 simulated engines in other processes, 100,000 prompts through the real code.

    python -m tests.bench.control_plane [--prompts 100000] [--engines 256] [--processes 2]

In this process, as in the coordinator's: admission, ledger, pool, remote calls by Ray; rewards are constants. The
trainer takes no time, and all prompts of the open rounds have a place in an engine, so that dispatch measures the
code and no queue. Prints one table; CPU is of this process alone.
"""

import argparse
import asyncio
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import psutil
import ray

from rayswift.data.global_batches import Position
from rayswift.rollout.admission import RoundPlan
from rayswift.rollout.attempt import Attempt, RolloutPlan
from rayswift.rollout.engine import Collected
from rayswift.rollout.ledger import LedgerSnapshot
from rayswift.rollout.patience import Limits
from rayswift.rollout.pool import Pool
from rayswift.rollout.prompts import Drawn
from rayswift.rollout.samples import Completion, PolicyVersion, Prompt, SampleRequest, Scored
from tests.support.fake_engine import FakeEngine, FakeSettings

SPEED = FakeSettings(
    start_s=0.0, load_s=0.05, pause_s=0.01, step_s=0.02, median_length=75, length_sigma=0.2, max_num_seqs=16
)
ROUND_PROMPTS, MAX_STALENESS = 768, 4


class Hosts:
    """Engines that share a few processes."""

    def __init__(self, num_processes: int):
        host = ray.remote(EngineHost).options(num_cpus=0, max_concurrency=4096)
        self._hosts = [host.remote() for _ in range(num_processes)]
        self._count = 0
        self.submitted: dict[str, float] = {}

    def __call__(self, name: str) -> "Hosted":
        self._count += 1
        return Hosted(self._hosts[self._count % len(self._hosts)], name, self.submitted)


class EngineHost:
    """A process with simulated engines, by name."""

    def __init__(self) -> None:
        self._engines: dict[str, FakeEngine] = {}

    async def call(self, name: str, method: str, *arguments: Any) -> Any:
        """Call a method of an engine, which is made when it is first named."""
        engine = self._engines.setdefault(name, FakeEngine(SPEED))
        return await getattr(engine, method)(*arguments)


class Hosted:
    """An engine of a host; see `EngineHandle`. Notes when requests are on their way."""

    def __init__(self, host: Any, name: str, submitted: dict[str, float]):
        self._call, self._name, self._submitted = host.call, name, submitted

    async def placed(self) -> None:
        """See `EngineHandle`."""
        await self._call.remote(self._name, "status")

    async def start(self) -> None:
        """See `Engine`."""
        await self._call.remote(self._name, "start")

    async def submit(self, requests: Sequence[SampleRequest]) -> None:
        """See `Engine`."""
        sent = self._call.remote(self._name, "submit", requests)
        now = time.perf_counter()
        for request in requests:
            self._submitted[request.key.partition("#")[0]] = now
        await sent

    async def collect(self, timeout_s: float) -> Collected:
        """See `Engine`."""
        return await self._call.remote(self._name, "collect", timeout_s)  # type: ignore[no-any-return]

    async def abort(self, keys: Sequence[str]) -> tuple[Completion, ...]:
        """See `Engine`."""
        return await self._call.remote(self._name, "abort", keys)  # type: ignore[no-any-return]

    async def load(self, version: PolicyVersion, weights: Any) -> float:
        """See `Engine`."""
        return await self._call.remote(self._name, "load", version, weights)  # type: ignore[no-any-return]

    async def last_lines(self) -> str:
        """See `EngineHandle`."""
        return ""

    def kill(self) -> None:
        """See `EngineHandle`."""


class Prompts:
    """Prompts of 100 tokens, without end."""

    def __init__(self) -> None:
        self._ordinal = 0

    def draw(self, timeout_s: float) -> Drawn:
        """See `attempt.Prompts`."""
        ordinal, self._ordinal = self._ordinal, self._ordinal + 1
        prompt = Prompt(ordinal, f"rows:{ordinal}", 0, np.full(100, ordinal, np.int32), (), {})
        return Drawn(prompt, Position(step=ordinal + 1), 0.0, False)


class Constant:
    """A reward of 1."""

    async def score(self, prompt: Prompt, completions: Sequence[Completion]) -> Sequence[Scored]:
        """See `attempt.Scorer`."""
        return [Scored(completion, (1.0,), 1.0) for completion in completions]


class Timed:
    """The pool, noting when requests come in and how long they take to be sent."""

    def __init__(self, pool: Pool, submitted: dict[str, float]):
        self._pool, self._submitted = pool, submitted
        self.dispatch_s: list[float] = []

    def sample(self, requests: Sequence[SampleRequest], min_step: int) -> list[asyncio.Future[Completion]]:
        """See `Pool`."""
        began = time.perf_counter()
        futures = self._pool.sample(requests, min_step)
        for request, future in zip(requests, futures, strict=True):
            future.add_done_callback(lambda _, key=request.key: self._note(key, began))
        return futures

    def _note(self, key: str, began: float) -> None:
        self.dispatch_s.append(self._submitted.pop(key) - began)


async def load_test(num_prompts: int, num_engines: int, num_processes: int) -> None:
    """Print one table."""
    hosts = Hosts(num_processes)
    pool = Pool(hosts, Limits(max_outstanding=2 * SPEED.max_num_seqs), salvage=True)
    pool.scale_to(num_engines)
    await pool.set_weights(PolicyVersion(1, 0), None)
    while pool.statistics().serving < num_engines:
        await asyncio.sleep(0.1)
    timed = Timed(pool, hosts.submitted)
    num_rounds = num_prompts // ROUND_PROMPTS
    plan = RolloutPlan(
        rounds=RoundPlan(ROUND_PROMPTS, MAX_STALENESS, 1, num_rounds), num_steps=1, steps_per_round=1,
        num_generations=1, num_generations_eval=1, min_group=1, max_completion_length=1024, drops_equal=False,
        max_failed_fraction=0.5, seed=0, max_outstanding=2 * SPEED.max_num_seqs,
    )  # fmt: skip
    attempt = Attempt(1, LedgerSnapshot(), plan, Prompts(), timed, Constant())
    process, memory = psutil.Process(), {}
    began, cpu_began = time.perf_counter(), time.process_time()
    attempt.begin()
    attempt.published(0)
    for number in range(num_rounds):
        finished = await attempt.round(number, 120.0)
        assert len(finished.groups) == ROUND_PROMPTS
        attempt.forget_before(number + 1)
        await pool.set_weights(PolicyVersion(1, number + 1), None)
        attempt.published(number + 1)
        for percent in (20, 60, 100):
            if number + 1 == num_rounds * percent // 100:
                memory[percent] = process.memory_info().rss / 2**20
    seconds, cpu_s = time.perf_counter() - began, time.process_time() - cpu_began
    stands = pool.statistics()
    await attempt.stop()
    await pool.close()
    dispatch_ms = 1000 * np.array(timed.dispatch_s)
    rows = {
        "prompts, each with one completion": f"{num_rounds * ROUND_PROMPTS:,}",
        "engines / their processes": f"{num_engines} / {num_processes}",
        "completions per second": f"{stands.requests / seconds:,.0f}",
        "coordinator CPU per rollout, ms": f"{1000 * cpu_s / stands.requests:.3f}",
        "coordinator CPU, cores": f"{cpu_s / seconds:.2f}",
        "dispatch p50 / p99, ms": f"{np.percentile(dispatch_ms, 50):.1f} / {np.percentile(dispatch_ms, 99):.1f}",
        "memory at 20 / 60 / 100 %, MiB": " / ".join(f"{mib:.0f}" for mib in memory.values()),
        "lost engines, failed requests": f"{stands.lost}, {stands.failed}",
    }
    for name, value in rows.items():
        print(f"{name:<40}{value:>24}")  # noqa: T201


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=100_000)
    parser.add_argument("--engines", type=int, default=256)
    parser.add_argument("--processes", type=int, default=2)
    given = parser.parse_args()
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    asyncio.run(load_test(given.prompts, given.engines, given.processes))
    ray.shutdown()


if __name__ == "__main__":
    main()
