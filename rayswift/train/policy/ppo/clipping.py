"""Gradients of policy and critic, each clipped by its own norm: a jump of the value loss leaves the policy's alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

_EPSILON = 1e-6


@dataclass(frozen=True)
class Norms:
    """L2 norms of the gradients before they were clipped."""

    policy: float
    critic: float


def clip(parts: Sequence[Sequence[torch.nn.Parameter]], most: float) -> Norms:
    """Clip the gradients of the policy's parameters and of the critic's, which all ranks have alike."""
    policy, critic = (float(torch.nn.utils.clip_grad_norm_(each, most or float("inf"))) for each in parts)
    return Norms(policy, critic)


def clip_in_engine(engine: Any, num_policy_groups: int, most: float) -> Norms:
    """The same between DeepSpeed's backward pass and its step, whose own clipping takes all groups as one.

    Each rank holds a part of the gradients, which DeepSpeed keeps by parameter group; stage 3 by parts of one.

    Args:
        engine: At the boundary of a step; its own clipping is off.
        num_policy_groups: The first of its parameter groups are the policy's.
        most: The norm to clip to; 0: never.
    """
    zero = engine.optimizer
    is_3 = engine.zero_optimization_stage() == 3
    norms = [
        zero.get_grad_norm_direct(
            zero.averaged_gradients[i], zero.fp16_groups[i] if is_3 else zero.params_in_partition[i]
        )
        for i in range(len(zero.fp16_groups if is_3 else zero.bit16_groups))
    ]
    of_critic = [(zero.sub_group_to_group_id[i] if is_3 else i) >= num_policy_groups for i in range(len(norms))]
    squares = [0.0, 0.0]
    for is_critic, norm in zip(of_critic, norms, strict=True):
        value = float(norm) / zero.loss_scale
        squares[is_critic] += value**2 if value >= 0 else float("nan")  # DeepSpeed's mark of NaN or infinity is -1
    found = Norms(*(square**0.5 for square in squares))
    for i, is_critic in enumerate(of_critic):
        scale = most / ((found.critic if is_critic else found.policy) + _EPSILON) if most else 1.0
        if scale < 1:
            for gradient in zero.averaged_gradients[i]:
                gradient.mul_(scale)
    return found
