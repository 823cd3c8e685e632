"""The trainer factory: one table, task -> how it is trained, and what its config may hold.

A new task is a row here, an encoder of its row family in `data/`, and an example. Trainers and configs are named as
`module:Class`, so that the driver imports none of them.
"""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

Family = Literal["causal", "preference", "kto", "embedding", "reranker", "classification", "prompt"]
Head = Literal["causal_lm", "reward", "classes", "none"]
ConfigClass = tuple[str, str, str]
"""A dataclass whose fields section `train` accepts: its package, file and name."""
_HF: tuple[ConfigClass, ...] = (("transformers", "training_args.py", "TrainingArguments"),)
_TRL: tuple[ConfigClass, ...] = (*_HF, ("trl", "trainer/base_config.py", "_BaseConfig"))
_SFT: ConfigClass = ("trl", "trainer/sft_config.py", "SFTConfig")


def _trl(file: str, name: str) -> ConfigClass:
    return ("trl", file, name)


def _own(name: str) -> ConfigClass:
    return ("rayswift", "config/fields/tasks.py", name)


@dataclass(frozen=True)
class Task:
    """How a task is trained.

    verb: its command; trainer: a `Streamed` trainer; arguments: the TRL or HF config of the trainer; fields: the
    classes whose fields section `train` accepts, bases first; family: the family of its rows; collate: packed rows ->
    the tensors of its loss; head: the head of the model; packs: whether documents share a row (`data.packing`);
    mean_over_rows: whether the loss is a mean over rows, not over tokens, so that an incomplete batch is never trained;
    has_reference: whether the loss has a reference model; losses: the values of `train.loss_type`, the default first,
    if its class leaves them open; trains_answers: whether its loss is over the tokens of answers; other_adapters,
    qlora: whether training, saving and resuming is tested with adapters other than a plain LoRA, with a LoRA on
    quantized weights; defaults: fields of its config with other defaults than TRL's; stream: makes the steps of a rank
    from the data service.
    """

    verb: str
    trainer: str
    arguments: str
    fields: tuple[ConfigClass, ...]
    family: Family
    collate: str
    head: Head
    packs: bool
    mean_over_rows: bool
    has_reference: bool = False
    losses: tuple[str, ...] = ()
    trains_answers: bool = False
    other_adapters: bool = False
    qlora: bool = False
    defaults: Mapping[str, Any] = field(default_factory=dict)
    stream: str = "rayswift.train.stream:row_stream"

    @property
    def is_online(self) -> bool:
        """Whether it samples its training data."""
        return self.family == "prompt"

    @property
    def default_loss(self) -> str | None:
        """The default of `train.loss_type`; None: the task has one loss."""
        return next(iter(self.losses), None)


_DPO_LOSSES = (
    "sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot", "aot_unpaired",
    "apo_zero", "apo_down", "discopop", "sft", "sigmoid_norm",
)  # fmt: skip
_CPO = Task(
    verb="rlhf --rlhf_type cpo",
    trainer="rayswift.train.trainers.cpo_orpo:StreamedCPOTrainer",
    arguments="trl.experimental.cpo:CPOConfig",
    fields=(*_TRL, _trl("experimental/cpo/cpo_config.py", "CPOConfig")),
    family="preference",
    collate="rayswift.data.collate.padded:pair_batch",
    head="causal_lm",
    packs=False,
    mean_over_rows=True,
    losses=("sigmoid", "hinge", "ipo", "simpo", "alphapo"),
    trains_answers=True,
    qlora=True,
)
_GRPO = Task(
    verb="rlhf --rlhf_type grpo",
    trainer="rayswift.train.policy.policy_trainer:StreamedPolicyTrainer",
    arguments="rayswift.train.policy.arguments:PolicyArguments",
    fields=(*_TRL, _trl("trainer/grpo_config.py", "GRPOConfig"), _own("GrpoFields")),
    family="prompt",
    collate="",
    head="causal_lm",
    packs=False,
    mean_over_rows=False,
    has_reference=True,
    stream="rayswift.train.policy.online:round_stream",
)
TASKS: dict[str, Task] = {
    "causal_lm": Task(
        verb="pt, sft",
        trainer="rayswift.train.trainers.sft:StreamedSFTTrainer",
        arguments="trl:SFTConfig",
        fields=(*_TRL, _SFT),
        family="causal",
        collate="rayswift.data.collate.packed:collate",
        head="causal_lm",
        packs=True,
        mean_over_rows=False,
        losses=("nll", "dft"),
        trains_answers=True,
        other_adapters=True,
        qlora=True,
    ),
    "dpo": Task(
        verb="rlhf --rlhf_type dpo",
        trainer="rayswift.train.trainers.dpo:StreamedDPOTrainer",
        arguments="trl:DPOConfig",
        fields=(*_TRL, _trl("trainer/dpo_config.py", "DPOConfig"), _own("DpoFields")),
        family="preference",
        collate="rayswift.data.collate.padded:preference_batch",
        head="causal_lm",
        packs=False,
        mean_over_rows=True,
        has_reference=True,
        losses=_DPO_LOSSES,
        trains_answers=True,
        other_adapters=True,
        qlora=True,
    ),
    "kto": Task(
        verb="rlhf --rlhf_type kto",
        trainer="rayswift.train.trainers.kto:StreamedKTOTrainer",
        arguments="trl:KTOConfig",
        fields=(*_TRL, _trl("trainer/kto_config.py", "KTOConfig")),
        family="kto",
        collate="rayswift.data.collate.padded:kto_batch",
        head="causal_lm",
        packs=False,
        mean_over_rows=True,
        has_reference=True,
        losses=("kto", "apo_zero_unpaired"),
        trains_answers=True,
        other_adapters=True,
        qlora=True,
    ),
    "rm": Task(
        verb="rlhf --rlhf_type rm",
        trainer="rayswift.train.trainers.reward:StreamedRewardTrainer",
        arguments="trl:RewardConfig",
        fields=(*_TRL, _trl("trainer/reward_config.py", "RewardConfig")),
        family="preference",
        collate="rayswift.data.collate.padded:reward_batch",
        head="reward",
        packs=False,
        mean_over_rows=True,
        other_adapters=True,
        qlora=True,
    ),
    "orpo": Task(
        verb="rlhf --rlhf_type orpo",
        trainer="rayswift.train.trainers.cpo_orpo:StreamedORPOTrainer",
        arguments="trl.experimental.orpo:ORPOConfig",
        fields=(*_TRL, _trl("experimental/orpo/orpo_config.py", "ORPOConfig")),
        family="preference",
        collate="rayswift.data.collate.padded:pair_batch",
        head="causal_lm",
        packs=False,
        mean_over_rows=True,
        trains_answers=True,
        qlora=True,
    ),
    "cpo": _CPO,
    "simpo": replace(
        _CPO,
        verb="rlhf --rlhf_type simpo",
        losses=("simpo",),
        defaults={"loss_type": "simpo", "beta": 2.0, "simpo_gamma": 1.0},
    ),
    "grpo": _GRPO,
    "ppo": replace(
        _GRPO,
        verb="rlhf --rlhf_type ppo",
        trainer="rayswift.train.policy.ppo.trainer:StreamedPPOTrainer",
        arguments="rayswift.train.policy.ppo.arguments:PPOArguments",
        fields=(*_TRL, _own("PpoFields")),
    ),
    "gkd": replace(
        _GRPO,
        verb="rlhf --rlhf_type gkd",
        trainer="rayswift.train.policy.distillation.gkd_trainer:StreamedGkdTrainer",
        arguments="rayswift.train.policy.distillation.arguments:GkdArguments",
        fields=(*_TRL, _SFT, _trl("experimental/gkd/gkd_config.py", "GKDConfig"), _own("GkdFields")),
        has_reference=False,
    ),
    "seq_cls": Task(
        verb="sft --task_type seq_cls",
        trainer="rayswift.train.trainers.classify:StreamedClassTrainer",
        arguments="transformers:TrainingArguments",
        fields=_HF,
        family="classification",
        collate="rayswift.data.collate.padded:class_batch",
        head="classes",
        packs=False,
        mean_over_rows=True,
        other_adapters=True,
        qlora=True,
    ),
    "embedding": Task(
        verb="sft --task_type embedding",
        trainer="rayswift.train.trainers.embedding:StreamedEmbeddingTrainer",
        arguments="transformers:TrainingArguments",
        fields=_HF,
        family="embedding",
        collate="rayswift.data.collate.padded:text_batch",
        head="none",
        packs=False,
        mean_over_rows=True,
        losses=("infonce", "cosine_similarity", "contrastive", "online_contrastive"),
    ),
    "reranker": Task(
        verb="sft --task_type reranker",
        trainer="rayswift.train.trainers.reranker:StreamedRerankerTrainer",
        arguments="transformers:TrainingArguments",
        fields=_HF,
        family="reranker",
        collate="rayswift.data.collate.padded:text_batch",
        head="reward",
        packs=False,
        mean_over_rows=True,
        losses=("pointwise", "listwise"),
    ),
    "generative_reranker": Task(
        verb="sft --task_type generative_reranker",
        trainer="rayswift.train.trainers.reranker:StreamedGenerativeRerankerTrainer",
        arguments="transformers:TrainingArguments",
        fields=_HF,
        family="reranker",
        collate="rayswift.data.collate.padded:left_padded_batch",
        head="causal_lm",
        packs=False,
        mean_over_rows=True,
        losses=("pointwise", "listwise"),
    ),
}


ONLINE_TASKS = tuple(name for name, task in TASKS.items() if task.is_online)
"""Tasks that sample completions."""


def load(name: str) -> Any:
    """Import the class that `module:Class` names."""
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)
