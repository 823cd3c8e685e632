"""Tuners that change more than an adapter; the whole matrix is tests/bars/test_tuner_matrix.py."""

import json
import shutil
from pathlib import Path

from tests.ray.conftest import assert_same_curve, curve, sft
from tests.ray.test_equivalence import TOLERANCE, layout


def test_an_adapter_made_from_rows_is_the_same_on_every_layout_and_made_once(
    tmp_path: Path, tiny: tuple[str, ...]
) -> None:
    """One process = 2 workers with ZeRO-3 = a run that is continued, whose adapter is not initialised again."""
    tuner = {"init_lora_weights": "lora_ga", "use_rslora": True}
    flags = (
        *tiny, "--tuner", "lora", "--lora_dropout", "0", "--model.tuner_kwargs", json.dumps(tuner),
        "--lr_scheduler_type", "constant", "--save_strategy", "steps", "--save_steps", "2",
    )  # fmt: skip
    one, two = tmp_path / "one", tmp_path / "two"
    sft(one, *flags, *layout(0, 0), "--max_steps", "4")
    sft(two, *flags, *layout(2, 3), "--max_steps", "4")
    assert_same_curve(two, one, TOLERANCE)
    whole, made = curve(one), (one / "init/adapter/adapter_model.safetensors").stat().st_mtime_ns
    assert len(set(whole.values())) == 4
    shutil.rmtree(one / "checkpoint-4")
    sft(one, *flags, *layout(0, 0), "--max_steps", "4", "--resume", "auto")
    assert curve(one) == whole
    assert (one / "init/adapter/adapter_model.safetensors").stat().st_mtime_ns == made
