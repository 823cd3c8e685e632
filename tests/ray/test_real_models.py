"""SmolLM2 compared with TRL's own trainers: two cases of tests/bars/test_real_models.py, over fewer steps."""

from pathlib import Path

import pytest

from tests.ray.real_runs import PACKING, TUNERS, assert_same_numbers, plain, run

STEPS = 2


@pytest.mark.parametrize(("task", "more"), [("sft", PACKING["packed"]), ("dpo", ())])
def test_equals_plain_trl(task: str, more: tuple[str, ...], tmp_path: Path) -> None:
    """Before the first step, at it, and at the last."""
    ours = run(tmp_path / "run", task, *TUNERS["lora"], *more, steps=STEPS)
    assert_same_numbers(ours, plain(ours, task, STEPS), STEPS)
