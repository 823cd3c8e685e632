"""Tasks other than causal_lm with tuners other than LoRA: each trains, and continues exactly.

Minutes per task, so not part of the suite: pytest tests/bars/test_task_tuners.py
"""

from importlib.util import find_spec
from pathlib import Path

import pytest

from rayswift.config.tasks import TASKS as TABLE
from tests.bars.test_tasks_matrix import TASKS, rows_of
from tests.ray import test_tasks
from tests.ray.conftest import assert_same_end, curve, sft, train

LORA = ("--tuner", "lora", "--lora_dropout", "0")
TUNERS = {
    "dora": (*LORA, "--model.tuner_kwargs", '{"use_dora": true}'),
    "pissa": (*LORA, "--model.tuner_kwargs", '{"init_lora_weights": "pissa_niter_4"}'),
    "vera": ("--tuner", "vera", "--model.tuner_kwargs", '{"r": 16}'),
    "boft": ("--tuner", "boft"),
    "ia3": ("--tuner", "ia3"),
    "loha": ("--tuner", "loha"),
}


def continued(task: str, flags: tuple[str, ...], folder: Path) -> Path:
    """A whole run, which one continued from its second checkpoint ends like; returns the whole one."""
    verb, *own = TASKS[task]
    path = test_tasks.write(folder / "rows.jsonl", rows_of(task, 60))
    steps = ("--save_strategy", "steps", "--save_steps", "2", "--max_steps", "4", "--lr_scheduler_type", "constant")
    run = (*test_tasks.flags(path), *flags, *own, *steps, "--max_length", "512")
    whole, rest = folder / "whole", folder / "rest"
    train(verb, whole, *run)
    train(verb, rest, *run, "--resume", str(whole / "checkpoint-2"))
    assert_same_end(rest, whole, 2, test_tasks.TOLERANCE)
    return whole


@pytest.mark.parametrize("tuner", TUNERS)
@pytest.mark.parametrize("task", [task for task in TASKS if task in TABLE and TABLE[task].other_adapters])
def test_a_task_trains_and_continues_with_a_tuner(task: str, tuner: str, tmp_path: Path) -> None:
    losses = curve(continued(task, TUNERS[tuner], tmp_path))
    assert losses[4] != losses[1]


@pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")
@pytest.mark.parametrize("quantization", ["nf4", "int8"])
@pytest.mark.parametrize("task", [task for task in TASKS if task in TABLE and TABLE[task].qlora])
def test_a_task_trains_and_continues_on_quantized_weights(task: str, quantization: str, tmp_path: Path) -> None:
    flags = (*LORA, "--quantization", quantization, *(("--dtype", "bfloat16") if task == "rm" else ()))
    losses = curve(continued(task, flags, tmp_path))
    assert losses[4] != losses[1]


@pytest.mark.parametrize("task", [task for task in TASKS if TABLE[task].head == "causal_lm"])
def test_a_task_starts_from_an_adapter(task: str, tmp_path: Path, tiny: tuple[str, ...]) -> None:
    """The reference of dpo and kto is the model with that adapter, so at the first step no reward has moved."""
    flags = ("--num_workers", "0", "--zero_stage", "0", "--max_steps", "3", "--learning_rate", "1e-2")
    sft(tmp_path / "before", *tiny, *LORA, *flags, "--save_strategy", "steps")
    whole = continued(task, (*LORA, "--adapters", str(tmp_path / "before")), tmp_path)
    assert not (whole / "checkpoint-4/ref").exists()
    if task in ("dpo", "kto"):
        assert curve(whole, "rewards/margins")[1] == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("task", [task for task in TASKS if TABLE[task].head != "causal_lm"])
def test_a_task_with_a_head_starts_from_an_adapter_of_its_own(task: str, tmp_path: Path) -> None:
    """The loss of the rows is, before the first step, what it was at the end of the run that trained the adapter.

    Gradient checkpointing needs embeddings with a gradient, which nothing else gives them below an adapter.
    """
    verb, *own = TASKS[task]
    rows = str(test_tasks.write(tmp_path / "held_out.jsonl", rows_of(task, 20)))
    measured = ("--data.eval", rows, "--eval_steps", "4", "--eval_on_start", "--gradient_checkpointing", "true")
    path = test_tasks.write(tmp_path / "rows.jsonl", rows_of(task, 60))
    steps = ("--save_strategy", "steps", "--save_steps", "4", "--max_steps", "4", "--learning_rate", "1e-2")
    run = (*test_tasks.flags(path), *LORA, *own, *measured, "--max_length", "512", *steps)
    train(verb, tmp_path / "before", *run)
    whole = continued(task, (*LORA, *measured, "--adapters", str(tmp_path / "before")), tmp_path)
    before, after = (curve(folder, "eval_loss") for folder in (tmp_path / "before", whole))
    assert before[4] != pytest.approx(before[0], rel=1e-3)
    assert after[0] == pytest.approx(before[4], rel=1e-5)
    assert after[4] != after[0]
