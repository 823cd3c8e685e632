"""HF's trainer for classes and values of texts, on the stream."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel

from rayswift.data.sequence.windows import PackedRow
from rayswift.model import heads
from rayswift.train import evaluation
from rayswift.train.trainers.per_example import HeadTrainer

_OF_CLASS = "f1 of class "


class StreamedClassTrainer(HeadTrainer):
    """`transformers`' `Trainer`, streamed, over a model with a sequence-classification head.

    Beside the loss it measures accuracy (with several labels: the share of rows with every label right) and F1 (the
    mean over classes that occur), or for values the squared error.
    """

    def __init__(self, *, model: Any, **kwargs: Any):
        self._is_regression = model.config.problem_type == "regression"
        super().__init__(model=model, **kwargs)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        super()._save(output_dir, state_dict)
        if isinstance(self.model, PeftModel):  # an adapter has no config.json
            heads.write_settings(Path(output_dir or self.args.output_dir), self.model.config)

    def _loss(self, model: Any, inputs: dict[str, Any], rows: Sequence[PackedRow]) -> tuple[Any, evaluation.Sums]:
        labels = inputs.get("labels")
        outputs = model(**self.taken(inputs))
        if labels is None:  # no row is left for this rank
            return outputs.logits.sum() * 0, {}
        return outputs.loss, _sums(outputs.logits.detach().float(), labels, self._is_regression)

    def _named(self, totals: evaluation.Sums) -> evaluation.Sums:
        rest = {name: pair for name, pair in totals.items() if not name.startswith(_OF_CLASS)}
        of_classes = [value / count for name, (value, count) in totals.items() if name not in rest and count]
        return rest | ({"f1": (sum(of_classes), len(of_classes))} if of_classes else {})


def _sums(logits: torch.Tensor, labels: torch.Tensor, is_regression: bool) -> evaluation.Sums:
    """Return the sums of a batch's metrics; logits [B, classes]; labels [B], [B, classes] for several or values."""
    rows, classes = logits.shape
    if is_regression:
        return {"mse": (float((logits - labels).square().mean(dim=1).sum()), rows)}
    if labels.is_floating_point():
        truth, found = labels.bool(), logits > 0
    else:
        one_hot = torch.nn.functional.one_hot
        truth, found = one_hot(labels, classes).bool(), one_hot(logits.argmax(-1), classes).bool()
    sums: evaluation.Sums = {"accuracy": (float((truth == found).all(dim=1).sum()), rows)}
    right, seen = (2 * (truth & found).sum(dim=0)).tolist(), (truth.sum(dim=0) + found.sum(dim=0)).tolist()
    return sums | {f"{_OF_CLASS}{i}": (float(right[i]), float(seen[i])) for i in range(classes)}
