"""The arguments of the PPO trainer, and what is derived from them."""

from dataclasses import dataclass
from typing import ClassVar

from trl.trainer.base_config import _BaseConfig

from rayswift.config.fields.tasks import PpoFields
from rayswift.config.schema import RlhfConfig
from rayswift.train.policy.losses import PolicySettings


@dataclass
class PPOArguments(PpoFields, _BaseConfig):
    """The fields of task ppo, on the common base of TRL's configs, and the values that the policy trainer needs."""

    # All tokens are trained, those of truncated completions too, with `missing_eos_penalty`.
    top_entropy_quantile: ClassVar[float] = 1.0
    mask_truncated_completions: ClassVar[bool] = False

    def __post_init__(self) -> None:
        self.gradient_accumulation_steps = 1  # an item of the stream is an optimizer step, which the trainer cuts
        super().__post_init__()

    @property
    def beta(self) -> float:
        """Return the weight of the KL to the reference; at 0 no reference is held."""
        return self.kl_coef


def policy_settings(config: RlhfConfig, args: PPOArguments) -> PolicySettings:
    """Return settings of PPO's clipped surrogate, a mean over the step's tokens, with the correction for engines."""
    rollout = config.rollout
    return PolicySettings(
        loss_type="bnpo",
        epsilon=args.cliprange,
        importance_sampling=rollout.importance_sampling,
        importance_sampling_max=rollout.importance_sampling_max,
        importance_sampling_min=rollout.importance_sampling_min,
        max_completion_length=rollout.max_completion_length,
    )
