"""Plain TRL = in-process = 1 worker = 2 workers = ZeRO 1, 2, 3: loss and gradient norm of every step, float32."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.ray import conftest
from tests.ray.conftest import WINDOWS, assert_same_curve, sft

STEPS, ROWS = 5, 8
TOLERANCE = 1e-4
# LoRA's dropout draws per rank, so across worker counts it is off.
TUNERS = {
    "full": ("--tuner", "full", *WINDOWS),
    "lora": ("--tuner", "lora", "--lora_dropout", "0", "--learning_rate", "1e-2"),
}


def layout(workers: int, stage: int, per_device: int = 2) -> tuple[str, ...]:
    accumulation = ROWS // (per_device * max(1, workers))
    return (
        "--num_workers", str(workers), "--zero_stage", str(stage), "--max_steps", str(STEPS),
        "--per_device_train_batch_size", str(per_device), "--gradient_accumulation_steps", str(accumulation),
    )  # fmt: skip


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory, tiny: tuple[str, ...]) -> Callable[[str], Path]:
    """The in-process run of a tuner, made once."""
    made: dict[str, Path] = {}

    def run(tuner: str) -> Path:
        if tuner not in made:
            made[tuner] = tmp_path_factory.mktemp(tuner) / "run"
            sft(made[tuner], *tiny, *TUNERS[tuner], *layout(0, 0))
        return made[tuner]

    return run


@pytest.mark.parametrize("tuner", TUNERS)
def test_in_process_equals_plain_trl(tuner: str, reference: Callable[[str], Path], tmp_path: Path) -> None:
    conftest.reference("tests.ray.oracle_trl", tmp_path, reference(tuner), tmp_path, STEPS, 2, 4)
    assert_same_curve(reference(tuner), tmp_path, TOLERANCE)


# Each tuner, number of workers and stage; tests/bars/test_equivalence_matrix.py runs all combinations.
@pytest.mark.parametrize(
    ("tuner", "workers", "stage"),
    [("full", 2, 0), ("full", 2, 3), ("lora", 1, 2), ("lora", 2, 1)],
)
def test_workers_and_stages_agree(
    tuner: str, workers: int, stage: int, reference: Callable[[str], Path], run_dir: Path, tiny: tuple[str, ...]
) -> None:
    sft(run_dir, *tiny, *TUNERS[tuner], *layout(workers, stage))
    assert_same_curve(run_dir, reference(tuner), TOLERANCE)
