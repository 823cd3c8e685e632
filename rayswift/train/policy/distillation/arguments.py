"""The arguments of the distillation trainer: TRL's `GKDConfig` with our fields."""

from dataclasses import dataclass
from typing import ClassVar

from trl.experimental.gkd import GKDConfig

from rayswift.config.fields.tasks import GkdFields


@dataclass
class GkdArguments(GkdFields, GKDConfig):
    """`GKDConfig` and the fields that TRL lacks; batches come in rounds, as for task grpo."""

    top_entropy_quantile: ClassVar[float] = 1.0
    mask_truncated_completions: ClassVar[bool] = False

    def __post_init__(self) -> None:
        self.gradient_accumulation_steps = 1  # an item of the stream is an optimizer step, which the trainer cuts
        super().__post_init__()
