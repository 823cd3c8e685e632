"""LISA (Pan et al., 2024): full training, of a few layers at a time.

Embedding, final norm and head are always trained. Of the layers, `model.lisa_layers` are drawn anew every
`model.lisa_interval` steps; all others are frozen, without gradients. An optimizer keeps the states of each layer that
was drawn so far.
"""

from typing import Any

import numpy as np
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from rayswift.config.model import ModelConfig
from rayswift.model.layers import layer_of


class SampledLayers(TrainerCallback):
    """Draws the layers that the next steps train from the seed and the number of the interval: a resumed run draws
    the same."""

    def __init__(self, model: ModelConfig, seed: int):
        self._num_active, self._interval, self._seed = model.lisa_layers, model.lisa_interval, seed

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Freeze and unfreeze layers at the beginning of an interval."""
        network: PreTrainedModel = kwargs["model"]
        total: int = network.config.get_text_config().num_hidden_layers
        active = drawn(self._seed, state.global_step // self._interval, total, self._num_active)
        for name, parameter in network.named_parameters():
            layer = layer_of(name)
            parameter.requires_grad_(layer is None or layer in active)


def drawn(seed: int, interval: int, total: int, num_active: int) -> frozenset[int]:
    """Return the layers of an interval: `num_active` of `total`, each set with the same probability."""
    generator = np.random.default_rng(np.random.SeedSequence([seed, interval, 0x4C495341]))
    return frozenset(generator.choice(total, size=min(num_active, total), replace=False).tolist())
