"""What travels between the prompts, the engines, the rewards and the trainer; plain values, token ids in and out."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from rayswift.data.rows import Message

Finish = Literal["stop", "length"]
"""Why a completion ends: an end token or a stop string, or its room was full."""


@dataclass(frozen=True, order=True)
class PolicyVersion:
    """The weights behind `step` rollout batches of training.

    attempt: number of the worker group that trained them, see `data.feed`; a later group's weights are other weights,
    also where the step is the same.
    """

    attempt: int
    step: int


@dataclass(frozen=True)
class Prompt:
    """A prompt to complete.

    ordinal: its place in the global sequence of prompts, over all epochs; id: `source:line`; input_ids [T] int32;
    messages: the conversation it was rendered from, for rewards; columns: the row's other columns, for rewards; cut:
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


@dataclass(frozen=True)
class TopTokens:
    """The k likeliest tokens at each of T places: ids [T, k] int32, logprobs [T, k] float32."""

    ids: NDArray[np.int32]
    logprobs: NDArray[np.float32]


@dataclass(frozen=True)
class EpisodeStart:
    """What an episode begins with, see `rollout.episodes`. seed: of its environment, the same for a prompt's group."""

    prompt: Prompt
    seed: int


@dataclass(frozen=True)
class SampleRequest:
    """One completion to sample, or to score.

    key: unique within the run (`ordinal:sample`, and the try); max_tokens: room of the whole completion, `begun`
    included; seed: of its random numbers; begun [T] int32: tokens of it that an engine which is gone had made already:
    what comes back are the tokens behind them; top: nothing is sampled, what comes back is `begun` with its
    log-probabilities, and so many of the likeliest tokens beside each; None: it is sampled; episode: for who plays it
    in several turns, engines are not told.
    """

    key: str
    prompt_ids: NDArray[np.int32]
    max_tokens: int
    seed: int
    begun: NDArray[np.int32] = field(default_factory=lambda: np.empty(0, np.int32))
    top: int | None = None
    episode: EpisodeStart | None = None


@dataclass(frozen=True)
class Span:
    """From token `begin` of a completion on, `version` chose the tokens."""

    begin: int
    version: PolicyVersion


@dataclass(frozen=True)
class Trajectory:
    """What a completion of several turns is beside its tokens.

    prompt_ids [P] int32: what its tokens follow; asked: the same as messages where the environment changed it, else
    None; written [T] bool: which of them the model wrote, the others are what
    tools and environments answered; messages: its turns, for rewards and people; num_turns: of the model; num_calls,
    num_failed_calls: of tools; reward: the environment's, None if it has no opinion; end: why there is no further turn;
    infos: what the environment tells reward functions; checksum: CRC-32 of all tokens as the engine had them last.
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
    """What an engine made of a request, or a part of it; or what came of several turns.

    token_ids [T] int32, the end token included; logprobs [T] float32 under the policy at the sampling's temperature,
    which the trainer computes too: among all tokens, whatever top_p and its kind leave out; spans: the first begins at
    0; finish: None for the part that was there when an engine was asked for it; top: of a request that scores; teacher:
    the same tokens as a teacher scored them that is asked beside the trainer; trajectory: None for a single turn, of
    which the model wrote all; log-probabilities of tokens that it did not write are NaN.
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
        """Tokens that the model wrote."""
        return len(self.token_ids) if self.trajectory is None else int(self.trajectory.written.sum())


@dataclass(frozen=True)
class Scored:
    """A completion with its rewards.

    rewards: of each function and model, NaN where one had no opinion (returned None); reward: their weighted sum; text:
    as rewards saw it.
    """

    completion: Completion
    rewards: tuple[float, ...]
    reward: float
    text: str = ""


@dataclass(frozen=True)
class Group:
    """A prompt with its scored completions, those that failed left out."""

    prompt: Prompt
    scored: tuple[Scored, ...]
