"""The user's own code in a run, early stopping and the best model across a resume, and rows with NaN losses."""

import json
from pathlib import Path

import pytest

from rayswift.run import checkpoint
from tests.ray.conftest import curve, sft

SHORT = ("--num_workers", "0", "--device", "cpu", "--per_device_train_batch_size", "2", "--packing", "false")

# The metric's value is the script's, by step; the run is left at step 6 where LEAVE is set.
SCORES = """
import json, traceback
from pathlib import Path

import rayswift
from transformers import TrainerCallback

SCORES = {2: 1.0, 4: 3.0, 6: 2.0, 8: 2.5, 10: 9.0}
now = {"step": 0}

class Steps(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        now["step"] = state.global_step
        assert not (Path(args.output_dir) / "result.json").exists(), "the result of an earlier end"

class Leave(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop |= state.global_step == 6

class Frames(TrainerCallback):
    # Names our own functions between the command's `main`, or the worker's, and the trainer's `train`.
    def on_train_begin(self, args, state, control, **kwargs):
        names = []
        for frame in traceback.extract_stack():
            if frame.filename.endswith("transformers/trainer.py"):
                break
            if Path(rayswift.__file__).parent in Path(frame.filename).parents:
                names.append(frame.name)
        (Path(args.output_dir) / "frames.json").write_text(json.dumps(names))

def score(batch):
    trained = batch.labels != -100
    right = (batch.predictions == batch.labels)[trained].sum()
    return {"score": (SCORES[now["step"]], 1), "accuracy": (right, trained.sum())}
"""


def test_early_stopping_and_the_best_model_survive_a_resume(
    tmp_path: Path, run_dir: Path, tiny: tuple[str, ...]
) -> None:
    code = tmp_path / "scores.py"
    code.write_text(SCORES)
    flags = (
        *tiny, *SHORT, "--max_steps", "20", "--data.eval_fraction", "0.1", "--eval_steps", "2",
        "--save_strategy", "steps", "--save_steps", "6", "--save_total_limit", "1", "--load_best_model_at_end",
        "--metrics", f"{code}:score", "--metric_for_best_model", "score",
        "--early_stopping_patience", "2",
    )  # fmt: skip
    sft(run_dir, *flags, "--callbacks", f"{code}:Steps", f"{code}:Leave", f"{code}:Frames")
    frames = json.loads((run_dir / "frames.json").read_text())
    assert frames[-5:] == ["main", "_run", "run", "fit", "train_loop"], frames
    # Step 4 was the best and was saved for it, out of turn; step 2 gave way to it, and 6 is the newest.
    assert [saved.step for saved in checkpoint.find_all(run_dir)] == [4, 6]
    assert json.loads((run_dir / "result.json").read_text())["last"] == "checkpoint-6"

    out = sft(run_dir, *flags, "--callbacks", f"{code}:Steps", "--resume", "auto")
    assert "changed since checkpoint-6: train.callbacks: was " in out
    assert curve(run_dir, "eval_score") == {2: 1.0, 4: 3.0, 6: 2.0, 8: 2.5}
    assert curve(run_dir, "eval_accuracy") == pytest.approx(curve(run_dir, "eval_mean_token_accuracy"))
    assert [saved.step for saved in checkpoint.find_all(run_dir)] == [4, 8]
    result = json.loads((run_dir / "result.json").read_text())
    assert (result["model"], result["last"], result["best_metric"]) == ("checkpoint-4", "checkpoint-8", 3.0)

    # It has ended: continuing it trains nothing.
    sft(run_dir, *flags, "--callbacks", f"{code}:Steps", "--resume", "auto")
    assert [saved.step for saved in checkpoint.find_all(run_dir)] == [4, 8]


def test_a_callback_that_raises_ends_the_run_with_its_error(
    tmp_path: Path, run_dir: Path, tiny: tuple[str, ...]
) -> None:
    code = tmp_path / "mine.py"
    code.write_text(
        "from transformers import TrainerCallback\n"
        "class Raises(TrainerCallback):\n"
        "    def on_step_end(self, args, state, control, **kwargs):\n"
        "        raise KeyError('nothing here')\n"
    )
    out = sft(run_dir, *tiny, *SHORT, "--max_steps", "2", "--callbacks", f"{code}:Raises", code=1)
    assert (
        f"error: train.callbacks = '{code}:Raises' (mine.py:4, in on_step_end) raised KeyError: 'nothing here'" in out
    )
    log = run_dir / "logs" / "rank-0.log"
    assert f"traceback in {log}" in out
    assert 'mine.py", line 4, in on_step_end' in log.read_text()
    assert "Traceback" not in out


# Whatever attends to the token of § becomes no number.
POISON = """
from transformers import TrainerCallback

class Poison(TrainerCallback):
    def on_train_begin(self, args, state, control, model=None, processing_class=None, **kwargs):
        (token,) = set(processing_class.encode("§", add_special_tokens=False)[-1:])
        def poison(module, args, out):
            return out.masked_fill((args[0] == token)[..., None], float("nan"))
        model.get_input_embeddings().register_forward_hook(poison)
"""


def write_numbers(path: Path, special: int) -> str:
    """Eight questions, one to a row; in row `special` the number is a §."""
    numbers = ["§" if n == special else str(n) for n in range(8)]
    lines = (json.dumps({"query": f"What is {n} + {n}?", "response": "a number"}) for n in numbers)
    path.write_text("".join(f"{line}\n" for line in lines))
    return str(path)


def test_a_loss_that_is_no_number_stops_the_run_with_its_row(
    tmp_path: Path, run_dir: Path, tiny: tuple[str, ...]
) -> None:
    code = tmp_path / "poison.py"
    code.write_text(POISON)
    rows = write_numbers(tmp_path / "rows.jsonl", special=5)
    flags = ("--data.dataset", rows, "--shuffle", "false", "--max_steps", "4", "--callbacks", f"{code}:Poison")
    out = sft(run_dir, *tiny, *SHORT, *flags, "--save_strategy", "steps", "--save_steps", "1", code=1)
    assert "error: step 3: the loss is nan on rank 0" in out
    assert f"{rows}:6: loss nan over " in out
    worst, other = map(json.loads, (run_dir / "nan_rows" / "rank-0.jsonl").read_text().splitlines())
    assert (worst["id"], worst["loss"], worst["step"]) == (f"{rows}:6", "nan", 3)
    assert "What is § + §?" in worst["text"]
    assert other["id"] == f"{rows}:5"
    assert 0 < other["loss"] < 20
    assert [saved.step for saved in checkpoint.find_all(run_dir)] == [1, 2]
    assert "Traceback" not in out
