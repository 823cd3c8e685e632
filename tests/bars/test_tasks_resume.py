"""SIGKILL of a worker in the middle of a run of each kind of task: the losses are those of an undisturbed run.

Minutes, so not part of the suite: pytest tests/bars/test_tasks_resume.py
"""

from pathlib import Path

import pytest

from rayswift.run import events
from tests.bars.test_tasks_matrix import TASKS, TUNERS, rows_of
from tests.ray import test_tasks
from tests.ray.conftest import assert_same_curve, curve, start, train

STEPS = 14
RUN = (
    "--num_workers", "2", "--max_length", "512", "--per_device_train_batch_size", "2", "--global_batch_size", "4",
    "--save_strategy", "steps", "--save_steps", "4", "--lr_scheduler_type", "cosine",
)  # fmt: skip


@pytest.mark.parametrize(
    ("task", "tuner", "stage"),
    [("dpo", "full", 2), ("kto", "full", 3), ("kto", "lora", 0), ("embedding", "lora", 0), ("embedding", "full", 2)],
)
def test_a_killed_worker_changes_no_loss(task: str, tuner: str, stage: int, tmp_path: Path) -> None:
    verb, *own = TASKS[task]
    path = test_tasks.write(tmp_path / "rows.jsonl", rows_of(task))
    flags = (*test_tasks.flags(path, STEPS), *own, *TUNERS[tuner], *RUN, "--zero_stage", str(stage))
    train(verb, tmp_path / "whole", *flags)
    run = start(verb, tmp_path / "killed", *flags)
    log = tmp_path / "killed" / "metrics.jsonl"
    run.wait_for(lambda: log.exists() and max(curve(tmp_path / "killed"), default=0) >= 6, "step 6")
    run.kill("ray::RayTrainWorker")
    code, out = run.wait()
    assert code == 0, out
    kinds = [event.kind for event in events.read(tmp_path / "killed")]
    assert kinds.count("start") == 2, "the kill came too late"
    assert_same_curve(tmp_path / "killed", tmp_path / "whole", 1e-5)
