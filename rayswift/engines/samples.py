"""The plain values that prompts, engines, rewards and trainer exchange; token ids in and out."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from rayswift.data.rows import Message

Finish = Literal["stop", "length"]
"""Why a completion ends: an end token or stop string, or the length limit."""


@dataclass(frozen=True, order=True)
class PolicyVersion:
    """The weights after `step` rounds of training.

    attempt: number of the worker group that trained them, see `data.feed`; weights of two groups differ even if the
    step is the same.
    """

    attempt: int
    step: int


@dataclass(frozen=True)
class Prompt:
    """A prompt to complete.

    ordinal: its place in the global sequence of prompts, over all epochs; id: `source:line`; input_ids [T] int32;
    messages: the conversation before rendering, for rewards; columns: the row's other columns, for rewards; cut:
    whether input_ids are only the end of what was rendered; answer: the tokens of the row's own answer and of what is
    before it, each [T] int32, where it may be trained; teacher_ids [T] int32: what a teacher sees in place of
    input_ids, None: the same.
    """

    ordinal: int
    id: str
    epoch: int
    input_ids: NDArray[np.int32]
    messages: tuple[Message, ...]
    columns: Mapping[str, Any]
    cut: bool = False
    answer: tuple[NDArray[np.int32], NDArray[np.int32]] | None = None
    teacher_ids: NDArray[np.int32] | None = None

    @property
    def seen_by_teacher(self) -> NDArray[np.int32]:
        """The tokens that a teacher sees in place of the prompt."""
        return self.input_ids if self.teacher_ids is None else self.teacher_ids


@dataclass(frozen=True)
class TopTokens:
    """The k likeliest tokens at each of T places: ids [T, k] int32, logprobs [T, k] float32."""

    ids: NDArray[np.int32]
    logprobs: NDArray[np.float32]


@dataclass(frozen=True)
class RequestSampling:
    """Sampling of a request that differs from the run's; names as in section `rollout`."""

    temperature: float
    top_p: float
    top_k: int


@dataclass(frozen=True)
class EpisodeStart:
    """The start of an episode, see `rollout.episodes`. seed: of its environment, the same for the group of a prompt."""

    prompt: Prompt
    seed: int


@dataclass(frozen=True)
class SampleRequest:
    """One completion to sample, or to score.

    key: unique within the run (`ordinal:sample`, and the try); max_tokens: limit of the whole completion, `begun`
    included; seed: of its random numbers; begun [T] int32: its tokens that a lost engine had made; the answer has only
    the tokens after them; top: score instead of sampling: the answer is `begun` with its log-probabilities, and this
    number of likeliest tokens at each; None: sample; sampling: None: as the run samples; episode: of a completion in
    several turns, not sent to engines.
    """

    key: str
    prompt_ids: NDArray[np.int32]
    max_tokens: int
    seed: int
    begun: NDArray[np.int32] = field(default_factory=lambda: np.empty(0, np.int32))
    top: int | None = None
    sampling: RequestSampling | None = None
    episode: EpisodeStart | None = None


@dataclass(frozen=True)
class Span:
    """`version` sampled the tokens of a completion from token `begin` on."""

    begin: int
    version: PolicyVersion


@dataclass(frozen=True)
class Trajectory:
    """The values of a completion of several turns, beside its tokens.

    prompt_ids [P] int32: the tokens of its prompt; asked: the messages of the prompt if the environment changed them,
    else None; written [T] bool: the tokens that the model wrote, the others are answers of tools and environments;
    messages: its turns, for rewards and people; num_turns: of the model; num_calls, num_failed_calls: of tools; reward:
    the environment's, None if it gave none; end: why there is no further turn; infos: values of the environment for
    reward functions; checksum: CRC-32 of all tokens at the engine's last turn.
    """

    prompt_ids: NDArray[np.int32]
    asked: tuple[Message, ...] | None
    written: NDArray[np.bool_]
    messages: tuple[Message, ...]
    num_turns: int
    num_calls: int
    num_failed_calls: int
    reward: float | None
    end: str
    infos: Mapping[str, Any]
    checksum: int


@dataclass(frozen=True)
class Completion:
    """The completion of a request, or a part of it, or an episode of several turns.

    token_ids [T] int32, the end token included; logprobs [T] float32 under the policy at the sampling's temperature,
    over all tokens (top_p and the like do not change them), as the trainer computes them; spans: the first begins at
    0; finish: None for a part; top: of a request that scores; teacher: scores of these tokens by a teacher outside the
    workers; trajectory: None for a single turn, all of which the model wrote; log-probabilities of tokens that it did
    not write are NaN.
    """

    key: str
    token_ids: NDArray[np.int32]
    logprobs: NDArray[np.float32]
    spans: tuple[Span, ...]
    finish: Finish | None
    top: TopTokens | None = None
    teacher: "Completion | None" = None
    trajectory: Trajectory | None = None

    @property
    def num_written(self) -> int:
        """Return the number of tokens that the model wrote."""
        return len(self.token_ids) if self.trajectory is None else int(self.trajectory.written.sum())


@dataclass(frozen=True)
class Scored:
    """A completion with its rewards.

    rewards: of each function and model, NaN if it returned None (no opinion); reward: their weighted sum; text: the
    text that rewards got.
    """

    completion: Completion
    rewards: tuple[float, ...]
    reward: float
    text: str = ""


@dataclass(frozen=True)
class Group:
    """A prompt with its scored completions, without those that failed."""

    prompt: Prompt
    scored: tuple[Scored, ...]
