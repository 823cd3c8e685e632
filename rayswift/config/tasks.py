"""The trainer factory: one table, task -> how it is trained.

A new task is a row here, an encoder of its row family in `data/`, and an example. Trainers and configs are named as
`module:Class`, so that the driver imports none of them.
"""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from rayswift.config.model import ModelConfig, ProblemType
from rayswift.config.schema import TrainingConfig

Family = Literal["causal", "preference", "kto", "embedding", "reranker", "classification", "prompt"]
Head = Literal["causal_lm", "reward", "classes", "none"]


@dataclass(frozen=True)
class Task:
    """How a task is trained.

    verb: as a user asks for it; trainer: a `Streamed` trainer; arguments: the TRL or HF config it takes; family: what
    its rows are; collate: packed rows -> the tensors its loss takes; head: what the model ends in; packs: whether
    documents share a row (`data.packing`); mean_over_rows: whether the loss is a mean over rows, not over tokens, so
    that an incomplete batch is never trained; has_reference: whether the loss has a reference model;
    defaults: fields of its config with other defaults than TRL's; stream: makes a rank's steps of what it is supplied
    with.
    """

    verb: str
    trainer: str
    arguments: str
    family: Family
    collate: str
    head: Head
    packs: bool
    mean_over_rows: bool
    has_reference: bool = False
    defaults: Mapping[str, Any] = field(default_factory=dict)
    stream: str = "rayswift.train.stream:row_stream"

    @property
    def is_online(self) -> bool:
        """Whether it samples what it trains on."""
        return self.family == "prompt"


_CPO = Task(
    verb="rlhf --rlhf_type cpo",
    trainer="rayswift.train.trainers.cpo_orpo:StreamedCPOTrainer",
    arguments="trl.experimental.cpo:CPOConfig",
    family="preference",
    collate="rayswift.data.collate.members:pair_batch",
    head="causal_lm",
    packs=False,
    mean_over_rows=True,
)
TASKS: dict[str, Task] = {
    "causal_lm": Task(
        verb="pt, sft",
        trainer="rayswift.train.trainers.sft:StreamedSFTTrainer",
        arguments="trl:SFTConfig",
        family="causal",
        collate="rayswift.data.collate.packed:collate",
        head="causal_lm",
        packs=True,
        mean_over_rows=False,
    ),
    "dpo": Task(
        verb="rlhf --rlhf_type dpo",
        trainer="rayswift.train.trainers.row_means:StreamedDPOTrainer",
        arguments="trl:DPOConfig",
        family="preference",
        collate="rayswift.data.collate.members:preference_batch",
        head="causal_lm",
        packs=False,
        mean_over_rows=True,
        has_reference=True,
    ),
    "kto": Task(
        verb="rlhf --rlhf_type kto",
        trainer="rayswift.train.trainers.kto:StreamedKTOTrainer",
        arguments="trl:KTOConfig",
        family="kto",
        collate="rayswift.data.collate.members:kto_batch",
        head="causal_lm",
        packs=False,
        mean_over_rows=True,
        has_reference=True,
    ),
    "rm": Task(
        verb="rlhf --rlhf_type rm",
        trainer="rayswift.train.trainers.row_means:StreamedRewardTrainer",
        arguments="trl:RewardConfig",
        family="preference",
        collate="rayswift.data.collate.members:reward_batch",
        head="reward",
        packs=False,
        mean_over_rows=True,
    ),
    "orpo": Task(
        verb="rlhf --rlhf_type orpo",
        trainer="rayswift.train.trainers.cpo_orpo:StreamedORPOTrainer",
        arguments="trl.experimental.orpo:ORPOConfig",
        family="preference",
        collate="rayswift.data.collate.members:pair_batch",
        head="causal_lm",
        packs=False,
        mean_over_rows=True,
    ),
    "cpo": _CPO,
    "simpo": replace(
        _CPO, verb="rlhf --rlhf_type simpo", defaults={"loss_type": "simpo", "beta": 2.0, "simpo_gamma": 1.0}
    ),
    "grpo": Task(
        verb="rlhf --rlhf_type grpo",
        trainer="rayswift.train.policy.policy_trainer:StreamedPolicyTrainer",
        arguments="rayswift.train.policy.arguments:PolicyArguments",
        family="prompt",
        collate="",
        head="causal_lm",
        packs=False,
        mean_over_rows=False,
        has_reference=True,
        stream="rayswift.train.policy.online:round_stream",
    ),
    "gkd": Task(
        verb="rlhf --rlhf_type gkd",
        trainer="rayswift.train.policy.distillation.gkd_trainer:StreamedGkdTrainer",
        arguments="rayswift.train.policy.distillation.arguments:GkdArguments",
        family="prompt",
        collate="",
        head="causal_lm",
        packs=False,
        mean_over_rows=False,
        stream="rayswift.train.policy.online:round_stream",
    ),
    "seq_cls": Task(
        verb="sft --task_type seq_cls",
        trainer="rayswift.train.trainers.classify:StreamedClassTrainer",
        arguments="transformers:TrainingArguments",
        family="classification",
        collate="rayswift.data.collate.members:class_batch",
        head="classes",
        packs=False,
        mean_over_rows=True,
    ),
    "embedding": Task(
        verb="sft --task_type embedding",
        trainer="rayswift.train.trainers.embedding:StreamedEmbeddingTrainer",
        arguments="transformers:TrainingArguments",
        family="embedding",
        collate="rayswift.data.collate.members:text_batch",
        head="none",
        packs=False,
        mean_over_rows=True,
    ),
    "reranker": Task(
        verb="sft --task_type reranker",
        trainer="rayswift.train.trainers.reranker:StreamedRerankerTrainer",
        arguments="transformers:TrainingArguments",
        family="reranker",
        collate="rayswift.data.collate.members:text_batch",
        head="reward",
        packs=False,
        mean_over_rows=True,
    ),
    "generative_reranker": Task(
        verb="sft --task_type generative_reranker",
        trainer="rayswift.train.trainers.reranker:StreamedGenerativeRerankerTrainer",
        arguments="transformers:TrainingArguments",
        family="reranker",
        collate="rayswift.data.collate.members:left_padded_batch",
        head="causal_lm",
        packs=False,
        mean_over_rows=True,
    ),
}


def problem_type(model: ModelConfig) -> ProblemType:
    """What labels are, where `model.problem_type` leaves it open."""
    return model.problem_type or ("regression" if model.num_labels == 1 else "single_label_classification")


def keeps_reference(config: TrainingConfig) -> bool:
    """Whether the loss needs a reference model at every step."""
    extra = config.train.trl_extra
    task = TASKS[config.train.task]
    # Online tasks need it for a KL term alone.
    without = extra.get("reference_free") or extra.get("precompute_ref_log_probs")
    without = without or (task.is_online and not extra.get("beta"))
    return task.has_reference and not without


def compares_partners(config: TrainingConfig) -> bool:
    """Whether the loss has a KL term over mismatched answers."""
    return config.train.task == "kto" and config.train.trl_extra.get("loss_type", "kto") == "kto"


def load(name: str) -> Any:
    """What `module:Class` names."""
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)
