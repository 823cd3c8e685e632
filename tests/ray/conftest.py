"""Runs of the real command line, each in separate processes."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from rayswift.config.schema import TRAINING_VERBS
from rayswift.run import checkpoint
from tests.ray.forked import Forked

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 240
TINY = (
    "--model", "examples/tiny", "--random_init", "--data.dataset", "examples/gsm8k/train.jsonl",
    "--max_length", "256", "--learning_rate", "1e-3", "--logging_steps", "1",
    "--save_strategy", "no", "--gradient_checkpointing", "false", "--report_to", "none", "--timeout_s", "60",
    "--data.max_bad_fraction", "1", "--threads_per_worker", "1",
)  # fmt: skip
"""Flags of a small, fast, deterministic run with dropout in it (through LoRA, where that is on)."""
WINDOWS = ("--window_rows", "64")
"""Several windows of rows, which Ray Data makes. The rows of `TINY` are one window, which needs no Ray Data."""
IN_PROCESS = ("--num_workers", "0")
"""The trainer in the command's process, which has done the imports. Of two such flags the last one counts."""


@dataclass
class Run:
    """A command that is running, and the run folder it writes."""

    process: subprocess.Popen[str] | Forked
    run_dir: Path | str

    def wait(self, timeout_s: float = TIMEOUT_S) -> tuple[int, str]:
        """Exit code and output."""
        out, _ = self.process.communicate(timeout=timeout_s)
        assert self.process.returncode is not None
        return self.process.returncode, out

    def wait_for(self, condition: Callable[[], bool], what: str, timeout_s: float = 120) -> None:
        """Wait until something is so while the command runs."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert self.process.poll() is None, f"ended before {what}: {self.process.communicate()[0]}"
            assert time.monotonic() < deadline, f"no {what} within {timeout_s} s"
            time.sleep(0.02)

    def processes(self, name: str) -> list[psutil.Process]:
        """Child processes of the command whose title begins with `name`, without their own forks."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        named = {child.pid: child for child in children if _name(child).startswith(name[:15])}
        return [child for child in named.values() if _parent(child) not in named]

    def send(self, name: str, number: signal.Signals) -> None:
        """Send a signal to the first of them."""
        found = self.processes(name)
        assert found, f"no process {name}"
        found[0].send_signal(number)

    def kill(self, name: str) -> None:
        """SIGKILL the first of them."""
        self.send(name, signal.SIGKILL)

    def kill_all(self) -> None:
        """SIGKILL the train workers and the command at once, as if the machine failed."""
        for child in psutil.Process(self.process.pid).children(recursive=True):
            if _name(child).startswith("ray::RayTrainWorker"[:15]):
                child.kill()
        self.kill_driver()

    def kill_driver(self) -> None:
        """SIGKILL the command, and wait until the Ray that it started has ended too."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        self.process.kill()
        self.process.wait()
        # Ray's agents look for their raylet at longer intervals; they hold nothing of the run.
        _, alive = psutil.wait_procs([c for c in children if "Agent" not in _name(c)], timeout=60)
        assert not alive, f"left behind: {alive}"


def _name(process: psutil.Process) -> str:
    try:
        return process.name()
    except psutil.NoSuchProcess:
        return ""


def _parent(process: psutil.Process) -> int:
    try:
        return process.ppid()
    except psutil.NoSuchProcess:
        return 0


def start(verb: str, run_dir: Path | str, *flags: str, as_a_user: bool = False) -> Run:
    """Start `rayswift <verb>`; `run_dir` becomes `train.output_dir` where the verb has one.

    as_a_user: a Python of its own in place of a fork of one that has done the imports.
    """
    argv = [verb, *flags]
    if verb in TRAINING_VERBS:
        argv += ["--train.output_dir", str(run_dir)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    if as_a_user:
        command = [sys.executable, "-m", "rayswift", *argv]
        pipe = subprocess.PIPE
        return Run(
            subprocess.Popen(command, cwd=ROOT, env=environment, stdout=pipe, stderr=subprocess.STDOUT, text=True),
            run_dir,
        )
    return Run(Forked("rayswift", argv, environment, ROOT), run_dir)


def reference(module: str, out_dir: Path, *argv: object) -> Path:
    """Run a reference trainer (`python -m module ...`) to its end, in a process of one thread; returns `out_dir`."""
    process = Forked(module, [str(word) for word in argv], dict(os.environ), ROOT, num_threads=1)
    out, _ = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0, out
    return out_dir


def train(verb: str, run_dir: Path | str, *flags: str, code: int = 0, timeout_s: float = TIMEOUT_S) -> str:
    """Run a training verb to its end and check the exit code; returns what it printed."""
    exit_code, out = start(verb, run_dir, *flags).wait(timeout_s)
    assert exit_code == code, out
    return out


def sft(run_dir: Path | str, *flags: str, code: int = 0) -> str:
    """`train` with `rayswift sft`."""
    return train("sft", run_dir, *flags, code=code)


def train_through_kills(run_dir: Path, *flags: str, first: str = "", last: str = "") -> str:
    """A run of `rlhf` whose driver is killed behind its first checkpoint, and an engine once it is continued.

    first: a process that is killed behind the first step; last: one that is killed behind the second checkpoint.
    Returns what both commands printed.
    """
    run = start("rlhf", run_dir, *flags)
    if first:
        run.wait_for(lambda: (run_dir / "metrics.jsonl").exists() and 1 in curve(run_dir), "a step", timeout_s=200)
        run.kill(first)
    run.wait_for(lambda: checkpoint.newest(run_dir) is not None, "a checkpoint", timeout_s=200)
    run.kill_driver()
    resumed = start("rlhf", run_dir, *flags, "--resume", "auto")
    before = max(curve(run_dir))
    resumed.wait_for(lambda: max(curve(run_dir)) > before or resumed.process.poll() is not None, "a step", 200)
    if resumed.process.poll() is None:
        resumed.kill("ray::VllmEngine")
    if last:
        saved = len(checkpoint.find_all(run_dir))
        resumed.wait_for(lambda: len(checkpoint.find_all(run_dir)) > saved, "a second checkpoint", timeout_s=200)
        resumed.kill(last)
    code, out = resumed.wait()
    assert code == 0, out
    return run.process.communicate()[0] + out


def make_model(folder: Path, width: int) -> None:
    """A tiny model of another width, with random weights and the tokenizer of `examples/tiny`."""
    from transformers import AutoConfig, AutoModelForCausalLM

    subprocess.run([sys.executable, "examples/tiny/make.py", str(folder), str(width)], cwd=ROOT, check=True)
    AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder)).save_pretrained(folder)


def curve(run_dir: Path, key: str = "loss") -> dict[int, float]:
    """The values of a metric, by step."""
    entries = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return {entry["step"]: entry[key] for entry in entries if key in entry}


def close_to(values: dict[int, float], tolerance: float) -> Any:
    """Equal within float32: `tolerance` for values below 10, a tenth of it relative to larger ones.

    Float32 rounds each result by up to 6e-8 of it. Another order of summing (threads, ranks, the kernels of another
    CPU) moves a sum of thousands of terms by tens of roundings, and optimizer steps make the difference grow. At 1e-4
    the relative bound, 1e-5, is 170 roundings. Losses and their differences are small beside the log-probabilities
    they are sums of, so that they have the absolute bound.
    """
    return pytest.approx(values, abs=tolerance, rel=tolerance / 10)


def assert_same_curve(
    run_dir: Path, reference: Path, tolerance: float, keys: tuple[str, ...] = ("loss", "grad_norm")
) -> None:
    """Every step of the reference is there, with the same values as `close_to` has it."""
    for key in keys:
        ours, theirs = curve(run_dir, key), curve(reference, key)
        assert ours.keys() == theirs.keys()
        assert ours == close_to(theirs, tolerance), key


def assert_same_end(
    run_dir: Path, whole: Path, step: int, tolerance: float, keys: tuple[str, ...] = ("loss", "grad_norm")
) -> None:
    """Check that a continued run equals the whole run from that step on."""
    for key in keys:
        end = {at: value for at, value in curve(whole, key).items() if at > step}
        assert curve(run_dir, key) == close_to(end, tolerance), key


@pytest.fixture(scope="session")
def tiny() -> tuple[str, ...]:
    """The flags of `TINY`."""
    return TINY


@pytest.fixture
def run_dir(tmp_path: Path) -> Iterator[Path]:
    """A run folder that does not exist yet."""
    yield tmp_path / "run"
