"""Evaluations: sample the evaluation prompts with the newest weights, and compute mean rewards."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from rayswift.config.rollout import RolloutConfig
from rayswift.engines.samples import Group, Prompt, RequestSampling
from rayswift.log import UserError
from rayswift.rollout.admission import EvalPlan, RolloutPlan
from rayswift.rollout.groups import Sampler, Scorer, Stage, is_of, requests_for, scored_group


class NamedScorer(Scorer, Protocol):
    """A scorer with the names of its rewards."""

    @property
    def names(self) -> Sequence[str]:
        """Return the names of the rewards, in the order of `Scored.rewards`."""


def eval_plans(rollout: RolloutConfig) -> tuple[EvalPlan, ...]:
    """Return the named evaluations of a config."""
    found = []
    for name, each in rollout.eval.items():
        sampling = RequestSampling(
            rollout.temperature if each.temperature is None else each.temperature,
            rollout.top_p if each.top_p is None else each.top_p,
            rollout.top_k if each.top_k is None else each.top_k,
        )
        found.append(EvalPlan(name, each.num_generations, tuple(each.sources), sampling, each.right_from))
    return tuple(found)


@dataclass(frozen=True)
class Evaluated:
    """Metrics, and the groups of each evaluation by its name."""

    metrics: dict[str, float]
    groups: dict[str, list[Group]]


async def evaluated(
    prompts: Sequence[Prompt],
    number: int,
    plan: RolloutPlan,
    sampler: Sampler,
    scorer: NamedScorer,
    stage: Stage,
) -> Evaluated:
    """Run the evaluations with the weights after `number` rounds.

    The metrics of a named evaluation begin with its name; those of the first are given without it too.

    Raises:
        UserError: no prompt of an evaluation could be scored.
    """
    plans = plan.evaluations or (EvalPlan("", plan.num_generations_eval),)
    results = await asyncio.gather(*(_one(prompts, number, plan, each, sampler, scorer, stage) for each in plans))
    metrics = dict(results[0][0])
    for each, (found, _) in zip(plans, results, strict=True):
        metrics |= {f"{each.name}_{name}": value for name, value in found.items()} if each.name else {}
    metrics["completions"] = sum(found["completions"] for found, _ in results)
    return Evaluated(metrics, {each.name: groups for each, (_, groups) in zip(plans, results, strict=True)})


async def _one(
    prompts: Sequence[Prompt],
    number: int,
    plan: RolloutPlan,
    own: EvalPlan,
    sampler: Sampler,
    scorer: NamedScorer,
    stage: Stage,
) -> tuple[dict[str, float], list[Group]]:
    each, use = own.num_generations, f"eval.{own.name}" if own.name else "eval"
    prompts = [prompt for prompt in prompts if not own.sources or any(is_of(prompt, source) for source in own.sources)]
    most, window = plan.max_completion_length, plan.max_sequence_length
    requests = [
        one for prompt in prompts for one in requests_for(prompt, use, each, most, window, plan.seed, own.sampling)
    ]
    futures = sampler.sample(requests, number)
    results = await asyncio.gather(
        *(scored_group(scorer, prompt, futures[i * each : (i + 1) * each], stage) for i, prompt in enumerate(prompts))
    )
    groups = [group for group, _ in results]
    scored = [one for group in groups for one in group.scored]
    if not scored:
        reasons = sorted({reason for _, found in results for reason in found})[:3] or ["its sources have none"]
        which = f" of rollout.eval.{own.name}" if own.name else ""
        raise UserError(f"no evaluation prompt{which} could be scored: {'; '.join(reasons)}", exit_code=1)
    rewards = np.array([one.rewards for one in scored], np.float64)
    known = {name: of[~np.isnan(of)] for name, of in zip(scorer.names, rewards.T, strict=True)}
    metrics = {
        "reward": float(np.mean([one.reward for one in scored])),
        **{f"rewards/{name}/mean": float(of.mean()) for name, of in known.items() if len(of)},
        "completion_length": float(np.mean([one.completion.num_written for one in scored])),
        "completions": float(len(requests)),
        "unscored": float(sum(len(found) for _, found in results)),
    }
    return metrics | (_of_prompts(groups, own) if own.name else {}), groups


def _of_prompts(groups: Sequence[Group], own: EvalPlan) -> dict[str, float]:
    """Return avg@k, the mean over prompts of the mean reward of their k completions, and pass@k, the share of prompts
    with a right completion; over prompts that have a scored completion."""
    rewards = [[one.reward for one in group.scored] for group in groups if group.scored]
    k = own.num_generations
    return {
        f"avg@{k}": float(np.mean([np.mean(each) for each in rewards])),
        f"pass@{k}": float(np.mean([max(each) >= own.right_from for each in rewards])),
    }
