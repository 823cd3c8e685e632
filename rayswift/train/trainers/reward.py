"""Task rm: TRL's `RewardTrainer` on the stream."""

from typing import ClassVar

from datasets import Dataset
from trl import RewardTrainer

from rayswift.train.trainers.per_example import PerExampleTrainer


class StreamedRewardTrainer(PerExampleTrainer, RewardTrainer):
    """TRL's `RewardTrainer`, streamed."""

    extremes: ClassVar[tuple[str, ...]] = ("min_reward", "max_reward")

    @staticmethod
    def placeholder() -> Dataset:
        """Return one tokenised row for TRL's constructor. Real rows come from the stream."""
        return Dataset.from_dict({"chosen_ids": [[0]], "rejected_ids": [[0]]})
