"""ORPO, CPO and SimPO: the metrics of an evaluation do not depend on batches and ranks."""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

from rayswift.cluster.layout import Layout
from rayswift.config.load import load as load_config
from rayswift.config.tasks import TASKS, load
from rayswift.data.collate.padded import pair_batch
from rayswift.data.sequence.global_batches import FeedPlan
from rayswift.data.sequence.windows import PackedRow
from rayswift.launch import plan as planning
from rayswift.train import evaluation
from rayswift.train.arguments import trainer_arguments
from rayswift.train.clock import Clock
from rayswift.train.spec import RunSpec

# Float32 sums of some hundred terms in another order, and a difference of two of them: a few units in the last place.
SAME = {"rel": 1e-6, "abs": 2e-6}
PROMPTS, CHOSEN, REJECTED = (3, 9, 5, 4, 7, 2, 6), (5, 2, 14, 3, 8, 4, 1), (2, 11, 3, 7, 4, 9, 6)


def rows() -> list[PackedRow]:
    """Pairs of unlike lengths."""
    numbers = np.random.default_rng(0)
    found = []
    for prompt, chosen, rejected in zip(PROMPTS, CHOSEN, REJECTED, strict=True):
        asked = numbers.integers(5, 500, prompt)
        sequences = [np.concatenate([asked, numbers.integers(5, 500, n)]).astype(np.int32) for n in (chosen, rejected)]
        trained = [np.arange(len(sequence)) >= prompt for sequence in sequences]
        lengths = tuple(len(sequence) for sequence in sequences)
        found.append(PackedRow(np.concatenate(sequences), np.concatenate(trained), lengths, 0))
    return found


def trainer_of(task: str, model_dir: Path, work: Path) -> Any:
    flags = ["--model", str(model_dir), "--data.dataset", "d.jsonl", "--train.task", task, "--max_length", "64"]
    flags += ["--max_steps", "1", "--num_workers", "0", "--global_batch_size", "4", "--train.output_dir", str(work)]
    flags += ["--gradient_checkpointing", "false", "--report_to", "none"]
    plan = planning.resolve(load_config("rlhf", flags).config, Layout(0, "cpu", 1, local=True), None)
    spec = RunSpec(plan.config, plan.layout, work, model_dir, FeedPlan(4, 7, 7, 1, 1, 0.0, True), Clock(0), None, work)
    trainer_class = load(TASKS[task].trainer)
    return trainer_class(
        spec=spec,
        rank=0,
        stream=SimpleNamespace(),
        model=AutoModelForCausalLM.from_pretrained(model_dir, dtype="float32"),
        args=trainer_arguments(spec, load(TASKS[task].arguments), "float32", False, False),
        train_dataset=trainer_class.placeholder(),
        processing_class=AutoTokenizer.from_pretrained(model_dir),
    )


def batches(of: Sequence[PackedRow], size: int) -> list[Any]:
    return [(of[i : i + size], pair_batch(of[i : i + size], 0, "rows")) for i in range(0, len(of), size)]


def measured(trainer: Any, shares: Sequence[Sequence[PackedRow]], size: int, monkeypatch: Any) -> dict[str, float]:
    """An evaluation's numbers where each worker has a share of the rows; one without any has a batch of nothing."""
    sums: evaluation.Sums = {}
    for share in shares:
        with monkeypatch.context() as patch:
            patch.setattr(trainer, "sums_over_ranks", lambda totals: evaluation.add(sums, totals) or dict(sums))
            metrics = trainer.evaluation_loop(batches(share, size) or [([], pair_batch([], 0, "rows"))], "").metrics
    return dict(metrics)


@pytest.mark.parametrize("task", ["orpo", "cpo", "simpo"])
def test_numbers_of_an_evaluation_do_not_depend_on_batches_and_workers(
    task: str, tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer, given = trainer_of(task, tiny_model_dir, tmp_path), rows()
    whole = measured(trainer, [given], 7, monkeypatch)
    for size in (1, 2, 3):
        for shares in ([given], [given[::2], given[1::2]], [given[:1], given[1:], []]):
            found = measured(trainer, shares, size, monkeypatch)
            assert found == {name: pytest.approx(value, **SAME) for name, value in whole.items()}
    theirs = of_trl(trainer, given)
    assert set(theirs) <= set(whole)
    assert {name: whole[name] for name in theirs} == {n: pytest.approx(v, **SAME) for n, v in theirs.items()}


def of_trl(trainer: Any, given: Sequence[PackedRow]) -> dict[str, float]:
    """What TRL's own trainer measures in one batch of all rows; its logits are those of padding too."""
    base = next(each for each in type(trainer).__mro__ if each.__module__.startswith("trl."))
    own = base(
        model=trainer.model,
        args=trainer.args,
        train_dataset=Dataset.from_dict({"prompt": ["a "], "chosen": ["b"], "rejected": ["c"]}),
        processing_class=trainer.processing_class,
    )
    own.model.eval()
    loss, metrics = own.get_batch_loss_metrics(own.model, pair_batch(given, 0, "rows"), "eval")
    return {"eval_loss": float(loss.detach())} | {
        name: float(value) for name, value in metrics.items() if "logits/" not in name
    }
