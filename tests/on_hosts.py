"""Commands on the hosts of `cluster/local_hosts.py`, with the time of each line; shared by tests/ray and tests/bars."""

import itertools
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from cluster import local_hosts
from cluster.local_hosts import Host, LocalHosts
from tests.conftest import REPO

ENVIRONMENT = {"PYTHONPATH": str(REPO), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
REWARDS = """
def digits(completions):
    return [sum(letter.isdigit() for letter in each[0]["content"]) / 10 for each in completions]
"""
_COMMON = (
    "--model", "tiny", "--random_init", "--learning_rate", "1e-3", "--logging_steps", "1", "--report_to", "none",
    "--gradient_checkpointing", "false", "--threads_per_worker", "1", "--device", "cpu",
)  # fmt: skip
SFT = (
    "sft", *_COMMON, "--data.dataset", "rows.jsonl", "--max_length", "256", "--window_rows", "64",
    "--data.max_bad_fraction", "1", "--per_device_train_batch_size", "1", "--global_batch_size", "6",
)  # fmt: skip
GRPO = (
    "rlhf", "--rlhf_type", "grpo", *_COMMON, "--data.dataset", "sums.jsonl", "--reward_funcs", "rewards.py:digits",
    "--max_prompt_length", "32", "--max_completion_length", "12", "--num_generations", "4", "--global_batch_size", "16",
    "--canary_steps", "2", "--engine_kwargs", '{"enforce_eager": true, "kv_cache_memory_bytes": 67108864}',
)  # fmt: skip


def skip_without_hosts() -> None:
    """Skip the test, with the reason, if this machine cannot have such hosts."""
    if (why := local_hosts.obstacle()) is not None:
        pytest.skip(f"no hosts on this machine: {why}")


def make_project(folder: Path) -> Path:
    """A user's folder with model, rows, prompts and rewards; the configs above use relative paths."""
    folder.mkdir()
    shutil.copytree(REPO / "examples" / "tiny", folder / "tiny")
    rows = (REPO / "examples" / "gsm8k" / "train.jsonl").read_text(encoding="utf-8").splitlines()[:300]
    (folder / "rows.jsonl").write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")
    shutil.copyfile(REPO / "examples" / "sums" / "train.jsonl", folder / "sums.jsonl")
    (folder / "rewards.py").write_text(REWARDS, encoding="utf-8")
    return folder


class Command:
    """A command that runs on a host."""

    def __init__(self, host: Host, argv: Sequence[str], folder: Path, environment: Mapping[str, str]):
        self.begun = time.monotonic()
        self.lines: list[tuple[float, str]] = []
        """Seconds since the start, and what was printed."""
        self._process = host.start(argv, folder, environment)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def now(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.begun

    @property
    def text(self) -> str:
        """Its whole output."""
        return "".join(line for _, line in self.lines)

    def wait_for(self, text: str, timeout_s: float = 120) -> float:
        """The time at which a text was first printed."""
        deadline = time.monotonic() + timeout_s
        while True:
            for at, line in list(self.lines):
                if text in line:
                    return at
            assert self._process.poll() is None, f"ended before {text!r}: {self.text}"
            assert time.monotonic() < deadline, f"no {text!r} within {timeout_s} s: {self.text}"
            time.sleep(0.1)

    def wait(self, timeout_s: float = 240) -> int:
        """The exit code; the command is ended if it takes longer."""
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            pytest.fail(f"did not end within {timeout_s} s: {self._report()}")
        finally:
            self.end()

    def end(self) -> None:
        """End it if it still runs, and show its output."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        self._reader.join(timeout=10)
        print(self._report())  # noqa: T201

    def longest_silence_s(self, since: float = 0.0) -> float:
        """The longest time without a line, from `since` to its end."""
        times = [since, *(at for at, _ in self.lines if at > since)]
        return max((b - a for a, b in itertools.pairwise(times)), default=0.0)

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.lines.append((self.now, line))

    def _report(self) -> str:
        return f"after {self.now:.0f} s:\n" + "".join(f"{at:7.1f} {line}" for at, line in self.lines)


def rayswift(
    hosts: LocalHosts, number: int, folder: Path, argv: Sequence[str], environment: Mapping[str, str] | None = None
) -> Command:
    """`rayswift ...` in a shell on a host."""
    command = [sys.executable, "-m", "rayswift", *argv]
    return Command(hosts[number], command, folder, {"RAY_ADDRESS": hosts.address, **(environment or {})})
