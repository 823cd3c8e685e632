"""Weighted losses, metrics and the guard against NaN, on every layout of workers and ZeRO stages.

Minutes, so not part of the suite: pytest tests/bars/test_user_code_matrix.py
"""

import json
from pathlib import Path

import pytest

from tests.ray.conftest import assert_same_curve, curve, sft
from tests.ray.test_equivalence import TOLERANCE, layout
from tests.ray.test_user_code import POISON, SCORES, write_numbers

# Weights that differ from token to token, in every batch of every worker.
CODE = """
import rayswift.data.collate.packed as batches

collate = batches.collate

def weighted(rows, pad_token_id, layout):
    batch = collate(rows, pad_token_id, layout)
    batch["loss_weights"] = 0.5 + (batch["input_ids"] % 3).float() / 2
    return batch

batches.collate = weighted

def metric(batch):
    trained = batch.labels != -100
    right = batch.predictions == batch.labels
    weights = batch.weights * trained
    return {"accuracy": (right[trained].sum(), trained.sum()), "weighted": ((right * weights).sum(), weights.sum())}
"""
LAYOUTS = [(0, 0), (1, 0), (2, 0), (2, 1), (2, 2), (2, 3)]


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory, tiny: tuple[str, ...]) -> tuple[Path, tuple[str, ...]]:
    folder = tmp_path_factory.mktemp("reference")
    code = folder / "weighted.py"
    code.write_text(CODE)
    flags = (
        *tiny, "--max_steps", "6", "--data.eval_fraction", "0.1", "--eval_steps", "3", "--plugins", str(code),
        "--metrics", f"{code}:metric",
    )  # fmt: skip
    sft(folder / "run", *flags, *layout(0, 0))
    return folder / "run", flags


@pytest.mark.parametrize(("workers", "stage"), LAYOUTS[1:])
def test_weighted_losses_and_metrics_are_those_of_one_process(
    workers: int, stage: int, reference: tuple[Path, tuple[str, ...]], run_dir: Path
) -> None:
    one_process, flags = reference
    sft(run_dir, *flags, *layout(workers, stage))
    keys = ("loss", "grad_norm", "eval_loss", "eval_mean_token_accuracy", "eval_accuracy", "eval_weighted")
    assert_same_curve(run_dir, one_process, TOLERANCE, keys)
    assert curve(run_dir, "eval_accuracy") == pytest.approx(curve(run_dir, "eval_mean_token_accuracy"))


@pytest.mark.parametrize(("workers", "stage"), LAYOUTS)
def test_a_loss_that_is_no_number_is_named_with_its_rank(
    workers: int, stage: int, tmp_path: Path, run_dir: Path, tiny: tuple[str, ...]
) -> None:
    code = tmp_path / "poison.py"
    code.write_text(POISON)
    rows = write_numbers(tmp_path / "rows.jsonl", special=5)
    flags = ("--data.dataset", rows, "--shuffle", "false", "--packing", "false", "--callbacks", f"{code}:Poison")
    out = sft(run_dir, *tiny, *layout(workers, stage), *flags, "--max_steps", "2", code=1)
    (file,) = (run_dir / "nan_rows").iterdir()
    assert f"the loss is nan on rank {file.stem.removeprefix('rank-')}" in out
    assert json.loads(file.read_text().splitlines()[0])["id"] == f"{rows}:6"
    assert not list(run_dir.glob("checkpoint-*"))
    assert "Traceback" not in out


@pytest.mark.parametrize("workers", [1, 2])
def test_a_callback_that_raises_or_exits_ends_the_run_on_ray_too(
    workers: int, tmp_path: Path, run_dir: Path, tiny: tuple[str, ...]
) -> None:
    code = tmp_path / "mine.py"
    code.write_text(
        "import sys\n"
        "from transformers import TrainerCallback\n"
        "class Stops(TrainerCallback):\n"
        "    def on_step_end(self, args, state, control, **kwargs):\n"
        "        if state.global_step == 2:\n"
        "            sys.exit('enough')\n"
    )
    frames = tmp_path / "scores.py"
    frames.write_text(SCORES)
    callbacks = ("--callbacks", f"{code}:Stops", f"{frames}:Frames")
    out = sft(run_dir, *tiny, *layout(workers, 0), *callbacks, code=1)
    assert json.loads((run_dir / "frames.json").read_text()) == ["_worker_main", "train_loop"]
    assert f"error: train.callbacks = '{code}:Stops' (mine.py:6, in on_step_end) raised SystemExit: enough" in out
    assert "Traceback" not in out
    assert list(curve(run_dir)) == [1]  # and it was not tried again


@pytest.mark.parametrize("flags", [("--label_smoothing_factor", "0.1"), ("--loss_type", "dft")])
def test_weights_beside_what_takes_none(
    flags: tuple[str, ...], reference: tuple[Path, tuple[str, ...]], run_dir: Path
) -> None:
    out = sft(run_dir, *reference[1], *layout(0, 0), *flags, code=1)
    assert f"rows carry loss weights, which train.{flags[0].removeprefix('--')} = " in out
