"""Preference trainers of `trl.experimental`, which have no reference model, on the stream.

Their loss has two parts: a term of each pair, and the likelihood of the chosen answers, a mean over tokens. TRL takes
the second mean over a micro-batch, and so does training here. An evaluation takes it over the tokens of all rows, as
TRL would with a single batch.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

from trl.experimental.cpo import CPOTrainer
from trl.experimental.orpo import ORPOTrainer

from rayswift.data.collate.packed import IGNORED
from rayswift.data.sequence.windows import PackedRow
from rayswift.train import evaluation
from rayswift.train.trainers.per_example import PerExampleTrainer

_OF_PAIRS = "loss of pairs"


class _Odds(PerExampleTrainer):
    """The common part of both trainers: keeps their metrics under one name in training and evaluation."""

    placeholder_row: ClassVar[dict[str, list[Any]]] = {"prompt": ["a "], "chosen": ["b"], "rejected": ["c"]}
    token_metrics: ClassVar[dict[str, tuple[int, ...]]] = {"logits/chosen": (0,), "logits/rejected": (1,)}
    _stored_metrics: Any

    @property
    def _likelihood_weight(self) -> float:
        """Return the weight of the likelihood in the loss."""
        return 1.0

    def _num_likely(self, inputs: dict[str, Any]) -> int:
        """Return the number of tokens in the mean of the likelihood."""
        raise NotImplementedError

    def concatenated_forward(self, model: Any, batch: dict[str, Any]) -> tuple[Any, ...]:
        """Run TRL's forward pass, and keep only the logits [n, V] that predict trained tokens: those of padding depend
        on the batch."""
        chosen, rejected, chosen_logits, rejected_logits, *rest = super().concatenated_forward(model, batch)
        logits = (
            _predicting(logits, batch[f"{name}_labels"])
            for name, logits in (("chosen", chosen_logits), ("rejected", rejected_logits))
        )
        return (chosen, rejected, *logits, *rest)

    def _loss(self, model: Any, inputs: dict[str, Any], rows: Sequence[PackedRow]) -> tuple[Any, evaluation.Sums]:
        loss, sums = super()._loss(model, inputs, rows)
        if not self.model.training and rows:
            likelihood = sums["nll_loss"][0] / sums["nll_loss"][1]
            num_tokens = self._num_likely(inputs)
            sums["nll_loss"] = (likelihood * num_tokens, num_tokens)
            of_pairs = float(loss) - self._likelihood_weight * likelihood
            sums[_OF_PAIRS] = (of_pairs * len(rows), len(rows))
        return loss, sums

    def _named(self, totals: evaluation.Sums) -> evaluation.Sums:
        rest = {name: pair for name, pair in totals.items() if name != _OF_PAIRS}
        if _OF_PAIRS in totals:
            (pairs, num_rows), (likelihood, num_tokens) = totals[_OF_PAIRS], totals["nll_loss"]
            mean = pairs / num_rows + self._likelihood_weight * likelihood / num_tokens
            rest["loss"] = (mean * num_rows, num_rows)
        return rest

    def _take_metrics(self) -> dict[str, float]:
        return {name: float(values[-1]) for name, values in self._stored_metrics.pop("train", {}).items()}


def _predicting(logits: Any, labels: Any) -> Any:
    """Select from logits [B, T or more, V] those at positions before a trained token of labels [B, T]."""
    return logits[:, : labels.shape[1] - 1][labels[:, 1:].to(logits.device) != IGNORED]


class StreamedCPOTrainer(_Odds, CPOTrainer):
    """TRL's `CPOTrainer`, streamed; with `train.loss_type` simpo it is SimPO."""

    @property
    def _likelihood_weight(self) -> float:
        return float(self.cpo_alpha)

    def _num_likely(self, inputs: dict[str, Any]) -> int:
        return int((inputs["chosen_labels"][:, 1:] != IGNORED).sum())


class StreamedORPOTrainer(_Odds, ORPOTrainer):
    """TRL's `ORPOTrainer`, streamed. Its likelihood includes the prompt."""

    def _num_likely(self, inputs: dict[str, Any]) -> int:
        return int(inputs["chosen_attention_mask"][:, 1:].sum())
