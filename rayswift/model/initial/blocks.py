"""LLaMA-Pro (Wu et al., 2024): a model with more layers that computes what it did before.

A new layer is a copy. The last matrices of its attention and feed-forward part are zero, so it returns its input. The
result is a plain model of the same kind with a larger `num_hidden_layers`.
"""

import copy
from typing import Any

import torch
from transformers import PreTrainedModel

from rayswift.log import UserError
from rayswift.model import layers

# The last matrices of attention and of the feed-forward part, by their names in `transformers`.
_ENDS = ("o_proj", "down_proj", "c_proj")


def expand(network: PreTrainedModel, num_new: int) -> PreTrainedModel:
    """The model with `num_new` more layers, to be saved: its other weights are those of `network` itself.

    Raises:
        UserError: its layers cannot be divided into `num_new` groups, or their kind is unknown.
    """
    config = copy.deepcopy(network.config)
    text = config.get_text_config()
    total: int = text.num_hidden_layers
    layers.check(total, num_new)
    text.num_hidden_layers = total + num_new
    order = layers.sources(total, num_new)
    for name, value in _lists_by_layer(text, total).items():
        setattr(text, name, [value[source] for source in order])
    state = layers.grown(network.state_dict(), total, num_new)
    new = layers.new_layers(total + num_new, num_new)
    for layer in new:
        _switch_off(state, layer)
    with torch.device("meta"):
        larger: PreTrainedModel = type(network)._from_config(config, dtype=network.dtype)
    larger.load_state_dict(state, assign=True)
    larger.tie_weights()
    larger.generation_config = network.generation_config
    return larger


def _lists_by_layer(text: Any, total: int) -> dict[str, list[Any]]:
    """Settings of the config that have an entry for each layer."""
    return {name: value for name, value in text.to_dict().items() if isinstance(value, list) and len(value) == total}


def _switch_off(state: dict[str, torch.Tensor], layer: int) -> None:
    """Set the last matrices of the parts of a layer to zero.

    Raises:
        UserError: the last matrix of a part is unknown.
    """
    names = [name for name in state if layers.layer_of(name) == layer]
    ends = [name for name in names if any(part in _ENDS for part in name.split("."))]
    for part, has_part in (("attention", True), ("feed-forward part", False)):
        if not any(("attn" in name) == has_part for name in ends):
            raise UserError(
                f"model.new_blocks: the {part} of a layer ends in none of {', '.join(_ENDS)}, so it cannot be switched "
                "off; only models like Llama, Qwen, Mistral, Gemma and GPT-2 can be expanded",
                exit_code=1,
            )
    for name in names:
        state[name] = torch.zeros_like(state[name]) if name in ends else state[name].clone()
