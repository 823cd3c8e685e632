"""Learning-rate schedules over a stream of unknown length, and the classes in optimizer states.

Progress is counted in raw rows, not steps."""

from collections.abc import Callable
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from transformers import get_scheduler

from rayswift.config.tasks import load

_TICKS = 1_000_000


def progress_schedule(
    name: str, optimizer: Optimizer, warmup: float, kwargs: dict[str, Any], progress: Callable[[], float]
) -> LambdaLR:
    """Return one of `transformers`' schedules, stretched over `progress` from 0 to 1.

    Args:
        name: As `transformers` names it; it must be a function of the step (a LambdaLR).
        optimizer: Its learning rates are scheduled.
        warmup: Below 1: share of the training; else steps, and the ramp caps the schedule.
        kwargs: The schedule's own arguments.
        progress: Returns the share of the training that is done after the current step.
    """
    ramp_ticks = int(warmup * _TICKS) if warmup < 1 else 0
    stretched = get_scheduler(name, optimizer, ramp_ticks, _TICKS, kwargs)
    assert isinstance(stretched, LambdaLR), f"{name} is checked when the config is resolved"
    (factor,) = set(stretched.lr_lambdas)

    def scaled(step: int) -> float:
        value = float(factor(int(min(1.0, progress() if step else 0.0) * _TICKS)))
        return min(value, step / warmup) if warmup >= 1 else value

    return LambdaLR(optimizer, scaled)


# How the name of an optimizer begins -> classes of the package it comes from.
_STATE_CLASSES = {
    "galore": ("galore_torch.galore_projector:GaLoreProjector",),
    "apollo": ("apollo_torch.random_projector:GradientProjector", "apollo_torch.svd_projector:GaLoreProjector"),
}


def state_classes(optim: str) -> list[Any]:
    """Return the classes that `torch.load` must allow to load the state of an optimizer."""
    return [load(name) for prefix, names in _STATE_CLASSES.items() if optim.startswith(prefix) for name in names]
