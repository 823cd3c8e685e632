"""Each task against the plain trainer of TRL or transformers on the same rows in the same order, float32."""

import json
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig, AutoModelForCausalLM

from tests.ray import conftest
from tests.ray.conftest import ROOT, assert_same_curve, train

STEPS, PER_DEVICE, ACCUMULATION = 8, 2, 2
TOLERANCE = 1e-4


def flags(rows: Path, steps: int = STEPS) -> tuple[str, ...]:
    """A small, fast, deterministic run in this process.

    At ten times the learning rate, what the kernels of CPUs round differently grows past the bounds within eight steps.
    """
    return (
        "--model", "examples/tiny", "--random_init", "--data.dataset", str(rows), "--max_length", "256",
        "--window_rows", "64", "--learning_rate", "1e-4", "--logging_steps", "1", "--save_strategy", "no",
        "--gradient_checkpointing", "false", "--report_to", "none", "--timeout_s", "60", "--num_workers", "0",
        "--zero_stage", "0", "--max_steps", str(steps), "--data.max_bad_fraction", "1",
        "--per_device_train_batch_size", str(PER_DEVICE), "--gradient_accumulation_steps", str(ACCUMULATION),
        "--threads_per_worker", "1",
    )  # fmt: skip


def gsm8k(num_rows: int) -> list[dict[str, Any]]:
    """The first word problems of the examples."""
    lines = (ROOT / "examples" / "gsm8k" / "train.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines[:num_rows]]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Rows as jsonl."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def reference(
    module: str, run_dir: Path, out_dir: Path, verb: str, cut: tuple[int, int, int] = (STEPS, PER_DEVICE, ACCUMULATION)
) -> Path:
    """The plain trainer on the rows of a run; `cut`: steps, rows, micro-batches."""
    out_dir.mkdir()
    return conftest.reference(module, out_dir, run_dir, out_dir, *cut, verb)


def pairs(num_rows: int) -> list[dict[str, Any]]:
    """Word problems with the solution of another one as the worse answer."""
    rows = gsm8k(num_rows + 1)
    return [
        {"question": row["question"], "chosen": row["answer"], "rejected": other["answer"]}
        for row, other in pairwise(rows)
    ]


def test_dpo_equals_plain_trl(tmp_path: Path) -> None:
    """The loss, the gradient norm, and the rewards that people watch."""
    path = write(tmp_path / "rows.jsonl", pairs(40))
    train("rlhf", tmp_path / "run", "--rlhf_type", "dpo", *flags(path), "--max_length", "512")
    theirs = reference("tests.ray.oracle_rows", tmp_path / "run", tmp_path / "trl", "rlhf")
    keys = ("loss", "grad_norm", "rewards/accuracies", "rewards/margins", "logps/chosen")
    assert_same_curve(tmp_path / "run", theirs, TOLERANCE, keys)


def test_dpo_with_a_reference_computed_before_training(tmp_path: Path) -> None:
    """Over two epochs, with evaluations, the numbers of a run that asks its reference at every step.

    Whole answers have log-probabilities of some hundreds, which float32 holds to 1e-4; a gradient norm multiplies that.
    """
    shutil.copytree(ROOT / "examples" / "tiny", tmp_path / "model")
    AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(tmp_path / "model")).save_pretrained(tmp_path / "model")
    path = write(tmp_path / "rows.jsonl", pairs(12))
    own = ("--model", str(tmp_path / "model"), "--random_init", "false", "--max_length", "512", "--rlhf_type", "dpo")
    own += ("--data.eval_fraction", "0.3", "--eval_strategy", "steps", "--eval_steps", "2", "--max_steps", "4")
    train("rlhf", tmp_path / "asks", *flags(path), *own)
    train("rlhf", tmp_path / "knows", *flags(path), *own, "--train.precompute_ref_log_probs", "true")
    keys = ("loss", "rewards/margins", "eval_loss", "eval_rewards/margins")
    assert_same_curve(tmp_path / "knows", tmp_path / "asks", TOLERANCE, keys)


def judged(num_rows: int) -> list[dict[str, Any]]:
    """Word problems with their own solution, which is wanted, or that of another one, which is not."""
    return [
        {"question": row["question"], "answer": row["chosen" if wanted else "rejected"], "label": wanted}
        for i, row in enumerate(pairs(num_rows))
        for wanted in [i % 3 > 0]
    ]


def test_kto_equals_plain_trl(tmp_path: Path) -> None:
    """TRL pairs the rows of a micro-batch for its KL term; ours are those of the global batch, however it is cut."""
    path = write(tmp_path / "rows.jsonl", judged(40))
    own = ("--max_length", "512", "--undesirable_weight", "1.5")
    train("rlhf", tmp_path / "run", "--rlhf_type", "kto", *flags(path), *own)
    cut = (STEPS, PER_DEVICE * ACCUMULATION, 1)
    theirs = reference("tests.ray.oracle_rows", tmp_path / "run", tmp_path / "trl", "rlhf", cut=cut)
    assert_same_curve(tmp_path / "run", theirs, TOLERANCE, ("loss", "grad_norm", "kl", "rewards/chosen", "entropy"))


@pytest.mark.parametrize("task", ["orpo", "simpo"])
def test_losses_without_a_reference_equal_plain_trl(task: str, tmp_path: Path) -> None:
    """simpo is a loss of cpo's trainer."""
    path = write(tmp_path / "rows.jsonl", pairs(40))
    train("rlhf", tmp_path / "run", "--rlhf_type", task, *flags(path), "--max_length", "512")
    theirs = reference("tests.ray.oracle_rows", tmp_path / "run", tmp_path / "trl", "rlhf")
    assert_same_curve(tmp_path / "run", theirs, TOLERANCE, ("loss", "grad_norm", "rewards/margins", "nll_loss"))


@pytest.mark.parametrize("task", ["orpo", "simpo"])
def test_an_evaluation_without_a_reference_is_one_mean_over_all_rows(task: str, tmp_path: Path) -> None:
    """Before any step: three rows a batch in this process, one a batch on two workers."""
    path = write(tmp_path / "rows.jsonl", pairs(12))
    held_out = write(tmp_path / "eval.jsonl", pairs(7))
    own = ("--rlhf_type", task, "--data.eval", str(held_out), "--eval_on_start", "true", "--max_length", "512")
    own += ("--max_steps", "1", "--global_batch_size", "4")
    cuts = {"here": ("--per_device_eval_batch_size", "3"), "two": ("--per_device_eval_batch_size", "1")}
    cuts["two"] += ("--num_workers", "2")
    first = {}
    for name, cut in cuts.items():
        train("rlhf", tmp_path / name, *flags(path), *own, *cut)
        entries = map(json.loads, (tmp_path / name / "metrics.jsonl").read_text().splitlines())
        entry = next(entry for entry in entries if "eval_loss" in entry)
        times = ("eval_runtime", "eval_samples_per_second", "eval_steps_per_second")
        first[name] = {key: value for key, value in entry.items() if key.startswith("eval_") and key not in times}
    assert len(first["here"]) >= 8
    # Float32 in another order; of sums of some hundreds (log-probabilities) a few units in the last place.
    assert first["two"] == {key: pytest.approx(value, rel=1e-6, abs=2e-6) for key, value in first["here"].items()}


def test_rm_equals_plain_trl(tmp_path: Path) -> None:
    """Pairs with margins, and a term that centres the rewards."""
    rows = [row | {"margin": i % 3 / 2} for i, row in enumerate(pairs(40))]
    path = write(tmp_path / "rows.jsonl", rows)
    own = ("--max_length", "512", "--center_rewards_coefficient", "0.01")
    train("rlhf", tmp_path / "run", "--rlhf_type", "rm", *flags(path), *own)
    theirs = reference("tests.ray.oracle_rows", tmp_path / "run", tmp_path / "trl", "rlhf")
    assert_same_curve(tmp_path / "run", theirs, TOLERANCE, ("loss", "grad_norm", "accuracy", "margin"))


def test_seq_cls_equals_plain_transformers(tmp_path: Path) -> None:
    """Without accumulation: there HF's own trainer adds micro-batches up where their mean is meant."""
    rows = [row | {"label": len(row["answer"]) % 3} for row in gsm8k(40)]
    path = write(tmp_path / "rows.jsonl", rows)
    own = ("--max_length", "512", "--truncation", "drop", "--num_labels", "3")
    train("sft", tmp_path / "run", "--task_type", "seq_cls", *flags(path), *own)
    cut = (STEPS, PER_DEVICE * ACCUMULATION, 1)
    theirs = reference("tests.ray.oracle_rows", tmp_path / "run", tmp_path / "hf", "sft", cut=cut)
    assert_same_curve(tmp_path / "run", theirs, TOLERANCE)


def test_pt_equals_plain_trl(tmp_path: Path) -> None:
    """Long texts are split, every token is trained, and messages are read without the template."""
    rows = gsm8k(160)
    texts = [{"text": "\n\n".join(row["question"] for row in rows[i : i + 8])} for i in range(0, 80, 8)]
    path = write(tmp_path / "rows.jsonl", texts + rows[80:])
    train("pt", tmp_path / "run", *flags(path))
    theirs = reference("tests.ray.oracle_trl", tmp_path / "run", tmp_path / "trl", "pt")
    assert_same_curve(tmp_path / "run", theirs, TOLERANCE)
    entries = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert all(entry["trained_tokens_per_s"] > 0.9 * entry["tokens_per_s"] for entry in entries if "loss" in entry)
