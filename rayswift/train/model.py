"""Model and tokenizer of a worker."""

from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from rayswift.config.model import ModelConfig
from rayswift.data.batches import Layout
from rayswift.train import tuners

_FLASH = ("flash_attention", "kernels-community/flash")


def resolve_dtype(dtype: str, device: str) -> str:
    """`model.dtype` with auto decided: bfloat16 where the GPU has it, else float32."""
    if dtype != "auto":
        return dtype
    return "bfloat16" if device == "cuda" and torch.cuda.is_bf16_supported() else "float32"


def load_tokenizer(folder: str, trust_remote_code: bool) -> PreTrainedTokenizerBase:
    """The run's tokenizer, with a padding token."""
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_model(config: ModelConfig, path: str, dtype: str) -> PreTrainedModel | PeftModel:
    """The causal language model at `path`, without a key-value cache (it would break packed attention under SDPA).

    Its frozen parameters are frozen; an adapter that training continues is around it, a fresh one is not yet.

    Raises:
        UserError: nothing is left to train, or an adapter that does not fit the model.
    """
    kwargs: dict[str, Any] = {"dtype": getattr(torch, dtype), "trust_remote_code": config.trust_remote_code}
    if config.attn_implementation:
        kwargs["attn_implementation"] = config.attn_implementation
    if config.experts_implementation:
        kwargs["experts_implementation"] = config.experts_implementation
    if config.revision:
        kwargs["revision"] = config.revision
    if config.quantization:
        kwargs |= _quantized(config, kwargs["dtype"])
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(path, **kwargs)
    model.config.use_cache = False
    if config.tuner == "full":
        tuners.freeze(model, config)
        return model
    adapter = tuners.starting_adapter(config, Path(path))
    if adapter:
        return tuners.continue_adapter(model, adapter)
    tuners.check_targets(model, config)
    return model


def _quantized(config: ModelConfig, dtype: torch.dtype) -> dict[str, Any]:
    """How bitsandbytes loads the weights, on this worker's device."""
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


def layout_of(model: PreTrainedModel | PeftModel) -> Layout:
    """How batches must be laid out for the model's attention kernel."""
    kernel = str(model.config._attn_implementation)
    return "flat" if any(mark in kernel for mark in _FLASH) else "rows"
