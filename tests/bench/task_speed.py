"""Speed of each task in one process beside its plain trainer, on the same rows, in processes that alternate.

    python -m tests.bench.task_speed [--steps 30] [--rounds 2] [--tasks dpo rm]

Prints one table: tokens/s of both once running, and the ratio, the median over steps of all rounds: step k of both
trains the same rows, so a noisy moment of the machine spoils a step and not the figure.
"""

import argparse
import statistics
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

from tests.bars.test_tasks_matrix import TASKS, rows_of
from tests.bench.sft_speed import rayswift_command, run, step_entries, write_model
from tests.ray import test_tasks

ROWS, WARM_STEPS = 2, 5


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    options = parser.parse_args()
    print("| task | tokens/s | of the plain trainer | ratio |")  # noqa: T201
    print("| --- | ---: | ---: | ---: |")  # noqa: T201
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        write_model(work / "model")
        for task in options.tasks:
            print(measure(task, work, options.steps, options.rounds), flush=True)  # noqa: T201


def measure(task: str, work: Path, steps: int, rounds: int) -> str:
    """A line of the table."""
    verb, *own = TASKS[task]
    rows = test_tasks.write(work / f"{task}.jsonl", rows_of(task, 150))
    seconds: dict[str, list[float]] = defaultdict(list)
    tokens: list[float] = []
    for number in range(rounds):
        ours, plain = work / f"{task}-{number}", work / f"{task}-{number}-plain"
        flags = {"max_length": 512, "per_device_train_batch_size": ROWS, "max_steps": steps, "data.max_bad_fraction": 1}
        run([*rayswift_command(verb, work / "model", rows, ours, flags), *own])
        plain.mkdir()
        cut = [str(steps), str(ROWS), "1"]
        run([sys.executable, "-m", "tests.ray.oracle_rows", str(ours), str(plain), *cut, verb])
        for name, folder in (("ours", ours), ("plain", plain)):
            seconds[name] += [entry["step_s"] for entry in step_entries(folder)[WARM_STEPS:]]
        tokens += [entry["tokens_per_s"] * entry["step_s"] for entry in step_entries(ours)[WARM_STEPS:]]
    ratio = statistics.median(plain / ours for plain, ours in zip(seconds["plain"], seconds["ours"], strict=True))
    speeds = [f"{sum(tokens) / sum(seconds[name]):,.0f}" for name in ("ours", "plain")]
    return f"| {task} | {speeds[0]} | {speeds[1]} | {ratio:.3f} |"


if __name__ == "__main__":
    main()
