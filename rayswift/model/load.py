"""Load the model of a worker."""

import itertools
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import torch
from peft import PeftModel
from transformers import BitsAndBytesConfig, PreTrainedModel

from rayswift.config.checks.distillation import has_teacher_outside
from rayswift.config.model import ModelConfig, adapters_of_reference, is_own_teacher, named_reference, whole_model
from rayswift.config.schema import RlhfConfig, TrainingConfig
from rayswift.config.tasks import Head
from rayswift.model import generation_config, heads, tuners, whole
from rayswift.model.adapters import PEFT_TASK_TYPES, adapter_folder

# Matches attention_dropout, attn_pdrop, hidden_dropout_prob, ...
_DROPOUT = re.compile("dropout|pdrop")
_FLASH = ("flash_attention", "kernels-community/flash")


def resolve_dtype(dtype: str, device: str) -> str:
    """`model.dtype`; auto is bfloat16 on a GPU that supports it, else float32."""
    if dtype != "auto":
        return dtype
    return "bfloat16" if device == "cuda" and torch.cuda.is_bf16_supported() else "float32"


def weights_dtype(model: ModelConfig, uses_deepspeed: bool, dtype: str) -> str:
    """The dtype in which weights are loaded.

    DeepSpeed keeps float32 masters of weights in `model.dtype`. Without it, trained weights are float32 and autocast
    computes in `model.dtype`; frozen base weights of an adapter need no masters.
    """
    return dtype if uses_deepspeed or model.tuner != "full" else "float32"


def hold_masters(network: PreTrainedModel | PeftModel, dtype: str) -> None:
    """Without DeepSpeed: cast trained weights to float32, and frozen weights of full training to `dtype`."""
    kept = network._keep_in_fp32_modules_strict or ()  # small parts that `transformers` computes in float32
    below_adapter = isinstance(network, PeftModel)  # base weights are loaded in `dtype`
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(torch.float32)
        elif not below_adapter and not any(part in name for part in kept):
            parameter.data = parameter.data.to(getattr(torch, dtype))


def load_model(config: ModelConfig, path: str, dtype: str, head: Head = "causal_lm") -> PreTrainedModel | PeftModel:
    return load_with_drawn(config, path, dtype, head)[0]


def load_with_drawn(
    config: ModelConfig, path: str, dtype: str, head: Head = "causal_lm"
) -> tuple[PreTrainedModel | PeftModel, list[str]]:
    """The model at `path`, and the names of parameters that are in no file, nor in the adapter, and were drawn.

    Frozen parameters are frozen, and an adapter that is trained further is loaded; a new one is not added yet. There is
    no key-value cache, which would break packed attention under SDPA. torch's random state must be the same on all
    ranks, for a head that is drawn.
    """
    kwargs: dict[str, Any] = {"dtype": getattr(torch, dtype), "trust_remote_code": config.trust_remote_code}
    for name in ("attn_implementation", "experts_implementation", "use_kernels", "revision"):
        if value := dict(config)[name]:
            kwargs[name] = value
    if config.quantization:
        kwargs |= _quantized(config, kwargs["dtype"])
    model: PreTrainedModel
    model, drawn = whole.load(heads.CLASSES[head], path, **kwargs, **heads.settings(config, head))
    model.config.use_cache = False
    generation_config.mend(model)
    if config.tuner == "full":
        tuners.freeze(model, config)
        return model, drawn
    adapter = tuners.starting_adapter(config, Path(path))
    if adapter:
        tuned = whole.put_on(model, adapter, trains=True)
        if PEFT_TASK_TYPES[head] == "SEQ_CLS":
            whole.refuse_lost(tuned, drawn, adapter)
        return tuned, []
    tuners.check_targets(model, config)
    return model, drawn


def _quantized(config: ModelConfig, dtype: torch.dtype) -> dict[str, Any]:
    """Arguments with which bitsandbytes loads the weights on this worker's device."""
    if config.quantization == "int8":
        bits = BitsAndBytesConfig(load_in_8bit=True)
    else:
        bits = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=config.quantization,
            bnb_4bit_use_double_quant=config.double_quantization,
            bnb_4bit_compute_dtype=dtype,
        )
    device = torch.cuda.current_device() if torch.cuda.is_available() else "cpu"
    return {"quantization_config": bits, "device_map": {"": device}}


def switch_off_dropout(*networks: torch.nn.Module) -> None:
    """Set every dropout to 0, also rates that modules hold as numbers, which TRL does not change."""
    for module in itertools.chain(*(network.modules() for network in networks)):
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():
            if isinstance(value, float) and _DROPOUT.search(name):
                setattr(module, name, 0.0)


def share_tied(network: PreTrainedModel, state: dict[str, torch.Tensor]) -> None:
    """In a copy of the model's state, make tied weights one tensor again."""
    for name, source in network.all_tied_weights_keys.items():
        if name in state and source in state:
            state[name] = state[source]


def reference(config: TrainingConfig, is_wanted: bool, initial: str, dtype: str) -> dict[str, Any]:
    """The trainer's argument `ref_model`; empty if the task has none, or if the base of an adapter is the reference.

    initial: path or hub id of the initial weights, which are the reference unless the config has another.
    """
    named = named_reference(config.model)
    if not is_wanted or (named is None and config.model.tuner != "full"):
        return {}
    whole_one = whole_model(config.model, named, quantizes=True)
    return {"ref_model": load_merged(whole_one, named or initial, dtype, adapters_of_reference(config.model))}


def teacher(config: TrainingConfig, dtype: str) -> dict[str, Any]:
    """The teacher of a task, as its trainer's `teacher`, with its adapters merged.

    Returns:
        Nothing if the model itself is the teacher, now or with its initial weights (below an adapter), or if
        the teacher is outside of the workers.

    Raises:
        UserError: an adapter does not fit.
    """
    named = config.model.teacher if isinstance(config, RlhfConfig) else None
    if not isinstance(config, RlhfConfig) or named is None:
        return {}
    if is_own_teacher(config.model) or has_teacher_outside(config):
        return {}
    return {"teacher": load_merged(whole_model(config.model, named), named, dtype, config.model.teacher_adapters)}


def load_merged(config: ModelConfig, path: str, dtype: str, adapters: Iterable[str]) -> PreTrainedModel | PeftModel:
    """The model at `path`, with the adapters in these folders merged into it; raise UserError if one does not fit."""
    network = load_model(config, path, dtype)
    for name in adapters:
        network = whole.merged(whole.put_on(network, adapter_folder(name)))
    return network


def layout_of(model: PreTrainedModel | PeftModel) -> Literal["rows", "flat"]:
    """The layout of batches that the model's attention kernel needs."""
    kernel = str(model.config._attn_implementation)
    return "flat" if any(mark in kernel for mark in _FLASH) else "rows"
