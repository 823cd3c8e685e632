"""TRL's KTO trainer on the stream."""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, ClassVar

import torch
from transformers.trainer_utils import EvalLoopOutput
from trl import KTOTrainer

from rayswift.data.sequence.windows import PackedRow
from rayswift.train import evaluation
from rayswift.train.trainers.per_example import PerExampleTrainer, trained_tokens

_Batches = Iterable[tuple[Sequence[PackedRow], dict[str, Any]]]


class StreamedKTOTrainer(PerExampleTrainer, KTOTrainer):
    """TRL's `KTOTrainer`, streamed.

    Its loss compares each row with the KL term of a batch. In TRL this is the micro-batch of all ranks; here it is the
    global batch, or all rows of an evaluation, so the loss does not depend on micro-batches. The forward passes are
    those of TRL in another order: those without a gradient first.
    """

    placeholder_row: ClassVar[dict[str, list[Any]]] = {"prompt": [""], "completion": ["b"], "label": [True]}
    # The difference of two means over different rows: computed from their totals.
    extremes: ClassVar[tuple[str, ...]] = ("rewards/margins",)

    def __init__(self, *, args: Any, **kwargs: Any):
        rows = args.per_device_train_batch_size
        args.per_device_train_batch_size = max(2, rows)  # TRL pairs rows within it, and refuses 1
        super().__init__(args=args, **kwargs)
        args.per_device_train_batch_size = self._train_batch_size = rows
        # With this, the loss takes the reference's log-probabilities from its batch.
        self.precompute_ref_logps = True
        self._coming: _Batches = ()
        self._reference_logps: deque[torch.Tensor] = deque()
        self._kl = torch.zeros(1)

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device) -> Any:
        """Return HF's micro-batches of a step, and remember them."""
        batches, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        self._coming = list(zip(list(self.stream.handed_out)[-len(batches) :], batches, strict=True))
        return batches, num_items

    def evaluation_loop(self, dataloader: Any, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        self._coming = dataloader
        return super().evaluation_loop(dataloader, *args, **kwargs)

    def _loss(self, model: Any, inputs: dict[str, Any], rows: Sequence[PackedRow]) -> tuple[Any, evaluation.Sums]:
        if not self._reference_logps:
            self._look_ahead(model)
        zero = torch.zeros_like(self._kl)
        return super()._loss(
            model, {**inputs, "ref_logps": self._reference_logps.popleft(), "ref_KL_logps": zero}, rows
        )

    def _look_ahead(self, model: Any) -> None:
        """Compute the reference's log-probabilities of all these batches, and the KL term over their rows."""
        total, num_rows = 0.0, 0
        for rows, batch in self._coming:
            inputs = self._prepare_inputs(batch)
            reference_logps, reference_kl_logps = self.compute_ref_log_probs(self.ref_model or self.model, inputs)
            self._reference_logps.append(reference_logps)
            if self.calculate_KL and rows:
                total += float((super()._compute_kl_logps(model, inputs) - reference_kl_logps).double().sum())
                num_rows += len(rows)
        total, num_rows = self.sum_over_ranks(torch.tensor([total, num_rows], dtype=torch.float64)).tolist()
        self._kl = torch.tensor([total / max(1, num_rows)], dtype=torch.float32, device=self.args.device)

    def _compute_kl_logps(self, model: Any, batch: dict[str, Any]) -> torch.Tensor:
        # TRL takes its mean, and subtracts the reference's, here 0.
        return self._kl

    def _count(self, name: str, rows: Sequence[PackedRow]) -> int:
        kind, _, label = name.rpartition("/")
        if label in ("chosen", "rejected"):
            rows = [row for row in rows if dict(row.numbers)["label"] == (label == "chosen")]
        return trained_tokens(rows, (0,)) if kind == "logits" or name == "entropy" else len(rows)

    def _named(self, totals: evaluation.Sums) -> evaluation.Sums:
        chosen, rejected = (totals.get(f"rewards/{label}", (0.0, 0.0)) for label in ("chosen", "rejected"))
        if not (chosen[1] and rejected[1]):
            return totals
        return totals | {"rewards/margins": (chosen[0] / chosen[1] - rejected[0] / rejected[1], 1)}
