"""The losses of PPO over the tokens of completions; pure. Tensors are flat, as in `train.policy.losses`."""

from dataclasses import dataclass

import torch
from torch import Tensor

from rayswift.train.policy.losses import Completions, Loss, PolicySettings, StepCounts, policy_loss

_TRL_NAMES = {"entropy": "policy/entropy_avg", "clip_ratio/region_mean": "policy/clipfrac_avg"}


@dataclass(frozen=True)
class ValueTargets:
    """old_values [n]: the critic's values before the round's first step; returns [n]: the targets."""

    old_values: Tensor
    returns: Tensor


def value_losses(values: Tensor, targets: ValueTargets, cliprange: float) -> tuple[Tensor, Tensor]:
    """Return half the squared error of each token's value [n], and whether the clip decides it [n].

    It is the larger of the errors of the value and of the value clipped to `cliprange` around the old one. So a value
    that has moved further than that towards its return gets no gradient.
    """
    clipped = values.clamp(targets.old_values - cliprange, targets.old_values + cliprange)
    error, clipped_error = (values - targets.returns).square(), (clipped - targets.returns).square()
    return 0.5 * torch.maximum(error, clipped_error), (clipped_error > error).detach()


def ppo_loss(
    logprobs: Tensor,
    entropies: Tensor,
    values: Tensor,
    completions: Completions,
    targets: ValueTargets,
    counts: StepCounts,
    settings: PolicySettings,
    *,
    cliprange_value: float,
    vf_coef: float,
    trains_policy: bool = True,
) -> Loss:
    """Return a micro-batch's share of the step's loss: the clipped surrogate plus `vf_coef` times the value loss, each
    a mean over the step's tokens.

    Args:
        logprobs: [n], of the policy, with gradient.
        entropies: [n], of its distributions.
        values: [n], of the states before the tokens, with gradient.
        completions: Advantages and other values of the tokens.
        targets: Of the values.
        counts: Of the whole step.
        settings: Of the surrogate.
        cliprange_value: See `value_losses`.
        vf_coef: Weight of the value loss.
        trains_policy: If false, the policy gets a gradient of zero.
    """
    policy = policy_loss(logprobs, entropies, completions, counts, settings)
    errors, is_clipped = value_losses(values, targets, cliprange_value)
    value = vf_coef * errors.sum() / max(1, counts.tokens)
    total = (policy.total if trains_policy else 0.0 * policy.total) + value
    sums = {_TRL_NAMES.get(name, name): each for name, each in policy.sums.items()}
    with torch.no_grad():
        assert completions.old_logprobs is not None
        log_ratio = logprobs - completions.old_logprobs
        ratio = log_ratio.exp()
        sums |= {
            "policy/approxkl_avg": 0.5 * log_ratio.square().sum(),
            "loss/policy_avg": policy.total * counts.tokens,
            "loss/value_avg": errors.sum(),
            "val/clipfrac_avg": is_clipped.sum(),
            "val/ratio": ratio.sum(),
            "val/ratio_var": ratio.square().sum(),
            "critic/values_mean": values.sum(),
        }
    return Loss(total, sums)
