"""What some of HF's optimizers keep in their state besides tensors: their checkpoints load with these classes only."""

from typing import Any

from rayswift.train.tasks import load

# How the name of an optimizer begins -> classes of the package it comes from.
_STATE_CLASSES = {
    "galore": ("galore_torch.galore_projector:GaLoreProjector",),
    "apollo": ("apollo_torch.random_projector:GradientProjector", "apollo_torch.svd_projector:GaLoreProjector"),
}


def state_classes(optim: str) -> list[Any]:
    """Classes that `torch.load` must let through to continue with an optimizer."""
    return [load(name) for prefix, names in _STATE_CLASSES.items() if optim.startswith(prefix) for name in names]
