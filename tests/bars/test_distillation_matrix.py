"""Distillation: workers x ZeRO stages compared with one process, for both tasks, full training and LoRA.

Minutes, so not part of the suite: pytest tests/bars/test_distillation_matrix.py
"""

from pathlib import Path

import pytest

from tests.policy_curve import curve

_GKD = ("--train.task", "gkd", "--model.teacher", "t", "--train.lmbda", "0.5", "--train.sft_alpha", "0.2")
WAYS = {
    "gkd": _GKD,
    "gkd of the likeliest tokens": (*_GKD, "--train.logits_topk", "8", "--train.beta", "1"),
    "gkd of an adapter": (*_GKD, "--tuner", "lora", "--lora_dropout", "0"),
    "an adapter's own start": (
        *("--train.task", "gkd", "--model.teacher", "self", "--tuner", "lora", "--lora_dropout", "0"),
        *("--train.lmbda", "1"),
    ),
    "grpo": ("--model.teacher", "t", "--train.beta", "0.1"),
}


@pytest.mark.parametrize("way", WAYS)
def test_workers_and_stages_train_as_one_process_does(way: str, tmp_path: Path) -> None:
    reference = curve(tmp_path / "one", 1, *WAYS[way], passes=1)
    assert len(reference) == 6
    # grpo measures it once a round, of two steps.
    assert all("teacher_kl" in step for step in (reference[::2] if way == "grpo" else reference))
    for size, stage, *offload in ((2, 0), (1, 2), (2, 1), (2, 2), (2, 3), (2, 3, "--offload", "all")):
        flags = (*WAYS[way], "--zero_stage", str(stage), *map(str, offload))
        found = curve(tmp_path / f"{size}-{stage}-{len(offload)}", size, *flags, passes=1)
        for step, (ours, theirs) in enumerate(zip(found, reference, strict=True)):
            assert ours == pytest.approx(theirs, abs=1e-5, rel=1e-5), (size, stage, step)
