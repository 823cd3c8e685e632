"""Evaluation metrics as sums and counts over batches and ranks."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from rayswift.data.collate.packed import collate
from rayswift.data.sequence.windows import PackedRow
from rayswift.log import UserError
from rayswift.train.evaluation import EvalBatch, Sums, add, measure, values
from rayswift.train.policy.policy_trainer import StreamedPolicyTrainer
from tests.support.one_loss import one_loss

BATCH = EvalBatch(np.array([[-100, 2, 3]]), np.array([[-100, 2, 4]]), np.ones((1, 3), np.float32), np.arange(3)[None])


def test_means_over_everything_that_was_added() -> None:
    totals: Sums = {}
    add(totals, {"loss": (6.0, 3), "mean_token_accuracy": (1, 3)})
    add(totals, {"loss": (1.0, 1), "exact": (0, 0)})
    assert values(totals, "eval") == {"eval_loss": 7 / 4, "eval_mean_token_accuracy": 1 / 3}


def test_no_trained_token_is_a_loss_of_zero() -> None:
    totals: Sums = {}
    add(totals, {"loss": (0.0, 0), "entropy": (0.0, 0)})
    assert values(totals, "eval") == {"eval_loss": 0.0}


def test_a_metric_of_the_users_own() -> None:
    def accuracy(batch: EvalBatch) -> Any:
        trained = batch.labels != -100
        return {"right": ((batch.predictions == batch.labels)[trained].sum(), trained.sum())}

    assert measure("m.py:accuracy", accuracy, BATCH) == {"right": (1.0, 2.0)}


@pytest.mark.parametrize("returned", [None, 0.5, {"a": 0.5}, {"a": (1, 2, 3)}, {"a": ("x", 1)}])
def test_what_is_no_sum_and_count_is_refused(returned: Any) -> None:
    with pytest.raises(UserError, match=r"train.metrics = 'm.py:f' returned .*, wanted a dict of name: \(sum, count\)"):
        measure("m.py:f", lambda batch: returned, BATCH)


def test_built_in_names_stay() -> None:
    with pytest.raises(UserError, match="names loss, which is built in"):
        measure("m.py:f", lambda batch: {"loss": (1, 1)}, BATCH)


def test_the_examples_of_the_documentation(repo: Path) -> None:
    import torch

    text = (repo / "rayswift" / "train" / "README.md").read_text(encoding="utf-8")
    names: dict[str, Any] = {"np": np, "torch": torch}
    for block in text.split("```python\n")[1:]:
        exec(block.partition("```")[0], names)
    assert measure("README.md", names["first_token_accuracy"], BATCH) == {"first_token_accuracy": (1.0, 1.0)}
    labels = torch.tensor([[-100, 1, 2]])
    outputs = SimpleNamespace(logits=torch.zeros(1, 3, 4))
    assert float(names["smoothed"](outputs, labels)) == pytest.approx(np.log(4))
    assert float(names["smoothed"](outputs, labels, num_items_in_batch=4)) == pytest.approx(np.log(4) / 2)


# ---- what an evaluation says of its speed ----


def test_an_evaluation_counts_examples(tiny_model_dir: Path, tmp_path: Path) -> None:
    """Not tokens, and a row that was split over packed rows once: `eval_samples_per_second` follows."""
    _, trainer = one_loss("causal_lm", tiny_model_dir, tmp_path / "run")
    ids = np.arange(5, 17, dtype=np.int32)
    trained = np.ones(12, dtype=bool)
    rows = [PackedRow(ids, trained, (5, 7), 0), PackedRow(ids, trained, (4, 4, 4), 0, num_continued=1)]
    batches = [(rows[:1], collate(rows[:1], 0, "rows")), (rows[1:], collate(rows[1:], 0, "rows"))]
    assert trainer.evaluation_loop(batches, "").num_samples == 4


@pytest.mark.parametrize("flags", [(), ("--label_smoothing_factor", "0.1")])
def test_a_batch_of_nothing_changes_no_mean(flags: tuple[str, ...], tiny_model_dir: Path, tmp_path: Path) -> None:
    """A rank without a row has one, where rows do not come out even; the mean of no smoothed labels is NaN."""
    _, trainer = one_loss("causal_lm", tiny_model_dir, tmp_path / "run", *flags)
    rows = [PackedRow(np.arange(5, 17, dtype=np.int32), np.ones(12, dtype=bool), (12,), 0)]
    batches = [(rows, collate(rows, 0, "rows")), ([], collate([], 0, "rows"))]
    alone = trainer.evaluation_loop(batches[:1], "").metrics
    assert alone["eval_loss"] > 0
    assert trainer.evaluation_loop(batches, "").metrics == alone
    assert trainer.evaluation_loop(batches[1:], "").metrics == {"eval_loss": 0.0}


def test_an_evaluation_that_samples_counts_completions() -> None:
    stream = SimpleNamespace(evaluate=lambda: {"completions": 12.0, "reward": 0.5})
    found = StreamedPolicyTrainer.evaluation_loop(SimpleNamespace(stream=stream), None, "")  # type: ignore[arg-type]
    assert (found.num_samples, found.metrics) == (12, {"eval_reward": 0.5})


@pytest.mark.parametrize("strategy", ["no", "steps"])
def test_the_best_model_is_noted_whatever_else_is_saved(
    strategy: str, tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Retention and the run's result go by it."""
    flags = ("--save_strategy", strategy, "--load_best_model_at_end", "true")
    monkeypatch.setattr("rayswift.launch.plan.config_problems", lambda *_: [])  # nothing is evaluated here
    _, trainer = one_loss("causal_lm", tiny_model_dir, tmp_path / "run", *flags)
    found = []
    for step, loss in ((10, 2.0), (20, 1.0), (30, 3.0)):
        trainer.state.global_step, trainer.control.should_save = step, False
        trainer._determine_best_metric({"eval_loss": loss}, None)
        found.append((trainer.state.best_global_step, trainer.control.should_save))
    assert found == [(10, True), (20, True), (20, False)]
