"""Speed of each task in one process beside its plain trainer, on the same rows, by turns; see `turns`.

    python -m tests.bench.task_speed [--steps 40] [--tasks dpo rm] [--rows 2] [--hidden 1024 --layers 24]

Prints one table: tokens/s of both once running, and the ratio, the median over steps: step k of both trains the same
rows, seconds apart, so a noisy moment of the machine spoils a step and not the figure.
"""

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

from tests.bars.test_tasks_matrix import TASKS, rows_of
from tests.bench import gpu_sft
from tests.bench.sft_speed import ROOT, rayswift_command, step_entries, write_model
from tests.bench.turns import CALLBACK, step_seconds
from tests.ray import test_tasks

WARM_STEPS = 6


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rows", type=int, default=2, help="of a micro-batch")
    parser.add_argument("--hidden", type=int, help="size of the model, 6 M parameters without it")
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    options = parser.parse_args()
    print("| task | tokens/s | of the plain trainer | ratio |")  # noqa: T201
    print("| --- | ---: | ---: | ---: |")  # noqa: T201
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        if options.hidden:
            gpu_sft.write_model(work / "model", options.hidden, options.layers)
        else:
            write_model(work / "model")
        for task in options.tasks:
            print(measure(task, work, options.steps, options.rows), flush=True)  # noqa: T201


def measure(task: str, work: Path, steps: int, num_rows: int) -> str:
    """A line of the table."""
    verb, *own = TASKS[task]
    rows = test_tasks.write(work / f"{task}.jsonl", rows_of(task, 450))
    ours, plain = work / task, work / f"{task}-plain"
    plain.mkdir()
    flags = {"max_length": 512, "per_device_train_batch_size": num_rows, "max_steps": steps, "data.max_bad_fraction": 1}
    command = rayswift_command(verb, work / "model", rows, ours, flags)
    cut = [str(steps), str(num_rows), "1"]
    reference = [sys.executable, "-m", "tests.ray.oracle_rows", str(ours), str(plain), *cut, verb, CALLBACK]
    times = step_seconds([([*command, *own, "--train.callbacks", CALLBACK], ours), (reference, plain)], ROOT)
    seconds, plain_seconds = (each[WARM_STEPS:] for each in times)
    ratio = statistics.median(theirs / own for own, theirs in zip(seconds, plain_seconds, strict=True))
    tokens = sum(entry["tokens_per_s"] * entry["step_s"] for entry in step_entries(ours)[WARM_STEPS:])
    return f"| {task} | {tokens / sum(seconds):,.0f} | {tokens / sum(plain_seconds):,.0f} | {ratio:.3f} |"


if __name__ == "__main__":
    main()
