"""The keys of `model.tuner_kwargs`: the fields of the tuner's PEFT config, read from PEFT's source."""

import difflib
import re
from collections.abc import Mapping
from typing import Any

from rayswift.config.fields.trl import read_class
from rayswift.config.model import ModelConfig

# tuner -> the PEFT classes whose fields it takes.
_CLASSES = {
    "lora": (("lora", "LoraConfig"),),
    "adalora": (("lora", "LoraConfig"), ("adalora", "AdaLoraConfig")),
    "vera": (("vera", "VeraConfig"),),
    "boft": (("boft", "BOFTConfig"),),
    "ia3": (("ia3", "IA3Config"),),
    "fourierft": (("fourierft", "FourierFTConfig"),),
    "loha": (("loha", "LoHaConfig"),),
    "lokr": (("lokr", "LoKrConfig"),),
    "miss": (("miss", "MissConfig"),),
}

# PEFT's name -> the field of `model` with the same meaning.
_OWNED = {
    "target_modules": "model.target_modules",
    "modules_to_save": "model.modules_to_save",
    "lora_alpha": "model.lora_alpha",
    "lora_dropout": "model.lora_dropout",
    "total_step": "train.max_steps or train.num_train_epochs",
}
_RANKS = {"lora": {"r": "model.lora_rank"}, "adalora": {"r": "model.tuner_kwargs.init_r"}}


_OF_ADAPTERS = ("tuner_kwargs", "adapters", "modules_to_save", "target_regex", "lora_plus_ratio")
_OF_FULL = ("freeze", "freeze_ratio", "unfreeze", "new_blocks", "lisa_layers")
_ON_QUANTIZED = ("lora", "ia3")

# Initialisations of a LoRA that are computed once, before the training: they move part of the weights into the adapter,
# or read rows.
_MADE_BEFORE = re.compile(r"pissa(_niter_\d+)?|olora|eva|corda|lora_ga")
_FROM_ROWS = ("eva", "corda", "lora_ga")


def is_initialised_before(model: ModelConfig) -> bool:
    """Whether the new adapter and its base weights are written before the training."""
    initial = model.tuner_kwargs.get("init_lora_weights")
    return not model.adapters and isinstance(initial, str) and _MADE_BEFORE.fullmatch(initial) is not None


def looks_at_rows(model: ModelConfig) -> bool:
    """Whether rows initialise the new adapter."""
    return is_initialised_before(model) and model.tuner_kwargs["init_lora_weights"] in _FROM_ROWS


def begins_with_other_weights(model: ModelConfig) -> bool:
    """Whether the initial weights or the `config.json` differ from those at `model.path`."""
    stretched = model.rope_scaling or model.max_position_embeddings
    merged = len(model.adapters) > 1
    grown = model.new_special_tokens or model.new_blocks
    return bool(model.random_init or grown or stretched or merged or is_initialised_before(model))


# Fields of PEFT's LoraConfig that change nothing of an adapter that is loaded.
_OF_NEW = (
    *("init_lora_weights", "eva_config", "corda_config", "lora_ga_config", "loftq_config", "runtime_config"),
    *("megatron_core", "qalora_group_size"),
)


def lora_fields(saved: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of section `model` that describe a LoRA with this `adapter_config.json`."""
    targets, owned = saved.get("target_modules") or [], _OWNED | _RANKS["lora"]
    is_pattern = isinstance(targets, str) and targets != "all-linear"
    known = read_class("peft", "tuners/lora/config.py", "LoraConfig").keys() - {*owned, *_OF_NEW}
    further = {name: value for name, value in sorted(saved.items()) if name in known and value not in ("none", [], {})}
    return {
        "lora_rank": int(saved.get("r", 8)),
        "lora_alpha": float(saved.get("lora_alpha", 8)),
        "lora_dropout": float(saved.get("lora_dropout", 0)),
        "target_modules": ["all-linear"] if isinstance(targets, str) else sorted(targets),
        "target_regex": targets if is_pattern else None,
        "modules_to_save": list(saved.get("modules_to_save") or []),
        "tuner_kwargs": {name: value for name, value in further.items() if value is not None and value is not False},
    }


def tuner_problems(model: ModelConfig) -> list[str]:
    """One line for each setting of an adapter or of full training that the tuner does not accept."""
    if model.tuner == "full":
        found = [
            f"model.{name} needs a tuner, and model.tuner is full" for name in _OF_ADAPTERS if getattr(model, name)
        ]
        return found + _chosen_twice(model)
    found = [
        f"model.{name} is of full training; model.tuner {model.tuner} freezes all weights"
        for name in _OF_FULL
        if getattr(model, name)
    ]
    if model.lora_plus_ratio and model.tuner != "lora":
        found.append(f"model.lora_plus_ratio is of model.tuner lora, and it is {model.tuner}")
    if model.quantization and model.tuner not in _ON_QUANTIZED:
        found.append(
            f"model.quantization = {model.quantization}: no {model.tuner} trains on quantized weights; "
            f"model.tuner {', '.join(_ON_QUANTIZED)} work there"
        )
    if model.adapters and model.tuner == "adalora":
        found.append("model.adapters: an AdaLoRA has spent its budget of ranks, so none is trained on")
    if model.adapters and isinstance(model.tuner_kwargs.get("init_lora_weights"), str):
        found.append("model.tuner_kwargs.init_lora_weights is of a fresh adapter, and model.adapters names one")
    return found + _unknown_kwargs(model)


def _chosen_twice(model: ModelConfig) -> list[str]:
    """Problems of several fields that choose the weights of full training."""
    chosen = [name for name in ("new_blocks", "lisa_layers") if getattr(model, name)]
    others = [name for name in ("freeze", "freeze_ratio") if getattr(model, name)]
    if chosen and len(chosen) + len(others) > 1:
        names = " and ".join(f"model.{name}" for name in chosen + others)
        return [f"{names} say each which weights are trained; set one of them"]
    if model.lisa_layers and model.unfreeze:
        return ["model.unfreeze: model.lisa_layers freezes and unfreezes layers by itself; unset one of them"]
    return []


def _unknown_kwargs(model: ModelConfig) -> list[str]:
    owned = _OWNED | _RANKS.get(model.tuner, {})
    known = [
        n for folder, name in _CLASSES[model.tuner] for n in read_class("peft", f"tuners/{folder}/config.py", name)
    ]
    found = []
    for name in model.tuner_kwargs:
        if name in owned:
            found.append(f"model.tuner_kwargs.{name} is said by {owned[name]}; set that")
        elif name not in known:
            close = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {close[0]}?" if close else f"PEFT lists the fields of its {model.tuner} config"
            found.append(f"model.tuner_kwargs.{name} is unknown to the tuner {model.tuner}; {hint}")
    return found
