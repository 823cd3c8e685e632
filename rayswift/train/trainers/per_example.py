"""Trainers whose loss is a mean over rows, on the stream: the same numbers for any number of workers.

TRL takes the mean over a micro-batch, gathers its metrics from all ranks each time, and logs means of means. Here every
row of the global batch has the same weight, and metrics are sums that ranks add up when they log.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import numpy as np
import torch
from peft import PeftModel
from transformers.trainer_utils import EvalLoopOutput

from rayswift.data.sequence.windows import PackedRow
from rayswift.log import UserError
from rayswift.model import tuners
from rayswift.train import evaluation
from rayswift.train import nan_guard as guard
from rayswift.train.spec import RunSpec
from rayswift.train.stream import Stream
from rayswift.train.trainers.base import Streamed

_BEHIND = "behind"


class _OneRank:
    """An accelerator whose gathers return the values of this rank."""

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


class PerExampleTrainer(Streamed):
    """Corrects the mean of a trainer whose loss is a mean over rows, in training and evaluation; see `Streamed`."""

    accelerator: Any
    stream: Stream
    # Metrics that are means over the trained tokens of some sequences of a row, by name; others are means over rows.
    token_metrics: ClassVar[dict[str, tuple[int, ...]]] = {}
    # Metrics that are not means; they are left out.
    extremes: ClassVar[tuple[str, ...]] = ()

    def __init__(self, *, spec: RunSpec, **kwargs: Any):
        super().__init__(spec=spec, **kwargs)
        if isinstance(self.model, PeftModel) and tuners.REFERENCE in self.model.peft_config:
            tuners.keep_start(self.model)
        self._global_batch = spec.feed_plan.global_batch
        self._accumulation = spec.config.train.gradient_accumulation_steps
        self._sums: evaluation.Sums = {}
        # The step's micro-batches and their losses.
        self._step: list[tuple[Sequence[PackedRow], float]] = []

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return the trainer's loss, weighted so that each row of the global batch counts the same.

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
        """Return the mean loss over this rank's rows, and the sums of the metrics."""
        with self._alone():
            loss = super().compute_loss(model, dict(inputs))
        sums: evaluation.Sums = {}
        for name, value in self._take_metrics().items():
            count = self._count(name, rows)
            sums[name] = (value * count, count)
        return loss, sums

    def _count(self, name: str, rows: Sequence[PackedRow]) -> int:
        """Return the number of rows or trained tokens over which a metric is the mean."""
        return trained_tokens(rows, self.token_metrics[name]) if name in self.token_metrics else len(rows)

    def _named(self, totals: evaluation.Sums) -> evaluation.Sums:
        """Return the metrics that are logged."""
        return totals

    def _take_metrics(self) -> dict[str, float]:
        """Remove and return the trainer's metrics of its last micro-batch."""
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

    def evaluation_loop(self, dataloader: Any, description: str, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        """Return means over all rows, for any number of workers and any batch size."""
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
        """Log the trainer's metrics over all rows since the last entry, beside the loss."""
        if "loss" in logs:
            totals, self._sums = self._named(self.sums_over_ranks(self._sums)), {}
            logs.update({name: value / count for name, (value, count) in totals.items() if count})
        super().log(logs, start_time)


def trained_tokens(rows: Sequence[PackedRow], sequences: tuple[int, ...]) -> int:
    """Return the number of trained tokens of some sequences of rows."""
    borders = [np.cumsum(row.lengths)[:-1] for row in rows]
    split = [np.split(row.trained, border) for row, border in zip(rows, borders, strict=True)]
    return sum(int(trained[i].sum()) for trained in split for i in sequences)


class HeadTrainer(PerExampleTrainer):
    """`transformers`' `Trainer`, streamed, with an adapter around the model if one is trained.

    Args:
        behind: Modules after the model, which are always trained in full. They are part of it for the optimizer and
            for checkpoints, but not of the saved weights of the model.
    """

    placeholder_row: ClassVar[dict[str, list[Any]]] = {"input_ids": [[0, 0]], "labels": [0]}
    loss_is_scaled_for_ga: ClassVar[bool] = False

    def __init__(
        self,
        *,
        model: Any,
        args: Any,
        processing_class: Any,
        peft_config: Any = None,
        behind: torch.nn.Module | None = None,
        **kwargs: Any,
    ):
        # A classification head reads the last token that is not padding.
        model.config.get_text_config().pad_token_id = processing_class.pad_token_id
        if peft_config is not None:
            model = tuners.with_new_adapter(model, peft_config, args)
        elif isinstance(model, PeftModel):
            tuners.continued(model, args, keeps_start=False)
        if behind is not None:
            model.add_module(_BEHIND, behind)
        super().__init__(model=model, args=args, processing_class=processing_class, **kwargs)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        if hasattr(self.model, _BEHIND):
            whole = self.model.state_dict() if state_dict is None else state_dict
            state_dict = {name: tensor for name, tensor in whole.items() if not name.startswith(f"{_BEHIND}.")}
        super()._save(output_dir, state_dict)

    def weights_behind(self, state_dict: Any) -> dict[str, torch.Tensor]:
        """Return the weights of the modules after the model, as `_save` gets them.

        Those in the modules themselves may be parts of DeepSpeed's buffers, or of another rank under ZeRO-3.
        """
        whole = self.model.state_dict() if state_dict is None else state_dict
        prefix = f"{_BEHIND}."
        return {name.removeprefix(prefix): tensor for name, tensor in whole.items() if name.startswith(prefix)}

    def taken(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Return a batch of texts as the model takes it: token types only if its tokenizer names them."""
        named = self.processing_class.model_input_names
        return {name: tensor for name, tensor in inputs.items() if name != "token_type_ids" or name in named}
