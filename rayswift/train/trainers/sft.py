"""TRL's SFT trainer on the stream: a loss over tokens, and evaluation means over all trained tokens."""

import math
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, ClassVar

import numpy as np
import torch
from transformers.trainer_utils import EvalLoopOutput
from trl import SFTTrainer

from rayswift.config import user_code
from rayswift.data.sequence.windows import PackedRow
from rayswift.log import UserError
from rayswift.model import document_attention
from rayswift.train import evaluation
from rayswift.train import nan_guard as guard
from rayswift.train.scored_positions import ScoredPositions, scored
from rayswift.train.spec import RunSpec
from rayswift.train.stream import Stream
from rayswift.train.trainers.base import Streamed
from rayswift.train.tuning import adalora

_EXAMPLES = "examples"  # beside the sums of the metrics while ranks add them up


class TokenOutputs:
    """The outputs of TRL's fused head for each token but the first, [B, T - 1] or [1, sum T - 1]."""

    def __init__(self, outputs: Any):
        self._log_probs = outputs["log_probs"].detach()
        self._entropy = outputs["entropy"].detach()
        self._is_top1, self._mask = outputs["is_top1"], outputs["label_mask"]

    def sums(self) -> evaluation.Sums:
        """Return the sums of an evaluation batch."""
        count = float(self._mask.sum())
        return {
            "mean_token_accuracy": (float(self._is_top1.sum()), count),
            "entropy": (float(self._entropy.sum()), count),
        }

    def losses_of(self, rows: Sequence[PackedRow]) -> list[guard.TokenLosses]:
        """Return the loss of each token of a micro-batch's rows, [T] each, times its weight if rows have weights."""
        if not rows:  # a micro-batch after the end of the data
            return []
        losses = -self._log_probs.double().cpu().numpy()
        losses = np.concatenate([np.zeros((len(losses), 1)), losses], axis=1)
        lengths = [len(row.input_ids) for row in rows]
        if len(losses) == len(rows):
            return [row[:length] for row, length in zip(losses, lengths, strict=True)]
        return np.split(losses[0], np.cumsum(lengths)[:-1])


class StreamedSFTTrainer(Streamed, SFTTrainer):
    """`SFTTrainer`, streamed, with loss weights, and metrics and losses of the user; see `Streamed`."""

    placeholder_row: ClassVar[dict[str, list[Any]]] = {"input_ids": [[0, 0]], "labels": [[0, 0]]}
    stream: Stream

    def __init__(self, *, spec: RunSpec, **kwargs: Any):
        train = spec.config.train
        if train.loss:
            kwargs["compute_loss_func"] = user_code.load("train.loss", train.loss)
        super().__init__(spec=spec, **kwargs)
        self._head = ScoredPositions(self.model)
        self._is_adalora = spec.config.model.tuner == "adalora"
        self._eval_metrics = [(name, user_code.load("train.metrics", name)) for name in train.metrics]
        # Results of the last forward pass for each token, and those of the step's micro-batches with their rows.
        self._tokens: TokenOutputs
        self._step: list[tuple[Sequence[PackedRow], TokenOutputs]] = []

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log as TRL does, without its count of tokens."""
        for metrics in self._metrics.values():
            metrics.pop("num_tokens", None)  # it takes batches for flat and restarts on resume
        super().log(logs, start_time)

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return TRL's loss; if rows have loss weights, the term of each token times its weight.

        The divisor is still the number of trained tokens of the global batch, so a token of weight 2 counts twice.

        Raises:
            UserError: a NaN or infinite training loss, or weights with a loss that does not support them.
        """
        inputs = dict(inputs)
        weights, documents = inputs.pop("loss_weights", None), inputs.get("documents")
        if weights is not None:
            self._check_weights_are_taken()

        def forward(**kwargs: Any) -> Any:
            if "fused_lm_head" not in kwargs:
                return model(**kwargs)
            outputs = scored(model, self._head, kwargs)
            if weights is not None:
                outputs["log_probs"] = outputs["log_probs"] * weights[..., 1:]
            self._tokens = TokenOutputs(outputs)
            return outputs

        with document_attention.attended(documents) if documents is not None else nullcontext():
            result = super().compute_loss(forward, inputs, return_outputs, num_items_in_batch)
        if self.model.training:
            if self._is_adalora:
                result = result + adalora.penalty(self.model) / self.current_gradient_accumulation_steps
            self._step.append((self.stream.handed_out.popleft(), self._tokens))
            loss = float((result[0] if return_outputs else result).detach())
            if not math.isfinite(loss):
                raise self._not_a_number(f"the loss is {loss}", self._step[-1:])
        return result

    def _not_a_number(self, what: str, step: Sequence[tuple[Sequence[PackedRow], TokenOutputs]]) -> UserError:
        rows = [row for packed, _ in step for row in packed]
        losses = [loss for packed, tokens in step for loss in tokens.losses_of(packed)]
        found = guard.row_losses(rows, losses, self.processing_class.decode)
        return guard.stop(self._run_dir, self._rank, self.state.global_step + 1, what, found)

    def _check_weights_are_taken(self) -> None:
        for field, used in (
            ("train.loss", self._train.loss),
            ("train.label_smoothing_factor", self.args.label_smoothing_factor),
            ("train.loss_type", self.args.loss_type if self.args.loss_type != "nll" else None),
        ):
            if used:
                raise UserError(
                    f"rows carry loss weights, which {field} = {used!r} does not take; leave one of them out",
                    exit_code=1,
                )

    def evaluation_loop(self, dataloader: Any, description: str, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        """Return means over all trained tokens, for any number of workers and any batch size."""
        prefix = kwargs.get("metric_key_prefix", "eval")
        model = self.model_to_evaluate()
        totals: evaluation.Sums = {"loss": (0.0, 0.0)}
        num_examples = 0
        for rows, batch in dataloader:
            num_examples += sum(len(row.lengths) - row.num_continued for row in rows)
            inputs = self._prepare_inputs(batch)
            num_tokens = int((inputs["labels"][..., 1:] != -100).sum())
            with torch.no_grad(), self.compute_loss_context_manager():
                loss = float(self.compute_loss(model, inputs))
                if num_tokens:  # a mean over nothing may be NaN: of smoothed labels, or by a loss of the user's own
                    evaluation.add(totals, {"loss": (loss * num_tokens, num_tokens)})
                evaluation.add(totals, self._tokens.sums())
                self._measure(model, inputs, num_tokens, totals)
        self._metrics["eval"].clear()  # TRL's means of batch means
        evaluation.add(totals, {_EXAMPLES: (num_examples, 1)})
        totals = self.sums_over_ranks(totals)
        num_samples = int(totals.pop(_EXAMPLES)[0])
        metrics = evaluation.values(totals, prefix)
        return EvalLoopOutput(predictions=None, label_ids=None, metrics=metrics, num_samples=num_samples)

    def _measure(self, model: Any, inputs: dict[str, Any], num_tokens: int, totals: evaluation.Sums) -> None:
        """Add the user's metrics of a batch; this takes a second forward pass, on every rank."""
        if not self._eval_metrics:
            return
        labels = inputs["labels"]
        model_inputs = {k: v for k, v in inputs.items() if k not in ("labels", "loss_weights")}
        predictions = torch.full_like(labels, -100)
        predictions[..., 1:] = model(**model_inputs, use_cache=False).logits[..., :-1, :].argmax(-1)
        if not num_tokens:
            return
        weights = inputs.get("loss_weights", torch.ones(labels.shape))
        arrays = (each.cpu().numpy() for each in (predictions, labels, weights, inputs["position_ids"]))
        batch = evaluation.EvalBatch(*arrays)
        for name, metric in self._eval_metrics:
            evaluation.add(totals, evaluation.measure(name, metric, batch))
