"""Completions with their rewards and with what a teacher thinks of their tokens."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

from rayswift.engines.samples import Completion, Prompt, Scored
from rayswift.rollout.groups import Scorer


class Teacher(Protocol):
    """Who scores tokens: a pool of engines, or servers."""

    async def score(self, prompt: Prompt, completions: Sequence[Completion]) -> Sequence[Completion | str]:
        """Each completion's tokens with the teacher's log-probabilities behind the prompt as it sees it; or why not."""

    def describe(self) -> str:
        """How it stands, for people."""

    async def close(self) -> None:
        """End what runs it."""


class Taught:
    """A scorer whose completions a teacher has scored too, meanwhile.

    Args:
        scorer: Of rewards.
        teacher: See there.
    """

    def __init__(self, scorer: Scorer, teacher: Teacher):
        self._scorer, self._teacher = scorer, teacher

    async def score(
        self, prompt: Prompt, completions: Sequence[Completion], rewarded: bool = True
    ) -> Sequence[Scored | str]:
        """See `Scorer`; a completion that the teacher could not score has no reward either."""
        rewards, scores = await asyncio.gather(
            self._scorer.score(prompt, completions, rewarded), self._teacher.score(prompt, completions)
        )
        return [_both(reward, score) for reward, score in zip(rewards, scores, strict=True)]


def _both(reward: Scored | str, score: Completion | str) -> Scored | str:
    if isinstance(reward, str):
        return reward
    if isinstance(score, str):
        return f"teacher: {score}"
    return replace(reward, completion=replace(reward.completion, teacher=score))
