"""Losses over the tokens of completions; pure, equal to those of TRL's GRPO and RLOO trainers.

Tensors are flat: n tokens of B whole completions, concatenated. A loss is a sum over tokens, each divided by a
normaliser of the whole optimizer step, so it does not depend on the cut into micro-batches and ranks.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from rayswift.train.policy import fipo

Correction = Literal["none", "token_truncate", "token_mask", "sequence_truncate", "sequence_mask"]


@dataclass(frozen=True)
class PolicySettings:
    """Settings of the loss, under the names of TRL and of section `rollout` (importance_sampling, *_max, *_min).

    Sources: grpo, arXiv 2402.03300; bnpo and dapo, 2503.14476; dr_grpo, 2503.20783; cispo, 2506.13585; sapo,
    2511.20347; luspo, 2602.05261; vespo, 2602.10693; fipo, 2603.19835; rloo, 2402.14740; importance_sampling_level
    sequence is GSPO, 2507.18071; delta, two-sided clipping, 2505.07291; off_policy_mask_threshold and
    use_bias_correction_kl, 2512.02556; importance_sampling, 2508.14444 and TRL.
    """

    loss_type: str = "dapo"
    epsilon: float = 0.2
    epsilon_high: float | None = None
    delta: float | None = None
    beta: float = 0.0
    use_bias_correction_kl: bool = True
    importance_sampling_level: Literal["token", "sequence"] = "token"
    importance_sampling: Correction = "none"
    importance_sampling_max: float | None = 3.0
    importance_sampling_min: float | None = None
    off_policy_mask_threshold: float | None = None
    sapo_temperature_pos: float = 1.0
    sapo_temperature_neg: float = 1.05
    vespo_k_pos: float = 2.0
    vespo_lambda_pos: float = 3.0
    vespo_k_neg: float = 3.0
    vespo_lambda_neg: float = 2.0
    fipo_decay_rate: float = 32.0
    fipo_clip_range: float | None = 0.2
    fipo_clip_high_only: bool = True
    fipo_safety_threshold: float | None = 4.0
    max_completion_length: int = 512

    @property
    def high(self) -> float:
        """Return the upper side of the clip range."""
        return self.epsilon if self.epsilon_high is None else self.epsilon_high


@dataclass(frozen=True)
class Completions:
    """The completions of a micro-batch.

    lengths [B] int64, no zeros; advantages, old_logprobs, sampling_logprobs [n]: of each token, the log-probabilities
    before the round's first step and those of the engine; reference_logprobs [n]: None without a KL term; counted [n]
    bool: tokens of the policy term, None for all. All without gradient.
    """

    lengths: Tensor
    advantages: Tensor
    old_logprobs: Tensor | None
    sampling_logprobs: Tensor
    reference_logprobs: Tensor | None = None
    counted: Tensor | None = None


@dataclass(frozen=True)
class StepCounts:
    """Counts of the whole optimizer step, over all micro-batches and ranks.

    sequences: completions, those whose tokens do not count included; tokens: trained ones; mean_tokens: trained tokens
    of the round over its steps; counted_tokens: the tokens of the mean of the entropy bonus.
    """

    sequences: int
    tokens: int
    mean_tokens: float
    counted_tokens: int


class Sequences:
    """Sums and means over the tokens of each completion, [n] -> [n] with the completion's value at each token."""

    def __init__(self, lengths: Tensor):
        self.lengths = lengths
        self._index = torch.repeat_interleave(torch.arange(len(lengths), device=lengths.device), lengths)

    def sum(self, values: Tensor) -> Tensor:
        """Return the completion's sum, at each of its tokens."""
        totals = torch.zeros(len(self.lengths), dtype=values.dtype, device=values.device)
        return totals.index_add(0, self._index, values)[self._index]

    def mean(self, values: Tensor) -> Tensor:
        """Return the completion's mean, at each of its tokens."""
        return self.sum(values) / self.length(values)

    def length(self, like: Tensor) -> Tensor:
        """Return the completion's number of tokens, at each of its tokens."""
        return self.lengths.to(like.dtype)[self._index]


@dataclass(frozen=True)
class _Terms:
    """The inputs of a policy term, each [n]."""

    logprobs: Tensor
    log_ratio: Tensor
    ratio: Tensor
    advantages: Tensor
    correction: Tensor | None
    sequences: Sequences


def _clipped(terms: _Terms, settings: PolicySettings) -> Tensor:
    """The clipped surrogate of PPO, arXiv 1707.06347, equation 7."""
    bounded = terms.ratio.clamp(1 - settings.epsilon, 1 + settings.high)
    ratio = terms.ratio if settings.delta is None else terms.ratio.clamp(max=settings.delta)
    return -torch.min(ratio * terms.advantages, bounded * terms.advantages)


def _policy_gradient(terms: _Terms, settings: PolicySettings) -> Tensor:
    return -terms.ratio * terms.advantages


def _fipo(terms: _Terms, settings: PolicySettings) -> Tensor:
    weights = fipo.influence(
        terms.log_ratio,
        terms.ratio,
        terms.advantages,
        terms.sequences.lengths,
        delta=settings.delta,
        decay_rate=settings.fipo_decay_rate,
        clip_range=settings.fipo_clip_range,
        clip_high_only=settings.fipo_clip_high_only,
        safety_threshold=settings.fipo_safety_threshold,
    )
    return _clipped(terms, settings) * weights


def _cispo(terms: _Terms, settings: PolicySettings) -> Tensor:
    weights = terms.ratio.clamp(max=settings.high).detach()
    return -weights * terms.advantages * terms.logprobs


def _sapo(terms: _Terms, settings: PolicySettings) -> Tensor:
    pos, neg = settings.sapo_temperature_pos, settings.sapo_temperature_neg
    temperatures = torch.where(terms.advantages > 0, pos, neg).to(terms.ratio.dtype)
    gates = torch.sigmoid(temperatures * (terms.ratio - 1)) * 4 / temperatures
    return -gates * terms.advantages


@torch.no_grad()
def _vespo_weights(terms: _Terms, settings: PolicySettings) -> Tensor:
    """Return phi(w) = e^lambda w^k e^(-lambda w), with w the completion's ratio to the policy that sampled it."""
    low = math.log(1e-8)
    log_w = terms.sequences.sum(terms.log_ratio.clamp(-20, 20))
    if terms.correction is not None:
        log_w = log_w + terms.sequences.sum(terms.correction.log().clamp(low, 20))
    log_w = log_w.clamp(low, 20)
    is_good = terms.advantages >= 0
    k = torch.where(is_good, settings.vespo_k_pos, settings.vespo_k_neg).to(log_w.dtype)
    rate = torch.where(is_good, settings.vespo_lambda_pos, settings.vespo_lambda_neg).to(log_w.dtype).clamp(min=1e-4)
    return torch.exp(rate + k * log_w - rate * log_w.exp()).nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)


def _vespo(terms: _Terms, settings: PolicySettings) -> Tensor:
    return -_vespo_weights(terms, settings) * terms.advantages * terms.logprobs


def _per_sequence_mean(counts: StepCounts, settings: PolicySettings, lengths: Tensor) -> Tensor:
    return lengths * max(1, counts.sequences)


def _per_step_token(counts: StepCounts, settings: PolicySettings, lengths: Tensor) -> Tensor:
    return torch.full_like(lengths, max(1, counts.tokens))


def _per_round_token(counts: StepCounts, settings: PolicySettings, lengths: Tensor) -> Tensor:
    return torch.full_like(lengths, max(1.0, counts.mean_tokens))


def _per_room(counts: StepCounts, settings: PolicySettings, lengths: Tensor) -> Tensor:
    return torch.full_like(lengths, max(1, counts.sequences * settings.max_completion_length))


def _per_sequence_sum(counts: StepCounts, settings: PolicySettings, lengths: Tensor) -> Tensor:
    return torch.full_like(lengths, max(1, counts.sequences))


@dataclass(frozen=True)
class LossType:
    """term: of each token; divisor: divides a token's term, computed from the step's counts and the completion's
    length."""

    term: Callable[[_Terms, PolicySettings], Tensor]
    divisor: Callable[[StepCounts, PolicySettings, Tensor], Tensor]


LOSS_TYPES: dict[str, LossType] = {
    "grpo": LossType(_clipped, _per_sequence_mean),
    "bnpo": LossType(_clipped, _per_step_token),
    "dr_grpo": LossType(_clipped, _per_room),
    "dapo": LossType(_clipped, _per_round_token),
    "luspo": LossType(_clipped, _per_sequence_sum),
    "cispo": LossType(_cispo, _per_round_token),
    "sapo": LossType(_sapo, _per_sequence_mean),
    "vespo": LossType(_vespo, _per_round_token),
    "fipo": LossType(_fipo, _per_round_token),
    "real": LossType(_policy_gradient, _per_sequence_mean),
    "online_dpo": LossType(_policy_gradient, _per_sequence_sum),
    # Each completion is one action: all of its tokens have the same term.
    "rloo": LossType(_clipped, _per_sequence_mean),
}
"""TRL's loss types, ms-swift's `fipo`, and `rloo`, the loss of TRL's RLOOTrainer. bnpo takes the step's tokens, dapo
the round's."""


@dataclass(frozen=True)
class Loss:
    """total: what is differentiated. sums: of each metric over `tokens` tokens, without gradient."""

    total: Tensor
    sums: dict[str, Tensor]


def policy_loss(
    logprobs: Tensor,
    entropies: Tensor,
    completions: Completions,
    counts: StepCounts,
    settings: PolicySettings,
    entropy_coef: float = 0.0,
) -> Loss:
    """Return a micro-batch's share of the step's loss; the shares of all micro-batches and ranks add up to the loss.

    Args:
        logprobs: [n], of the policy, with gradient.
        entropies: [n], of its distributions; with gradient if `entropy_coef` is not 0.
        completions: Advantages and other values of the tokens.
        counts: Of the whole step.
        settings: Of the loss.
        entropy_coef: Weight of the entropy bonus, a mean over the step's counted tokens.
    """
    sequences = Sequences(completions.lengths)
    current = logprobs.detach()
    old = current if completions.old_logprobs is None else completions.old_logprobs
    log_ratio = logprobs - old
    ratio = torch.exp(_log_weights(log_ratio, sequences, settings))
    correction = correction_ratio(old, completions.sampling_logprobs, sequences, settings)
    terms = _Terms(logprobs, log_ratio, ratio, completions.advantages, correction, sequences)
    kind = LOSS_TYPES[settings.loss_type]
    losses = kind.term(terms, settings)
    if settings.off_policy_mask_threshold is not None:
        losses = losses * _is_near(current, completions, sequences, settings.off_policy_mask_threshold)
    if completions.counted is not None:
        losses = losses * completions.counted
    if correction is not None and settings.loss_type != "vespo":  # whose weights hold it
        losses = losses * correction
    sums = _sums(terms, entropies.detach(), completions, settings)
    if completions.reference_logprobs is not None and settings.beta:
        kl = k3(logprobs, completions.reference_logprobs)
        kl = kl * ratio if settings.use_bias_correction_kl else kl
        losses = losses + settings.beta * kl
        sums["kl"] = kl.detach().sum()
    total = (losses / kind.divisor(counts, settings, sequences.length(losses))).sum()
    if entropy_coef:
        bonus = entropies if completions.counted is None else entropies * completions.counted
        total = total - entropy_coef * bonus.sum() / max(1, counts.counted_tokens)
    return Loss(total, sums)


def k3(logprobs: Tensor, reference_logprobs: Tensor) -> Tensor:
    """Return each token's estimate of KL(policy || reference) that is never negative; Schulman 2020, "Approximating KL
    Divergence", k3."""
    difference = reference_logprobs - logprobs
    return torch.exp(difference) - difference - 1


def correction_ratio(
    old_logprobs: Tensor, sampling_logprobs: Tensor, sequences: Sequences, settings: PolicySettings
) -> Tensor | None:
    """Return the weight [n] for the difference between trainer and engine: the trainer's probability over the engine's.

    For each token or for the whole completion, truncated at the bounds, or 0 beyond them. None without a correction.
    A token without a log-probability of the engine (nan) has ratio 1.
    """
    if settings.importance_sampling == "none":
        return None
    level, bound = settings.importance_sampling.split("_")
    difference = (old_logprobs - sampling_logprobs).nan_to_num(nan=0.0)
    ratio = torch.exp(sequences.sum(difference) if level == "sequence" else difference)
    most, least = settings.importance_sampling_max, settings.importance_sampling_min
    if bound == "truncate":
        return ratio.clamp(least, most)
    is_beyond = torch.zeros_like(ratio, dtype=torch.bool)
    is_beyond = is_beyond if most is None else is_beyond | (ratio > most)
    is_beyond = is_beyond if least is None else is_beyond | (ratio < least)
    return ratio.masked_fill(is_beyond, 0.0)


def _log_weights(log_ratio: Tensor, sequences: Sequences, settings: PolicySettings) -> Tensor:
    if settings.loss_type == "rloo":
        return sequences.sum(log_ratio)
    return sequences.mean(log_ratio) if settings.importance_sampling_level == "sequence" else log_ratio


def _is_near(current: Tensor, completions: Completions, sequences: Sequences, threshold: float) -> Tensor:
    """Whether a token is kept: its advantage is not negative, or the policy has not moved away from its completion."""
    drift = sequences.mean((completions.sampling_logprobs - current).nan_to_num(nan=0.0))
    return (completions.advantages >= 0) | (drift <= threshold)


@torch.no_grad()
def _sums(terms: _Terms, entropies: Tensor, completions: Completions, settings: PolicySettings) -> dict[str, Tensor]:
    """Return the sums over tokens of metrics that are logged as means."""
    drift = (terms.logprobs - completions.sampling_logprobs).nan_to_num(nan=0.0)
    sums = {"entropy": entropies.sum(), "sampling_logp_difference": drift.abs().sum()}
    if terms.correction is not None:
        sums["importance_sampling_ratio"] = terms.correction.sum()
    kind = LOSS_TYPES[settings.loss_type].term
    is_high = (terms.ratio > 1 + settings.high) & (terms.advantages > 0)
    if kind in (_clipped, _fipo):
        is_low = (terms.ratio < 1 - settings.epsilon) & (terms.advantages < 0)
        sums |= {"clip_ratio/low_mean": is_low.sum(), "clip_ratio/high_mean": is_high.sum()}
        sums["clip_ratio/region_mean"] = (is_low | is_high).sum()
    if kind is _cispo:
        sums["cispo_clip_ratio"] = ((terms.ratio > settings.high) & (terms.advantages > 0)).sum()
    return sums
