"""Speed of `rayswift sft` beside plain TRL `SFTTrainer` on the same packed batches, in one run, at equal thread counts.

    python -m tests.bench.sft_speed [--steps 60] [--rounds 2] [--cases 10]

Plain TRL is also measured beside a Ray that does nothing but hold as many actors as a run of one worker does: what
Ray's own processes take from the cores, whatever the trainer. Prints one table: median step time and tokens/s once
running, their ratio to plain TRL (the median of the rounds' ratios: a round takes minutes, the machine's speed drifts
over more), seconds to the end of the first step, and wall time of the whole command.
"""

import argparse
import contextlib
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PER_DEVICE, MAX_LENGTH, WARM_STEPS = 4, 512, 10


@dataclass(frozen=True)
class Case:
    """One line of the table; plain TRL has no workers."""

    name: str
    workers: int | None
    stage: int = 0
    beside_idle_ray: bool = False


CASES = [
    Case("plain TRL SFTTrainer", None),
    Case("plain TRL beside an idle Ray", None, beside_idle_ray=True),
    Case("in-process, ZeRO 0", 0),
    Case("1 worker, ZeRO 0", 1),
    *(Case(f"1 worker, ZeRO {stage}", 1, stage) for stage in (1, 2, 3)),
    *(Case(f"2 workers, ZeRO {stage}", 2, stage) for stage in (0, 1, 2, 3)),
]
REPEATED = 4  # these first cases run in every round


# Feed, controller, synchronisation, and Ray Data's statistics and autoscaling.
IDLE_RAY = """
import ray
ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
class Idle:
    def answer(self): pass
actors = [ray.remote(num_cpus=0)(Idle).remote() for _ in range(5)]
ray.get([actor.answer.remote() for actor in actors])
print("up", flush=True)
input()
"""


@contextlib.contextmanager
def idle_ray(wanted: bool) -> Iterator[None]:
    """Hold a Ray with five actors that nobody calls, if wanted."""
    if not wanted:
        yield
        return
    command = [sys.executable, "-c", IDLE_RAY]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as ray:
        assert ray.stdout
        ray.stdout.readline()
        yield
        ray.communicate(b"\n", timeout=60)


def write_model(folder: Path) -> None:
    """A model of about 6 M parameters beside the tokenizer of examples/tiny."""
    folder.mkdir()
    for file in (ROOT / "examples" / "tiny").glob("*"):
        if file.suffix in (".json", ".jinja"):
            (folder / file.name).write_text(file.read_text())
    config = json.loads((folder / "config.json").read_text())
    config |= {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 6, "num_attention_heads": 4}
    config |= {"num_key_value_heads": 4, "head_dim": 64, "max_position_embeddings": 1024}
    for key in ("layer_types", "max_window_layers"):
        config.pop(key, None)
    (folder / "config.json").write_text(json.dumps(config))


def rayswift(case: Case, model: Path, run_dir: Path, steps: int) -> tuple[float, str]:
    """Run a case from the command line: wall seconds and output."""
    assert case.workers is not None
    flags = {
        "max_length": MAX_LENGTH, "num_workers": case.workers, "zero_stage": case.stage, "max_steps": steps,
        "per_device_train_batch_size": PER_DEVICE // max(1, case.workers),
    }  # fmt: skip
    return run(rayswift_command("sft", model, Path("examples/gsm8k/train.jsonl"), run_dir, flags))


def rayswift_command(verb: str, model: Path, rows: Path, run_dir: Path, flags: dict[str, int]) -> list[str]:
    """A run that logs every step; by default in this process and without ZeRO."""
    every = {
        "model": model, "random_init": "true", "data.dataset": rows, "num_workers": 0, "zero_stage": 0,
        "logging_steps": 1, "gradient_checkpointing": "false", "save_strategy": "no", "report_to": "none",
        "train.output_dir": run_dir,
    } | flags  # fmt: skip
    return [sys.executable, "-m", "rayswift", verb, *(str(x) for k, v in every.items() for x in (f"--{k}", v))]


def run(command: list[str]) -> tuple[float, str]:
    """Wall seconds and output of a command."""
    began = time.monotonic()
    environment = {**os.environ, "OMP_NUM_THREADS": str(os.cpu_count())}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    return time.monotonic() - began, done.stdout + done.stderr


def step_entries(run_dir: Path) -> list[dict[str, float]]:
    """What was logged of each step."""
    entries = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [entry for entry in entries if "loss" in entry]


def step_seconds(run_dir: Path) -> list[float]:
    """Step times once running."""
    return [entry["step_s"] for entry in step_entries(run_dir)][WARM_STEPS:]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--cases", type=int, default=len(CASES), help="only the first so many lines of the table")
    options = parser.parse_args()
    times: dict[str, list[float]] = defaultdict(list)  # median step time of each round
    walls: dict[str, list[float]] = defaultdict(list)
    first: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        write_model(work / "model")
        reference = work / "reference"
        rayswift(Case("", 0), work / "model", reference, 2)  # initial weights and tokenizer for plain TRL
        for number in range(options.rounds):
            for case in CASES[: options.cases] if number == 0 else CASES[: min(REPEATED, options.cases)]:
                run_dir = work / f"{number}-{case.name.replace(' ', '-')}"
                if case.workers is None:
                    run_dir.mkdir()
                    command = [sys.executable, "-m", "tests.ray.oracle_trl", str(reference), str(run_dir)]
                    with idle_ray(case.beside_idle_ray):
                        wall, _ = run([*command, str(options.steps), str(PER_DEVICE), "1"])
                else:
                    wall, out = rayswift(case, work / "model", run_dir, options.steps)
                    first[case.name] = "".join(re.findall(r"first step after ([\d.]+) s", out)[:1])
                times[case.name].append(statistics.median(step_seconds(run_dir)))
                walls[case.name].append(wall)
                step_ms = times[case.name][-1] * 1000
                print(f"  round {number + 1}, {case.name}: {step_ms:.0f} ms a step", file=sys.stderr)  # noqa: T201
    show(times, walls, first, options.steps)


def show(times: dict[str, list[float]], walls: dict[str, list[float]], first: dict[str, str], steps: int) -> None:
    """The table."""
    plain = times[CASES[0].name]
    print(f"| case | ms a step | tokens/s | of plain TRL | first step, s | {steps} steps from the command line, s |")  # noqa: T201
    print("| --- | ---: | ---: | ---: | ---: | ---: |")  # noqa: T201
    for case in (case for case in CASES if case.name in times):
        median = statistics.median(times[case.name])
        tokens = PER_DEVICE * MAX_LENGTH / median
        ratio = statistics.median(base / ours for base, ours in zip(plain, times[case.name], strict=False))
        cells = [f"{median * 1000:.0f}", f"{tokens:,.0f}", f"{ratio:.3f}", first.get(case.name, "")]
        print(f"| {case.name} | {' | '.join(cells)} | {statistics.median(walls[case.name]):.1f} |")  # noqa: T201


if __name__ == "__main__":
    main()
