"""Trainers whose loss is a mean over rows, on the stream: the same numbers for any number of workers.

TRL takes the mean over a micro-batch, gathers its metrics from all ranks at each of them, and logs means of means. Here
every row of the global batch weighs the same however it is cut, and metrics are sums that ranks add up when they log.
"""

import math
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from datasets import Dataset
from transformers.trainer_utils import EvalLoopOutput
from trl import DPOTrainer, RewardTrainer

from rayswift.data.collate.members import REFERENCE_LOGPS
from rayswift.data.sequence.windows import PackedRow
from rayswift.log import UserError
from rayswift.train import evaluation
from rayswift.train import nan_guard as guard
from rayswift.train.spec import RunSpec
from rayswift.train.stream import Stream
from rayswift.train.trainers.base import Streamed


class _OneRank:
    """An accelerator whose gathers return what this rank has."""

    def __init__(self, accelerator: Any):
        self._accelerator = accelerator

    def gather(self, tensor: Any) -> Any:
        """The tensor itself."""
        return tensor

    def gather_for_metrics(self, tensor: Any) -> Any:
        """The tensor itself."""
        return tensor

    def __getattr__(self, name: str) -> Any:
        return getattr(self._accelerator, name)


class RowMeans(Streamed):
    """Gives a trainer whose loss is a mean over rows the right mean, in training and evaluation; see `Streamed`."""

    accelerator: Any
    stream: Stream
    # Metrics that are means over the trained tokens of some members, by name; all others are means over rows.
    token_metrics: ClassVar[dict[str, tuple[int, ...]]] = {}
    # Those that are no means at all, and are left out.
    extremes: ClassVar[tuple[str, ...]] = ()

    def __init__(self, *, spec: RunSpec, **kwargs: Any):
        super().__init__(spec=spec, **kwargs)
        self._global_batch = spec.feed_plan.global_batch
        self._accumulation = spec.config.train.gradient_accumulation_steps
        self._sums: evaluation.Sums = {}
        # The step's micro-batches and their losses.
        self._step: list[tuple[Sequence[PackedRow], float]] = []

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The trainer's loss, weighed so that each row of the global batch counts the same.

        Raises:
            UserError: a NaN or infinite loss.
        """
        rows = self.stream.handed_out.popleft()
        loss, sums = self._loss(model, inputs, rows)
        evaluation.add(self._sums, sums)
        self._step.append((rows, float(loss.detach())))
        if not math.isfinite(self._step[-1][1]):
            raise self._not_a_number(f"the loss is {self._step[-1][1]}", self._step[-1:])
        # HF divides by the micro-batches, and the ranks' gradients are averaged.
        weight = len(rows) * self._accumulation * self.args.world_size / self._global_batch
        return loss if weight == 1 else loss * weight

    def _loss(self, model: Any, inputs: dict[str, Any], rows: Sequence[PackedRow]) -> tuple[Any, evaluation.Sums]:
        """The mean loss over this rank's rows, and the sums of the metrics beside it."""
        with self._alone():
            loss = super().compute_loss(model, dict(inputs))
        sums: evaluation.Sums = {}
        for name, value in self._take_metrics().items():
            count = self._count(name, rows)
            sums[name] = (value * count, count)
        return loss, sums

    def _count(self, name: str, rows: Sequence[PackedRow]) -> int:
        """How many rows or trained tokens of these a metric is the mean of."""
        return trained_tokens(rows, self.token_metrics[name]) if name in self.token_metrics else len(rows)

    def _named(self, totals: evaluation.Sums) -> evaluation.Sums:
        """The metrics that are logged, of all that was added up."""
        return totals

    def _take_metrics(self) -> dict[str, float]:
        """What the trainer noted of its last micro-batch."""
        metrics = self._metrics["train" if self.model.training else "eval"]
        left_out = ("num_tokens", *self.extremes)
        found = {name: float(values[-1]) for name, values in metrics.items() if name not in left_out}
        metrics.clear()
        return found

    @contextmanager
    def _alone(self) -> Iterator[None]:
        accelerator, self.accelerator = self.accelerator, _OneRank(self.accelerator)
        try:
            yield
        finally:
            self.accelerator = accelerator

    def _not_a_number(self, what: str, step: Sequence[tuple[Sequence[PackedRow], float]]) -> UserError:
        decode = self.processing_class.decode
        found = [
            guard.RowLoss(row.ids[0], loss, int(row.trained.sum()), decode(row.input_ids.tolist()))
            for rows, loss in step
            for row in rows
        ]
        return guard.stop(self._run_dir, self._rank, self.state.global_step + 1, what, found)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """HF's, without TRL's reference copy of the initial adapter.

        Every start makes that copy anew, and where HF finds one it would continue with it, not with what was trained.
        """
        super()._save(output_dir, state_dict)
        if output_dir:  # never one of the run folder's own
            shutil.rmtree(Path(output_dir) / "ref", ignore_errors=True)

    def evaluation_loop(self, dataloader: Any, description: str, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        """Means over every row, whatever the number of workers and rows in a batch."""
        model = self.model_to_evaluate()
        totals: evaluation.Sums = {}
        for rows, batch in dataloader:
            inputs = self._prepare_inputs(batch)
            with torch.no_grad(), self.compute_loss_context_manager():
                loss, sums = self._loss(model, inputs, rows)
            if rows:
                evaluation.add(totals, {"loss": (float(loss) * len(rows), len(rows))})
                evaluation.add(totals, sums)
        totals = self._named(self.sums_over_ranks(totals))
        metrics = evaluation.values(totals, kwargs.get("metric_key_prefix", "eval"))
        return EvalLoopOutput(predictions=None, label_ids=None, metrics=metrics, num_samples=int(totals["loss"][1]))

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """The trainer's metrics over all rows since the last entry, beside the loss."""
        if "loss" in logs:
            totals, self._sums = self._named(self.sums_over_ranks(self._sums)), {}
            logs.update({name: value / count for name, (value, count) in totals.items() if count})
        super().log(logs, start_time)


def trained_tokens(rows: Sequence[PackedRow], members: tuple[int, ...]) -> int:
    """Trained tokens of some members of rows."""
    borders = [np.cumsum(row.lengths)[:-1] for row in rows]
    split = [np.split(row.trained, border) for row, border in zip(rows, borders, strict=True)]
    return sum(int(trained[member].sum()) for trained in split for member in members)


class StreamedDPOTrainer(RowMeans, DPOTrainer):
    """TRL's `DPOTrainer`, streamed."""

    token_metrics: ClassVar[dict[str, tuple[int, ...]]] = {
        "entropy": (0, 1),
        "mean_token_accuracy": (0,),
        "logits/chosen": (0,),
        "logits/rejected": (1,),
    }

    def __init__(self, *, spec: RunSpec, **kwargs: Any):
        self._reference_free = bool(spec.config.train.trl_extra.get("reference_free"))
        super().__init__(spec=spec, **kwargs)

    @staticmethod
    def placeholder() -> Dataset:
        """What TRL's constructor tokenises: one row. Real rows come from the stream."""
        return Dataset.from_dict({"prompt": [""], "chosen": ["b"], "rejected": ["c"]})

    def _precompute_ref_logps(self, dataset: Dataset, name: str, batch_size: int) -> Dataset:
        # TRL's is over the dataset of its constructor; the stream's rows bring their own.
        return dataset

    def _loss(self, model: Any, inputs: dict[str, Any], rows: Sequence[PackedRow]) -> tuple[Any, evaluation.Sums]:
        if self._reference_free or (self.precompute_ref_logps and not rows):
            zeros = torch.zeros(len(inputs["input_ids"]) // 2, device=self.args.device)
            inputs = inputs | dict.fromkeys(REFERENCE_LOGPS, zeros)
        return super()._loss(model, inputs, rows)


class StreamedRewardTrainer(RowMeans, RewardTrainer):
    """TRL's `RewardTrainer`, streamed."""

    extremes: ClassVar[tuple[str, ...]] = ("min_reward", "max_reward")

    @staticmethod
    def placeholder() -> Dataset:
        """What TRL's constructor looks at: one tokenised row. Real rows come from the stream."""
        return Dataset.from_dict({"chosen_ids": [[0]], "rejected_ids": [[0]]})
