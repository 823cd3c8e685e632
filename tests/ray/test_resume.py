"""SIGKILL of a worker, of Ray Train's controller, of the driver, during a save: the losses do not change."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from rayswift.run import checkpoint, events
from tests.html_page import Page
from tests.ray.conftest import WINDOWS, Run, assert_same_curve, curve, sft, start

STEPS, SAVE_EVERY = 24, 4
# LoRA with dropout: random states must come back too. Adam's states, schedule and data position in any case.
RUN = (
    *WINDOWS,
    "--num_workers", "2", "--zero_stage", "2", "--max_steps", str(STEPS), "--per_device_train_batch_size", "2",
    "--save_strategy", "steps", "--save_steps", str(SAVE_EVERY), "--lr_scheduler_type", "cosine",
    "--tuner", "lora", "--lora_dropout", "0.1", "--learning_rate", "1e-2",
)  # fmt: skip


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory, tiny: tuple[str, ...]) -> Path:
    run_dir = tmp_path_factory.mktemp("uninterrupted") / "run"
    sft(run_dir, *tiny, *RUN)
    return run_dir


@pytest.fixture
def killed(run_dir: Path, tiny: tuple[str, ...]) -> Callable[[int], Run]:
    """Start the run and return once it has logged a step."""

    def begin(step: int) -> Run:
        run = start("sft", run_dir, *tiny, *RUN)
        run.wait_for(
            lambda: (run_dir / "metrics.jsonl").exists() and max(curve(run_dir), default=0) >= step, f"step {step}"
        )
        return run

    return begin


def report_of(run_dir: Path) -> Page:
    """The run's page, which must be whole whenever it is looked at."""
    return Page((run_dir / "report.html").read_text(encoding="utf-8"))


def test_a_killed_feed_and_a_killed_worker_are_replaced(
    killed: Callable[[int], Run], run_dir: Path, uninterrupted: Path
) -> None:
    run = killed(3)
    run.kill("ray::Feed")
    run.wait_for(lambda: max(curve(run_dir)) >= 8, "step 8")
    run.kill("ray::RayTrainWorker")
    code, out = run.wait()
    assert code == 0, out
    assert_same_curve(run_dir, uninterrupted, 1e-5)
    kinds = [event.kind for event in events.read(run_dir)]
    if kinds.count("start") > 1:  # the kill came before the end
        assert "restarted after: worker" in report_of(run_dir).text


def test_a_run_that_ends_in_four_ways_continues_exactly(
    killed: Callable[[int], Run], run_dir: Path, tiny: tuple[str, ...], uninterrupted: Path
) -> None:
    """One after the other: each continues what the one before left."""
    right = curve(uninterrupted)
    again = (*tiny, *RUN, "--resume", "auto")
    ends: tuple[Callable[[], None], ...] = (
        lambda: controller_dies(killed(SAVE_EVERY + 1)),
        lambda: save_is_killed(start("sft", run_dir, *again), run_dir),
        lambda: save_is_interrupted(start("sft", run_dir, *again, as_a_user=True), run_dir),
        lambda: driver_dies(start("sft", run_dir, *again), run_dir),
    )
    for end in ends:
        end()
        assert curve(run_dir) == pytest.approx({step: right[step] for step in curve(run_dir)}, abs=1e-5)
    assert "continuing" in sft(run_dir, *again)
    assert_same_curve(run_dir, uninterrupted, 1e-5)
    page = report_of(run_dir)
    assert ("data-state", "finished") in page.attributes
    assert "continued from checkpoint-" in page.text


def controller_dies(run: Run) -> None:
    """The error is named, with what to do."""
    run.kill("ray::TrainController")
    code, out = run.wait()
    assert code == 1
    assert "controller died" in out
    assert "--resume auto" in out


def save_is_killed(run: Run, run_dir: Path) -> None:
    """The checkpoint before the half one is the newest."""
    run.wait_for((run_dir / f"checkpoint-{2 * SAVE_EVERY}").exists, "the second save")
    run.kill_all()
    for saved in checkpoint.find_all(run_dir):
        if saved.step > SAVE_EVERY:  # the save was faster than the kill: leave the half that a kill would leave
            (saved.path / checkpoint.MANIFEST).unlink()
    newest = checkpoint.newest(run_dir)
    assert newest is not None
    assert newest.step == SAVE_EVERY


def save_is_interrupted(run: Run, run_dir: Path) -> None:
    """By SIGTERM, as `kill`, Slurm, Kubernetes and `ray job stop` send it; tests/bars/test_signals.py has all of it."""
    run.wait_for((run_dir / f"checkpoint-{3 * SAVE_EVERY}").exists, "the third save")
    below = psutil.Process(run.process.pid).children(recursive=True)
    assert os.getpgid(run.process.pid) not in {os.getpgid(each.pid) for each in below if "ray/core" in each.exe()}
    began = time.monotonic()
    run.process.send_signal(signal.SIGTERM)
    code, out = run.wait()
    assert time.monotonic() - began < 5  # `ray job stop` and others kill soon
    assert code == 143, out
    assert out.splitlines()[-1] == "interrupted"
    assert "Traceback" not in out
    _, alive = psutil.wait_procs(below, timeout=10)
    assert not alive
    assert events.read(run_dir)[-1].state == "interrupted"
    assert ("data-state", "interrupted") in report_of(run_dir).attributes


def driver_dies(run: Run, run_dir: Path) -> None:
    """The page is still whole."""
    before = max(curve(run_dir))
    run.wait_for(lambda: max(curve(run_dir)) > before, "a step that is new")
    run.kill_driver()
    report_of(run_dir)


def test_what_changes_a_step_is_refused(run_dir: Path, tiny: tuple[str, ...], uninterrupted: Path) -> None:
    """Continuing with other settings names them; a run folder that holds a run is not overwritten."""
    out = sft(uninterrupted, *tiny, *RUN, "--resume", "auto", "--seed", "1", "--lora_rank", "4", code=2)
    assert "train.seed: was 42, is 1" in out
    assert "model.lora_rank: was 8, is 4" in out
    out = sft(uninterrupted, *tiny, *RUN, code=2)
    assert "--resume auto" in out
    out = sft(run_dir, *tiny, *RUN, "--resume", str(run_dir / "checkpoint-3"), code=2)
    assert "is not a complete checkpoint: there is no such folder; give auto, never, or the checkpoint-N" in out
