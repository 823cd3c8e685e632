"""Numbers of parameters of a model, from the names and shapes of its weights; pure, without torch."""

import json
import re
import struct
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from math import prod
from pathlib import Path
from typing import Any

from rayswift.config.model import ModelConfig
from rayswift.log import UserError
from rayswift.model import layers

# Parts of names of matrices that PEFT's all-linear and bitsandbytes skip, and endings of the names of heads.
_NOT_LINEAR = ("embed", "wte", "wpe", "norm", ".experts.")
_HEADS = ("lm_head", "embed_out", "score", "classifier")

PLAIN = ("llama", "mistral", "qwen2", "qwen3")
"""Families whose `config.json` tells all shapes."""
BY_NAME = (*PLAIN, "gemma", "gemma2", "gemma3_text", "olmo", "olmo2", "phi3", "starcoder2")
"""Families whose files name parameters as the model does, which tests/unit/launch/test_memory.py checks."""

# The sizes that activations depend on, under the common names of `transformers`.
SIZES = ("hidden_size", "num_hidden_layers", "vocab_size")


@dataclass(frozen=True)
class ModelSize:
    """Numbers of parameters: of the model (without an adapter), trained (with the adapter's), frozen, quantizable; of a
    frozen reference model, the largest trained tensor and the largest matrix of a linear layer."""

    num_parameters: int
    num_trainable: int
    num_frozen: int
    num_quantizable: int
    hidden_size: int
    num_layers: int
    vocab_size: int
    num_reference: int = 0
    num_largest: int = 0
    num_largest_matrix: int = 0

    def beside(self, reference: "ModelSize") -> "ModelSize":
        """The sizes with one more frozen model: a reference or a teacher."""
        return replace(
            self,
            num_reference=self.num_reference + reference.num_parameters,
            num_quantizable=self.num_quantizable + reference.num_quantizable,
        )

    def with_reference_adapter(self) -> "ModelSize":
        """The sizes with a frozen copy of what is trained, an adapter."""
        return replace(self, num_reference=self.num_reference + self.num_trainable)

    def with_critic(self, network: "ModelSize | None") -> "ModelSize":
        """The sizes with a critic without an adapter: a head on the model's states (None), or a second model."""
        added = self.hidden_size if network is None else network.num_parameters
        is_adapter = self.num_frozen == self.num_parameters  # then num_parameters excludes what is trained
        return replace(
            self,
            num_parameters=self.num_parameters + (0 if is_adapter else added),
            num_trainable=self.num_trainable + added,
            num_layers=self.num_layers + (0 if network is None else network.num_layers),
            num_largest=max(self.num_largest, 0 if network is None else network.num_largest),
        )


def model_size(
    config: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    model: ModelConfig,
    num_trainable: int | None = None,
    num_quantizable: int | None = None,
) -> ModelSize:
    """Sizes of a model with the tuner of `model`; raise OSError if the config has no sizes for activations.

    config: its `config.json`; num_trainable, num_quantizable: of the adapter and of the linear matrices, if the shapes
    do not show them. UserError: `model.new_blocks` cannot be spread over the layers.
    """
    text = config.get("text_config", config)
    missing = [name for name in SIZES if not isinstance(text.get(name), int)]
    if missing:
        raise OSError(f"cannot be estimated: its config has no {', '.join(missing)}")
    hidden_size, num_layers, vocab_size = (text[name] for name in SIZES)
    if model.new_blocks:
        layers.check(num_layers, model.new_blocks)
        shapes = layers.grown(shapes, num_layers, model.new_blocks)
        num_layers += model.new_blocks
    sizes = {name: prod(shape) for name, shape in shapes.items()}
    linear = {name: shape for name, shape in shapes.items() if _is_linear(name, shape)}
    total = sum(sizes.values())
    if model.tuner == "full":
        trained = _trained_of_full(sizes, model, num_layers)
        frozen = total - trained
    else:
        # A LoRA of rank r on a matrix [out, in] has r * (in + out) weights; other kinds have fewer.
        adapted = sum(sum(shape) for name, shape in linear.items() if _is_target(name, model))
        copied = sum(sizes[name] for name in sizes if _is_named(name, model.modules_to_save))
        trained, frozen = model.lora_rank * adapted + copied if num_trainable is None else num_trainable, total
    whole = model.modules_to_save if model.tuner != "full" else None
    if num_quantizable is None:
        num_quantizable = sum(sizes[name] for name in linear) if model.quantization else 0
    trained_sizes = [size for name, size in sizes.items() if whole is None or _is_named(name, whole)]
    return ModelSize(
        num_parameters=total,
        num_trainable=trained,
        num_frozen=frozen,
        num_quantizable=num_quantizable,
        hidden_size=hidden_size,
        num_layers=num_layers,
        vocab_size=vocab_size,
        num_largest=max(trained_sizes, default=0),
        num_largest_matrix=max((sizes[name] for name in linear), default=0),
    )


def _is_linear(name: str, shape: tuple[int, ...]) -> bool:
    """Whether it is the matrix of a linear layer other than the head; stacked experts are not."""
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


def _trained_of_full(sizes: Mapping[str, int], model: ModelConfig, num_layers: int) -> int:
    """Number of trained parameters with `model.freeze`, `freeze_ratio`, `unfreeze` and `new_blocks`, as in
    `tuners.freeze`."""
    freezes, unfreezes = (re.compile(each) if each else None for each in (model.freeze, model.unfreeze))
    ends = list(accumulate(sizes.values()))
    num_frozen = bisect_right(ends, int(ends[-1] * model.freeze_ratio)) if model.freeze_ratio else 0
    if model.new_blocks:
        new = layers.new_layers(num_layers, model.new_blocks)
        kept = (name for name in sizes if layers.layer_of(name) in new or (unfreezes and unfreezes.match(name)))
        return sum(sizes[name] for name in kept)
    return sum(
        size
        for index, (name, size) in enumerate(sizes.items())
        if (unfreezes and unfreezes.match(name)) or not (index < num_frozen or (freezes and freezes.match(name)))
    )


def read_header(path: Path) -> dict[str, Any]:
    """Name -> dtype and shape of each tensor in a safetensors file; raise UserError if the file is not complete."""
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
        raise UserError(f"{path} is not a complete safetensors file ({error}); copy or download it again") from error
    return header
