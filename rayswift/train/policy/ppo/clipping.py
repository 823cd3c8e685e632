"""Clips the gradients of policy and critic by their own norms, so a jump of the value loss does not affect the
policy."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from rayswift.log import UserError

_EPSILON = 1e-6


@dataclass(frozen=True)
class Norms:
    """L2 norms of the gradients before they were clipped."""

    policy: float
    critic: float


def clip(parts: Sequence[Sequence[torch.nn.Parameter]], most: float) -> Norms:
    """Clip the gradients of the policy and of the critic, which are equal on all ranks."""
    policy, critic = (float(torch.nn.utils.clip_grad_norm_(each, most or float("inf"))) for each in parts)
    return Norms(policy, critic)


def clip_in_engine(engine: Any, num_policy_groups: int, most: float) -> Norms:
    """Clip between DeepSpeed's backward pass and its step; DeepSpeed's own clipping takes all groups as one.

    Each rank holds a part of the gradients, which DeepSpeed keeps by parameter group; stage 3 by parts of one.

    Args:
        engine: At the boundary of a step; its own clipping is off.
        num_policy_groups: The first of its parameter groups are the policy's.
        most: The norm to clip to; 0: never.

    Raises:
        UserError: the user's DeepSpeed JSON makes an engine without ZeRO, or with another optimizer.
    """
    zero = engine.optimizer
    if not hasattr(zero, "averaged_gradients"):
        raise UserError(
            f"cluster.deepspeed makes a {type(zero).__name__}, whose gradients task ppo cannot clip by policy and "
            "critic; ask for ZeRO 1, 2 or 3 in it without data_types, or set cluster.zero_stage",
            exit_code=1,
        )
    parts = _parts(zero, engine.zero_optimization_stage() == 3)
    squares = [0.0, 0.0]
    for part in parts:
        norm = float(part.norm) / zero.loss_scale
        squares[part.group >= num_policy_groups] += norm**2 if norm >= 0 else float("nan")  # -1 marks NaN and infinity
    found = Norms(*(square**0.5 for square in squares))
    for part in parts:
        norm = found.critic if part.group >= num_policy_groups else found.policy
        if most and norm > most:
            for gradient in part.gradients:
                gradient.mul_(most / (norm + _EPSILON))
    return found


@dataclass(frozen=True)
class _Part:
    """group: of the optimizer; norm: of its gradients, over all ranks; gradients: this rank's."""

    group: int
    norm: Any
    gradients: Sequence[torch.Tensor]


def _parts(zero: Any, is_stage_3: bool) -> list[_Part]:
    if is_stage_3:
        slices, masters, is_offloaded = zero.fp16_groups, zero.fp32_partitioned_groups_flat, zero.offload_optimizer
    else:
        slices, masters, is_offloaded = (
            zero.params_in_partition,
            zero.single_partition_of_fp32_groups,
            zero.cpu_offload,
        )
    parts = []
    for i, parameters in enumerate(slices):
        if is_offloaded:
            gradients = [masters[i].grad]
            norm = zero.complete_grad_norm_calculation_for_cpu_offload(parameters)
        else:
            gradients = zero.averaged_gradients[i]
            norm = zero.get_grad_norm_direct(gradients, parameters)
        parts.append(_Part(zero.sub_group_to_group_id[i] if is_stage_3 else i, norm, gradients))
    return parts
