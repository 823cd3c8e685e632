"""A run continued by another number of workers is the same run: loss and gradient norm of every step, float32."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.ray.conftest import WINDOWS, assert_same_curve, curve, sft

STEPS, SAVED_AT = 6, 3
TOLERANCE = 1e-4
TUNERS = {
    # Weight decay: stage 3 must give each parameter group its own again.
    "full": ("--tuner", "full", "--weight_decay", "0.1"),
    # Dropout draws per rank, so across worker counts it is off.
    "lora": ("--tuner", "lora", "--lora_dropout", "0", "--learning_rate", "1e-2"),
}


def flags(stage: int, tuner: str) -> tuple[str, ...]:
    return (
        *WINDOWS, *TUNERS[tuner], "--zero_stage", str(stage), "--max_steps", str(STEPS),
        "--per_device_train_batch_size", "2", "--gradient_accumulation_steps", "2",
        "--save_strategy", "steps", "--save_steps", str(SAVED_AT),
    )  # fmt: skip


@pytest.fixture(scope="module")
def two_workers(tmp_path_factory: pytest.TempPathFactory, tiny: tuple[str, ...]) -> Callable[[int, str], Path]:
    """The run of two workers from beginning to end, made once for each stage and tuner: 8 rows a step."""
    made: dict[tuple[int, str], Path] = {}

    def run(stage: int, tuner: str) -> Path:
        if (stage, tuner) not in made:
            made[stage, tuner] = tmp_path_factory.mktemp(f"{tuner}-{stage}") / "run"
            sft(made[stage, tuner], *tiny, *flags(stage, tuner), "--num_workers", "2")
        return made[stage, tuner]

    return run


def continue_with(fixed: Path, run_dir: Path, tiny: tuple[str, ...], stage: int, tuner: str, workers: int) -> None:
    """Go on from the checkpoint in the middle of a run, as if the run had been stopped there."""
    shutil.copytree(fixed, run_dir)
    shutil.rmtree(run_dir / f"checkpoint-{STEPS}")
    out = sft(run_dir, *tiny, *flags(stage, tuner), "--num_workers", str(workers), "--resume", "auto")
    assert f"checkpoint-{SAVED_AT} at step {SAVED_AT}" in out
    assert [curve(run_dir, "workers")[step] for step in (SAVED_AT, SAVED_AT + 1, STEPS)] == [2, workers, workers]


# The stage whose loading DeepSpeed leaves most to mend, from one run of two workers; tests/bars/test_elastic_matrix.py
# runs all. Three workers share eight rows unevenly.
@pytest.mark.parametrize(("stage", "tuner", "workers"), [(3, "full", 1), (3, "full", 3)])
def test_another_number_of_workers_continues_the_curve(
    stage: int, tuner: str, workers: int, two_workers: Callable[[int, str], Path], run_dir: Path, tiny: tuple[str, ...]
) -> None:
    fixed = two_workers(stage, tuner)
    continue_with(fixed, run_dir, tiny, stage, tuner, workers)
    assert_same_curve(run_dir, fixed, TOLERANCE)
    # The converted checkpoint goes once another is there.
    assert not list(run_dir.glob("checkpoint-*/*universal"))
