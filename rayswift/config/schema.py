"""Every field a user can set: a precise type, a default, and one sentence.

A field lives in the section that owns it; its dotted path (`data.max_length`) is the YAML path, the flag and the name
in every error. `train` also takes every other field of the task's TRL config under its TRL name (see
`trl_fields.py`).
"""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from rayswift.config.fields.source import Sources
from rayswift.config.model import ModelConfig, RlhfModelConfig
from rayswift.config.rollout import RolloutConfig
from rayswift.config.section import (
    LocalPathText,
    PathText,
    Section,
    Strings,
    ascending,
    iso_date,
    one_or_many,
    one_or_range,
)
from rayswift.config.train import PtTrainConfig, RlhfTrainConfig, SftTrainConfig, TrainConfig

LossScale = Literal["ignore_empty_think", "ignore_think_prefix", "react", "hermes", "qwen", "agentflan", "alpha_umi"]
TruncationMode = Literal["drop", "left", "right", "split"]
LossOn = Literal["assistant", "last_turn", "all"]
MixUntil = Literal["first_exhausted", "all_exhausted"]


# [least, most]
WorkerRange = Annotated[list[int], AfterValidator(ascending)]
OneOrTwo = Annotated[list[str], Field(max_length=2), BeforeValidator(one_or_many)]


class DataConfig(Section):
    """Rows, and how they become packed token rows."""

    dataset: Sources
    """Files, folders, globs, URLs or hub ids (org/name:subset/split@revision) to train on, one after the other; #N
    takes N rows; a mapping has its own settings, see data/sources/README.md."""
    mix: dict[PathText, float] = {}
    """Share of each source in the training rows, by its name in `dataset`; empty: every row of every source once."""
    mix_until: MixUntil = "first_exhausted"
    """A mixed epoch ends before the first source would repeat, or once all rows of all sources have been used."""
    eval: Sources = []
    """Rows to evaluate on, as in `dataset`; from a data set with splits, the validation or test split."""
    eval_fraction: float = Field(0.0, ge=0, lt=1)
    """Share of the training rows held out for evaluation: chosen by the seed, or the last ones without `shuffle`."""
    columns: dict[str, str] = {}
    """Your names -> ours, for columns (messages, query, response, chosen, ...), keys of a message (role, content) and
    roles (user, assistant); a name with dots is a path into a column."""
    system: str | None = None
    """System prompt for rows without one."""
    model_name: OneOrTwo = []
    """Text that replaces `{{NAME}}` in rows; of two, the first in Chinese rows and the second in all others."""
    model_author: OneOrTwo = []
    """Text that replaces `{{AUTHOR}}` in rows; of two, the first in Chinese rows and the second in all others."""
    map: PathText | None = None
    """Your own function as module:name or file.py:name, called with each row; it returns a row, rows, or None."""
    max_length: int = Field(2048, ge=2)
    """Tokens in a packed row, and in the longest row; if not given, fewer for whole texts whose model takes fewer."""
    truncation: TruncationMode = "drop"
    """A longer row is dropped, cut at an end, or split (text); if not given: right for embedding, seq_cls, reranker."""
    packing: bool = True
    """Pack several rows into one of `max_length` tokens; attention never crosses their borders."""
    loss_on: LossOn = "assistant"
    """Which tokens are trained: all assistant turns, the last one, or every token."""
    loss_scale: Annotated[list[LossScale], BeforeValidator(one_or_many)] = []
    """Changes to the loss weight of parts of assistant turns, applied in this order, under ms-swift's names."""
    ignore_empty_think: bool = False
    """Do not train an empty block of thoughts that a chat template writes before an answer; the same as the rule of
    this name in `loss_scale`."""
    use_chat_template: bool = True
    """Render messages with the chat template; false: concatenate their contents; if not given: false for embedding,
    seq_cls and reranker if the model has no template, or its sentence-transformers folder does not use it."""
    chat_template_kwargs: dict[str, Any] = {}
    """Variables for the chat template (`{"enable_thinking": false}`); `chat_template_kwargs` of a row override them."""
    keep_history: bool = False
    """Train all answers of a row in one text, as the chat template renders them; false: if the template removes the
    thoughts of earlier answers, train each answer in a text of its own, after the text that precedes it in use."""
    template_date: Annotated[str | None, AfterValidator(iso_date)] = None
    """Day, YYYY-MM-DD, for a chat template that asks for the date; null: the day of the first launch, also after a
    resume."""
    shuffle: bool = True
    """New order each epoch, which depends on seed and epoch alone."""
    window_rows: int | None = Field(None, ge=1)
    """Rows that are packed together, the unit of streaming; null: enough for about 200 packed rows, 2,000 to 50,000,
    fewer if these hold over 16 M tokens or 256 MiB."""
    cache: LocalPathText | None = None
    """Folder that `rayswift data encode` wrote from these sources and settings; null: encode while training."""
    max_bad_fraction: float = Field(0.01, ge=0, le=1)
    """Share of quarantined rows that stops the run: of the rows seen, from 1,000 rows on; before that, of all rows."""


class PtDataConfig(DataConfig):
    """Rows, and how they become packed token rows."""

    loss_on: LossOn = "all"
    use_chat_template: bool = False
    truncation: TruncationMode = "split"


class ClusterConfig(Section):
    """Where it runs."""

    num_workers: Annotated[Annotated[int, Field(ge=0)] | WorkerRange | None, BeforeValidator(one_or_range)] = None
    """Training workers; a list [least, most]: as many as the cluster has room for, followed during the run; 0: train in
    this process, with Ray only if the rows fill several windows; null: one per GPU, else 1."""
    zero_stage: int | None = Field(None, ge=0, le=3)
    """ZeRO stage: 0 is plain data parallelism, 1 to 3 are DeepSpeed's; null: the smallest that is estimated to fit."""
    offload: Literal["none", "optimizer", "all"] = "none"
    """Keep optimizer states (ZeRO 1-3), or also weights (ZeRO 3), in host memory."""
    sequence_parallel_size: int = Field(1, ge=1)
    """Workers that share each packed row (Ulysses sequence parallelism of DeepSpeed)."""
    deepspeed: PathText | None = None
    """Your own DeepSpeed JSON, which replaces `zero_stage` and `offload`."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where workers compute; auto: GPUs if there are any."""
    threads_per_worker: int | None = Field(None, ge=1)
    """CPU threads of a worker; null: the cores divided by the number of workers on this machine."""
    address: str | None = None
    """Ray cluster to join; null: RAY_ADDRESS if set, else a cluster started for this run."""
    num_data_cpus: int = Field(2, ge=1)
    """Tokenising tasks that run at a time, if Ray is started for this run."""
    max_failures: int = Field(3, ge=0)
    """Restarts of the training workers after failures."""
    wait_for_nodes_s: int = Field(600, ge=0)
    """Longest wait before training for nodes that an autoscaler can add, or that other work holds."""
    node_timeout_s: int = Field(45, ge=1)
    """Longest wait for the first process on each node; raise it if a job installs its environment there first."""
    scratch_dir: LocalPathText | None = None
    """Folder for the working copy of a run whose `train.output_dir` is a URL; null: the system's temporary folder."""
    timeout_s: int = Field(600, ge=1)
    """Longest wait for a collective or the answer of an actor before the run ends with an error; for batches,
    completions, evaluations and the canary, the longest time without any progress."""
    storage_timeout_s: int = Field(3600, ge=1)
    """Longest time that one worker may write, convert, check or upload weights while the others wait."""

    @property
    def uses_deepspeed(self) -> bool:
        """Whether DeepSpeed trains; otherwise PyTorch's DistributedDataParallel."""
        return bool(self.zero_stage) or self.deepspeed is not None


class TrainingConfig(Section):
    """The sections of all training verbs."""

    model: ModelConfig
    data: DataConfig
    train: TrainConfig
    cluster: ClusterConfig = ClusterConfig()


class PtConfig(TrainingConfig):
    """`rayswift pt`: continued pre-training on text."""

    data: PtDataConfig
    train: PtTrainConfig = PtTrainConfig()


class SftConfig(TrainingConfig):
    """`rayswift sft`: supervised fine-tuning."""

    train: SftTrainConfig = SftTrainConfig()


class RlhfConfig(TrainingConfig):
    """`rayswift rlhf`: preference optimisation, reward models, reinforcement learning, distillation."""

    model: RlhfModelConfig
    rollout: RolloutConfig = RolloutConfig()
    train: RlhfTrainConfig = RlhfTrainConfig()


class EncodeSection(Section):
    """Write what training would read."""

    to: LocalPathText
    """Folder for the cache; finished parts of an interrupted command are kept."""
    epochs: int = Field(1, ge=1)
    """Epochs to write, each in its own order; later epochs of a training read them again in a new order."""


class DataEncodeConfig(SftConfig):
    """`rayswift data encode`: the encoded cache of a run's rows."""

    encode: EncodeSection


class InspectSection(Section):
    """Look at the rows before training."""

    rows: int = Field(2000, ge=1)
    """Rows to look at: a random sample, or the first ones if data.shuffle is false."""
    show: int = Field(3, ge=0)
    """Rows to show as text, with trained tokens highlighted."""
    html: LocalPathText | None = None
    """HTML file to write with the same content; null: none."""


class DataInspectConfig(SftConfig):
    """`rayswift data inspect`: formats, lengths, trained tokens and fill of a run's rows."""

    inspect: InspectSection = InspectSection()


class SampleSection(Section):
    """Which completions become rows."""

    output_file: LocalPathText = "sampled.jsonl"
    """JSON lines to write: the prompt's row with a completion as last message, its reward, and the worst completion."""
    n_best_to_keep: int = Field(5, ge=1)
    """Most rows of a prompt: different completions with the highest rewards."""
    min_reward: float | None = None
    """Lowest reward of a completion that becomes a row; null: any."""
    easy_query_threshold: float | None = Field(None, ge=0, le=1)
    """Leave out prompts of which more than this share of the completions are right; null: none."""
    right_from: float = 1.0
    """Reward from which a completion counts as right, for `easy_query_threshold`."""


class SampleDataConfig(DataConfig):
    """Rows, and how they become prompts."""

    shuffle: bool = False


class SampleTrainConfig(RlhfTrainConfig):
    """The fields of task grpo that matter without a trainer: seed, folder for logs, whether to continue."""

    task: Literal["grpo"] = "grpo"
    output_dir: LocalPathText = "runs/sample"


class SampleConfig(RlhfConfig):
    """`rayswift sample`: prompts -> completions -> rewards -> rows."""

    data: SampleDataConfig
    train: SampleTrainConfig = SampleTrainConfig()
    sample: SampleSection = SampleSection()


class InferSection(Section):
    """Ask a model."""

    model: PathText
    """Run folder, checkpoint, model folder or hub id."""
    base: PathText | None = None
    """Model below an adapter; null: the one that the adapter's own config names."""
    trust_remote_code: bool = False
    """Run model code shipped with the model."""
    prompt: Strings
    """Questions, each answered independently."""
    system: str | None = None
    """System prompt."""
    backend: Literal["auto", "vllm", "transformers"] = "auto"
    """Engine; auto: vLLM if it is installed."""
    max_new_tokens: int = Field(512, ge=1)
    """Longest answer, in tokens."""
    temperature: float = Field(0.0, ge=0)
    """Sampling temperature; 0: greedy."""
    seed: int = 0
    """Seed of sampling."""


class InferConfig(Section):
    """`rayswift infer`: answers from a trained model."""

    infer: InferSection


class ExportSection(Section):
    """Turn a checkpoint into a model folder."""

    model: PathText
    """Run folder or checkpoint with a LoRA adapter."""
    base: PathText | None = None
    """Model below the adapter; null: the one that the adapter's own config names."""
    trust_remote_code: bool = False
    """Run model code shipped with the model; it is saved with the merged one."""
    merge_lora: bool = False
    """Merge the adapter into its base model."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Number format of the merged weights, in which they are added; auto: that of the base model."""
    output_dir: LocalPathText | None = None
    """Folder to write; null: beside the checkpoint, with `merged-` before its name."""


class ExportConfig(Section):
    """`rayswift export`: a model folder from a checkpoint."""

    export: ExportSection


class TasksConfig(Section):
    """`rayswift tasks`: has no fields."""


TRAINING_VERBS = ("pt", "sft", "rlhf")
VERB_CONFIGS: dict[str, type[Section]] = {
    "pt": PtConfig,
    "sft": SftConfig,
    "rlhf": RlhfConfig,
    "data encode": DataEncodeConfig,
    "data inspect": DataInspectConfig,
    "tasks": TasksConfig,
    "sample": SampleConfig,
    "infer": InferConfig,
    "export": ExportConfig,
}
