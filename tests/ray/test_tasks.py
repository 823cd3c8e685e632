"""Each task against the plain trainer of TRL or transformers on the same rows in the same order, float32."""

import json
import subprocess
import sys
from pathlib import Path

from tests.ray.conftest import ROOT, assert_same_curve, train

STEPS, PER_DEVICE, ACCUMULATION = 8, 2, 2
TOLERANCE = 1e-4


def flags(rows: Path, steps: int = STEPS) -> tuple[str, ...]:
    """A small, fast, deterministic run in this process."""
    return (
        "--model", "examples/tiny", "--random_init", "--data.dataset", str(rows), "--max_length", "256",
        "--window_rows", "64", "--learning_rate", "1e-3", "--logging_steps", "1", "--save_strategy", "no",
        "--gradient_checkpointing", "false", "--report_to", "none", "--timeout_s", "60", "--num_workers", "0",
        "--zero_stage", "0", "--max_steps", str(steps), "--data.max_bad_fraction", "1",
        "--per_device_train_batch_size", str(PER_DEVICE), "--gradient_accumulation_steps", str(ACCUMULATION),
    )  # fmt: skip


def gsm8k(num_rows: int) -> list[dict[str, str]]:
    """The first word problems of the examples."""
    lines = (ROOT / "examples" / "gsm8k" / "train.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines[:num_rows]]


def write(path: Path, rows: list[dict[str, str]]) -> Path:
    """Rows as jsonl."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def reference(module: str, run_dir: Path, out_dir: Path, *arguments: str) -> Path:
    """The plain trainer on the rows of a run, in a process of its own."""
    out_dir.mkdir()
    numbers = (str(STEPS), str(PER_DEVICE), str(ACCUMULATION))
    command = [sys.executable, "-m", module, str(run_dir), str(out_dir), *numbers, *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    return out_dir


def test_pt_equals_plain_trl(tmp_path: Path) -> None:
    """Long texts are split, every token is trained, and messages are read without the template."""
    rows = gsm8k(160)
    texts = [{"text": "\n\n".join(row["question"] for row in rows[i : i + 8])} for i in range(0, 80, 8)]
    path = write(tmp_path / "rows.jsonl", texts + rows[80:])
    train("pt", tmp_path / "run", *flags(path))
    theirs = reference("tests.ray.oracle_trl", tmp_path / "run", tmp_path / "trl", "pt")
    assert_same_curve(tmp_path / "run", theirs, TOLERANCE)
    entries = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert all(entry["trained_tokens_per_s"] > 0.9 * entry["tokens_per_s"] for entry in entries if "loss" in entry)
