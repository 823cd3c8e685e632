"""Every signal, in every mode, at every moment of a run: exit code, last line, leftovers, and a resume.

Some 15 minutes, by hand: pytest -s tests/bars/test_signals.py; it prints a table.
"""

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from rayswift.run import checkpoint, events
from tests.ray.conftest import ROOT, Run, assert_same_curve, curve, train

STEPS, SAVE_EVERY = 6, 3
GONE_WITHIN_S = 10  # Ray's agents look for their raylet at intervals
REWARDS = """
def digits(completions):
    return [sum(letter.isdigit() for letter in each[0]["content"]) / 10 for each in completions]
"""
COMMON = (
    "--model", "examples/tiny", "--random_init", "--max_steps", str(STEPS), "--learning_rate", "1e-3",
    "--logging_steps", "1", "--save_strategy", "steps", "--save_steps", str(SAVE_EVERY), "--eval_strategy", "steps",
    "--eval_steps", "2", "--gradient_checkpointing", "false", "--report_to", "none", "--threads_per_worker", "1",
    "--timeout_s", "120",
)  # fmt: skip
ROWS = (
    "--data.dataset", "examples/gsm8k/train.jsonl", "--data.eval", "examples/gsm8k/train.jsonl#1500",
    "--max_length", "256", "--window_rows", "64", "--data.max_bad_fraction", "1", "--per_device_train_batch_size", "2",
    "--per_device_eval_batch_size", "1",
)  # fmt: skip
SUMS = (
    "--rlhf_type", "grpo", "--data.dataset", "examples/sums/train.jsonl",
    "--data.eval", "examples/sums/train.jsonl#64",
    "--max_prompt_length", "32", "--max_completion_length", "12", "--num_generations", "4",
    "--global_batch_size", "32", "--canary_steps", "2", "--num_workers", "1",
    "--engine_kwargs", '{"enforce_eager": true, "kv_cache_memory_bytes": 67108864}',
)  # fmt: skip
MODES = {
    "in process": ("sft", (*COMMON, *ROWS, "--num_workers", "0", "--global_batch_size", "4")),
    "2 workers": ("sft", (*COMMON, *ROWS, "--num_workers", "2", "--zero_stage", "2", "--global_batch_size", "4")),
    "GRPO": ("rlhf", (*COMMON, *SUMS)),
}
Table = list[tuple[str, ...]]


@pytest.fixture(scope="module")
def rewards(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    file = tmp_path_factory.mktemp("rewards") / "rewards.py"
    file.write_text(REWARDS)
    return "--reward_funcs", f"{file}:digits"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, rewards: tuple[str, ...]) -> Callable[[str], Path]:
    """The run of a mode without interruption."""
    done: dict[str, Path] = {}

    def of(mode: str) -> Path:
        if mode not in done:
            verb, flags = MODES[mode]
            done[mode] = tmp_path_factory.mktemp("whole") / "run"
            train(verb, done[mode], *flags, *(rewards if mode == "GRPO" else ()))
        return done[mode]

    return of


@pytest.fixture(scope="module")
def table() -> Iterator[Table]:
    rows: Table = []
    yield rows
    print("\nsignal | mode | during | exit code | s to the end | last line | left behind | resumed")  # noqa: T201
    for row in rows:
        print(" | ".join(row))  # noqa: T201


def marked(mark: str) -> list[psutil.Process]:
    """Processes with this environment variable: all that a command has started."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("RAYSWIFT_MARK") == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


def has_begun(mark: str, program: str) -> bool:
    """Whether one of them has `program` in its first word."""
    for process in marked(mark):
        try:
            if program in " ".join(process.cmdline()[:1]):
                return True
        except psutil.Error:  # it has ended
            continue
    return False


def during_training(run: Run, run_dir: Path, mark: str) -> None:
    run.wait_for(lambda: (run_dir / "metrics.jsonl").exists() and max(curve(run_dir), default=0) >= 1, "a step", 200)


def during_evaluation(run: Run, run_dir: Path, mark: str) -> None:
    run.wait_for(lambda: (run_dir / "metrics.jsonl").exists() and max(curve(run_dir), default=0) >= 2, "step 2", 200)
    time.sleep(0.2)
    key = "eval_reward" if "--rlhf_type" in run.process.args else "eval_loss"
    assert not curve(run_dir, key), "the evaluation was over already"


def during_the_first_save(run: Run, run_dir: Path, mark: str) -> None:
    run.wait_for((run_dir / f"checkpoint-{SAVE_EVERY}").exists, "the first save", 200)


def before_ray(run: Run, run_dir: Path, mark: str) -> None:
    time.sleep(1.0)
    assert run.process.poll() is None


def while_ray_starts(run: Run, run_dir: Path, mark: str) -> None:
    run.wait_for(lambda: has_begun(mark, "gcs_server"), "Ray", 60)


def while_workers_start(run: Run, run_dir: Path, mark: str) -> None:
    run.wait_for(lambda: has_begun(mark, "ray::"), "an actor", 60)


MOMENTS = {
    "training": during_training,
    "evaluation": during_evaluation,
    "the first save": during_the_first_save,
    "imports": before_ray,
    "ray.init": while_ray_starts,
    "workers' start": while_workers_start,
}
SIGNALS = {
    "SIGINT": signal.SIGINT,
    "SIGTERM": signal.SIGTERM,
    "SIGTERM to the group, SIGKILL after 5 s": signal.SIGTERM,
}


VERBS = {
    "data encode": (
        "data", "encode", "--model", "examples/tiny", "--data.dataset", "examples/gsm8k/train.jsonl", "--window_rows",
        "64", "--data.max_bad_fraction", "1", "--to",
    ),
    "infer": (
        "infer", "--backend", "transformers", "--max_new_tokens", "1500", "--prompt", *(["2+2="] * 50), "--model",
    ),
}  # fmt: skip


@pytest.mark.parametrize("after_s", [1.0, 6.0])
@pytest.mark.parametrize("verb", VERBS)
def test_other_verbs_end_in_order(verb: str, after_s: float, whole: Callable[[str], Path], tmp_path: Path) -> None:
    mark, last_word = uuid.uuid4().hex, str(tmp_path / "to") if verb == "data encode" else str(whole("in process"))
    process = subprocess.Popen(
        [sys.executable, "-m", "rayswift", *VERBS[verb], last_word], cwd=ROOT, text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "RAYSWIFT_MARK": mark}, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )  # fmt: skip
    time.sleep(after_s)
    assert process.poll() is None
    began = time.monotonic()
    process.terminate()
    out, _ = process.communicate(timeout=30)
    assert (process.returncode, out.splitlines()[-1]) == (143, "interrupted"), out
    assert time.monotonic() - began < 5
    deadline = time.monotonic() + GONE_WITHIN_S
    while marked(mark) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not marked(mark)


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("sent", SIGNALS)
def test_a_signal_ends_a_run_in_order(
    sent: str,
    mode: str,
    moment: str,
    run_dir: Path,
    rewards: tuple[str, ...],
    whole: Callable[[str], Path],
    table: Table,
) -> None:
    verb, flags = MODES[mode]
    flags = (*flags, *rewards) if mode == "GRPO" else flags
    if moment == "workers' start" and mode == "in process":
        pytest.skip("there are none")
    mark, number = uuid.uuid4().hex, SIGNALS[sent]
    command = [sys.executable, "-m", "rayswift", verb, *flags, "--train.output_dir", str(run_dir)]
    process = subprocess.Popen(
        command, cwd=ROOT, env={**os.environ, "HF_HUB_OFFLINE": "1", "RAYSWIFT_MARK": mark}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    run = Run(process, run_dir)
    MOMENTS[moment](run, run_dir, mark)
    began = time.monotonic()
    if "group" in sent:
        os.killpg(process.pid, number)
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
    else:
        process.send_signal(number)
    code, out = run.wait(60)
    took_s = time.monotonic() - began
    deadline = time.monotonic() + GONE_WITHIN_S
    while marked(mark) and time.monotonic() < deadline:
        time.sleep(0.1)
    left = [each.name() for each in marked(mark)]
    last = out.splitlines()[-1]
    recorded = [event.state for event in events.read(run_dir)][-1:]
    saved_steps = [saved.step for saved in checkpoint.find_all(run_dir)]
    train(verb, run_dir, *flags, "--resume", "auto")
    assert_same_curve(run_dir, whole(mode), *(((1e-3, ("loss", "reward"))) if mode == "GRPO" else (1e-5,)))
    resumed = f"exact, from step {saved_steps[-1] if saved_steps else 0}"
    table.append((sent, mode, moment, str(code), f"{took_s:.1f}", last, ", ".join(left) or "none", resumed))
    print("\n" + " | ".join(table[-1]))  # noqa: T201
    assert code == 128 + number, out
    assert last == "interrupted", out
    assert "Traceback" not in out
    assert not left
    assert took_s < 5
    assert recorded in (["interrupted"], [])  # before the folder is the run's own there is nothing to record
