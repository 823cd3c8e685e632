"""Rows to a served model, as a user goes: the README's commands, GSM8K rows on two workers, the demo."""

import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.ray.conftest import ROOT, curve, sft, start

README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = [
    line.strip()
    for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines()
    if line.strip().startswith("rayswift ")
]


def ask(run_dir: Path, backend: str, question: str) -> str:
    """One greedy answer."""
    flags = ("--model", str(run_dir), "--prompt", question, "--max_new_tokens", "32", "--backend", backend)
    command = [sys.executable, "-m", "rayswift", "infer", *flags]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_gsm8k_on_two_workers(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two workers, ZeRO-2, packing, one command: the evaluation loss falls, vLLM and transformers agree.

    Another cluster that was begun here with `ray start` is not joined, nor one that has left only its note.
    """
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp") as ray_folder:  # a longer path is none for a socket
        monkeypatch.setenv("RAY_TMPDIR", ray_folder)
        (Path(ray_folder) / "ray").mkdir()
        (Path(ray_folder) / "ray/ray_current_cluster").write_text("127.0.0.1:1")
        gsm8k_on_two_workers(run_dir)


def gsm8k_on_two_workers(run_dir: Path) -> None:
    sft(
        run_dir,
        *("--config", "examples/gsm8k_sft.yaml", "--num_workers", "2", "--zero_stage", "2"),
        *("--max_steps", "24", "--eval_strategy", "steps", "--eval_steps", "8", "--save_steps", "24"),
    )
    evals = curve(run_dir, "eval_loss")
    assert sorted(evals) == [8, 16, 24]
    assert evals[8] > evals[16] > evals[24]
    question = "Natalia sold clips to 48 of her friends in April, and half as many in May. How many in all?"
    assert ask(run_dir, "vllm", question) == ask(run_dir, "transformers", question)


@pytest.mark.parametrize("command", COMMANDS)
def test_the_commands_of_the_readme_are_understood(command: str, tmp_path: Path) -> None:
    verb, *flags = shlex.split(command, comments=True)[1:]
    if verb.startswith("--"):
        flags, verb = [], verb
    dry = ["--dry_run"] if verb in ("pt", "sft", "rlhf", "infer", "export") and "--help" not in flags else []
    code, out = start(verb, tmp_path, *flags, *dry, as_a_user=True).wait()
    assert code == 0 or "runs/" in command, out  # a run folder that only a real run would have made
    assert "Traceback" not in out


def test_the_demo(tmp_path: Path) -> None:
    """A few steps of each of its runs; tests/bars/test_demo.py runs all of it."""
    command = [sys.executable, "examples/demo.py", "--max_steps", "5", "--runs", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Accuracy on 500 test sums: 0.0% -> " in done.stdout
    assert "GRPO, answers sampled at temperature 1: " in done.stdout
