"""A whole GRPO step beside a bare loop without any framework and beside TRL's `GRPOTrainer` with its own generation.

    python -m tests.bench.grpo_step [--scenes sums long] [--steps 30] [--rounds 2]

The same prompts, rewards, completions a step and threads for all, each a process of its own, one after the other. Sums:
128 prompts x 8 short completions, of a tiny model that adds unreliably. Long: 32 x 8 completions of up to 256 tokens,
uneven, of a model of 6 M parameters after supervised training on GSM8K. Prints one table: median seconds of a step once
running, over the rounds, beside the bare loop's and TRL's; to stderr each contestant's last step as it comes.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from dataclasses import asdict
from pathlib import Path

from tests.bench.grpo_cases import CASES, ROOT, THREADS, Scene
from tests.bench.sft_speed import write_model

EXAMPLES = ROOT / "examples"
TRL, BARE = "TRL GRPOTrainer", "bare loop"
WARM_STEPS = 5
TRL_LONG_STEPS, LONG_STEPS = 1, 3  # most of a minute each; of TRL minutes, so its first is counted


def sums(work: Path) -> Scene:
    """Short completions."""
    rows = [json.loads(line)["messages"] for line in (EXAMPLES / "sums/train.jsonl").read_text().splitlines()]
    asked = [{"messages": [question], "answer": answer["content"]} for question, answer in rows]
    flags = {"max_steps": 800, "eval_strategy": "no", "save_steps": 800}
    model = supervised(work / "sums", EXAMPLES / "sums_sft.yaml", flags)
    return Scene(str(model), write_rows(work / "sums.jsonl", asked), 128, (32, 8), 10240)


def long(work: Path) -> Scene:
    """Long, uneven completions."""
    rows = [json.loads(line) for line in (EXAMPLES / "gsm8k/train.jsonl").read_text().splitlines()]
    asked = [
        {"messages": [{"role": "user", "content": row["question"]}], "answer": row["answer"].split()[-1]}
        for row in rows
        if len(row["question"]) < 400
    ]
    write_model(work / "six")
    flags = {"model": work / "six", "max_steps": 90, "eval_strategy": "no", "save_steps": 90, "learning_rate": 2e-3}
    model = supervised(work / "long", EXAMPLES / "gsm8k_sft.yaml", flags)
    return Scene(str(model), write_rows(work / "long.jsonl", asked), 32, (256, 256), 8192)


def supervised(run_dir: Path, config: Path, flags: dict[str, object]) -> Path:
    """The checkpoint of a short supervised run."""
    every = {"config": config, "train.output_dir": run_dir, "num_workers": 0, "report_to": "none", **flags}
    run([sys.executable, "-m", "rayswift", "sft", *(str(x) for k, v in every.items() for x in (f"--{k}", v))])
    return run_dir / f"checkpoint-{flags['max_steps']}"


def write_rows(path: Path, rows: list[dict[str, object]]) -> str:
    """As JSON lines."""
    path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    return str(path)


def run(command: list[str]) -> str:
    """Its output."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(THREADS), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=3600, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    return done.stdout


def seconds(case: str, scene: Scene, steps: int, warm: int) -> list[float]:
    """Of the steps once running."""
    out = run([sys.executable, "-m", "tests.bench.grpo_cases", case, json.dumps(asdict(scene)), str(steps)])
    times: list[float] = json.loads(out.splitlines()[-1])
    return times[warm:]


def main() -> None:
    """Measure and print."""
    scenes = {"sums": sums, "long": long}
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scenes", nargs="+", default=list(scenes), choices=list(scenes))
    parser.add_argument("--steps", type=int, default=30, help="of sums")
    parser.add_argument("--rounds", type=int, default=2, help="of sums")
    options = parser.parse_args()
    lines = ["| scene | | s a step | of the bare loop | of TRL |", "| --- | --- | ---: | ---: | ---: |"]
    with tempfile.TemporaryDirectory() as temporary:
        for name in options.scenes:
            scene = scenes[name](Path(temporary))
            found: dict[str, list[float]] = defaultdict(list)
            for _ in range(options.rounds if name == "sums" else 1):
                for case in CASES:
                    steps, warm = (options.steps, WARM_STEPS) if name == "sums" else (LONG_STEPS, 1)
                    if name == "long" and case == TRL:
                        steps, warm = TRL_LONG_STEPS, 0
                    found[case] += seconds(case, scene, steps, warm)
                    print(f"{name}, {case}: {found[case][-1]:.3f} s", file=sys.stderr)  # noqa: T201
            medians = {case: statistics.median(times) for case, times in found.items()}
            for case, median in medians.items():
                of = [f"{median / medians[other]:.2f}" for other in (BARE, TRL)]
                lines.append(f"| {name} | {case} | {median:.3f} | {of[0]} | {of[1]} |")
    print("\n".join(lines))  # noqa: T201


if __name__ == "__main__":
    main()
