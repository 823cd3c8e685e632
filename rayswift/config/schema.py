"""Every field a user can set: a precise type, a default, and one sentence.

A field lives in the section that owns it; its dotted path (`data.max_length`) is the YAML path, the flag and the name
in every error. `train` also takes every other field of the task's TRL config under its TRL name (see
`trl_fields.py`).
"""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from rayswift.config.model import ModelConfig, RlhfModelConfig
from rayswift.config.rollout import RolloutConfig
from rayswift.config.section import (
    PathText,
    Section,
    Strings,
    ascending,
    iso_date,
    one_or_many,
    one_or_range,
)
from rayswift.config.source import Sources
from rayswift.config.train import PtTrainConfig, RlhfTrainConfig, SftTrainConfig, TrainConfig

LossScale = Literal["ignore_empty_think", "ignore_think_prefix", "react", "hermes", "qwen", "agentflan", "alpha_umi"]
TruncationMode = Literal["drop", "left", "right", "split"]
LossOn = Literal["assistant", "last_turn", "all"]
MixUntil = Literal["first_exhausted", "all_exhausted"]


# The least and the most.
WorkerRange = Annotated[list[int], AfterValidator(ascending)]
OneOrTwo = Annotated[list[str], Field(max_length=2), BeforeValidator(one_or_many)]


class DataConfig(Section):
    """Rows, and how they become packed token rows."""

    dataset: Sources
    """Files, folders, globs, URLs or hub ids (org/name:subset/split@revision) to train on, one after the other; #N
    takes N rows; a mapping has settings of its own, see data/sources/README.md."""
    mix: dict[PathText, float] = {}
    """Share of each source in the training rows, by its name in `dataset`; empty: every row of every source once."""
    mix_until: MixUntil = "first_exhausted"
    """A mixed epoch ends before the first source would repeat, or once all rows of all sources have come."""
    eval: Sources = []
    """What to evaluate on, as in `dataset`; of a data set with splits the validation or test split."""
    eval_fraction: float = Field(0.0, ge=0, lt=1)
    """Share of the training rows held out for evaluation: chosen by the seed, or the last ones without `shuffle`."""
    columns: dict[str, str] = {}
    """Your names -> ours, of columns (messages, query, response, chosen, ...), of keys of a message (role, content) and
    of roles (user, assistant); dots reach into a column."""
    system: str | None = None
    """System prompt for rows that bring none."""
    model_name: OneOrTwo = []
    """What `{{NAME}}` in rows becomes; of two, the first in Chinese rows and the second in all others."""
    model_author: OneOrTwo = []
    """What `{{AUTHOR}}` in rows becomes; of two, the first in Chinese rows and the second in all others."""
    map: PathText | None = None
    """Your own function as module:name or file.py:name, called with each row: gives a row, rows, or None."""
    max_length: int = Field(2048, ge=2)
    """Tokens in a packed row, and the longest row; not given, less where a model of whole texts takes less."""
    truncation: TruncationMode = "drop"
    """A longer row is dropped, loses an end, or is split (text); not given, embedding, seq_cls, reranker: right."""
    packing: bool = True
    """Put several rows into one of `max_length` tokens; attention never crosses their borders."""
    loss_on: LossOn = "assistant"
    """Which tokens are trained: all assistant turns, the last one, or every token."""
    loss_scale: Annotated[list[LossScale], BeforeValidator(one_or_many)] = []
    """Changes to the loss weight of parts of assistant turns, applied in this order, under ms-swift's names."""
    ignore_empty_think: bool = False
    """Leave an empty block of thoughts untrained that a chat template writes before an answer: `loss_scale` of that
    name."""
    use_chat_template: bool = True
    """Render messages with the chat template; false: their contents alone, one after the other; not given, embedding,
    seq_cls and reranker do without where the model has none, or its sentence-transformers folder uses none."""
    chat_template_kwargs: dict[str, Any] = {}
    """Variables for the chat template (`{"enable_thinking": false}`); a row's own `chat_template_kwargs` come first."""
    keep_history: bool = False
    """Train all answers of a row in one text, earlier ones as the chat template leaves them there; false: where that
    takes thoughts out of earlier answers, each of these in a text of its own, behind what is served before it."""
    template_date: Annotated[str | None, AfterValidator(iso_date)] = None
    """The day, YYYY-MM-DD, that a chat template sees which asks for it; null: that of the first launch, kept from then
    on."""
    shuffle: bool = True
    """New order each epoch, a function of seed and epoch alone."""
    window_rows: int | None = Field(None, ge=1)
    """Rows that are packed together, the unit of streaming; null: about 200 packed rows' worth, 2,000 to 50,000, fewer
    if these hold over 16 M tokens or 256 MiB."""
    cache: PathText | None = None
    """Folder that `rayswift data encode` wrote from these sources and settings; null: encode while training."""
    max_bad_fraction: float = Field(0.01, ge=0, le=1)
    """Share of quarantined rows that stops the run: of the rows seen once they are 1,000, before that of all rows."""


class PtDataConfig(DataConfig):
    """Rows, and how they become packed token rows."""

    loss_on: LossOn = "all"
    use_chat_template: bool = False
    truncation: TruncationMode = "split"


class ClusterConfig(Section):
    """Where it runs."""

    num_workers: Annotated[Annotated[int, Field(ge=0)] | WorkerRange | None, BeforeValidator(one_or_range)] = None
    """Training workers; a list [least, most]: as many as the cluster has room for, also while the run goes on;
    0: in this process, with Ray only if the rows fill several windows; null: one per GPU, else 1."""
    zero_stage: int | None = Field(None, ge=0, le=3)
    """ZeRO stage: 0 is plain data parallelism, 1 to 3 are DeepSpeed's; null: the smallest that is estimated to fit."""
    offload: Literal["none", "optimizer", "all"] = "none"
    """Keep optimizer states (ZeRO 1-3), or also weights (ZeRO 3), in host memory."""
    sequence_parallel_size: int = Field(1, ge=1)
    """Workers that share each packed row (Ulysses sequence parallelism of DeepSpeed)."""
    deepspeed: PathText | None = None
    """A DeepSpeed JSON of your own, used whole in place of `zero_stage` and `offload`."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where workers compute; auto: GPUs if there are any."""
    threads_per_worker: int | None = Field(None, ge=1)
    """CPU threads of a worker; null: cores divided by the workers of this machine."""
    address: str | None = None
    """Ray cluster to join; null: RAY_ADDRESS if set, else one started for this run."""
    num_data_cpus: int = Field(2, ge=1)
    """Tokenising tasks at a time when Ray is started for this run."""
    max_failures: int = Field(3, ge=0)
    """Restarts of the training workers after a death."""
    wait_for_nodes_s: int = Field(600, ge=0)
    """Longest wait for nodes that an autoscaler can add, or that other work holds, before the training begins."""
    node_timeout_s: int = Field(45, ge=1)
    """Longest wait for a first process on each node: give more where a job's environment is installed there first."""
    scratch_dir: PathText | None = None
    """Where a run whose `train.output_dir` is a URL keeps its working copy; null: the system's temporary folder."""
    timeout_s: int = Field(600, ge=1)
    """Longest wait for a collective or an actor's answer before the run ends with an error; and for batches,
    completions, evaluations and the canary, longest time without any progress."""
    storage_timeout_s: int = Field(3600, ge=1)
    """Longest that one worker may write, convert, check or upload weights while the others wait."""

    @property
    def uses_deepspeed(self) -> bool:
        """Whether DeepSpeed's engine trains; else it is PyTorch's DistributedDataParallel."""
        return bool(self.zero_stage) or self.deepspeed is not None


class TrainingConfig(Section):
    """What all training verbs share."""

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

    to: PathText
    """Folder for the cache; what an interrupted start left there is kept."""
    epochs: int = Field(1, ge=1)
    """Epochs to write, each in its own order; training beyond them reads them again in a new order."""


class DataEncodeConfig(SftConfig):
    """`rayswift data encode`: the encoded cache of a run's rows."""

    encode: EncodeSection


class InspectSection(Section):
    """Look at the rows before training."""

    rows: int = Field(2000, ge=1)
    """Rows to look at: a random sample, or with data.shuffle off the first ones."""
    show: int = Field(3, ge=0)
    """Rows to decode, their trained tokens highlighted."""
    html: PathText | None = None
    """File for the same as a page; null: none."""


class DataInspectConfig(SftConfig):
    """`rayswift data inspect`: formats, lengths, trained tokens and fill of a run's rows."""

    inspect: InspectSection = InspectSection()


class InferSection(Section):
    """Ask a model."""

    model: PathText
    """Run folder, checkpoint, model folder or hub id."""
    base: PathText | None = None
    """Model below an adapter; null: the one that the adapter's own config names."""
    prompt: Strings
    """Questions, each answered on its own."""
    system: str | None = None
    """System prompt."""
    backend: Literal["auto", "vllm", "transformers"] = "auto"
    """Engine; auto: vLLM if it is installed."""
    max_new_tokens: int = Field(512, ge=1)
    """Longest answer, in tokens."""
    temperature: float = Field(0.0, ge=0)
    """Sampling temperature; 0: greedy."""
    seed: int = 0
    """Seeds sampling."""


class InferConfig(Section):
    """`rayswift infer`: answers from a trained model."""

    infer: InferSection


class ExportSection(Section):
    """Turn a checkpoint into a model folder."""

    model: PathText
    """Run folder or checkpoint with a LoRA adapter."""
    base: PathText | None = None
    """Model below the adapter; null: the one that the adapter's own config names."""
    merge_lora: bool = False
    """Merge the adapter into its base model."""
    output_dir: PathText | None = None
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
    "infer": InferConfig,
    "export": ExportConfig,
}
