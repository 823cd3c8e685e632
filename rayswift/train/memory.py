"""How many parameters a model has and what training it takes, from its files alone; pure, without torch.

Bytes per parameter follow the ZeRO paper (Rajbhandari et al., 2020, section 3.1): weights, gradients and Adam's states,
each divided by the workers from its stage on.
"""

import json
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from rayswift.log import UserError

# Times hidden size, in half precision. A checkpointed layer keeps its input; else Korthikanti et al. (2022, eq. 2)
# count 34, and `transformers`' unfused norms and gated MLPs half as much again (seen on an H100:
# 0.31 B parameters, 4 x 2,048 tokens, 18.3 GiB in all where this estimates 17.3).
_ACTIVATION_BYTES_PER_TOKEN_LAYER = {True: 2.0, False: 50.0}
# The head's logits in the model's precision and in float32, and their gradient.
_LOGIT_BYTES = 12


@dataclass(frozen=True)
class ModelSize:
    """Sizes of a model: all parameters, those trained, and what activations scale with."""

    num_parameters: int
    num_trainable: int
    hidden_size: int
    num_layers: int
    vocab_size: int


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on one worker's device, by what they hold."""

    weights: int
    gradients: int
    optimizer: int
    activations: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.weights + self.gradients + self.optimizer + self.activations


def model_size(folder: Path, tuner: str, lora_rank: int) -> ModelSize:
    """Sizes from safetensors headers where there are weights, else from config.json (dense decoder arithmetic).

    Raises:
        OSError: config.json is missing.
    """
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config = config.get("text_config", config)
    hidden, layers = int(config.get("hidden_size", 0)), int(config.get("num_hidden_layers", 0))
    vocab, inner = int(config.get("vocab_size", 0)), int(config.get("intermediate_size", 4 * hidden))
    headers = list(folder.glob("*.safetensors"))
    total = sum(_count_in_header(path) for path in headers) if headers else _count_from_config(config)
    # A rank-r adapter on every linear layer of a block: r * (in + out) for each of its seven matrices.
    trainable = total if tuner == "full" else lora_rank * layers * (8 * hidden + 3 * (hidden + inner))
    return ModelSize(total, trainable, hidden, layers, vocab)


def read_header(path: Path) -> dict[str, Any]:
    """Name -> dtype and shape of each tensor in a safetensors file.

    Raises:
        UserError: it is none, or a part of one.
    """
    size = path.stat().st_size
    try:
        with open(path, "rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > size:
                raise ValueError(f"a header of {length} bytes in a file of {size}")
            header: dict[str, Any] = json.loads(file.read(length))
        header.pop("__metadata__", None)
        end = 8 + length + max((tensor["data_offsets"][1] for tensor in header.values()), default=0)
        if end > size:
            raise ValueError(f"{size} bytes of {end}")
    except (struct.error, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is no whole safetensors file ({error}); copy or download it again") from error
    return header


def _count_in_header(path: Path) -> int:
    return sum(prod(tensor["shape"]) for tensor in read_header(path).values())


def _count_from_config(config: dict[str, Any]) -> int:
    hidden, layers, vocab = (int(config.get(k, 0)) for k in ("hidden_size", "num_hidden_layers", "vocab_size"))
    heads = int(config.get("num_attention_heads", 1))
    head_dim = int(config.get("head_dim") or hidden // heads)
    kv_heads = int(config.get("num_key_value_heads") or heads)
    inner = int(config.get("intermediate_size", 4 * hidden))
    experts = int(config.get("num_experts") or config.get("num_local_experts") or 1)
    attention = hidden * head_dim * (2 * heads + 2 * kv_heads)
    query_key_norms = 2 * head_dim if str(config.get("model_type", "")).startswith("qwen3") else 0
    block = attention + query_key_norms + experts * 3 * hidden * inner + 2 * hidden
    embeddings = vocab * hidden * (1 if config.get("tie_word_embeddings") else 2)
    return layers * block + embeddings + hidden


def estimate(
    size: ModelSize,
    *,
    zero_stage: int,
    offload: str,
    world_size: int,
    half: bool,
    tokens_per_micro_batch: int,
    gradient_checkpointing: bool,
) -> MemoryEstimate:
    """Memory of one worker under a ZeRO stage.

    Args:
        size: The model.
        zero_stage: 0 to 3.
        offload: none, optimizer or all.
        world_size: Data-parallel workers.
        half: bfloat16 or float16 weights with float32 master weights, else float32 throughout.
        tokens_per_micro_batch: Rows times row length.
        gradient_checkpointing: Whether only layer inputs are kept.
    """
    share = [world_size if zero_stage >= stage else 1 for stage in (3, 2, 1)]
    bytes_each = 2 if half else 4
    weights = size.num_parameters * bytes_each // share[0]
    gradients = size.num_trainable * bytes_each // share[1]
    optimizer = size.num_trainable * (12 if half else 8) // share[2]
    per_layer = _ACTIVATION_BYTES_PER_TOKEN_LAYER[gradient_checkpointing] * size.hidden_size * bytes_each / 2
    layers = size.num_layers + (25 if gradient_checkpointing else 0)  # one layer at a time is recomputed in full
    per_token = per_layer * layers + size.vocab_size * _LOGIT_BYTES
    return MemoryEstimate(
        0 if offload == "all" else weights,
        gradients,
        0 if offload != "none" else optimizer,
        int(tokens_per_micro_batch * per_token),
    )


def smallest_stage(available_bytes: int, world_size: int, estimates: list[MemoryEstimate]) -> int:
    """The lowest ZeRO stage whose estimate fits with a tenth to spare; one worker has nothing to share, so 0."""
    if world_size == 1:
        return 0
    for stage, needed in enumerate(estimates):
        if needed.total * 1.1 <= available_bytes:
            return stage
    return 3
