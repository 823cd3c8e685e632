"""The group of a prompt: its requests to engines, and its completions once they are sampled and scored."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from hashlib import blake2b
from typing import Protocol

import numpy as np

from rayswift.data.sequence.windows import TRAINED
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
from rayswift.log import logger
from rayswift.rollout import ledger
from rayswift.rollout.admission import RolloutPlan
from rayswift.rollout.advantages import is_even
from rayswift.rollout.episodes.trajectories import with_common_prompt


class Sampler(Protocol):
    """Samples completions, see `pool.Pool`."""

    def sample(self, requests: Sequence[SampleRequest], min_step: int) -> list[asyncio.Future[Completion]]:
        """Return a future of the completion of each request, with weights of at least `min_step` rounds."""


class Scorer(Protocol):
    """Scores completions, see `rewards.runner`."""

    async def score(
        self, prompt: Prompt, completions: Sequence[Completion], rewarded: bool = True
    ) -> Sequence[Scored | str]:
        """Return each completion with its rewards, or why it has none; without rewards if `rewarded` is false."""


def sample_seed(run_seed: int, use: str, ordinal: int, sample: int) -> int:
    """Return the seed of a completion's random numbers, the same each time it is sampled."""
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
    """Return one request for each completion of a prompt.

    Args:
        prompt: The prompt.
        use: train or eval, and the name of the evaluation.
        num_samples: Number of completions.
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
"""(stage, +1 or -1): a prompt enters or leaves the stage."""


async def scored_group(
    scorer: Scorer,
    prompt: Prompt,
    futures: Sequence[asyncio.Future[Completion]],
    stage: Stage,
    rewarded: bool = True,
) -> tuple[Group, list[str]]:
    """Return the completions of a prompt that were sampled and scored, and the reasons of the others."""
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


def outcome_of(group: Group, reasons: Sequence[str], plan: RolloutPlan) -> str:
    """Return what becomes of a group; `reasons`: of its completions that failed."""
    if len(group.scored) < plan.min_group:
        logger.warning("prompt %s failed: %s", group.prompt.id, "; ".join(sorted(set(reasons)))[:500])
        return f"{ledger.FAILED}{ledger.kind_of(reasons)}"
    rewards = np.array([each.rewards for each in group.scored], np.float64)
    if plan.drops_even and is_even(rewards, np.zeros(len(rewards), np.int64), plan.drops_even).all():
        return ledger.ALL_EQUAL
    return ledger.CUT if group.prompt.cut else TRAINED


def is_of(prompt: Prompt, source: str) -> bool:
    """Whether a prompt's row comes from an entry of `data.dataset` or `data.eval`: a file, folder, glob or data set."""
    written, place = source.partition("#")[0].rstrip("/"), prompt.id.rpartition(":")[0]
    return f"/{written}/" in f"/{place}/" or fnmatchcase(place, written)


def is_sampled(run_seed: int, number: int, share: float) -> bool:
    """Whether a round's completions are sampled; otherwise the answers of its rows are trained.

    Each round is sampled with probability `share`, as each batch in TRL's GKD; always the same for a round.
    """
    return sample_seed(run_seed, "lmbda", number, 0) / (1 << 62) < share


def answer_of(prompt: Prompt, version: PolicyVersion) -> tuple[Prompt, asyncio.Future[Completion]]:
    """Return a prompt with its row's answer as a completion; without an answer it has no tokens, and the teacher writes
    it later, see `teachers.scoring`."""
    future: asyncio.Future[Completion] = asyncio.get_running_loop().create_future()
    before, answer = prompt.answer or (prompt.input_ids, np.empty(0, np.int32))
    logprobs = np.full(len(answer), np.nan, np.float32)  # it was not sampled
    future.set_result(Completion(f"answer:{prompt.ordinal}", answer, logprobs, (Span(0, version),), "stop"))
    return replace(prompt, input_ids=before), future


class Rewards(Protocol):
    """The reward functions and models, see `rewards.runner`."""

    @property
    def names(self) -> Sequence[str]:
        """Return the names of the rewards, in the order of `Scored.rewards`."""

    async def score(
        self, prompt: Prompt, completions: Sequence[Completion], rewarded: bool = True
    ) -> Sequence[Scored | str]:
        """See `Scorer`."""

    async def close(self) -> None:
        """End their processes."""
