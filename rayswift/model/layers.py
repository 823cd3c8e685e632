"""The layer of a parameter, and the places of LLaMA-Pro's new layers (Wu et al., 2024); pure, without torch.

`num_new` layers are spread evenly: one after each of `num_new` groups of layers, a copy of the last layer of its group.
"""

import re
from collections.abc import Mapping
from typing import TypeVar

from rayswift.log import UserError

_LAYER = re.compile(r"^(.*?\b(?:layers|h)\.)(\d+)(\..*)$")
T = TypeVar("T")


def check(total: int, num_new: int) -> None:
    """Whether `num_new` groups can be made of `total` layers.

    Raises:
        UserError: it is impossible.
    """
    if total % num_new:
        raise UserError(
            f"model.new_blocks = {num_new}: the model's {total} layers cannot be cut into as many groups; set a "
            f"divisor of {total}"
        )


def layer_of(name: str) -> int | None:
    """The number of the layer that a parameter is in; None: it is in no layer."""
    found = _LAYER.match(name)
    return int(found.group(2)) if found else None


def sources(total: int, num_new: int) -> list[int]:
    """For each layer of the enlarged model, the number of the original layer that it is or copies.

    Args:
        total: Layers without the new ones, a multiple of `num_new`.
        num_new: Layers to add.
    """
    stride = total // num_new
    return [group * stride + min(place, stride - 1) for group in range(num_new) for place in range(stride + 1)]


def new_layers(total: int, num_new: int) -> frozenset[int]:
    """The numbers of the new layers in a model of `total` layers, the new ones included."""
    stride = total // num_new
    return frozenset((group + 1) * stride - 1 for group in range(num_new))


def grown(parameters: Mapping[str, T], total: int, num_new: int) -> dict[str, T]:
    """Parameters by name (or any value for each), with those of the new layers, in the order of the model.

    Args:
        parameters: Of the model without new layers.
        total: Its layers, a multiple of `num_new`.
        num_new: Layers to add.
    """
    places: dict[int, list[int]] = {}
    for place, source in enumerate(sources(total, num_new)):
        places.setdefault(source, []).append(place)
    found: dict[str, T] = {}
    for name, value in parameters.items():
        match = _LAYER.match(name)
        if match is None:
            found[name] = value
            continue
        before, layer, behind = match.groups()
        found |= {f"{before}{place}{behind}": value for place in places[int(layer)]}
    return found
