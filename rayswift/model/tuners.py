"""`model.tuner` -> what PEFT trains: the adapter's config, the adapter to start from, what full training freezes.

Each kind of adapter is one row of `_CONFIGS`. What an initialisation does to the weights below the adapter (PiSSA,
OLoRA) is done once, before the training: see `initial_weights`.
"""

import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import (
    AdaLoraConfig,
    BOFTConfig,
    FourierFTConfig,
    IA3Config,
    LoHaConfig,
    LoKrConfig,
    LoraConfig,
    MissConfig,
    PeftConfig,
    PeftModel,
    VeraConfig,
    get_peft_model,
)
from peft.utils.constants import SEQ_CLS_HEAD_NAMES
from transformers import PreTrainedModel, TrainingArguments, set_seed
from transformers.integrations import is_deepspeed_zero3_enabled

from rayswift.config.fields.tuners import is_initialised_before
from rayswift.config.model import ModelConfig
from rayswift.config.tasks import Head
from rayswift.log import UserError
from rayswift.model import layers
from rayswift.model.adapters import adapter_folder
from rayswift.model.heads import PEFT_TASK_TYPES

_CONFIGS: dict[str, type[PeftConfig]] = {
    "lora": LoraConfig,
    "adalora": AdaLoraConfig,
    "vera": VeraConfig,
    "boft": BOFTConfig,
    "ia3": IA3Config,
    "fourierft": FourierFTConfig,
    "loha": LoHaConfig,
    "lokr": LoKrConfig,
    "miss": MissConfig,
}
# Where an initialisation that changes the weights left its adapter, below the folder of these weights.
INITIAL = "adapter"


def peft_config(
    model: ModelConfig,
    head: Head = "causal_lm",
    num_steps: int = 0,
    network: torch.nn.Module | None = None,
    drawn: Sequence[str] = (),
) -> PeftConfig | None:
    """The config of a fresh adapter; None: there is none, or `load_model` has put one around the model.

    Args:
        model: What is trained.
        head: What the model ends in.
        num_steps: Steps of the training, for adalora; -1: it ends by epochs.
        network: What it goes around, where its modules decide.
        drawn: Parameters that are in no file, as those of a new head.

    Raises:
        UserError: PEFT refuses a value.
    """
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
    """PEFT's config of the tuner; see `peft_config`.

    Raises:
        UserError: PEFT refuses a value.
    """
    targets: Any = model.target_modules
    if model.target_regex:
        targets = model.target_regex  # PEFT takes a string for a pattern
    elif targets == ["all-linear"]:
        targets = "all-linear"
    # What is drawn is in no file that the adapter could be put on again, so it is trained and saved whole.
    whole = [*model.modules_to_save, *(drawn_modules(drawn) if PEFT_TASK_TYPES[head] == "SEQ_CLS" else ())]
    values: dict[str, Any] = {"target_modules": targets, "modules_to_save": whole or None}
    if head == "none" and network is not None and hasattr(network, "pooler") and targets == "all-linear":
        values["exclude_modules"] = r"pooler\..*"  # an encoder's own, which no embedding comes through
    if model.tuner == "lora":
        values |= {"r": model.lora_rank, "lora_alpha": model.lora_alpha, "lora_dropout": model.lora_dropout}
        if model.tuner_kwargs.get("init_lora_weights") == "lora_ga":
            values["lora_ga_config"] = {}
    if model.tuner == "adalora":
        values |= {"lora_alpha": model.lora_alpha, "lora_dropout": model.lora_dropout}
        fixed = sum(int(model.tuner_kwargs.get(name, 0)) for name in ("tinit", "tfinal"))
        values["total_step"] = max(num_steps, fixed + 1)  # of a training in epochs, `RankBudget` sets it step by step
    if model.tuner == "ia3":
        values["feedforward_modules"] = []  # every module's output is scaled; tuner_kwargs names those whose input is
    try:
        return _CONFIGS[model.tuner](task_type=PEFT_TASK_TYPES[head], **values | model.tuner_kwargs)
    except (ValueError, TypeError) as error:
        raise UserError(f"model.tuner = {model.tuner} is refused by PEFT: {error}", exit_code=1) from error


def drawn_modules(drawn: Sequence[str]) -> list[str]:
    """The modules that hold these parameters, but for heads that PEFT saves by itself."""
    modules = dict.fromkeys(name.rpartition(".")[0] for name in drawn)
    return [name for name in modules if name.split(".")[0] not in SEQ_CLS_HEAD_NAMES]


@contextmanager
def named_refusals(model: ModelConfig) -> Iterator[None]:
    """What PEFT refuses while it puts the adapter around the model, with the field that it is about.

    Raises:
        UserError: dropout around experts that lie in one stack.
    """
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
    """Each name in `model.target_modules` and `model.modules_to_save`, and the pattern, must find a module.

    Raises:
        UserError: with the names that would.
    """
    names = [name for name, _ in network.named_modules()]
    if model.target_regex and not any(re.fullmatch(model.target_regex, name) for name in names):
        raise UserError(
            f"model.target_regex = {model.target_regex!r} matches no module of the model; whole names look like "
            f"{names[-1]}",
            exit_code=1,
        )
    lists = {"model.target_modules": [] if model.target_regex else model.target_modules}
    lists["model.modules_to_save"] = model.modules_to_save
    for field, wanted in lists.items():
        missing = [
            name for name in wanted if name != "all-linear" and not any(f".{n}".endswith(f".{name}") for n in names)
        ]
        if missing:
            kinds = (torch.nn.Linear, torch.nn.Embedding)
            known = {name.rpartition(".")[2] for name, module in network.named_modules() if isinstance(module, kinds)}
            raise UserError(
                f"{field}: the model has no module {', '.join(missing)}; it has {', '.join(sorted(known))}",
                exit_code=1,
            )


def starting_adapter(model: ModelConfig, weights: Path) -> Path | None:
    """Folder of the adapter that training continues: the user's last one, or what an initialisation wrote."""
    if model.adapters:
        return adapter_folder(model.adapters[-1])
    return weights / INITIAL if is_initialised_before(model) else None


def continue_adapter(network: PreTrainedModel, folder: Path) -> PeftModel:
    """The model with the adapter in `folder` around it, to be trained on.

    Raises:
        UserError: the adapter does not fit the model.
    """
    base = network.name_or_path
    try:
        # Under ZeRO-3 all parameters that stay whole must have one number format (DeepSpeed issue 8072).
        tuned = PeftModel.from_pretrained(
            network, folder, is_trainable=True, autocast_adapter_dtype=not is_deepspeed_zero3_enabled()
        )
    except (ValueError, RuntimeError, KeyError) as error:
        first_line = (str(error).splitlines() or [""])[0]
        raise UserError(f"the adapter {folder} does not fit the model {base}: {first_line}", exit_code=1) from error
    tuned.peft_config["default"].base_model_name_or_path = base
    return tuned


def freeze(network: PreTrainedModel, model: ModelConfig) -> None:
    """Freeze what `model.freeze`, `freeze_ratio` and `unfreeze` say, in ms-swift's order; or all but `new_blocks`.

    Raises:
        UserError: nothing is left to train.
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
    """LoRA+ (Hayou et al., 2024): each optimizer group cut in two, its B matrices with `ratio` times the rate."""
    fast = {id(parameter) for name, parameter in network.named_parameters() if ".lora_B." in name}
    result = []
    for group in groups:
        parts = [[p for p in group["params"] if (id(p) in fast) == is_fast] for is_fast in (False, True)]
        rates = (group["lr"], group["lr"] * ratio)
        result += [{**group, "params": part, "lr": rate} for part, rate in zip(parts, rates, strict=True) if part]
    return result


def num_elements(parameter: torch.nn.Parameter) -> int:
    """Elements of a parameter, also where ZeRO-3 has cut it into parts or bitsandbytes packed two into a byte."""
    if hasattr(parameter, "ds_numel"):
        return int(parameter.ds_numel)
    packed = 2 * parameter.element_size() if type(parameter).__name__ == "Params4bit" else 1
    return parameter.numel() * packed


def with_new_adapter(model: PreTrainedModel, config: PeftConfig, args: TrainingArguments) -> PeftModel:
    """The model with an adapter of a config around it, drawn by the run's seed, as TRL's trainers make theirs."""
    set_seed(args.seed)
    # ZeRO-3 gathers small parameters together, so they must be of one type.
    zero3 = args.deepspeed_plugin is not None and args.deepspeed_plugin.zero_stage == 3
    tuned: PeftModel = get_peft_model(model, config, autocast_adapter_dtype=not zero3)
    if args.gradient_checkpointing:
        tuned.enable_input_require_grads()
    return tuned
