"""Scores completions by rewards and by a teacher at the same time."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

from rayswift.engines.samples import Completion, Prompt, Scored
from rayswift.rollout.groups import Scorer


class Teacher(Protocol):
    """Scores tokens: a pool of engines, or servers."""

    async def score(self, prompt: Prompt, completions: Sequence[Completion]) -> Sequence[Completion | str]:
        """Return each completion's log-probabilities by the teacher, after the teacher's prompt, or why not."""

    def describe(self) -> str:
        """Describe the state, for people."""

    async def close(self) -> None:
        """End its processes."""


class Writer(Protocol):
    """Writes answers."""

    async def write(self, prompt: Prompt) -> Completion | str:
        """Return an answer to the teacher's prompt, or why there is none."""


class TeacherScorer:
    """A scorer by rewards, while a teacher scores the same completions.

    Args:
        scorer: Scores by rewards.
        teacher: Scores tokens; None: the teacher is in the workers.
        writer: Writes the answers that rows do not have; these get no rewards.
    """

    def __init__(self, scorer: Scorer, teacher: Teacher | None, writer: Writer | None = None):
        self._scorer, self._teacher, self._writer = scorer, teacher, writer

    async def score(
        self, prompt: Prompt, completions: Sequence[Completion], rewarded: bool = True
    ) -> Sequence[Scored | str]:
        """See `Scorer`; a completion that the teacher could not score fails."""
        if self._writer is not None and not rewarded:
            written = await self._writer.write(prompt)
            if isinstance(written, str):
                return [f"teacher: {written}"]
            completions = [replace(written, spans=each.spans) for each in completions]
        if self._teacher is None:
            return await self._scorer.score(prompt, completions, rewarded)
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
