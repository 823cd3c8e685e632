"""Task dpo: TRL's `DPOTrainer` on the stream."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from datasets import Dataset
from trl import DPOTrainer

from rayswift.data.collate.padded import REFERENCE_LOGPS
from rayswift.data.sequence.windows import PackedRow
from rayswift.train import evaluation
from rayswift.train.spec import RunSpec
from rayswift.train.trainers.per_example import PerExampleTrainer


class StreamedDPOTrainer(PerExampleTrainer, DPOTrainer):
    """TRL's `DPOTrainer`, streamed."""

    placeholder_row: ClassVar[dict[str, list[Any]]] = {"prompt": [""], "chosen": ["b"], "rejected": ["c"]}
    token_metrics: ClassVar[dict[str, tuple[int, ...]]] = {
        "entropy": (0, 1),
        "mean_token_accuracy": (0,),
        "logits/chosen": (0,),
        "logits/rejected": (1,),
    }

    def __init__(self, *, spec: RunSpec, **kwargs: Any):
        self._reference_free = bool(spec.config.train.trl_extra.get("reference_free"))
        super().__init__(spec=spec, **kwargs)

    def _precompute_ref_logps(self, dataset: Dataset, name: str, batch_size: int) -> Dataset:
        # TRL's is over the dataset of its constructor; the stream's rows bring their own.
        return dataset

    def _loss(self, model: Any, inputs: dict[str, Any], rows: Sequence[PackedRow]) -> tuple[Any, evaluation.Sums]:
        if self._reference_free or (self.precompute_ref_logps and not rows):
            zeros = torch.zeros(len(inputs["input_ids"]) // 2, device=self.args.device)
            inputs = inputs | dict.fromkeys(REFERENCE_LOGPS, zeros)
        return super()._loss(model, inputs, rows)
