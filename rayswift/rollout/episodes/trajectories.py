"""The tokens of an episode, and the episodes of a prompt as a group; pure."""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from rayswift.engines.samples import Completion, Prompt, Span


def checksum(*parts: NDArray[np.int32]) -> int:
    """Return the CRC-32 of tokens, concatenated."""
    found = 0
    for part in parts:
        found = zlib.crc32(np.ascontiguousarray(part, np.int32).tobytes(), found)
    return found


@dataclass
class Tape:
    """The tokens of an episode so far; tokens are appended and never made again.

    prompt_ids [P] int32: tokens of the prompt; sampled: CRC-32 of all tokens that the engine had at its last turn.
    """

    prompt_ids: NDArray[np.int32]
    sampled: int = 0
    _ids: list[NDArray[np.int32]] = field(default_factory=list)
    _logprobs: list[NDArray[np.float32]] = field(default_factory=list)
    _written: list[NDArray[np.bool_]] = field(default_factory=list)
    _spans: list[Span] = field(default_factory=list)
    _length: int = 0

    def __len__(self) -> int:
        """Return the number of tokens after the prompt."""
        return self._length

    @property
    def ids(self) -> NDArray[np.int32]:
        """Return all tokens, those of the prompt included."""
        return np.concatenate([self.prompt_ids, *self._ids]) if self._ids else self.prompt_ids

    def write(self, asked: NDArray[np.int32], made: Completion) -> None:
        """Append what the model wrote after `asked`, which are `ids`."""
        self.sampled = checksum(asked, made.token_ids)
        spans = (replace(span, begin=span.begin + self._length) for span in made.spans)
        self._spans += [span for span in spans if not self._spans or span.version != self._spans[-1].version]
        self._add(made.token_ids, made.logprobs, True)

    def cut(self, number: int) -> None:
        """Keep only the first tokens of what the model wrote last."""
        self._length -= len(self._ids[-1]) - number
        self._ids[-1] = self._ids[-1][:number]
        self._logprobs[-1] = self._logprobs[-1][:number]
        self._written[-1] = self._written[-1][:number]
        self._spans = [span for span in self._spans if span.begin < self._length] or self._spans[:1]

    def hear(self, ids: NDArray[np.int32]) -> None:
        """Append the tokens of an answer."""
        self._add(ids, np.full(len(ids), np.nan, np.float32), False)

    def _add(self, ids: NDArray[np.int32], logprobs: NDArray[np.float32], written: bool) -> None:
        self._ids.append(ids)
        self._logprobs.append(logprobs)
        self._written.append(np.full(len(ids), written))
        self._length += len(ids)

    @property
    def token_ids(self) -> NDArray[np.int32]:
        """Return the tokens after the prompt, [T]."""
        return np.concatenate(self._ids)

    @property
    def logprobs(self) -> NDArray[np.float32]:
        """Return the log-probability of each token, [T]; NaN if the model did not write it."""
        return np.concatenate(self._logprobs)

    @property
    def written(self) -> NDArray[np.bool_]:
        """Return for each token whether the model wrote it, [T]."""
        return np.concatenate(self._written)

    @property
    def spans(self) -> tuple[Span, ...]:
        """Return the spans of versions; the first begins at 0."""
        first, *others = self._spans
        return replace(first, begin=0), *others


def with_common_prompt(prompt: Prompt, completions: Sequence[Completion]) -> tuple[Prompt, list[Completion]]:
    """Return a prompt and its completions if environments may have changed the prompt.

    If all prompts are equal, that is the prompt. Otherwise the prompt is their common beginning, and the rest of each
    becomes the beginning of its completion, as tokens that the model did not write.
    """
    asked = [each.trajectory.prompt_ids for each in completions if each.trajectory is not None]
    if all(ids is prompt.input_ids for ids in asked):
        return prompt, list(completions)
    shortest = min(len(ids) for ids in asked)
    stacked = np.stack([ids[:shortest] for ids in asked])
    alike = (stacked == stacked[0]).all(axis=0)
    # A prompt has a token at least, behind which the first of a completion is predicted.
    length = shortest if alike.all() else max(1, int(np.argmin(alike)))
    common = replace(prompt, input_ids=stacked[0, :length])
    return common, [_behind(each, length) for each in completions]


def _behind(completion: Completion, length: int) -> Completion:
    """Return the same completion for a prompt of this length."""
    played = completion.trajectory
    assert played is not None
    own = played.prompt_ids[length:]
    if not len(own):
        return completion
    spans = [replace(span, begin=span.begin + len(own)) for span in completion.spans[1:]]
    return replace(
        completion,
        token_ids=np.concatenate([own, completion.token_ids]),
        logprobs=np.concatenate([np.full(len(own), np.nan, np.float32), completion.logprobs]),
        spans=(completion.spans[0], *spans),
        trajectory=replace(played, written=np.concatenate([np.zeros(len(own), np.bool_), played.written])),
    )
