"""`rayswift sft` on one NVIDIA GPU beside plain TRL `SFTTrainer` on the same packed batches: equality, speed, memory.

    python -m tests.bench.gpu_sft [--steps 40] [--max_length 2048] [--hidden 1024] [--layers 24]

First the losses of eight float32 steps, ours against plain TRL's; then bfloat16: median step time, tokens/s,
the ratio to plain TRL in the same run, and the most GPU memory that was allocated.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.bench.sft_speed import ROOT, WARM_STEPS

PER_DEVICE = 4


@dataclass(frozen=True)
class Case:
    """One line of the table; plain TRL has no workers."""

    name: str
    workers: int | None
    flags: dict[str, Any] = field(default_factory=dict)


CASES = [
    Case("plain TRL SFTTrainer", None),
    Case("in-process, ZeRO 0", 0),
    Case("1 worker, ZeRO 0", 1),
    Case("1 worker, ZeRO 2", 1, {"zero_stage": 2}),
    Case("1 worker, ZeRO 3", 1, {"zero_stage": 3}),
    Case("1 worker, LoRA", 1, {"tuner": "lora"}),
    Case("1 worker, gradient checkpointing", 1, {"gradient_checkpointing": "true"}),
    Case("1 worker, flex attention", 1, {"attn_implementation": "flex_attention"}),
]


def write_model(folder: Path, hidden: int, layers: int) -> None:
    """A Qwen-style model beside the tokenizer of examples/tiny."""
    folder.mkdir()
    for file in (ROOT / "examples" / "tiny").glob("*"):
        if file.suffix in (".json", ".jinja"):
            (folder / file.name).write_text(file.read_text())
    config = json.loads((folder / "config.json").read_text())
    config |= {"hidden_size": hidden, "intermediate_size": 3 * hidden, "num_hidden_layers": layers, "head_dim": 64}
    config |= {"num_attention_heads": hidden // 64, "num_key_value_heads": hidden // 128, "vocab_size": 32000}
    config |= {"max_position_embeddings": 32768}
    for key in ("layer_types", "max_window_layers"):
        config.pop(key, None)
    (folder / "config.json").write_text(json.dumps(config))


def train(case: Case, model: Path, run_dir: Path, steps: int, max_length: int, dtype: str) -> str:
    """Run a case from the command line; "" or the end of what it printed if it failed."""
    flags = {
        "model": model, "random_init": "true", "data.dataset": "examples/gsm8k/train.jsonl", "max_length": max_length,
        "num_workers": case.workers, "zero_stage": 0, "max_steps": steps, "logging_steps": 1, "dtype": dtype,
        "per_device_train_batch_size": PER_DEVICE, "gradient_checkpointing": "false", "save_strategy": "no",
        "report_to": "none", "train.output_dir": run_dir, **case.flags,
    }  # fmt: skip
    return run([sys.executable, "-m", "rayswift", "sft", *(str(x) for k, v in flags.items() for x in (f"--{k}", v))])


def plain(reference: Path, out_dir: Path, steps: int) -> str:
    """Plain TRL on the rows of a run."""
    out_dir.mkdir()
    return run([sys.executable, "-m", "tests.ray.oracle_trl", *map(str, (reference, out_dir, steps, PER_DEVICE, 1))])


def run(command: list[str]) -> str:
    """ "" or the end of what a failed command printed."""
    done = subprocess.run(command, cwd=ROOT, env=dict(os.environ), capture_output=True, text=True, timeout=300)
    return "" if done.returncode == 0 else (done.stdout + done.stderr)[-1500:]


def metrics(run_dir: Path) -> list[dict[str, Any]]:
    """Log entries of training steps."""
    entries = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [entry for entry in entries if "loss" in entry]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--max_length", type=int, default=2048)
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--cases", type=int, nargs="*", default=list(range(len(CASES))))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        write_model(work / "model", options.hidden, options.layers)
        equality(work)
        say("| case | ms a step | tokens/s | of plain TRL | GPU memory, GiB | command, s |")
        say("| --- | ---: | ---: | ---: | ---: | ---: |")
        reference = work / "reference"
        problem = train(Case("", 0), work / "model", reference, 2, options.max_length, "auto")
        if problem:
            raise SystemExit(problem)
        base = 0.0
        for number in options.cases:
            case, run_dir, began = CASES[number], work / f"run-{number}", time.monotonic()
            if case.workers is None:
                problem = plain(reference, run_dir, options.steps)
            else:
                problem = train(case, work / "model", run_dir, options.steps, options.max_length, "auto")
            if problem:
                say(f"| {case.name} | failed: {problem} |")
                continue
            base = show(case.name, metrics(run_dir), base, options.max_length, time.monotonic() - began)


def show(name: str, entries: list[dict[str, Any]], base: float, max_length: int, wall_s: float) -> float:
    """Print a line of the table; returns plain TRL's step time, 0 before it is known."""
    step_s = statistics.median(entry["step_s"] for entry in entries[WARM_STEPS:])
    base = step_s if name == CASES[0].name else base
    memory = max((entry.get("gpu_memory_gib", 0.0) for entry in entries), default=0.0)
    tokens = PER_DEVICE * max_length / step_s
    ratio = f"{base / step_s:.2f}" if base else ""
    say(f"| {name} | {step_s * 1000:.0f} | {tokens:,.0f} | {ratio} | {memory:.1f} | {wall_s:.0f} |")
    return base


def equality(work: Path) -> None:
    """The largest difference of the first losses in float32."""
    problem = train(Case("", 0), work / "model", work / "ours", 8, 512, "float32")
    problem = problem or plain(work / "ours", work / "theirs", 8)
    if problem:
        raise SystemExit(problem)
    pairs = list(zip(metrics(work / "ours"), metrics(work / "theirs"), strict=True))
    for key in ("loss", "grad_norm"):
        say(f"float32, 8 steps, largest difference of {key}: {max(abs(a[key] - b[key]) for a, b in pairs):.1e}")


def say(line: str) -> None:
    """Print at once: a table that is cut off shows what was measured."""
    print(line, flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
