"""Model and tokenizer of a worker, and the adapter around the model."""

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from rayswift.config.model import ModelConfig
from rayswift.data.batches import Layout

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


def load_model(config: ModelConfig, path: str, dtype: str) -> PreTrainedModel:
    """The causal language model at `path`, without a key-value cache (it would break packed attention under SDPA)."""
    kwargs: dict[str, Any] = {"dtype": getattr(torch, dtype), "trust_remote_code": config.trust_remote_code}
    if config.attn_implementation:
        kwargs["attn_implementation"] = config.attn_implementation
    if config.experts_implementation:
        kwargs["experts_implementation"] = config.experts_implementation
    if config.revision:
        kwargs["revision"] = config.revision
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(path, **kwargs)
    model.config.use_cache = False
    return model


def write_initial_weights(config: ModelConfig, folder: Path, seed: int) -> None:
    """Weights for `model.random_init`, saved so that every rank and ZeRO stage starts from the same ones."""
    torch.manual_seed(seed)
    architecture = AutoConfig.from_pretrained(config.path, trust_remote_code=config.trust_remote_code)
    model = AutoModelForCausalLM.from_config(architecture, dtype=torch.float32)
    model.save_pretrained(folder)


def lora_config(config: ModelConfig) -> LoraConfig | None:
    """The adapter's config, or None for full training."""
    if config.tuner == "full":
        return None
    targets: Any = config.target_modules
    if config.target_regex:
        targets = config.target_regex  # PEFT takes a string for a pattern
    elif targets == ["all-linear"]:
        targets = "all-linear"
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=config.lora_rank,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules=targets,
        modules_to_save=config.modules_to_save or None,
        **config.tuner_kwargs,
    )


def layout_of(model: PreTrainedModel) -> Layout:
    """How batches must be laid out for the model's attention kernel."""
    kernel = str(model.config._attn_implementation)
    return "flat" if any(mark in kernel for mark in _FLASH) else "rows"
