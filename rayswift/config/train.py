"""Section `train`: its fields for each verb that trains."""

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from rayswift.config.section import LocalPathText, PathText, PathTexts, Section, Strings

SftTask = Literal["causal_lm", "seq_cls", "embedding", "reranker", "generative_reranker"]
RlhfTask = Literal["dpo", "orpo", "cpo", "simpo", "kto", "rm", "ppo", "grpo", "gkd"]
SftLoss = Literal[
    "nll", "dft", "infonce", "cosine_similarity", "contrastive", "online_contrastive", "pointwise", "listwise"
]
Strategy = Literal["no", "steps", "epoch"]
# Steps, or below 1 a share of the training.
Steps = Annotated[int, Field(ge=1)] | Annotated[float, Field(gt=0, lt=1)]


class TrainConfig(Section):
    """Optimiser, schedule, logging, saving, evaluation: names and values of the task's TRL config."""

    model_config = ConfigDict(extra="allow")

    task: str
    """What the model learns."""
    output_dir: PathText = "runs/sft"
    """Run folder: resolved config, logs, metrics, checkpoints, row accounting; a folder, or a URL (s3://bucket/run)."""
    resume: LocalPathText = "never"
    """auto: continue the newest complete checkpoint of the run folder, if any; a path: that one; never: a new run."""
    learning_rate: float | None = Field(None, gt=0)
    """Peak learning rate; null: 2e-5 for full training, 1e-4 for LoRA."""
    num_train_epochs: float = Field(3.0, gt=0, allow_inf_nan=False)
    """Passes over the data; the rows used so far decide the learning rate and the end."""
    max_steps: int = -1
    """Optimizer steps; if positive it replaces `num_train_epochs`, and the data repeats as needed."""
    per_device_train_batch_size: int = Field(8, ge=1)
    """Packed rows per worker and micro-batch."""
    gradient_accumulation_steps: int = Field(1, ge=1)
    """Micro-batches per optimizer step, if `global_batch_size` is null."""
    global_batch_size: int | None = Field(None, ge=1)
    """Packed rows per optimizer step, for any number of workers; null: batch size x accumulation x workers (the most,
    of a range) at the first launch, also after a resume."""
    per_device_eval_batch_size: int = Field(8, ge=1)
    """Packed rows per worker and evaluation batch."""
    lr_scheduler_type: str = "linear"
    """Schedule, as `transformers` names it."""
    warmup_steps: float = Field(0, ge=0)
    """Warm-up steps, or below 1 their share of the training."""
    weight_decay: float = 0.0
    """Decoupled weight decay."""
    max_grad_norm: float = 1.0
    """Clip gradients to this norm; 0: never."""
    optim: str = "adamw_torch_fused"
    """Optimizer, as `transformers` names it; or muon: Muon for matrices, AdamW for all other parameters."""
    gradient_checkpointing: bool = True
    """Recompute activations in the backward pass to save memory."""
    seed: int = Field(42, ge=0, lt=2**32)
    """Seed of weights, order and dropout."""
    logging_steps: float = Field(10, gt=0)
    """Steps between log lines, or below 1 their share of the training."""
    eval_strategy: Strategy | None = None
    """When to evaluate; null: steps if there are evaluation rows, else no."""
    eval_steps: Steps | None = None
    """Steps between evaluations, or below 1 their share of the training; null: as `save_steps`."""
    eval_on_start: bool = False
    """Evaluate once before training."""
    save_strategy: Strategy = "steps"
    """When to save; a checkpoint is always saved at the end."""
    save_steps: Steps = 500
    """Steps between checkpoints, or below 1 their share of the training."""
    save_total_limit: int | None = Field(None, ge=1)
    """Checkpoints kept besides the best; null: all."""
    save_only_model: bool = False
    """Leave out optimizer and data position: smaller, but not resumable."""
    load_best_model_at_end: bool = False
    """The run's model is the best checkpoint, not the last; each new best is saved at once."""
    metric_for_best_model: str = "loss"
    """Evaluation metric that decides which checkpoint is best; for loss, a task that samples uses reward."""
    greater_is_better: bool | None = None
    """Whether a higher value of that metric is better; null: true unless its name ends in loss."""
    early_stopping_patience: int | None = Field(None, ge=1)
    """Stop after this number of evaluations without improvement; null: never."""
    report_to: Strings = ["tensorboard"]
    """Trackers, as `transformers` names them; none: only `metrics.jsonl`."""
    plugins: PathTexts = []
    """Modules or `.py` files of your own, imported by every worker before it builds anything."""
    callbacks: PathTexts = []
    """Your own `TrainerCallback`s as module:name or file.py:name: a class, an instance or a function that makes one."""
    metrics: PathTexts = []
    """Your own evaluation metrics as module:name or file.py:name: functions of an `EvalBatch`, see train/README.md."""
    loss: PathText | None = None
    """Your own loss as module:name or file.py:name, called with (outputs, labels, num_items_in_batch=...)."""

    @property
    def trl_extra(self) -> dict[str, Any]:
        """Fields given under their TRL name that have no line of their own above."""
        return dict(self.__pydantic_extra__ or {})


class PtTrainConfig(TrainConfig):
    """Optimiser, schedule, logging, saving, evaluation: names and values of the task's TRL config."""

    task: Literal["causal_lm"] = "causal_lm"
    """What the model learns: the next token."""
    loss_type: Literal["nll", "dft"] = "nll"
    """Cross-entropy, or TRL's dynamic fine-tuning loss."""
    output_dir: PathText = "runs/pt"


class SftTrainConfig(TrainConfig):
    """Optimiser, schedule, logging, saving, evaluation: names and values of the task's TRL config."""

    task: SftTask = "causal_lm"
    """What the model learns: answers, classes, an embedding, or an order of documents."""
    loss_type: SftLoss | None = None
    """Loss; null: nll (cross-entropy) for causal_lm, infonce for embedding, pointwise for rerankers."""
    matryoshka_dims: dict[int, float] = {}
    """Task embedding: lengths of shortened embeddings to train too, each with the weight of its loss."""
    infonce_temperature: float = Field(0.05, gt=0)
    """Loss infonce: temperature, by which cosine similarities are divided."""
    contrastive_margin: float = Field(0.5, gt=0, le=2)
    """Losses contrastive and online_contrastive: cosine distance beyond which unlike texts have no loss."""
    positive_token: str = "yes"
    """Task generative_reranker: the answer, a single token, for a document that fits its query."""
    negative_token: str = "no"
    """Task generative_reranker: the answer, a single token, for a document that does not fit its query."""


class RlhfTrainConfig(TrainConfig):
    """Optimiser, schedule, logging, saving, evaluation: names and values of the task's TRL config."""

    task: RlhfTask = "dpo"
    """How the model learns from preferences, rewards or a teacher."""
    output_dir: PathText = "runs/rlhf"
    learning_rate: float | None = Field(None, gt=0)
    """Peak learning rate; null: 1e-6 for full training, 1e-5 for LoRA."""
    micro_batch_tokens: int | None = Field(None, ge=1)
    """Most tokens of a micro-batch of completions with their prompts; null: `per_device_train_batch_size` of the
    longest ones; tasks grpo, ppo and gkd."""
