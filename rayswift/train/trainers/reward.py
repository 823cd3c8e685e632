"""Task rm: TRL's `RewardTrainer` on the stream."""

from typing import Any, ClassVar

from trl import RewardTrainer

from rayswift.train.trainers.per_example import PerExampleTrainer


class StreamedRewardTrainer(PerExampleTrainer, RewardTrainer):
    """TRL's `RewardTrainer`, streamed."""

    placeholder_row: ClassVar[dict[str, list[Any]]] = {"chosen_ids": [[0]], "rejected_ids": [[0]]}
    extremes: ClassVar[tuple[str, ...]] = ("min_reward", "max_reward")
