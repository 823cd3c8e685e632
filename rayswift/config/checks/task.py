"""Checks of a task across sections: missing fields, and fields without a meaning; before anything starts."""

from typing import Any

from rayswift.config.checks.online import online_problems
from rayswift.config.derived import keeps_reference
from rayswift.config.fields.tuners import begins_with_other_weights
from rayswift.config.model import adapters_of_reference, named_reference
from rayswift.config.schema import RlhfConfig, SftConfig, TrainingConfig
from rayswift.config.tasks import TASKS
from rayswift.config.train import PtTrainConfig, SftTrainConfig

# Fields of a single task of `sft`.
_OF_TASK = {
    "model.pooling": "embedding",
    "model.normalize": "embedding",
    "train.matryoshka_dims": "embedding",
    "train.infonce_temperature": "embedding",
    "train.contrastive_margin": "embedding",
    "train.positive_token": "generative_reranker",
    "train.negative_token": "generative_reranker",
}

LEAVES_OUT = ("ignore_empty_think", "ignore_think_prefix")
"""Values of `data.loss_scale` that only exclude parts from the loss, so no weights are needed."""
_F_DIVERGENCE_LOSSES = ("sigmoid", "sigmoid_norm", "hinge", "ipo", "exo_pair", "robust", "discopop", "sft")
_SORTING_LOSSES = ("aot", "aot_unpaired")


def task_problems(config: TrainingConfig) -> list[str]:
    """One line for each field that the task needs but lacks, or cannot use."""
    found = []
    if config.model.quantization and config.model.tuner == "full":
        found.append(
            f"model.quantization = {config.model.quantization} freezes the weights, so it needs an adapter; "
            "set model.tuner lora"
        )
    found += _label_problems(config)
    if isinstance(config, SftConfig) and config.train.task == "seq_cls" and config.train.loss_type is not None:
        found.append(
            f"train.loss_type = {config.train.loss_type}: model.problem_type decides the loss of seq_cls; unset it"
        )
    found += _fields_of_other_tasks(config)
    if isinstance(config, SftConfig):
        found += _sft_problems(config)
    found += _loss_scale_problems(config)
    if config.train.task != "causal_lm" and not TASKS[config.train.task].is_online:
        found += _whole_row_problems(config) + _loss_problems(config)
    if isinstance(config, RlhfConfig):
        found += online_problems(config) if TASKS[config.train.task].is_online else _offline_problems(config)
        found += _reference_adapter_problems(config)
    return found


def _label_problems(config: TrainingConfig) -> list[str]:
    names, num_labels = config.model.label_names, config.model.num_labels
    if not names:
        return []
    if not (isinstance(config, SftConfig) and config.train.task == "seq_cls"):
        return [f"model.label_names = {', '.join(names)}: task {config.train.task} has no classes; unset it"]
    found = []
    if num_labels not in (None, len(names)):
        found.append(f"model.label_names has {len(names)} names, model.num_labels is {num_labels}; unset the latter")
    if len(set(names)) < len(names):
        found.append("model.label_names has a name twice")
    if config.model.problem_type == "regression":
        found.append("model.label_names: model.problem_type = regression has values, no classes; unset one of them")
    if any(name.strip().lstrip("+-").isdigit() for name in names):
        found.append("model.label_names: a name is a number; labels that are numbers count the outputs from 0")
    return found


def _fields_of_other_tasks(config: TrainingConfig) -> list[str]:
    found = []
    for path, task in _OF_TASK.items():
        section_name, _, name = path.partition(".")
        section = config.model if section_name == "model" else config.train
        fields = type(section).model_fields
        if name in fields and config.train.task != task and getattr(section, name) != fields[name].default:
            found.append(
                f"{path} = {getattr(section, name)} is of task {task}; unset it, train.task is {config.train.task}"
            )
    return found


def _sft_problems(config: SftConfig) -> list[str]:
    """Problems of values that belong to another task of `sft`."""
    train, found = config.train, []
    losses = TASKS[train.task].losses
    if losses and train.loss_type is not None and train.loss_type not in losses:
        found.append(f"train.loss_type = {train.loss_type} is none of task {train.task}; it has {', '.join(losses)}")
    if train.task == "generative_reranker" and config.data.truncation in ("left", "right"):
        found.append(
            f"data.truncation = {config.data.truncation} would cut off the question that task {train.task} asks; "
            "set drop"
        )
    return found


def _loss_scale_problems(config: TrainingConfig) -> list[str]:
    """Problems of weights for parts of answers, if the loss takes no weights."""
    data, train = config.data, config.train
    given = [f"data.loss_scale = {' '.join(data.loss_scale)}"] if data.loss_scale else []
    given += ["data.ignore_empty_think"] if data.ignore_empty_think else []
    if not TASKS[train.task].trains_answers:
        return [
            f"{what} has no meaning: task {train.task} has no loss over the tokens of answers; unset it"
            for what in given
        ]
    weighs = [name for name in data.loss_scale if name not in LEAVES_OUT]
    if not weighs:
        return []
    what = f"data.loss_scale = {' '.join(weighs)}"
    if train.task != "causal_lm":
        return [f"{what} weighs tokens, but task {train.task} counts whole answers; set {' or '.join(LEAVES_OUT)}"]
    loss_type = train.loss_type if isinstance(train, PtTrainConfig | SftTrainConfig) else None
    rivals = {
        "train.loss": train.loss,
        "train.loss_type": loss_type if loss_type != "nll" else None,
        "train.label_smoothing_factor": train.trl_extra.get("label_smoothing_factor"),
    }
    return [
        f"{what} weighs tokens, which {name} = {value} does not take; unset one"
        for name, value in rivals.items()
        if value
    ]


def _whole_row_problems(config: TrainingConfig) -> list[str]:
    """Problems of tasks whose loss judges whole texts."""
    data, train, why = config.data, config.train, f"task {config.train.task}"
    found = []
    if data.truncation == "split":
        found.append(f"data.truncation = split has no meaning: {why} judges whole texts; set drop, left or right")
    if data.loss_on == "all":
        found.append(f"data.loss_on = all has no meaning: {why} says itself which tokens count; unset it")
    if not data.use_chat_template and train.task == "generative_reranker":
        found.append(f"data.use_chat_template = False: {why} takes conversations, which need one")
    if data.cache and train.trl_extra.get("precompute_ref_log_probs"):
        found.append("data.cache holds rows without what train.precompute_ref_log_probs adds; unset one of them")
    for name in ("loss", "metrics"):
        if getattr(train, name):
            found.append(f"train.{name} = {getattr(train, name)} is for losses over tokens; {why} has its own")
    return found


def _loss_problems(config: TrainingConfig) -> list[str]:
    task, given = config.train.task, config.train.trl_extra
    value = given.get("loss_type", [])
    losses = value if isinstance(value, list) else [value]
    known = TASKS[task].losses or losses
    found = [
        f"train.loss_type = {loss} is no loss of task {task}; there are {', '.join(known)}"
        for loss in losses
        if loss not in known
    ]
    if task == "dpo":
        found += _dpo_problems(losses or ["sigmoid"], given) + _reference_problems(config)
    if task == "kto" and "apo_zero_unpaired" not in losses and config.train.global_batch_size == 1:
        found.append(
            "train.global_batch_size = 1: the KL term of kto pairs prompts with answers of other rows; set 2 or more, "
            "or train.loss_type apo_zero_unpaired"
        )
    if task == "kto" and given.get("precompute_ref_log_probs"):
        found.append(
            "train.precompute_ref_log_probs: the KL term of kto needs the reference at every step, for pairs that each "
            "epoch makes anew; unset it"
        )
    return found


def _reference_problems(config: TrainingConfig) -> list[str]:
    """Problems of fields that replace a reference model in memory."""
    model, given = config.model, config.train.trl_extra
    named = named_reference(model)
    found = []
    if given.get("reference_free") and (named or given.get("precompute_ref_log_probs")):
        other = "model.reference" if named else "train.precompute_ref_log_probs"
        found.append(f"train.reference_free = True leaves nothing for {other}; unset one of them")
    if given.get("precompute_ref_log_probs") and not named and begins_with_other_weights(model):
        found.append(
            "train.precompute_ref_log_probs needs a reference that is there before the run begins, but this run makes "
            "its initial weights first; set model.reference, or unset it"
        )
    return found


def _reference_adapter_problems(config: RlhfConfig) -> list[str]:
    """Why adapters cannot be merged into a reference."""
    model = config.model
    if not adapters_of_reference(model):
        return []
    merge = "merge them (`rayswift export --merge_lora`) and give the folder as model.reference"
    found = []
    if config.cluster.zero_stage == 3 and keeps_reference(config):
        found.append(
            f"model.reference_adapters cannot be merged into a model that ZeRO-3 spreads; {merge}, or set "
            "cluster.zero_stage 2"
        )
    if model.quantization:
        found.append(f"model.reference_adapters cannot be merged into {model.quantization} weights; {merge}")
    if model.reference is None and model.random_init:
        found.append("model.reference_adapters: the weights below them are random; name theirs in model.reference")
    return found


def _dpo_problems(losses: list[str], given: dict[str, Any]) -> list[str]:
    found = []
    weights, divergence = given.get("loss_weights"), given.get("f_divergence_type", "reverse_kl")
    if weights and len(weights) != len(losses):
        found.append(f"train.loss_weights has {len(weights)} weights for {len(losses)} losses; give one each")
    if "exo_pair" in losses and not given.get("label_smoothing"):
        found.append("train.loss_type = exo_pair needs train.label_smoothing above 0; its paper takes 1e-3")
    without = [loss for loss in losses if loss not in _F_DIVERGENCE_LOSSES]
    if divergence != "reverse_kl" and without:
        found.append(f"train.f_divergence_type = {divergence} is not defined for loss {without[0]}; unset it")
    sorting = [loss for loss in losses if loss in _SORTING_LOSSES]
    if given.get("use_weighting") and sorting:
        found.append(f"train.use_weighting weighs pairs, but loss {sorting[0]} sorts them apart; unset it")
    return found


def _offline_problems(config: RlhfConfig) -> list[str]:
    values = config.rollout.model_dump()
    fields = type(config.rollout).model_fields
    given = [name for name, field in fields.items() if values[name] != field.default]
    why = f"has no meaning: task {config.train.task} samples no completions; unset it"
    found = [f"rollout.{name} {why}" for name in given]
    return found + (["train.micro_batch_tokens " + why] if config.train.micro_batch_tokens else [])
