"""SmolLM2, full and LoRA, padded and packed: each task against TRL's own trainer, before the first step and over ten.

Half an hour, so not part of the suite: pytest tests/bars/test_real_models.py
"""

from pathlib import Path

import pytest

from tests.ray.real_runs import PACKING, TUNERS, assert_same_numbers, plain, run


@pytest.mark.parametrize("tuner", TUNERS)
@pytest.mark.parametrize("packing", PACKING)
@pytest.mark.parametrize("task", ["pt", "sft"])
def test_causal_tasks_equal_plain_trl(task: str, packing: str, tuner: str, tmp_path: Path) -> None:
    """TRL sees the documents of packed rows one by one, padded."""
    ours = run(tmp_path / "run", task, *TUNERS[tuner], *PACKING[packing])
    assert_same_numbers(ours, plain(ours, task))


@pytest.mark.parametrize("tuner", TUNERS)
@pytest.mark.parametrize("task", ["dpo", "orpo", "cpo", "simpo", "kto", "rm"])
def test_preference_tasks_equal_plain_trl(task: str, tuner: str, tmp_path: Path) -> None:
    ours = run(tmp_path / "run", task, *TUNERS[tuner])
    assert_same_numbers(ours, plain(ours, task))
