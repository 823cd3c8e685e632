"""`model.tuner` -> PEFT's config of the adapter, the adapter to start from, and the frozen weights of full training.

Initialisations that change the base weights (PiSSA, OLoRA) are done once, before the training, by `initial.weights`.
"""

import copy
import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import PEFT_TYPE_TO_CONFIG_MAPPING, PeftConfig, PeftModel, PeftType, get_peft_model
from peft.utils.constants import SEQ_CLS_HEAD_NAMES
from transformers import PreTrainedModel, TrainingArguments, set_seed

from rayswift.config.fields.tuners import is_initialised_before
from rayswift.config.model import ModelConfig
from rayswift.config.tasks import Head
from rayswift.log import UserError
from rayswift.model import layers
from rayswift.model.adapters import PEFT_TASK_TYPES, adapter_folder, target_problem

# Folder of the adapter of such an initialisation, below that of the initial weights.
INITIAL = "adapter"
_TRAINED, REFERENCE = "default", "ref"
"""PEFT's name of the adapter that is trained, and TRL's of the frozen copy with which the model is the reference."""
_OF_TRAINED = re.compile(rf"\.{_TRAINED}(?=\.|$)")


def peft_config(
    model: ModelConfig,
    head: Head = "causal_lm",
    num_steps: int = 0,
    network: torch.nn.Module | None = None,
    drawn: Sequence[str] = (),
) -> PeftConfig | None:
    """The config of a new adapter; None if there is none, or if `load_model` has loaded one. Fields: `new_adapter`."""
    if model.tuner == "full" or model.adapters or is_initialised_before(model):
        return None
    return new_adapter(model, head, num_steps, network, drawn)


def new_adapter(
    model: ModelConfig,
    head: Head = "causal_lm",
    num_steps: int = 0,
    network: torch.nn.Module | None = None,
    drawn: Sequence[str] = (),
) -> PeftConfig:
    """PEFT's config of the tuner; raise UserError if PEFT refuses a value.

    num_steps: of the training, for adalora, or -1 if it ends by epochs; network: the model, if its modules decide;
    drawn: parameters that are in no weights file, such as those of a new head.
    """
    targets: Any = model.target_modules
    if model.target_regex:
        targets = model.target_regex  # PEFT takes a string for a pattern
    elif targets == ["all-linear"]:
        targets = "all-linear"
    # Drawn weights are in no file, so they are trained and saved with the adapter.
    whole = [*model.modules_to_save, *(drawn_modules(drawn) if PEFT_TASK_TYPES[head] == "SEQ_CLS" else ())]
    values: dict[str, Any] = {"target_modules": targets, "modules_to_save": whole or None}
    if head == "none" and network is not None and hasattr(network, "pooler") and targets == "all-linear":
        values["exclude_modules"] = r"pooler\..*"  # embeddings do not use an encoder's pooler
    if model.tuner == "lora":
        values |= {"r": model.lora_rank, "lora_alpha": model.lora_alpha, "lora_dropout": model.lora_dropout}
        if model.tuner_kwargs.get("init_lora_weights") == "lora_ga":
            values["lora_ga_config"] = {}
    if model.tuner == "adalora":
        values |= {"lora_alpha": model.lora_alpha, "lora_dropout": model.lora_dropout}
        fixed = sum(int(model.tuner_kwargs.get(name, 0)) for name in ("tinit", "tfinal"))
        # Of a training in epochs, `AdaLoraCallback` sets it step by step.
        values["total_step"] = max(num_steps, fixed + 1)
    if model.tuner == "ia3":
        values["feedforward_modules"] = []  # every module's output is scaled; tuner_kwargs names those whose input is
    try:
        make = PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(model.tuner.upper())]
        return make(task_type=PEFT_TASK_TYPES[head], **values | model.tuner_kwargs)
    except (ValueError, TypeError) as error:
        raise UserError(f"model.tuner = {model.tuner} is refused by PEFT: {error}", exit_code=1) from error


def drawn_modules(drawn: Sequence[str]) -> list[str]:
    """The modules of these parameters, without heads that PEFT saves itself."""
    modules = dict.fromkeys(name.rpartition(".")[0] for name in drawn)
    return [name for name in modules if name.split(".")[0] not in SEQ_CLS_HEAD_NAMES]


@contextmanager
def named_refusals(model: ModelConfig) -> Iterator[None]:
    """Name the field in PEFT's error about dropout on stacked experts, as UserError."""
    try:
        yield
    except ValueError as error:
        if "lora_dropout" not in str(error):
            raise
        raise UserError(
            f"model.lora_dropout = {model.lora_dropout}: the experts of {model.path} are stacked, and PEFT has no "
            "dropout for those; set it to 0, or leave the experts out with model.target_modules",
            exit_code=1,
        ) from error


def check_targets(network: torch.nn.Module, model: ModelConfig) -> None:
    """Raise UserError if a name in `target_modules` or `modules_to_save`, or the pattern, matches no module."""
    names = [name for name, _ in network.named_modules()]
    kinds = (torch.nn.Linear, torch.nn.Embedding)
    problem = target_problem(model, names, [n for n, module in network.named_modules() if isinstance(module, kinds)])
    if problem:
        raise UserError(problem, exit_code=1)


def starting_adapter(model: ModelConfig, weights: Path) -> Path | None:
    """Folder of the adapter that is trained further: the user's last one, or that of an initialisation."""
    if model.adapters:
        return adapter_folder(model.adapters[-1])
    return weights / INITIAL if is_initialised_before(model) else None


def freeze(network: PreTrainedModel, model: ModelConfig) -> None:
    """Apply `model.freeze`, `freeze_ratio` and `unfreeze` in ms-swift's order, or freeze all but `new_blocks`.

    Raise UserError if all is frozen.
    """
    named = list(network.named_parameters())
    if model.new_blocks:
        new = layers.new_layers(network.config.get_text_config().num_hidden_layers, model.new_blocks)
        for name, parameter in named:
            kept = bool(model.unfreeze and re.match(model.unfreeze, name))
            parameter.requires_grad_(kept or layers.layer_of(name) in new)
    if not model.freeze and not model.freeze_ratio:
        return
    sizes = torch.tensor([num_elements(parameter) for _, parameter in named])
    ends = sizes.cumsum(0).tolist()
    num_frozen = bisect_right(ends, int(ends[-1] * model.freeze_ratio)) if model.freeze_ratio else 0
    for index, (name, parameter) in enumerate(named):
        matches = bool(model.freeze and re.match(model.freeze, name))
        kept = bool(model.unfreeze and re.match(model.unfreeze, name))
        parameter.requires_grad_(kept or not (matches or index < num_frozen))
    if not any(parameter.requires_grad for _, parameter in named):
        raise UserError(
            f"model.freeze = {model.freeze!r} and model.freeze_ratio = {model.freeze_ratio} leave nothing to train; "
            "lower them, or name parameters in model.unfreeze",
            exit_code=1,
        )


def lora_plus_groups(groups: list[dict[str, Any]], network: torch.nn.Module, ratio: float) -> list[dict[str, Any]]:
    """LoRA+ (Hayou et al., 2024): split each optimizer group; B matrices get `ratio` times the learning rate."""
    fast = {id(parameter) for name, parameter in network.named_parameters() if ".lora_B." in name}
    result = []
    for group in groups:
        parts = [[p for p in group["params"] if (id(p) in fast) == is_fast] for is_fast in (False, True)]
        rates = (group["lr"], group["lr"] * ratio)
        result += [{**group, "params": part, "lr": rate} for part, rate in zip(parts, rates, strict=True) if part]
    return result


def num_elements(parameter: torch.nn.Parameter) -> int:
    """Elements of a parameter, also if ZeRO-3 has partitioned it or bitsandbytes has packed two into a byte."""
    if hasattr(parameter, "ds_numel"):
        return int(parameter.ds_numel)
    packed = 2 * parameter.element_size() if type(parameter).__name__ == "Params4bit" else 1
    return parameter.numel() * packed


def with_new_adapter(model: PreTrainedModel, config: PeftConfig, args: TrainingArguments) -> PeftModel:
    """The model with a new adapter, initialised with the run's seed, as in TRL's trainers."""
    set_seed(args.seed)
    # ZeRO-3 gathers small parameters together, so they must have one dtype.
    zero3 = args.deepspeed_plugin is not None and args.deepspeed_plugin.zero_stage == 3
    tuned: PeftModel = get_peft_model(model, config, autocast_adapter_dtype=not zero3)
    if args.gradient_checkpointing:
        tuned.enable_input_require_grads()
    return tuned


def continued(tuned: PeftModel, args: TrainingArguments, keeps_start: bool) -> None:
    """Prepare a model whose adapter is trained further; keeps_start: the model as it is now is the reference."""
    if keeps_start:
        keep_start(tuned)
    if args.gradient_checkpointing:
        tuned.enable_input_require_grads()


def keep_start(tuned: PeftModel) -> None:
    """Keep a frozen copy of the adapter that is trained further, under the name `REFERENCE`.

    A copy that TRL has made is completed: it lacks the tensors that are no modules (a LoRA on embeddings, IA3, VeRA),
    and may have another number format.
    """
    if REFERENCE not in tuned.peft_config:
        config: Any = copy.copy(tuned.peft_config[_TRAINED])
        config.init_lora_weights = True  # PiSSA and its kind would change the weights below it once more
        tuned.add_adapter(REFERENCE, config, autocast_adapter_dtype=False)
    parameters = dict(tuned.named_parameters(remove_duplicate=False))
    tensors = parameters | dict(tuned.named_buffers(remove_duplicate=False))
    for name in filter(_OF_TRAINED.search, tensors):
        tensors[_OF_TRAINED.sub(f".{REFERENCE}", name)].data = tensors[name].detach().clone()
    for name in filter(_OF_TRAINED.search, parameters):
        parameters[_OF_TRAINED.sub(f".{REFERENCE}", name)].requires_grad_(False)
