"""How many parameters a model has and what training it takes, from its files alone; pure, without torch.

Bytes per parameter follow the ZeRO paper (Rajbhandari et al., 2020, section 3.1): weights, gradients and Adam's states,
each divided by the workers from its stage on.
"""

import json
import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

from rayswift.config.model import ModelConfig
from rayswift.log import UserError

# Times hidden size, in half precision. A checkpointed layer keeps its input; else Korthikanti et al. (2022, eq. 2)
# count 34, and `transformers`' unfused norms and gated MLPs half as much again (seen on an H100:
# 0.31 B parameters, 4 x 2,048 tokens, 18.3 GiB in all where this estimates 17.3).
_ACTIVATION_BYTES_PER_TOKEN_LAYER = {True: 2.0, False: 50.0}
# The head's logits in the model's precision and in float32, and their gradient.
_LOGIT_BYTES = 12
# Of a weight that bitsandbytes packs: blocks of 64 in 4 bits with a scale each, which is quantized too.
_QUANTIZED_BYTES = {"nf4": 0.5 + 1 / 64, "fp4": 0.5 + 1 / 64, "int8": 1.0}
# Parts of the names of matrices that PEFT's all-linear and bitsandbytes pass over, and what ends those of heads.
_NOT_LINEAR = ("embed", "wte", "wpe", "norm", ".experts.")
_HEADS = ("lm_head", "embed_out", "score", "classifier")


@dataclass(frozen=True)
class ModelSize:
    """Sizes of a model: its parameters, those trained (an adapter's are beside the model's), those kept as they are,
    those in matrices that can be quantized; and what activations scale with.
    """

    num_parameters: int
    num_trainable: int
    num_frozen: int
    num_quantizable: int
    hidden_size: int
    num_layers: int
    vocab_size: int
    num_reference: int = 0

    def beside(self, reference: "ModelSize") -> "ModelSize":
        """The sizes with a frozen reference model beside."""
        return replace(self, num_reference=reference.num_parameters)


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


def model_size(
    config: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    model: ModelConfig,
    num_trainable: int | None = None,
) -> ModelSize:
    """Sizes of the model and of what is trained of it.

    Args:
        config: Its `config.json`.
        shapes: Of its parameters, as `shapes.find` gives them.
        model: Which of them are trained, or get an adapter.
        num_trainable: Parameters of the adapter, where the shapes do not tell.
    """
    text = config.get("text_config", config)
    sizes = {name: prod(shape) for name, shape in shapes.items()}
    linear = {name: shape for name, shape in shapes.items() if _is_linear(name, shape)}
    total = sum(sizes.values())
    if model.tuner == "full":
        trained = _trained_of_full(sizes, model)
        frozen = total - trained
    else:
        # A rank-r adapter around a matrix [out, in] has r * (in + out) weights; other kinds have fewer.
        adapted = sum(sum(shape) for name, shape in linear.items() if _is_target(name, model))
        copied = sum(sizes[name] for name in sizes if _is_named(name, model.modules_to_save))
        trained, frozen = model.lora_rank * adapted + copied if num_trainable is None else num_trainable, total
    return ModelSize(
        num_parameters=total,
        num_trainable=trained,
        num_frozen=frozen,
        num_quantizable=sum(sizes[name] for name in linear),
        hidden_size=_first_number(text, "hidden_size", "n_embd", "d_model"),
        num_layers=_first_number(text, "num_hidden_layers", "n_layer", "num_layers"),
        vocab_size=_first_number(text, "vocab_size"),
    )


def _first_number(config: Mapping[str, Any], *names: str) -> int:
    return next((config[name] for name in names if isinstance(config.get(name), int)), 0)


def _is_linear(name: str, shape: tuple[int, ...]) -> bool:
    """Whether it is the matrix of a linear layer below the head; experts are stacked, so they are none."""
    module = name.removesuffix(".weight")
    return (
        len(shape) == 2
        and module != name
        and not any(part in module for part in _NOT_LINEAR)
        and not module.endswith(_HEADS)
    )


def _is_named(name: str, modules: Sequence[str]) -> bool:
    module = f".{name.rpartition('.')[0]}."
    return any(f".{each}." in module for each in modules)


def _is_target(name: str, model: ModelConfig) -> bool:
    if model.target_regex:
        return re.fullmatch(model.target_regex, name.removesuffix(".weight")) is not None
    module = f".{name.removesuffix('.weight')}"
    return any(each == "all-linear" or module.endswith(f".{each}") for each in model.target_modules)


def _trained_of_full(sizes: Mapping[str, int], model: ModelConfig) -> int:
    """Parameters that `model.freeze`, `freeze_ratio` and `unfreeze` leave trained, whatever their order."""
    freezes = re.compile(model.freeze) if model.freeze else None
    unfreezes = re.compile(model.unfreeze) if model.unfreeze else None
    kept = {name for name in sizes if not (freezes and freezes.match(name))}
    trained = sum(sizes[name] for name in kept) - int(sum(sizes.values()) * model.freeze_ratio)
    return max(trained, sum(size for name, size in sizes.items() if unfreezes and unfreezes.match(name)), 0)


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


def estimate(
    size: ModelSize,
    *,
    zero_stage: int,
    offload: str,
    world_size: int,
    half: bool,
    tokens_per_micro_batch: int,
    gradient_checkpointing: bool,
    quantization: str | None = None,
) -> MemoryEstimate:
    """Memory of one worker under a ZeRO stage, with Adam.

    Args:
        size: The model.
        zero_stage: 0 to 3; 0 is PyTorch's DistributedDataParallel, without DeepSpeed.
        offload: none, optimizer or all.
        world_size: Data-parallel workers.
        half: Whether `model.dtype` is bfloat16 or float16, else float32.
        tokens_per_micro_batch: Rows times row length.
        gradient_checkpointing: Whether only layer inputs are kept.
        quantization: Of the frozen weights below an adapter: int8, nf4, fp4 or None.
    """
    bytes_each = 2 if half else 4
    trained, trained_bytes = size.num_trainable, 4 if zero_stage == 0 else bytes_each
    whole, part = 1.0, 1 / world_size
    frozen_bytes = size.num_frozen * float(bytes_each)
    if quantization:
        frozen_bytes -= size.num_quantizable * (bytes_each - _QUANTIZED_BYTES[quantization])
    # A reference is held as the policy is, so that both compute the same.
    is_full = size.num_trainable + size.num_frozen == size.num_parameters
    reference_bytes = size.num_reference * (trained_bytes if is_full else bytes_each)
    weights = (frozen_bytes + reference_bytes + trained * trained_bytes) * (part if zero_stage == 3 else whole)
    if zero_stage == 0:  # all that is trained is float32, and DDP sends the gradients themselves
        gradients, optimizer = trained * 4.0, trained * 8.0
    else:  # float32 masters, also of float32 weights; the optimizer steps on a float32 copy of the part's gradients
        each = (bytes_each + 4) * part
        if zero_stage == 1:  # whole until each worker has taken its part out, and that part until it is copied
            each = max(bytes_each * (whole + part), each + bytes_each * part)
        gradients, optimizer = trained * each, trained * 12 * part
    per_layer = _ACTIVATION_BYTES_PER_TOKEN_LAYER[gradient_checkpointing] * size.hidden_size * bytes_each / 2
    layers = size.num_layers + (25 if gradient_checkpointing else 0)  # one layer at a time is recomputed in full
    per_token = per_layer * layers + size.vocab_size * _LOGIT_BYTES
    return MemoryEstimate(
        0 if offload == "all" else int(weights),
        int(gradients),
        0 if offload != "none" else int(optimizer),
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
