"""The plan of a run: the config with derived values, the memory estimates, and both as text."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

from rayswift.cluster.layout import Layout, memory_per_worker_bytes
from rayswift.config.checks.distillation import completions_per_prompt
from rayswift.config.derived import (
    max_sequence_length,
    micro_batch_tokens,
    problem_type,
    rollout_of,
    round_shape,
)
from rayswift.config.schema import DataConfig, RlhfConfig, SftConfig, TrainingConfig
from rayswift.config.tasks import TASKS
from rayswift.data.encode.template import default_system
from rayswift.data.sequence.global_batches import micro_batches
from rayswift.data.sequence.windows import WindowPlan, Windows
from rayswift.data.tokenizer.folder import read_chat_template
from rayswift.data.tokenizer.training_copy import given_template
from rayswift.launch import memory, models
from rayswift.launch.problems import config_problems, worker_problems
from rayswift.log import UserError, refuse
from rayswift.model.kind import abilities
from rayswift.model.texts import settings as text_settings
from rayswift.run.folder import Resume

_MOST_CHARS = 200
ConfigT = TypeVar("ConfigT", bound=TrainingConfig)


@dataclass(frozen=True)
class Plan(Generic[ConfigT]):
    """A resolved config, its layout, and the memory estimate of each ZeRO stage, or why there is none."""

    config: ConfigT
    layout: Layout
    estimates: list[memory.MemoryEstimate] | str
    available_bytes: int

    @property
    def global_batch(self) -> int:
        """Packed rows of one optimizer step."""
        batch = self.config.train.global_batch_size
        assert batch is not None, "resolve sets it"
        return batch


def resolve(config: ConfigT, layout: Layout, resume: Resume | None) -> Plan[ConfigT]:
    """Fill in every default that depends on other fields, the layout, or the run that is continued.

    Raise UserError with a line for each contradiction.
    """
    wrong_kind = abilities.training_problems(config)
    folder = Path(config.model.path)
    is_here = folder.is_dir() and not wrong_kind
    if is_here:
        config = text_settings.settled(config, folder)
    estimates: list[memory.MemoryEstimate] | str = "no model of the task"
    if not wrong_kind:
        try:
            estimates = _estimates(config, layout)
        except UserError as error:  # one more problem
            wrong_kind = [str(error)]
    available = memory_per_worker_bytes(layout)
    stage = config.cluster.zero_stage
    if stage is None and resume:
        stage = resume.saved.zero_stage
    if stage is None:
        lowest = {"none": 0, "optimizer": 1, "all": 3}[config.cluster.offload]
        known = estimates if isinstance(estimates, list) else []
        stage = max(lowest, memory.smallest_stage(available, layout.min_world_size, known) if known else 0)
    has_eval = bool(config.data.eval or config.data.eval_fraction)
    metric, greater = config.train.metric_for_best_model, config.train.greater_is_better
    if rollout_of(config) and metric == "loss":  # an evaluation that samples has no loss
        metric = "reward"
    train = config.train.model_copy(
        update={
            **_task_defaults(config),
            "global_batch_size": _global_batch(config, layout, resume),
            "eval_strategy": config.train.eval_strategy or ("steps" if has_eval else "no"),
            "eval_steps": config.train.eval_steps or config.train.save_steps,
            "metric_for_best_model": metric,
            "greater_is_better": not metric.endswith("loss") if greater is None else greater,
        }
    )
    num_workers = config.cluster.num_workers if layout.min_workers else layout.num_workers
    cluster = config.cluster.model_copy(update={"num_workers": num_workers, "zero_stage": stage})
    packs = TASKS[config.train.task].packs
    data = config.data if packs else config.data.model_copy(update={"packing": False})
    resolved = config.model_copy(update={"train": train, "cluster": cluster, "data": data})
    resolved = _with_rounds_in_steps(resolved)
    problems = [*wrong_kind, *config_problems(resolved, has_eval), *worker_problems(resolved, layout)]
    refuse([*problems, *(text_settings.problems(resolved, folder) if is_here else ())])
    return Plan(resolved, layout, estimates, available)


def _global_batch(config: TrainingConfig, layout: Layout, resume: Resume | None) -> int:
    train = config.train
    if train.global_batch_size:
        return train.global_batch_size
    per_worker = train.per_device_train_batch_size * train.gradient_accumulation_steps
    if resume:
        was = resume.config["train"]
        if was["per_device_train_batch_size"] * was["gradient_accumulation_steps"] == per_worker:
            return int(was["global_batch_size"])  # also with another number of workers
    return per_worker * layout.world_size


def _with_rounds_in_steps(config: ConfigT) -> ConfigT:
    """TRL's `generation_batch_size` (completions) as `steps_per_generation`, if it is a number of whole steps."""
    given, batch = config.train.trl_extra, config.train.global_batch_size or 1
    completions = given.get("generation_batch_size")
    if completions is None or completions % batch or given.get("steps_per_generation"):
        return config
    steps = {"steps_per_generation": completions // batch, "generation_batch_size": None}
    return config.model_copy(update={"train": config.train.model_copy(update=steps)})


def with_window_rows(plan: Plan[ConfigT], window_rows: int) -> Plan[ConfigT]:
    """The plan with the window size, which the first rows decide."""
    return with_data(plan, plan.config.data.model_copy(update={"window_rows": window_rows}))


def with_texts(plan: Plan[ConfigT], source: Path) -> Plan[ConfigT]:
    """The plan with text settings from the model's folder; raise UserError if the config contradicts the folder."""
    config = text_settings.settled(plan.config, source)
    refuse(text_settings.problems(config, source))
    return replace(plan, config=config)


def with_data(plan: Plan[ConfigT], data: DataConfig) -> Plan[ConfigT]:
    return replace(plan, config=plan.config.model_copy(update={"data": data}))


def with_labels(plan: Plan[ConfigT], windows: Windows) -> Plan[ConfigT]:
    """The plan with the labels of the rows, if the config leaves them open.

    Raise UserError for a cache, which has no label names, or if the model's head has another number of outputs.
    """
    model = plan.config.model
    if TASKS[plan.config.train.task].head != "classes":
        return plan
    if not isinstance(windows, WindowPlan):
        if model.num_labels is None:
            raise UserError("model.num_labels: a cache does not have it; set it as it was when the rows were encoded")
        return plan
    found = windows.encode
    known: dict[str, Any] = {"num_labels": found.num_labels, "label_names": list(found.label_names)}
    misfit = abilities.label_problem("model.path", model, found.num_labels)
    if misfit:
        raise UserError(misfit)
    if found.problem_type != problem_type(model.model_copy(update=known)):
        known["problem_type"] = found.problem_type
    return replace(plan, config=plan.config.model_copy(update={"model": model.model_copy(update=known)}))


def _task_defaults(config: TrainingConfig) -> dict[str, Any]:
    """Defaults of section `train` that depend on task and tuner."""
    full = config.model.tuner == "full"
    if isinstance(config, RlhfConfig):
        defaults = TASKS[config.train.task].defaults
        own = {name: value for name, value in defaults.items() if name not in config.train.trl_extra}
        return {"learning_rate": config.train.learning_rate or (1e-6 if full else 1e-5), **own}
    own = {"learning_rate": config.train.learning_rate or (2e-5 if full else 1e-4)}
    if isinstance(config, SftConfig) and config.train.loss_type is None:
        own["loss_type"] = TASKS[config.train.task].default_loss
    return own


def _estimates(config: TrainingConfig, layout: Layout) -> list[memory.MemoryEstimate] | str:
    """The estimate of each ZeRO stage, or why there is none."""
    model, train, batch = config.model, config.train, config.train.global_batch_size
    try:
        size = models.size_in_worker(config)
    except OSError as error:
        return str(error)
    accumulation = train.gradient_accumulation_steps
    if batch is not None:
        accumulation = micro_batches(batch, train.per_device_train_batch_size, layout.min_world_size)[1]
    tokens = train.per_device_train_batch_size * config.data.max_length
    if isinstance(config, RlhfConfig) and rollout_of(config):
        tokens = micro_batch_tokens(config)
    return [
        memory.estimate(
            size,
            zero_stage=stage,
            offload=config.cluster.offload,
            world_size=layout.min_world_size,
            half=models.is_half(config, layout),
            quantization=model.quantization,
            double_quantization=model.double_quantization,
            accumulates=accumulation > 1,
            device=layout.device,
            tokens_per_micro_batch=tokens,
            gradient_checkpointing=train.gradient_checkpointing,
        )
        for stage in range(4)
    ]


def remarks(config: TrainingConfig, tokenizer: Path) -> list[str]:
    """What a user may not expect of the model: a head that is left out, a default system message of the template.

    tokenizer: folder of the run's tokenizer or of the model.
    """
    found = abilities.remarks("model.path", config.model.path, config.train.task, config.model.revision)
    if config.data.use_chat_template and not config.data.system:
        own, special_tokens = read_chat_template(tokenizer)
        source = given_template(config.model) or own
        system = default_system(source, special_tokens) if source else ""
        if system:
            shown = system if len(system) <= _MOST_CHARS else f"{system[:_MOST_CHARS]} [...]"
            found.append(
                f"the chat template adds the system message {shown!r} to conversations without one; data.system gives "
                "another"
            )
    return found


def describe(
    plan: Plan[Any],
    num_rows: int | None,
    unchecked: list[str],
    remarks: Sequence[str] = (),
    source: Path | None = None,
) -> str:
    """The plan as text, for `--dry_run` and the log. source: folder of the model's small files (`model.path`)."""
    config, layout = plan.config, plan.layout
    where = "in this process" if layout.num_workers == 0 else f"{layout.num_workers} worker(s)"
    unit = "packed rows" if config.data.packing else "rows"
    ray = "started for this run" if layout.local else "the cluster that is there"
    if layout.local and not layout.num_workers and rollout_of(config) is None:
        ray += ", if its rows fill several windows"
    sizes = [layout.world_size]
    if layout.min_workers:
        where = f"{layout.min_workers} to {layout.num_workers} workers, as many as the cluster has room for,"
        sizes = sorted({layout.min_workers, layout.num_workers})
    lines = [
        f"  training      {where} on {layout.device}, {layout.threads_per_worker} CPU thread(s) each, "
        f"ZeRO {config.cluster.zero_stage}, offload {config.cluster.offload}",
        *_batch_lines(plan, sizes, unit),
        f"  Ray           {ray}",
    ]
    if num_rows is not None:
        lines.append(f"  rows          {num_rows:,} to train")
    lines += models.describe(config, layout)
    source = source or Path(config.model.path)
    lines += text_settings.remarks(config, source) if source.is_dir() else []
    if isinstance(plan.estimates, str):
        stage = config.cluster.zero_stage
        lines.append(f"  memory        not estimated, so whether ZeRO {stage} fits is not checked: {plan.estimates}")
    else:
        lines.append(f"  memory        of {_gib(plan.available_bytes)} per worker, estimated for each ZeRO stage:")
        for number, needed in enumerate(plan.estimates):
            mark = ">" if number == config.cluster.zero_stage else " "
            held = ", ".join(f"{name} {_gib(num_bytes)}" for name, num_bytes in asdict(needed).items())
            lines.append(f"             {mark}  {number}: {_gib(needed.total)}  ({held})")
    lines += [f"  model         {what}" for what in remarks]
    lines += [f"  not checked   {what}" for what in unchecked]
    return "\n".join(["plan", *lines])


def _batch_lines(plan: Plan[Any], sizes: list[int], unit: str) -> list[str]:
    rollout = rollout_of(plan.config)
    if rollout is None:
        cut = " or ".join(_cut(plan, size) for size in sizes)
        return [f"  global batch  {cut} = {plan.global_batch} {unit} of up to {plan.config.data.max_length} tokens"]
    layout, each = plan.layout, completions_per_prompt(plan.config)
    engines = f"{layout.min_engines}"
    if layout.max_engines > layout.min_engines:
        engines += f" to {layout.max_engines}"
    round_size = plan.global_batch * round_shape(plan.config.train)[0]
    longest = max_sequence_length(plan.config)
    if not layout.max_engines:
        return [
            f"  global batch  {plan.global_batch} answers of up to {longest} tokens with their prompts",
            f"  rollouts      none: rounds of {round_size} rows with their answers",
        ]
    gpus = f", reward models hold {layout.num_reward_gpus} GPU(s)" if layout.num_reward_gpus else ""
    dropout, model = [], plan.config.model
    is_off = plan.config.train.trl_extra.get("disable_dropout", True) is not False
    if is_off and model.tuner != "full" and model.lora_dropout:
        rate = f"model.lora_dropout = {model.lora_dropout:g}"
        dropout = [f"  dropout       off, as in the engines: {rate} has no effect (train.disable_dropout)"]
    return [
        f"  global batch  {plan.global_batch} completions of up to {longest} tokens with their prompts",
        f"  rollouts      {engines} vLLM engine(s), rounds of {round_size // each} prompts x {each} completions, "
        f"staleness {rollout.max_staleness}",
        f"  rewards       {layout.reward_workers} process(es) for functions, {len(rollout.reward_models)} for models"
        f"{gpus}",
        *dropout,
    ]


def _cut(plan: Plan[Any], size: int) -> str:
    """The global batch of `size` workers: rows x micro-batches x workers."""
    rows, accumulation = micro_batches(plan.global_batch, plan.config.train.per_device_train_batch_size, size)
    up_to = "" if rows * accumulation * size == plan.global_batch else "up to "
    return f"{up_to}{rows} x {accumulation} x {size}"


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.2f} GiB"
