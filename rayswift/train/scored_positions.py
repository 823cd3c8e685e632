"""Runs the head of a causal language model only at positions whose next token counts.

TRL's fused head scores every position, on a CPU those of prompts and padding too: with 2,048 tokens and a vocabulary of
49,152 that is a fifth of a small model's work, and several float32 tiles of 256 MB at a time.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor


class ScoredPositions:
    """Selects positions after a model's backbone; also in a model that is wrapped later (DDP, DeepSpeed)."""

    def __init__(self, model: Any):
        base = model.get_base_model() if isinstance(model, PeftModel) else model
        base.base_model.register_forward_hook(self._select)
        self._positions: Tensor | None = None

    @contextmanager
    def only(self, positions: Tensor) -> Iterator[None]:
        """Within the block, the head gets [1, n, H] in place of [B, T, H].

        Args:
            positions: [n] of the flattened [B, T].
        """
        self._positions = positions
        try:
            yield
        finally:
            self._positions = None

    def _select(self, backbone: torch.nn.Module, args: Any, output: Any) -> Any:
        if self._positions is not None:
            output.last_hidden_state = output.last_hidden_state.flatten(0, 1).index_select(0, self._positions)[None]
        return output


def scored(model: Any, head: ScoredPositions, inputs: dict[str, Any]) -> Any:
    """Run a forward pass with TRL's fused head; return its outputs per token, [B, T - 1], 0 for ignored tokens.

    Args:
        model: The model, in any wrapper.
        head: Of that model.
        inputs: Its inputs, with labels [B, T].
    """
    inputs = dict(inputs)
    labels = inputs.pop("labels")
    mask = labels[:, 1:] != -100
    row, column = mask.nonzero(as_tuple=True)
    with head.only(row * labels.shape[1] + column):
        outputs = model(**inputs, shift_labels=labels[:, 1:][mask][None])
    for name in ("log_probs", "entropy", "is_top1"):
        outputs[name] = outputs[name].new_zeros(mask.shape).masked_scatter(mask, outputs[name])
    outputs["label_mask"] = mask
    return outputs
