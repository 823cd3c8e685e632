"""The tokens of an episode as it is played, and a prompt's episodes as a group; pure."""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from rayswift.engines.samples import Completion, Prompt, Span


def checksum(*parts: NDArray[np.int32]) -> int:
    """CRC-32 of tokens, end to end."""
    found = 0
    for part in parts:
        found = zlib.crc32(np.ascontiguousarray(part, np.int32).tobytes(), found)
    return found


@dataclass
class Tape:
    """What is there of an episode: nothing on it is ever made anew.

    prompt_ids [P] int32: what all follows; sampled: CRC-32 of all that the engine had, when it last wrote.
    """

    prompt_ids: NDArray[np.int32]
    sampled: int = 0
    _ids: list[NDArray[np.int32]] = field(default_factory=list)
    _logprobs: list[NDArray[np.float32]] = field(default_factory=list)
    _written: list[NDArray[np.bool_]] = field(default_factory=list)
    _spans: list[Span] = field(default_factory=list)
    _length: int = 0

    def __len__(self) -> int:
        """Tokens behind the prompt."""
        return self._length

    @property
    def ids(self) -> NDArray[np.int32]:
        """All tokens, those of the prompt included."""
        return np.concatenate([self.prompt_ids, *self._ids]) if self._ids else self.prompt_ids

    def write(self, asked: NDArray[np.int32], made: Completion) -> None:
        """What the model wrote behind `asked`, which are `ids`."""
        self.sampled = checksum(asked, made.token_ids)
        spans = (replace(span, begin=span.begin + self._length) for span in made.spans)
        self._spans += [span for span in spans if not self._spans or span.version != self._spans[-1].version]
        self._add(made.token_ids, made.logprobs, True)

    def cut(self, number: int) -> None:
        """Of what the model wrote last, leave the first tokens alone."""
        self._length -= len(self._ids[-1]) - number
        self._ids[-1] = self._ids[-1][:number]
        self._logprobs[-1] = self._logprobs[-1][:number]
        self._written[-1] = self._written[-1][:number]
        self._spans = [span for span in self._spans if span.begin < self._length] or self._spans[:1]

    def hear(self, ids: NDArray[np.int32]) -> None:
        """What it was answered."""
        self._add(ids, np.full(len(ids), np.nan, np.float32), False)

    def _add(self, ids: NDArray[np.int32], logprobs: NDArray[np.float32], written: bool) -> None:
        self._ids.append(ids)
        self._logprobs.append(logprobs)
        self._written.append(np.full(len(ids), written))
        self._length += len(ids)

    @property
    def token_ids(self) -> NDArray[np.int32]:
        """Tokens behind the prompt, [T]."""
        return np.concatenate(self._ids)

    @property
    def logprobs(self) -> NDArray[np.float32]:
        """Of each of them, [T]; NaN where the model did not write it."""
        return np.concatenate(self._logprobs)

    @property
    def written(self) -> NDArray[np.bool_]:
        """Whether the model wrote it, [T]."""
        return np.concatenate(self._written)

    @property
    def spans(self) -> tuple[Span, ...]:
        """Which weights chose them; the first begins at 0."""
        first, *others = self._spans
        return replace(first, begin=0), *others


def with_common_prompt(prompt: Prompt, completions: Sequence[Completion]) -> tuple[Prompt, list[Completion]]:
    """A prompt and its completions where environments had a say in what was asked.

    What all of them were asked is the prompt. Where environments asked each something else, the prompt is what their
    texts begin with alike, and the rest begins the completion, as tokens that the model did not write.
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
    """The same completion, of a prompt of that length."""
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
