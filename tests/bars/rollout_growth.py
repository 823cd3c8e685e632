"""What test_rollout_autoscaler.py runs, in a process of its own: python -m tests.bars.rollout_growth ADDRESS.

Engines in Ray actors that hold a `rollout` each, of which the cluster has none until its autoscaler adds a node. The
trainer waits for rollouts at first, then has more than it needs.
"""

import asyncio
import json
import sys
from typing import Any

import ray

from rayswift.engines.pool.actors import ray_engines
from rayswift.engines.pool.autoscale import Rule
from tests.bench.simulated_run import Setting, SimulatedRun
from tests.support.fake_engine import FakeEngine, FakeSettings

HUNGRY_ROUNDS, NUM_ROUNDS = 8, 70
SETTING = Setting(
    engine=FakeSettings(
        start_s=0.2, load_s=0.05, pause_s=0.01, step_s=0.01, median_length=400, length_sigma=0.3, max_num_seqs=8
    ),
    rule=Rule(1, 3, window_s=5, up_after_s=3, down_after_s=6),
    num_rounds=NUM_ROUNDS,
    max_staleness=1,
    train_tokens_per_s=100_000,
    num_prompts=8,
    num_generations=4,
    max_tokens=lambda number: 250 if number < HUNGRY_ROUNDS else 10,
    step_s=0.5,
)


def num_nodes() -> int:
    """The living nodes."""
    return sum(node["Alive"] for node in ray.nodes())


async def grow_and_shrink() -> dict[str, Any]:
    """Run all rounds; returns how many nodes and engines there were."""
    engine = ray_engines(FakeEngine, (SETTING.engine,), {"num_cpus": 0, "resources": {"rollout": 1}})
    nodes: list[int] = []

    async def count() -> None:
        while True:
            nodes.append(await asyncio.to_thread(num_nodes))
            await asyncio.sleep(0.5)

    counting = asyncio.create_task(count())
    measured = await SimulatedRun(SETTING, engine).go()
    while True:  # its caller's deadline ends it
        if nodes[-1] == 1:
            break
        await asyncio.sleep(0.5)
    counting.cancel()
    return {
        "nodes": nodes,
        "most_engines": measured.most_engines,
        "engines_at_the_end": measured.engines_at_the_end,
        "tokens": measured.tokens,
        "lost": measured.lost,
        "seconds": measured.seconds,
    }


def main() -> None:
    """Print what happened as JSON."""
    ray.init(address=sys.argv[1], log_to_driver=False, logging_level="ERROR")
    print(json.dumps(asyncio.run(grow_and_shrink())))  # noqa: T201


if __name__ == "__main__":
    main()
