"""SIMULATION: what a step takes with rollouts in turn, one step off, or asynchronous; and fixed or autoscaled engines.

    python -m tests.bench.rollout_simulation [--engine_step_s 0.0128] [--train_tokens_per_s 20000] ...

Nothing is sampled and nothing trained: engines and trainer only take their time, in virtual time. What is real is the
code that decides: the pool, the admission by staleness, the rule for the number of engines. The defaults were measured
on 2 CPU cores with a model of 6 M parameters; give your own.
"""

import argparse
from dataclasses import replace

from rayswift.engines.pool.autoscale import Rule
from tests import virtual_time
from tests.bench.simulated_run import Measured, Setting, SimulatedRun
from tests.support.fake_engine import FakeSettings


def main() -> None:
    """Print two tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine_step_s", type=float, default=0.0128, help="decoding step of 64 sequences")
    parser.add_argument("--engine_start_s", type=float, default=20.0, help="start of an engine and its first weights")
    parser.add_argument("--node_s", type=float, default=60.0, help="until the cluster has a node for a new engine")
    parser.add_argument("--load_s", type=float, default=0.25, help="to bring new weights to an engine")
    parser.add_argument("--pause_s", type=float, default=0.03, help="that an engine stands still for them")
    parser.add_argument("--publish_s", type=float, default=0.05, help="that the trainer stands still to publish")
    parser.add_argument("--median_length", type=float, default=120.0, help="of completions, log-normal, in tokens")
    parser.add_argument("--rounds", type=int, default=20)
    given = parser.parse_args()
    engine = FakeSettings(
        start_s=given.engine_start_s,
        load_s=given.load_s,
        pause_s=given.pause_s,
        step_s=given.engine_step_s,
        median_length=given.median_length,
        max_num_seqs=64,
    )
    print("SIMULATION, calibrated by the arguments; 256 completions a step, one engine of 64 sequences\n")  # noqa: T201
    when_async_pays(engine, given.publish_s, given.rounds)
    print()  # noqa: T201
    makespans(engine, given.publish_s, given.node_s, given.rounds * 4)


def simulate(setting: Setting) -> Measured:
    """A whole run in virtual time."""

    async def go() -> Measured:
        return await SimulatedRun(setting).go()

    return virtual_time.run(go())


def when_async_pays(engine: FakeSettings, publish_s: float, rounds: int) -> None:
    """Step time by staleness, for trainers slower and faster than the engine and for even and uneven lengths."""
    print("training : generation  lengths   max_staleness   step s   against 0   trainer waits   tokens behind")  # noqa: T201
    for sigma in (0.2, 1.0):
        lengths = replace(engine, length_sigma=sigma)
        # A trainer that takes no time shows what generation takes alone.
        alone = simulate(_setting(lengths, rounds, 0, 1e12, 0.0))
        generation_s = (alone.seconds - engine.start_s) / rounds
        round_tokens = alone.tokens / rounds + 256 * 100
        for ratio in (0.1, 1.0, 10.0):
            steps = {}
            for staleness in (0, 1, 4):
                speed = round_tokens / (generation_s * ratio)
                measured = simulate(_setting(lengths, rounds, staleness, speed, publish_s))
                seconds = measured.seconds - engine.start_s
                steps[staleness] = seconds / rounds
                waits = max(0.0, measured.waits_s - engine.start_s) / seconds
                print(  # noqa: T201
                    f"{ratio:>15.2f} : 1   {'even' if sigma < 0.5 else 'uneven':<8}{staleness:>15}"
                    f"{steps[staleness]:>9.2f}{steps[0] / steps[staleness]:>11.2f}x{waits:>15.0%}"
                    f"{measured.staleness:>16.2f}"
                )


def makespans(engine: FakeSettings, publish_s: float, node_s: float, rounds: int) -> None:
    """A load in waves: 20 steps of short completions, 20 of long ones, twice."""
    print("engines      makespan s   engine hours   most   trainer waits")  # noqa: T201
    uneven = replace(engine, length_sigma=1.0, median_length=400.0)
    for name, least, most in (("1", 1, 1), ("8", 8, 8), ("[1, 8]", 1, 8)):
        setting = Setting(
            engine=uneven,
            rule=Rule(least, most, window_s=30.0, up_after_s=10.0, down_after_s=60.0),
            num_rounds=rounds,
            max_staleness=1,
            train_tokens_per_s=20_000.0,
            max_tokens=lambda number: 1024 if number // 20 % 2 else 32,
            step_s=publish_s,
            node_s=node_s,
        )
        measured = simulate(setting)
        print(  # noqa: T201
            f"{name:<10}{measured.seconds:>13.0f}{measured.engine_s / 3600:>15.2f}{measured.most_engines:>7}"
            f"{measured.waits_s / measured.seconds:>16.0%}"
        )


def _setting(engine: FakeSettings, rounds: int, staleness: int, speed: float, publish_s: float) -> Setting:
    return Setting(
        engine=engine,
        rule=Rule(1, 1),
        num_rounds=rounds,
        max_staleness=staleness,
        train_tokens_per_s=speed,
        step_s=publish_s,
    )


if __name__ == "__main__":
    main()
