"""The coordinator and the pool under load: 256 simulated engines, 100,000 prompts, real code.

    python -m tests.bench.control_plane [--prompts 100000] [--engines 256] [--processes 2]
    python -m tests.bench.control_plane --decode_s 30 --engines 1000 [--sequences 256] [--length 32768] [--step_s 0.03]

In this process, as in the coordinator's: admission, ledger, pool, remote calls by Ray; rewards are constants. The
trainer takes no time, and all prompts of the open rounds have a place in an engine, so that dispatch measures the
code and no queue. Prints one table; CPU is of this process alone. Before, a round of 8,192 completions is dealt out
to 256 ranks, pickled as Ray pickles it.

With `--decode_s` engines only decode for so long, all their sequences at once, with nothing kept of what they have not
finished (`max_staleness` 0) and with it brought here as it grows.
"""

import argparse
import asyncio
import pickle
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import psutil
import ray

from rayswift.data.sequence.global_batches import Position
from rayswift.engines.engine import Collected
from rayswift.engines.pool.patience import Limits
from rayswift.engines.pool.pool import Pool
from rayswift.engines.samples import Completion, Group, PolicyVersion, Prompt, SampleRequest, Scored, Span
from rayswift.rollout.admission import RolloutPlan, RoundPlan
from rayswift.rollout.attempt import Attempt
from rayswift.rollout.ledger import LedgerSnapshot
from rayswift.rollout.prompts import Drawn
from rayswift.rollout.rounds import NO_TOKENS, Dealt, Round, lines_of, make_table
from tests.support.fake_engine import FakeEngine, FakeSettings

SPEED = FakeSettings(
    start_s=0.0, load_s=0.05, pause_s=0.01, step_s=0.02, median_length=75, length_sigma=0.2, max_num_seqs=16
)
ROUND_PROMPTS, MAX_STALENESS = 768, 4


class Hosts:
    """Engines that share a few processes."""

    def __init__(self, num_processes: int, speed: FakeSettings = SPEED):
        host = ray.remote(EngineHost).options(num_cpus=0, max_concurrency=4096)
        self._hosts = [host.remote(speed) for _ in range(num_processes)]
        self._count = 0
        self.submitted: dict[str, float] = {}

    def __call__(self, name: str) -> "Hosted":
        self._count += 1
        return Hosted(self._hosts[self._count % len(self._hosts)], name, self.submitted)


class EngineHost:
    """A process with simulated engines, by name."""

    def __init__(self, speed: FakeSettings) -> None:
        self._speed, self._engines = speed, dict[str, FakeEngine]()

    async def call(self, name: str, method: str, *arguments: Any) -> Any:
        """Call a method of an engine, which is made when it is first named."""
        engine = self._engines.setdefault(name, FakeEngine(self._speed))
        return await getattr(engine, method)(*arguments)


class Hosted:
    """An engine of a host; see `EngineHandle`. Notes when requests are on their way."""

    def __init__(self, host: Any, name: str, submitted: dict[str, float]):
        self._call, self._name, self._submitted = host.call, name, submitted

    async def placed(self) -> None:
        """See `EngineHandle`."""
        await self._call.remote(self._name, "placed")

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

    async def collect(self, timeout_s: float, part_tokens: int | None) -> Collected:
        """See `Engine`."""
        return await self._call.remote(self._name, "collect", timeout_s, part_tokens)  # type: ignore[no-any-return]

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

    async def score(self, prompt: Prompt, completions: Sequence[Completion], rewarded: bool = True) -> Sequence[Scored]:
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
    pool = Pool(hosts, Limits(max_outstanding=2 * SPEED.max_num_seqs), resume_partial=True)
    pool.scale_to(num_engines)
    await pool.set_weights(PolicyVersion(1, 0), None)
    while pool.statistics().serving < num_engines:
        await asyncio.sleep(0.1)
    timed = Timed(pool, hosts.submitted)
    num_rounds = num_prompts // ROUND_PROMPTS
    plan = RolloutPlan(
        rounds=RoundPlan(ROUND_PROMPTS, MAX_STALENESS, 1, num_rounds), num_steps=1, steps_per_round=1,
        num_generations=1, num_generations_eval=1, min_group=1, max_completion_length=1024, max_sequence_length=2048,
        drops_even=None, max_failed_fraction=0.5, seed=0, max_outstanding=2 * SPEED.max_num_seqs,
        max_still_s=120.0,
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


async def decoding(given: argparse.Namespace, resume_partial: bool) -> None:
    """Print what listening to engines takes while they decode."""
    speed = FakeSettings(
        start_s=0.0, load_s=0.05, pause_s=0.01, step_s=given.step_s, median_length=10 * given.length,
        length_sigma=0.2, max_num_seqs=given.sequences,
    )  # fmt: skip
    pool = Pool(Hosts(given.processes, speed), Limits(max_outstanding=given.sequences), resume_partial)
    pool.scale_to(given.engines)
    await pool.set_weights(PolicyVersion(1, 0), None)
    while pool.statistics().serving < given.engines:
        await asyncio.sleep(0.1)
    prompt = np.zeros(100, np.int32)
    number = given.engines * given.sequences
    futures = pool.sample([SampleRequest(str(n), prompt, given.length, seed=n) for n in range(number)], 0)
    replicas = list(pool._replicas.values())
    process, memory = psutil.Process(), []
    while sum(replica.num_unfinished > 0 for replica in replicas) < 0.9 * given.engines:
        await asyncio.sleep(0.1)
    began, cpu_began, made = (
        time.perf_counter(),
        time.process_time(),
        sum(replica.num_unfinished for replica in replicas),
    )
    for _ in range(4):
        await asyncio.sleep(given.decode_s / 4)
        memory.append(process.memory_info().rss / 2**20)
    seconds, cpu_s = time.perf_counter() - began, time.process_time() - cpu_began
    made = sum(replica.num_unfinished for replica in replicas) - made
    assert not any(future.done() for future in futures)
    rows = {
        "what is unfinished is": "brought here" if resume_partial else "counted",
        "engines / sequences of each": f"{given.engines} / {given.sequences}",
        "tokens made, millions": f"{made / 1e6:,.1f}",
        "tokens of each sequence": f"{made / number:,.0f}",
        "coordinator CPU, cores": f"{cpu_s / seconds:.2f}",
        "coordinator CPU per million tokens, ms": f"{1e9 * cpu_s / made:.1f}",
        "memory at the quarters, MiB": " / ".join(f"{mib:.0f}" for mib in memory),
    }
    for name, value in rows.items():
        print(f"{name:<40}{value:>32}")  # noqa: T201
    await pool.close()


def deal_out(num_completions: int = 8192, of_group: int = 16, num_ranks: int = 256) -> None:
    """Print what handing a round out takes."""
    rng = np.random.default_rng(0)
    spans = (Span(0, PolicyVersion(1, 0)),)
    groups = []
    for ordinal in range(num_completions // of_group):
        prompt = Prompt(ordinal, f"rows:{ordinal}", 0, np.full(200, ordinal, np.int32), (), {})
        made = [
            Completion(f"{ordinal}:{n}", np.zeros(length, np.int32), np.zeros(length, np.float32), spans, "stop")
            for n, length in enumerate(rng.integers(50, 600, of_group))
        ]
        groups.append(Group(prompt, tuple(Scored(each, (1.0, 0.5), 1.5) for each in made)))
    began = time.process_time()
    table = make_table(groups, ("accuracy", "format"), PolicyVersion(1, 0))
    common = Round(0, -1, num_ranks, 1, table, NO_TOKENS, 0.0, Position(), False, False, {}, {})
    dealt = Dealt(common, lines_of(groups))
    shares = [dealt.share(rank, False) for rank in range(num_ranks)]
    dealt_s, num_bytes = time.process_time() - began, 0
    for share in shares:
        buffers: list[pickle.PickleBuffer] = []
        num_bytes += len(pickle.dumps(share, protocol=5, buffer_callback=buffers.append))
        num_bytes += sum(len(bytes(buffer.raw())) for buffer in buffers)  # copied, as into the object store
    rows = {
        f"{num_completions:,} completions to {num_ranks} ranks, CPU ms": f"{1000 * dealt_s:.0f}",
        "the same, pickled and copied, CPU ms": f"{1000 * (time.process_time() - began):.0f}",
        "bytes to a rank": f"{num_bytes // num_ranks:,}",
    }
    for name, value in rows.items():
        print(f"{name:<48}{value:>16}")  # noqa: T201


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=100_000)
    parser.add_argument("--engines", type=int, default=256)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--decode_s", type=float)
    parser.add_argument("--sequences", type=int, default=256)
    parser.add_argument("--length", type=int, default=32768)
    parser.add_argument("--step_s", type=float, default=0.03)
    given = parser.parse_args()
    if given.decode_s and given.decode_s >= (whole_s := given.length * given.step_s):
        parser.error(f"--decode_s {given.decode_s:g}: a completion ends after {whole_s:.0f} s, --length x --step_s")
    if not given.decode_s:
        deal_out()
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    if given.decode_s:
        for resume_partial in (False, True):
            asyncio.run(decoding(given, resume_partial))
    else:
        asyncio.run(load_test(given.prompts, given.engines, given.processes))
    ray.shutdown()


if __name__ == "__main__":
    main()
