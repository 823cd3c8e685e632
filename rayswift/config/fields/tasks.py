"""Fields of tasks that TRL does not have, in the style of TRL's configs: `trl.py` reads both.

A field here belongs to section `train` of its task (`train.kl_coef` of task ppo).
"""

from dataclasses import dataclass, field
from typing import Literal


@dataclass
class DpoFields:
    """Task dpo, beyond TRL's `DPOConfig`."""

    reference_free: bool = field(
        default=False,
        metadata={"help": "Train without a reference model: its log-probabilities count as 0."},
    )


@dataclass
class PpoFields:
    """Task ppo, under the names of the `PPOConfig` that TRL once had."""

    num_ppo_epochs: int = field(default=4, metadata={"help": "Passes over each round of completions."})
    num_mini_batches: int = field(default=1, metadata={"help": "Optimizer steps of one pass."})
    kl_coef: float = field(
        default=0.05, metadata={"help": "Weight of the KL penalty in each token's reward; 0: no reference is loaded."}
    )
    kl_estimator: Literal["k1", "k3"] = field(
        default="k1", metadata={"help": "Estimate of each token's KL: k1, the log-ratio, or k3, never negative."}
    )
    kl_control: Literal["fixed", "adaptive"] = field(
        default="fixed",
        metadata={
            "help": "Whether kl_coef stays, or follows the KL of each round to kl_target (Ziegler et al., 2019)."
        },
    )
    kl_target: float = field(
        default=6.0, metadata={"help": "KL of a completion, in nats, that the adaptive kl_coef leads to."}
    )
    kl_horizon: int = field(
        default=10000, metadata={"help": "Completions within which the adaptive kl_coef follows; fewer: faster."}
    )
    critic: Literal["shared", "separate"] = field(
        default="shared",
        metadata={"help": "Critic: a value head on the policy's states, or a second model (model.critic_path)."},
    )
    critic_learning_rate: float | None = field(
        default=None, metadata={"help": "Peak learning rate of the critic; null: that of the policy."}
    )
    critic_warmup_rounds: int = field(
        default=0, metadata={"help": "Rounds at the beginning in which only the critic is trained."}
    )
    cliprange: float = field(default=0.2, metadata={"help": "Clip range of the probability ratio."})
    vf_coef: float = field(default=0.1, metadata={"help": "Weight of the value loss."})
    cliprange_value: float = field(default=0.2, metadata={"help": "Clip range of the value function."})
    gamma: float = field(default=1.0, metadata={"help": "Discount factor."})
    lam: float = field(default=0.95, metadata={"help": "Lambda of generalised advantage estimation."})
    whiten_rewards: bool = field(default=False, metadata={"help": "Whether to whiten the rewards."})
    missing_eos_penalty: float | None = field(
        default=None, metadata={"help": "Subtracted from the score of a completion that was cut off by its length."}
    )
    disable_dropout: bool = field(
        default=True, metadata={"help": "Train without dropout, that of an adapter included, as engines sample."}
    )


@dataclass
class GrpoFields:
    """Task grpo, beyond TRL's `GRPOConfig`."""

    advantage_estimator: Literal[
        "grpo", "rloo", "reinforce_plus_plus", "reinforce_plus_plus_baseline", "online_dpo"
    ] = field(
        default="grpo",
        metadata={
            "help": "Baseline and scale of the advantages; reinforce_plus_plus_baseline: the mean of the group; "
            "online_dpo: the gradient of the DPO loss on the two completions of a prompt."
        },
    )
    kl_in_reward: bool | None = field(
        default=None,
        metadata={
            "help": "Whether the KL penalty is subtracted from the reward, not added to the loss; null: only for rloo "
            "and reinforce_plus_plus."
        },
    )
    disable_dropout: bool = field(
        default=True,
        metadata={
            "help": "Train without dropout, that of an adapter included: engines sample without dropout, and the loss "
            "compares their log-probabilities with those of the trainer."
        },
    )
    fipo_decay_rate: float = field(
        default=32.0, metadata={"help": "Loss fipo: tokens over which the influence of a later token halves."}
    )
    fipo_clip_range: float | None = field(
        default=0.2, metadata={"help": "Loss fipo: how far the weight of an advantage may be from 1; null: any."}
    )
    fipo_clip_high_only: bool = field(default=True, metadata={"help": "Loss fipo: no weight is below 1."})
    fipo_safety_threshold: float | None = field(
        default=4.0,
        metadata={
            "help": "Loss fipo: a token of a bad completion whose ratio is above this is not weighed up; null: any is."
        },
    )
    real_tau: float = field(
        default=0.5, metadata={"help": "Loss real: temperature; smaller: completions near the border count more."}
    )
    teacher_kl_coef: float = field(
        default=1.0, metadata={"help": "Weight of the KL to model.teacher in the advantage; without a teacher: none."}
    )


@dataclass
class GkdFields:
    """Task gkd, beyond TRL's `GKDConfig`."""

    sft_alpha: float = field(default=0.0, metadata={"help": "Weight of the cross-entropy on rows with answers."})
    logits_topk: int | None = field(
        default=None, metadata={"help": "Compare this number of the teacher's most likely tokens; null: all."}
    )
