"""The values of a round that its steps share beside tokens: advantages and old log-probabilities.

Pure but for `sum_over_ranks`, which sums a float64 tensor over ranks.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch

from rayswift.rollout import advantages
from rayswift.rollout.advantages import AdvantageSettings, Floats
from rayswift.rollout.rounds import OF_PROMPTS, RoundTable
from rayswift.train import evaluation
from rayswift.train.policy import pairs
from rayswift.train.policy.micro_batches import MicroBatch, Place

SumOverRanks = Callable[[torch.Tensor], torch.Tensor]
Tokenwise = dict[Place, torch.Tensor]
"""A value [n] float32 for each completion token of each micro-batch of a round, on the CPU."""


@dataclass
class RoundValues:
    """The values that a round's steps share.

    old_logprobs: under the weights that the round was sampled for; missing until the policy has computed them.
    """

    advantages: Tokenwise = field(default_factory=dict)
    old_logprobs: Tokenwise = field(default_factory=dict)
    reference_logprobs: Tokenwise = field(default_factory=dict)


def token_advantages(
    table: RoundTable,
    batches: dict[Place, MicroBatch],
    settings: AdvantageSettings,
    penalties: Tokenwise | None,
    sum_over_ranks: SumOverRanks,
    metrics: dict[str, float],
) -> Tokenwise:
    """Return the advantage of each completion token of this rank, float32.

    Args:
        table: The whole round.
        batches: This rank's micro-batches.
        settings: Of the advantages.
        penalties: Subtracted from each token's reward; None: nothing.
        sum_over_ranks: Called as often on every rank.
        metrics: Metrics of the estimator are added; the same on every rank.
    """
    taken = {place: _penalties(batch, penalties and penalties[place]) for place, batch in batches.items()}
    if not settings.is_per_token:
        totals = np.zeros(len(table))
        for place, batch in batches.items():
            totals[batch.rows] = [each.sum() for each in taken[place]]
        totals = sum_over_ranks(torch.from_numpy(totals)).numpy() if penalties is not None else totals
        if settings.estimator == "online_dpo":
            weighted = advantages.weighted(table.rewards, settings.weights)
            found = pairs.of_round(weighted, table.ordinals, totals, settings.beta)
            metrics.update(found.metrics)
            return {place: _repeated(found.advantages, batch) for place, batch in batches.items()}
        of_rows = advantages.advantages(table.rewards, table.ordinals, settings, totals)
        return {place: _repeated(of_rows, batch) for place, batch in batches.items()}
    rewards = advantages.baselined(table.rewards, table.ordinals, settings)
    returns = {
        place: np.concatenate([np.empty(0), *map(advantages.returns, rewards[batch.rows], taken[place])])
        for place, batch in batches.items()
    }
    summed = all_moments(returns.values(), sum_over_ranks)
    return {
        place: torch.from_numpy(advantages.whitened(each, summed).astype(np.float32)) for place, each in returns.items()
    }


def all_moments(values: Iterable[Floats], sum_over_ranks: SumOverRanks) -> Floats:
    """Return `advantages.moments` of the values of all ranks."""
    own = sum((advantages.moments(each) for each in values), np.zeros(3))
    summed: Floats = sum_over_ranks(torch.from_numpy(own)).numpy()
    return summed


def _penalties(batch: MicroBatch, penalties: torch.Tensor | None) -> list[Floats]:
    """Return the penalties of each completion's tokens."""
    lengths = batch.lengths.numpy()
    flat = np.zeros(int(lengths.sum())) if penalties is None else penalties.double().numpy()
    return np.split(flat, np.cumsum(lengths)[:-1]) if len(lengths) else []


def _repeated(of_rows: Floats, batch: MicroBatch) -> torch.Tensor:
    return torch.from_numpy(np.repeat(of_rows[batch.rows], batch.lengths.numpy()).astype(np.float32))


def reward_metrics(table: RoundTable, settings: AdvantageSettings, rollout: Mapping[str, float]) -> evaluation.Sums:
    """Return the metrics of a round's rewards and lengths, under TRL's names, and those of `rollout` that are of its
    prompts; the same on every rank."""
    if not len(table):
        return {}
    reward = advantages.weighted(table.rewards, settings.weights)
    columns = {"reward": reward} if table.reward_names else {}
    metrics = {name: value for name, value in rollout.items() if name in OF_PROMPTS}
    for name, column in zip(table.reward_names, table.rewards.T, strict=True):
        columns[f"rewards/{name}"] = column
    for name, column in columns.items():
        known = column[~np.isnan(column)]
        if len(known):
            first, second = (name, f"{name}_std") if name == "reward" else (f"{name}/mean", f"{name}/std")
            metrics[first] = float(known.mean())
            metrics[second] = float(known.std(ddof=1)) if len(known) > 1 else 0.0
    lengths, ended = table.written_lengths, ~table.truncated
    # If all are cut off, TRL's value of the lengths of the others is 0.
    for name, of in (("length", lengths), ("terminated_length", lengths[ended] if ended.any() else np.zeros(1))):
        metrics |= {f"completions/{what}_{name}": float(getattr(of, what)()) for what in ("mean", "min", "max")}
    metrics |= {
        "completions/clipped_ratio": float(table.truncated.mean()),
        "staleness": float(table.staleness.mean()),
    }
    if table.reward_names:
        metrics["frac_reward_zero_std"] = float(advantages.is_even(table.rewards, table.ordinals, settings).mean())
    if table.turns is not None and table.calls is not None and table.failed_calls is not None:
        metrics |= {
            "num_turns": float(table.turns.mean()),
            "tools/call_frequency": float(table.calls.mean()),
            "tools/failure_frequency": float(table.failed_calls.sum() / max(1, table.calls.sum())),
        }
    return {name: (value, 1.0) for name, value in metrics.items()}
