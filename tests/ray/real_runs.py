"""Runs of SmolLM2 beside TRL's own trainers, on the same rows in the same order, float32 on one thread."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.ray import conftest
from tests.ray.conftest import ROOT, curve, train
from tests.ray.test_tasks import write
from tests.support.real_models import smollm2

STEPS, BATCH = 10, 2
NUM_ROWS, NUM_EVAL_ROWS = 60, 2
VERBS = {"pt": "pt", "sft": "sft"}  # all others: rlhf
# The low end of what pretrained weights are tuned with: what rounds differently grows with every step of an optimizer
# that divides by the gradient's own size.
TUNERS = {
    "full": ("--learning_rate", "1e-5"),
    "lora": ("--tuner", "lora", "--lora_rank", "8", "--lora_dropout", "0", "--learning_rate", "1e-4"),
}
PACKING = {"padded": ("--packing", "false"), "packed": ("--packing", "true")}


def rows_of(task: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows to train and to evaluate on: the shortest word problems of the examples, with the end of their solutions.

    What ten steps cost is their tokens.
    """
    lines = (ROOT / "examples" / "gsm8k" / "train.jsonl").read_text(encoding="utf-8").splitlines()
    ends = (row | {"answer": "\n".join(row["answer"].splitlines()[-2:])} for row in map(json.loads, lines))
    problems = sorted(ends, key=lambda row: len(row["question"] + row["answer"]))
    rows = [_row(task, i, *both) for i, both in enumerate(pairwise(problems[: NUM_ROWS + NUM_EVAL_ROWS + 1]))]
    return rows[NUM_EVAL_ROWS:], rows[:NUM_EVAL_ROWS]


def _row(task: str, number: int, problem: dict[str, str], other: dict[str, str]) -> dict[str, Any]:
    question, right, wrong = problem["question"], problem["answer"], other["answer"]
    if task == "pt":
        return {"text": f"{question}\n{right}"}
    if task == "sft":
        return {"question": question, "answer": right}
    if task == "kto":
        return {"question": question, "answer": wrong if number % 3 == 0 else right, "label": number % 3 > 0}
    return {"question": question, "chosen": right, "rejected": wrong}


def run(folder: Path, task: str, *more: str, steps: int = STEPS) -> Path:
    """A run of a task on SmolLM2, in process, which evaluates before its first step."""
    rows, eval_rows = rows_of(task)
    verb = VERBS.get(task, "rlhf")
    own = () if task in VERBS else ("--rlhf_type", task)
    folder.parent.mkdir(parents=True, exist_ok=True)
    train(
        verb, folder, *own, "--model", str(smollm2()), "--model.dtype", "float32",
        "--data.dataset", str(write(folder.with_name("rows.jsonl"), rows)),
        "--data.eval", str(write(folder.with_name("eval.jsonl"), eval_rows)), "--max_length", "192",
        "--window_rows", "64", "--logging_steps", "1", "--eval_on_start", "true", "--eval_strategy", "steps",
        "--eval_steps", "1000", "--per_device_eval_batch_size", str(NUM_EVAL_ROWS), "--max_steps", str(steps),
        "--per_device_train_batch_size", str(BATCH), "--gradient_accumulation_steps", "1", "--num_workers", "0",
        "--zero_stage", "0", "--threads_per_worker", "1", "--gradient_checkpointing", "false",
        "--report_to", "none", "--timeout_s", "120", "--save_strategy", "no", *more,
    )  # fmt: skip
    return folder


def plain(ours: Path, task: str, steps: int = STEPS) -> Path:
    """TRL's own trainer on the rows of a run."""
    out = ours.with_name("plain")
    out.mkdir()
    cut = (steps, BATCH, 1, VERBS.get(task, "rlhf"))
    return conftest.reference("tests.ray.oracle_rows", out, ours, out, *cut)


def assert_same_numbers(ours: Path, theirs: Path, steps: int = STEPS) -> None:
    """The first evaluation and the first step within 1e-5 of their value, the last step within 1e-3.

    A loss is a sum of thousands of roundings of 6e-8 that another order of summing moves; the steps in between make
    what differs grow.
    """
    assert curve(ours, "eval_loss")[0] == pytest.approx(curve(theirs, "eval_loss")[0], rel=1e-5)
    for key in ("loss", "grad_norm"):
        mine, reference = curve(ours, key), curve(theirs, key)
        assert mine.keys() == reference.keys() == set(range(1, steps + 1))
        assert mine[1] == pytest.approx(reference[1], rel=1e-5), key
        assert mine == pytest.approx(reference, rel=1e-3), key
