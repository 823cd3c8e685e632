"""The arguments of the policy trainer: TRL's `GRPOConfig` with our fields, and settings derived from a run's config."""

from dataclasses import dataclass
from typing import Any, Literal

from trl import GRPOConfig

from rayswift.config.derived import reward_weights
from rayswift.config.fields.tasks import GrpoFields
from rayswift.config.schema import RlhfConfig
from rayswift.rollout.advantages import AdvantageSettings
from rayswift.train.policy.losses import PolicySettings


@dataclass
class PolicyArguments(GrpoFields, GRPOConfig):
    """`GRPOConfig` and the fields that TRL lacks; completions come in rounds, so its batch sizes have no effect."""

    def __post_init__(self) -> None:
        self.gradient_accumulation_steps = 1  # an item of the stream is an optimizer step, which the trainer cuts
        super(GRPOConfig, self).__post_init__()  # GRPOConfig's own holds batch sizes against group sizes

    @property
    def scale(self) -> Literal["group", "batch", "none"]:
        """Return `scale_rewards` as a word: True is group, False is none."""
        scale: Any = self.scale_rewards
        return {True: "group", False: "none"}.get(scale, scale)

    @property
    def takes_kl_off_rewards(self) -> bool:
        """Whether log(policy / reference) goes into the advantages, as a penalty or as the margin of online DPO's
        pairs; otherwise the KL is a term of the loss."""
        by_default = self.advantage_estimator in ("rloo", "reinforce_plus_plus", "online_dpo")
        return bool(self.beta) and (by_default if self.kl_in_reward is None else self.kl_in_reward)


def advantage_settings(config: RlhfConfig, args: PolicyArguments) -> AdvantageSettings:
    """Return the settings of the advantages."""
    return AdvantageSettings(
        weights=reward_weights(config),
        estimator="real" if args.loss_type == "real" else args.advantage_estimator,
        scale_rewards=args.scale,
        aggregation=args.multi_objective_aggregation,
        beta=args.beta,
        tau=args.real_tau,
    )


def policy_settings(config: RlhfConfig, args: PolicyArguments) -> PolicySettings:
    """Return the settings of the loss."""
    names = set(PolicySettings.__dataclass_fields__) & set(args.__dataclass_fields__)
    values: dict[str, Any] = {name: getattr(args, name) for name in names}
    rollout = config.rollout
    return PolicySettings(
        **values
        | {
            "beta": 0.0 if args.takes_kl_off_rewards else args.beta,
            "importance_sampling": rollout.importance_sampling,
            "importance_sampling_max": rollout.importance_sampling_max,
            "importance_sampling_min": rollout.importance_sampling_min,
            "max_completion_length": rollout.max_completion_length,
        }
    )
