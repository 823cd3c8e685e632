"""What a forward pass with TRL's fused head says of each token, kept while its step lasts."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from rayswift.data.sequence.windows import PackedRow
from rayswift.train import evaluation
from rayswift.train import nan_guard as guard


class TokenOutputs:
    """What a forward pass with TRL's fused head says of each token but the first, [B, T - 1] or [1, sum T - 1]."""

    def __init__(self, outputs: Any):
        self._log_probs = outputs["log_probs"].detach()
        self._entropy = outputs["entropy"].detach()
        self._is_top1, self._mask = outputs["is_top1"], outputs["label_mask"]

    def sums(self) -> evaluation.Sums:
        """The sums of an evaluation batch."""
        count = float(self._mask.sum())
        return {
            "mean_token_accuracy": (float(self._is_top1.sum()), count),
            "entropy": (float(self._entropy.sum()), count),
        }

    def losses_of(self, rows: Sequence[PackedRow]) -> list[guard.TokenLosses]:
        """The loss of each token of a micro-batch's rows, [T] each; times its weight where rows have weights."""
        if not rows:  # a micro-batch behind the end of the data
            return []
        losses = -self._log_probs.double().cpu().numpy()
        losses = np.concatenate([np.zeros((len(losses), 1)), losses], axis=1)
        lengths = [len(row.input_ids) for row in rows]
        if len(losses) == len(rows):
            return [row[:length] for row, length in zip(losses, lengths, strict=True)]
        return np.split(losses[0], np.cumsum(lengths)[:-1])
