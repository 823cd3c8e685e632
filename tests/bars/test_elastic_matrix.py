"""ZeRO 1, 2, 3 x full, LoRA: saved at 2 workers, continued at 1 and at 3; the curve is that of 2 workers throughout.

Minutes, so not part of the suite: pytest tests/bars/test_elastic_matrix.py
"""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.ray.conftest import assert_same_curve
from tests.ray.test_elastic import TOLERANCE, continue_with


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("tuner", ["full", "lora"])
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_another_number_of_workers_continues_the_curve(
    stage: int, tuner: str, workers: int, two_workers: Callable[[int, str], Path], run_dir: Path, tiny: tuple[str, ...]
) -> None:
    fixed = two_workers(stage, tuner)
    continue_with(fixed, run_dir, tiny, stage, tuner, workers)
    assert_same_curve(run_dir, fixed, TOLERANCE)
