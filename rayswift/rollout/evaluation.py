"""An evaluation: completions of the evaluation prompts by the newest weights, and their mean rewards."""

import asyncio
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from rayswift.engines.samples import Prompt
from rayswift.log import UserError
from rayswift.rollout.admission import RolloutPlan
from rayswift.rollout.groups import Sampler, Scorer, Stage, requests_for, scored_group


class NamedScorer(Scorer, Protocol):
    """Who scores, and by what."""

    @property
    def names(self) -> Sequence[str]:
        """Of the rewards, in the order of `Scored.rewards`."""


async def evaluated(
    prompts: Sequence[Prompt], number: int, plan: RolloutPlan, sampler: Sampler, scorer: NamedScorer, stage: Stage
) -> dict[str, float]:
    """Mean rewards by the weights behind `number` rounds.

    Raises:
        UserError: no prompt could be scored.
    """
    each = plan.num_generations_eval
    requests = [
        one
        for prompt in prompts
        for one in requests_for(prompt, "eval", each, plan.max_completion_length, plan.max_sequence_length, plan.seed)
    ]
    futures = sampler.sample(requests, number)
    results = await asyncio.gather(
        *(scored_group(scorer, prompt, futures[i * each : (i + 1) * each], stage) for i, prompt in enumerate(prompts))
    )
    scored = [one for group, _ in results for one in group.scored]
    if not scored:
        reasons = sorted({reason for _, found in results for reason in found})[:3]
        raise UserError(f"no evaluation prompt could be scored: {'; '.join(reasons)}", exit_code=1)
    rewards = np.array([one.rewards for one in scored], np.float64)
    known = ~np.isnan(rewards)
    means = np.where(known, rewards, 0.0).sum(axis=0) / np.maximum(known.sum(axis=0), 1)
    return {
        "reward": float(np.mean([one.reward for one in scored])),
        **{f"rewards/{name}/mean": float(mean) for name, mean in zip(scorer.names, means, strict=True)},
        "completion_length": float(np.mean([one.completion.num_written for one in scored])),
        "completions": float(len(requests)),
        "unscored": float(sum(len(found) for _, found in results)),
    }
