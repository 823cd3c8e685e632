"""Section `model`: what is trained, and what is trained beside or against it."""

from typing import Any, Literal

from pydantic import Field

from rayswift.config.section import PathText, PathTexts, Section, Strings

ProblemType = Literal["regression", "single_label_classification", "multi_label_classification"]
Pooling = Literal["auto", "last_token", "mean", "cls", "max", "mean_sqrt_len_tokens", "weightedmean"]
SELF = "self"
"""The teacher that is the model itself."""
Tuner = Literal["full", "lora", "adalora", "vera", "boft", "ia3", "fourierft", "loha", "lokr", "miss"]


class ModelConfig(Section):
    """What is trained."""

    path: PathText
    """Folder or hub id of the model (`--model` for short)."""
    tuner: Tuner = "full"
    """Train all weights (full), or an adapter on frozen weights: LoRA, or another of PEFT's adapters."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Number format of weights and activations; auto: bfloat16 on GPUs that have it, else float32."""
    attn_implementation: str | None = None
    """Attention kernel as `transformers` names it (sdpa, eager, flash_attention_2, ...); null: its own choice."""
    use_kernels: bool = False
    """Use kernels from the hub for layers that have one for the device (package `kernels`)."""
    experts_implementation: Literal["eager", "grouped_mm", "batched_mm"] | None = None
    """How the experts of a mixture-of-experts model are computed; null: `transformers`' own choice."""
    lora_rank: int = Field(8, ge=1)
    """Rank of the LoRA matrices."""
    lora_alpha: float = 32
    """LoRA scale: the update is multiplied by alpha / rank."""
    lora_dropout: float = Field(0.05, ge=0, lt=1)
    """Dropout on the LoRA input."""
    lora_plus_ratio: float | None = Field(None, gt=0)
    """LoRA+: learning rate of the B matrices, as a multiple of that of the A matrices; null: both are equal."""
    target_modules: Strings = ["all-linear"]
    """Modules that get an adapter: names, or all-linear for every linear layer but the head."""
    target_regex: str | None = None
    """Regular expression for the full names of modules that get an adapter, in place of `target_modules`."""
    modules_to_save: Strings = []
    """Modules trained in full beside the adapter."""
    tuner_kwargs: dict[str, Any] = {}
    """Further fields of the tuner's PEFT config, under PEFT's names (`{"use_rslora": true}`)."""
    init_rows: int = Field(32, ge=1)
    """Packed rows, the first of the training, for an initialisation from rows (eva, corda, lora_ga)."""
    adapters: PathTexts = []
    """Adapter folders to start from: training continues the last one; those before it are merged into the weights."""
    freeze: str | None = None
    """Full training: regular expression; parameters whose names begin with a match are frozen."""
    freeze_ratio: float = Field(0.0, ge=0, le=1)
    """Full training: share of the parameters to freeze, from the embedding upwards."""
    unfreeze: str | None = None
    """Full training: regular expression for parameters that are trained even if another field freezes them."""
    new_blocks: int = Field(0, ge=0)
    """Full training: LLaMA-Pro: layers to add, spread evenly and without effect at first; only these are trained."""
    lisa_layers: int = Field(0, ge=0)
    """Full training: LISA: layers trained at a time, drawn again every `lisa_interval` steps; 0: all."""
    lisa_interval: int = Field(20, ge=1)
    """Full training: steps between two draws of `lisa_layers`."""
    quantization: Literal["int8", "nf4", "fp4"] | None = None
    """Load the frozen weights in 8 or 4 bits through bitsandbytes and train an adapter on them (QLoRA)."""
    double_quantization: bool = True
    """Quantize the scales of 4-bit weights too."""
    new_special_tokens: PathTexts = []
    """Special tokens to add to the tokenizer and the embedding: the tokens, or a .txt file with one token per line."""
    rope_scaling: dict[str, Any] | None = None
    """Rotary scaling as in `transformers` (`{"rope_type": "yarn", "factor": 4.0}`); null: that of the model."""
    max_position_embeddings: int | None = Field(None, ge=1)
    """Number of positions to extend the model to; null: that of its `config.json`."""
    num_labels: int | None = Field(None, ge=1)
    """Task seq_cls: outputs of the classification head; null: as many as the rows have classes."""
    label_names: Strings = []
    """Task seq_cls: names of the classes in the order of the outputs, if labels are texts; empty: those in the rows, in
    alphabetical order; saved as `id2label`."""
    problem_type: ProblemType | None = None
    """Task seq_cls: kind of labels; null: decided by the rows; with one output, a value (regression)."""
    pooling: Pooling = "auto"
    """Task embedding: how the states of a text become its embedding; cls: the first token; auto: as in the model's
    sentence-transformers folder, without one the mean for an encoder, the last token for a decoder."""
    normalize: bool | None = None
    """Task embedding: scale embeddings to length 1; null: as in the model's sentence-transformers folder, without one
    true."""
    chat_template: PathText | None = None
    """Jinja file that replaces the chat template of the tokenizer; null: that of the tokenizer."""
    random_init: bool = False
    """Initialise the weights from `config.json` and the seed instead of loading them."""
    revision: str | None = None
    """Hub revision; null: the default branch."""
    trust_remote_code: bool = False
    """Run model code shipped with the checkpoint."""


class RlhfModelConfig(ModelConfig):
    """What is trained, and its reference and teacher models."""

    reference: PathText | None = None
    """Reference model, to which the policy is kept close; null: the model before training."""
    reference_adapters: PathTexts = []
    """Adapter folders that are merged into the reference; without `reference`, into the model at `path`. Those of
    `adapters` need no second model: with them the policy begins."""
    critic_path: PathText | None = None
    """Task ppo with `train.critic` separate: model that the critic begins as; null: the first of
    `rollout.reward_models`, else the policy, with its adapter merged."""
    teacher: PathText | None = None
    """Model that is distilled from, by task gkd or by grpo; self: the model itself, as it is, told `teacher_prompt` of
    each row; null: none."""
    teacher_adapters: PathTexts = []
    """Adapter folders on the teacher."""


def whole_model(model: ModelConfig, path: str | None, *, quantizes: bool = False) -> ModelConfig:
    """Another model of the run, without an adapter and with nothing frozen.

    path: its folder or hub id; None: the weights that the policy begins with. quantizes: `model.quantization` applies.
    """
    other: dict[str, Any] = {"tuner": "full", "adapters": [], "freeze": None, "freeze_ratio": 0.0, "unfreeze": None}
    if path is not None:
        revision = model.revision if path == model.path else None
        other |= {"path": path, "revision": revision, "random_init": False, "new_blocks": 0}
    return model.model_copy(update=other if quantizes else other | {"quantization": None})


def named_reference(model: ModelConfig) -> str | None:
    """The path of a reference of its own: its name, or the policy's path if only its adapters are other ones.

    None: the reference is what training begins with.
    """
    if not isinstance(model, RlhfModelConfig):
        return None
    is_start = not model.reference_adapters or model.reference_adapters == model.adapters
    return model.reference or (None if is_start else model.path)


def adapters_of_reference(model: ModelConfig) -> list[str]:
    """The adapters that are merged into the model at `named_reference`."""
    return model.reference_adapters if isinstance(model, RlhfModelConfig) and named_reference(model) else []


def is_own_teacher(model: RlhfModelConfig) -> bool:
    """Whether the weights that are trained are the teacher's too: as they are, or without the adapter."""
    is_start = model.teacher == model.path and model.tuner != "full" and not model.adapters
    return model.teacher == SELF or (is_start and not model.teacher_adapters)
