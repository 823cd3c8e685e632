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


class Writer(Protocol):
    """Who writes answers."""

    async def write(self, prompt: Prompt) -> Completion | str:
        """An answer to what the teacher sees of a prompt; or why there is none."""


class Taught:
    """A scorer whose completions a teacher has scored too, meanwhile.

    Args:
        scorer: Of rewards.
        teacher: See there; None: it is in the workers.
        writer: Writes what is not rewarded: answers that rows do not have.
    """

    def __init__(self, scorer: Scorer, teacher: Teacher | None, writer: Writer | None = None):
        self._scorer, self._teacher, self._writer = scorer, teacher, writer

    async def score(
        self, prompt: Prompt, completions: Sequence[Completion], rewarded: bool = True
    ) -> Sequence[Scored | str]:
        """See `Scorer`; a completion that the teacher could not score has no reward either."""
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
