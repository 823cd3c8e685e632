"""Scores and values of a round -> advantages and returns of its tokens, and metrics.

Pure but for `sum_over_ranks`, which sums a float64 tensor over ranks. As in the PPO trainer that TRL had, except that
the score is at a completion's last token, not at the padding after it.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from rayswift.rollout import advantages
from rayswift.rollout.advantages import Floats
from rayswift.rollout.rounds import RoundTable
from rayswift.train import evaluation
from rayswift.train.policy.micro_batches import MicroBatch, Place
from rayswift.train.policy.ppo.arguments import PPOArguments
from rayswift.train.policy.round_values import SumOverRanks, Tokenwise, all_moments

_MIN_VARIANCE = 1e-8
_MOST_ERROR = 0.2


def adapted(kl_coef: float, kl: float, target: float, num_completions: int, horizon: int) -> float:
    """Return the weight of the KL penalty after a round: larger if its KL was above the target; it changes by at most a
    fifth of completions / horizon.

    Ziegler et al. 2019, arXiv 1909.08593, section 2.2, with K = completions / horizon.

    Args:
        kl_coef: The weight in the round.
        kl: Mean KL of the round's completions, in nats.
        target: The wanted KL.
        num_completions: Of the round.
        horizon: See `train.kl_horizon`.
    """
    error = float(np.clip(kl / target - 1, -_MOST_ERROR, _MOST_ERROR))
    return kl_coef * (1 + error * num_completions / horizon)


@dataclass(frozen=True)
class RoundScores:
    """The models' outputs for this rank's completion tokens: values of the states before them, and log-probabilities of
    policy and reference; those of the reference are None at `kl_coef` 0."""

    logprobs: Tokenwise
    values: Tokenwise
    reference_logprobs: Tokenwise | None


@dataclass(frozen=True)
class Returns:
    """The advantage and the return of each completion token of this rank, float32; kl: mean KL of the
    round's completions."""

    advantages: Tokenwise
    returns: Tokenwise
    kl: float
    sums: evaluation.Sums


def scores(table: RoundTable, weights: tuple[float, ...], missing_eos_penalty: float | None) -> Floats:
    """Return each completion's score [N]: weighted rewards, less the penalty if it was cut off; NaN without any."""
    found = advantages.weighted(table.rewards, weights)
    return found - np.where(table.truncated, missing_eos_penalty or 0.0, 0.0)


def make_returns(
    table: RoundTable,
    scores: Floats,
    batches: Mapping[Place, MicroBatch],
    scored: RoundScores,
    args: PPOArguments,
    kl_coef: float,
    sum_over_ranks: SumOverRanks,
) -> Returns:
    """Return advantages, whitened over the round, and returns. A completion without a score has advantage 0.

    Args:
        table: The whole round.
        scores: [N] of its completions.
        batches: This rank's micro-batches.
        scored: Model outputs for their tokens.
        args: Of the trainer.
        kl_coef: Weight of the KL penalty.
        sum_over_ranks: Called as often on every rank.
    """
    penalties, sums = {}, _Sums()
    for place, batch in batches.items():
        logprobs = scored.logprobs[place].double().numpy()
        kl = np.zeros_like(logprobs)
        if scored.reference_logprobs is not None:
            log_ratio = logprobs - scored.reference_logprobs[place].double().numpy()
            kl = log_ratio if args.kl_estimator == "k1" else np.expm1(-log_ratio) + log_ratio
        penalties[place] = -kl_coef * kl
        sums.add(batch, logprobs, kl, penalties[place])
    rewards = {place: _with_scores(each, scores, batches[place]) for place, each in penalties.items()}
    if args.whiten_rewards:
        summed = all_moments(rewards.values(), sum_over_ranks)
        for place, each in rewards.items():
            whitened = advantages.whitened(each, summed, shift_mean=False)
            rewards[place] = np.where(np.isnan(each), np.nan, whitened)
    values = {place: each.double().numpy() for place, each in scored.values.items()}
    raw = {place: _gae(rewards[place], values[place], batch, args) for place, batch in batches.items()}
    summed = all_moments(raw.values(), sum_over_ranks)
    targets = {place: np.where(np.isnan(raw[place]), values[place], raw[place] + values[place]) for place in batches}
    known = {place: np.where(np.isnan(raw[place]), np.nan, targets[place]) for place in batches}
    spread = all_moments(known.values(), sum_over_ranks)
    totals = sum_over_ranks(torch.tensor([sums.kl, sums.completions], dtype=torch.float64)).tolist()
    metrics = sums.metrics() | _of_table(table, scores) | {"critic/vf_explained_var": (_explained(summed, spread), 1.0)}
    penalty, count = metrics["objective/non_score_reward"]
    score = metrics["objective/scores"][0]
    metrics["objective/rlhf_reward"] = (penalty + score * count, count)
    return Returns(
        advantages={place: _tensor(advantages.whitened(each, summed)) for place, each in raw.items()},
        returns={place: _tensor(each) for place, each in targets.items()},
        kl=totals[0] / max(1.0, totals[1]),
        sums=metrics | {"objective/kl_coef": (kl_coef, 1.0)},
    )


@dataclass
class _Sums:
    """Sums over this rank's completions."""

    completions: int = 0
    kl: float = 0.0
    entropy: float = 0.0
    non_score_reward: float = 0.0

    def add(self, batch: MicroBatch, logprobs: Floats, kl: Floats, penalties: Floats) -> None:
        self.completions += len(batch.rows)
        self.kl += float(kl.sum())
        self.entropy -= float(logprobs.sum())
        self.non_score_reward += float(penalties.sum())

    def metrics(self) -> evaluation.Sums:
        """Return means over completions, under TRL's names."""
        names = ("kl", "entropy", "non_score_reward")
        return {f"objective/{name}": (getattr(self, name), float(self.completions)) for name in names}


def _of_table(table: RoundTable, scores: Floats) -> evaluation.Sums:
    known = scores[~np.isnan(scores)]
    return {
        "objective/scores": (float(known.mean()) if len(known) else 0.0, 1.0),
        "val/num_eos_tokens": (float((~table.truncated).sum()), 1.0),
    }


def _padded(flat: Floats, lengths: NDArray[np.int64]) -> tuple[Floats, NDArray[np.bool_]]:
    """Pad [n] to [B, T] with zeros at the end; return also where tokens are."""
    is_token = np.arange(int(lengths.max(initial=0))) < lengths[:, None]
    padded = np.zeros(is_token.shape)
    padded[is_token] = flat
    return padded, is_token


def _with_scores(penalties: Floats, scores: Floats, batch: MicroBatch) -> Floats:
    """Return rewards [n]: the penalties, plus the score at each last token; NaN for a completion without a score."""
    lengths = batch.lengths.numpy()
    of_rows = scores[batch.rows]
    rewards = np.where(np.isnan(np.repeat(of_rows, lengths)), np.nan, penalties)
    rewards[np.cumsum(lengths) - 1] += of_rows
    return rewards


def _gae(rewards: Floats, values: Floats, batch: MicroBatch, args: PPOArguments) -> Floats:
    lengths = batch.lengths.numpy()
    padded, is_token = _padded(rewards, lengths)
    return advantages.gae(padded, _padded(values, lengths)[0], args.gamma, args.lam)[is_token]


def _variance(summed: Floats) -> float:
    count, total, squares = summed / max(summed[0], 1.0)
    return float(squares - total**2) if count else 0.0


def _explained(residuals: Floats, returns: Floats) -> float:
    """Return the explained variance of returns: 1 - Var(returns - values) / Var(returns); 0 for constant values."""
    return 1 - _variance(residuals) / max(_variance(returns), _MIN_VARIANCE)


def _tensor(values: Floats) -> torch.Tensor:
    return torch.from_numpy(values.astype(np.float32))
