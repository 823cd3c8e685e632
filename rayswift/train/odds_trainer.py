"""Preference trainers of `trl.experimental`, which have no reference model, on the stream."""

from typing import Any

from datasets import Dataset
from trl.experimental.cpo import CPOTrainer
from trl.experimental.orpo import ORPOTrainer

from rayswift.train.row_trainer import RowMeans


class _StoredMetrics(RowMeans):
    """These trainers keep their metrics under another name, and in training and evaluation alike."""

    _stored_metrics: Any

    def _take_metrics(self) -> dict[str, float]:
        return {name: float(values[-1]) for name, values in self._stored_metrics.pop("train", {}).items()}

    @staticmethod
    def placeholder() -> Dataset:
        """What TRL's constructor tokenises: one row. Real rows come from the stream."""
        return Dataset.from_dict({"prompt": ["a "], "chosen": ["b"], "rejected": ["c"]})


class StreamedCPOTrainer(_StoredMetrics, CPOTrainer):
    """TRL's `CPOTrainer`, streamed; with `train.loss_type` simpo it is SimPO."""


class StreamedORPOTrainer(_StoredMetrics, ORPOTrainer):
    """TRL's `ORPOTrainer`, streamed."""
