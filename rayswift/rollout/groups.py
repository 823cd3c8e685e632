"""A prompt's group: what is asked of engines for it, and its completions once they are sampled and scored."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from hashlib import blake2b
from typing import Protocol

import numpy as np

from rayswift.engines.pool.pool import SampleFailed
from rayswift.engines.samples import (
    Completion,
    EpisodeStart,
    Group,
    PolicyVersion,
    Prompt,
    RequestSampling,
    SampleRequest,
    Scored,
    Span,
)
from rayswift.rollout.episodes.trajectories import with_common_prompt


class Sampler(Protocol):
    """Who samples, see `pool.Pool`."""

    def sample(self, requests: Sequence[SampleRequest], min_step: int) -> list[asyncio.Future[Completion]]:
        """A completion for each request, from weights behind at least `min_step` rounds."""


class Scorer(Protocol):
    """Who scores, see `rewards.runner`."""

    async def score(
        self, prompt: Prompt, completions: Sequence[Completion], rewarded: bool = True
    ) -> Sequence[Scored | str]:
        """Each completion with its rewards, or why it has none; without any rewards if it is not to be rewarded."""


def sample_seed(run_seed: int, use: str, ordinal: int, sample: int) -> int:
    """The seed of a completion's random numbers, the same however often it is sampled."""
    digest = blake2b(f"{run_seed}:{use}:{ordinal}:{sample}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 2  # vLLM takes signed 64-bit numbers


def requests_for(
    prompt: Prompt,
    use: str,
    num_samples: int,
    max_tokens: int,
    window: int,
    run_seed: int,
    sampling: RequestSampling | None = None,
) -> list[SampleRequest]:
    """One request for each completion of a prompt.

    Args:
        prompt: What is completed.
        use: train or eval, and of which set.
        num_samples: Completions of it.
        max_tokens: Tokens of the longest completion.
        window: Tokens of the longest prompt and completion together.
        run_seed: Of the run.
        sampling: How tokens are chosen; None: as in training.
    """
    room = min(max_tokens, window - len(prompt.input_ids))
    episode = EpisodeStart(prompt, sample_seed(run_seed, f"{use}:environment", prompt.ordinal, 0))
    return [
        SampleRequest(
            f"{use}:{prompt.ordinal}:{sample}",
            prompt.input_ids,
            room,
            sample_seed(run_seed, use, prompt.ordinal, sample),
            sampling=sampling,
            episode=episode,
        )
        for sample in range(num_samples)
    ]


Stage = Callable[[str, int], None]
"""(who has a prompt, +1 or -1): it comes or goes."""


async def scored_group(
    scorer: Scorer,
    prompt: Prompt,
    futures: Sequence[asyncio.Future[Completion]],
    stage: Stage,
    rewarded: bool = True,
) -> tuple[Group, list[str]]:
    """The completions of a prompt that were sampled and scored, and why the others were not."""
    stage("engines", 1)
    try:
        sampled = await asyncio.gather(*futures, return_exceptions=True)
    finally:
        stage("engines", -1)
    for each in sampled:
        if isinstance(each, BaseException) and not isinstance(each, SampleFailed):
            raise each
    reasons = [f"{each.where}: {each}" for each in sampled if isinstance(each, SampleFailed)]
    prompt, completions = with_common_prompt(prompt, [each for each in sampled if isinstance(each, Completion)])
    stage("rewards", 1)
    try:
        answers = await scorer.score(prompt, completions, rewarded) if completions else []
    finally:
        stage("rewards", -1)
    reasons += [each for each in answers if isinstance(each, str)]
    return Group(prompt, tuple(each for each in answers if isinstance(each, Scored))), reasons


def is_of(prompt: Prompt, source: str) -> bool:
    """Whether a prompt's row is of an entry of `data.dataset` or `data.eval`: a file, folder, glob or data set."""
    written, place = source.partition("#")[0].rstrip("/"), prompt.id.rpartition(":")[0]
    return f"/{written}/" in f"/{place}/" or fnmatchcase(place, written)


def is_sampled(run_seed: int, number: int, share: float) -> bool:
    """Whether a round's completions are sampled; else its rows' answers are trained.

    Drawn with probability `share` for each round, as TRL's GKD draws for each batch; the same whenever it is asked.
    """
    return sample_seed(run_seed, "lmbda", number, 0) / (1 << 62) < share


def answer_of(prompt: Prompt, version: PolicyVersion) -> tuple[Prompt, asyncio.Future[Completion]]:
    """A prompt with its row's answer as what an engine would have made of it; without one, its teacher writes it, see
    `teachers.scoring`: there is no token yet."""
    future: asyncio.Future[Completion] = asyncio.get_running_loop().create_future()
    before, answer = prompt.answer or (prompt.input_ids, np.empty(0, np.int32))
    logprobs = np.full(len(answer), np.nan, np.float32)  # nobody sampled it
    future.set_result(Completion(f"answer:{prompt.ordinal}", answer, logprobs, (Span(0, version),), "stop"))
    return replace(prompt, input_ids=before), future


class Rewards(Protocol):
    """The reward functions and models, see `rewards.runner`."""

    @property
    def names(self) -> Sequence[str]:
        """Of the rewards, in the order of `Scored.rewards`."""

    async def score(
        self, prompt: Prompt, completions: Sequence[Completion], rewarded: bool = True
    ) -> Sequence[Scored | str]:
        """See `Scorer`."""

    async def close(self) -> None:
        """End what runs them."""
