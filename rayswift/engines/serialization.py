"""Serialization of completions and requests as columns.

Ray gives every array in a message a buffer of its own, which costs more than the data of a short completion.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rayswift.engines.samples import Completion, RequestSampling, SampleRequest, Span, TopTokens

Columns = tuple[Any, ...]


def columns_of(completions: Sequence[Completion]) -> Columns:
    """Convert completions to columns; `completions_of` reverses it."""
    kinds: dict[tuple[Span, ...], int] = {}
    return (
        [each.key for each in completions],
        _joined([each.token_ids for each in completions], np.int32),
        _joined([each.logprobs for each in completions], np.float32),
        [len(each.token_ids) for each in completions],
        [kinds.setdefault(each.spans, len(kinds)) for each in completions],
        tuple(kinds),
        [each.finish for each in completions],
        [0 if each.top is None else each.top.ids.shape[1] for each in completions],
        _joined([each.top.ids.ravel() for each in completions if each.top], np.int32),
        _joined([each.top.logprobs.ravel() for each in completions if each.top], np.float32),
    )


def completions_of(columns: Columns) -> tuple[Completion, ...]:
    """Convert columns to completions; their arrays are views of one array."""
    keys, token_ids, logprobs, lengths, spans, kinds, finishes, widths, top_ids, top_logprobs = columns
    parts = _parts(token_ids, lengths), _parts(logprobs, lengths)
    sizes = [width * length for width, length in zip(widths, lengths, strict=True)]
    tops = [
        TopTokens(ids.reshape(-1, width), chosen.reshape(-1, width)) if width else None
        for ids, chosen, width in zip(_parts(top_ids, sizes), _parts(top_logprobs, sizes), widths, strict=True)
    ]
    return tuple(
        Completion(key, tokens, chosen, kinds[kind], finish, top=top)
        for key, tokens, chosen, kind, finish, top in zip(keys, *parts, spans, finishes, tops, strict=True)
    )


class Requests(tuple[SampleRequest, ...]):
    """Requests that are pickled as columns; a prompt of several requests is sent once."""

    def __reduce__(self) -> tuple[Any, ...]:
        prompts: dict[int, NDArray[np.int32]] = {}
        for each in self:
            prompts.setdefault(id(each.prompt_ids), each.prompt_ids)
        places = {key: place for place, key in enumerate(prompts)}
        columns = (
            [each.key for each in self],
            [places[id(each.prompt_ids)] for each in self],
            _joined(list(prompts.values()), np.int32),
            [len(prompt) for prompt in prompts.values()],
            [each.max_tokens for each in self],
            [each.seed for each in self],
            _joined([each.begun for each in self], np.int32),
            [len(each.begun) for each in self],
            [each.top for each in self],
            [each.sampling for each in self],
        )
        return _requests_of, columns


def _requests_of(
    keys: Sequence[str],
    places: Sequence[int],
    prompt_ids: NDArray[np.int32],
    prompt_lengths: Sequence[int],
    max_tokens: Sequence[int],
    seeds: Sequence[int],
    begun_ids: NDArray[np.int32],
    begun_lengths: Sequence[int],
    tops: Sequence[int | None],
    samplings: Sequence[RequestSampling | None],
) -> Requests:
    prompts, begun = _parts(prompt_ids, prompt_lengths), _parts(begun_ids, begun_lengths)
    return Requests(
        SampleRequest(key, prompts[place], room, seed, done, top, sampling)
        for key, place, room, seed, done, top, sampling in zip(
            keys, places, max_tokens, seeds, begun, tops, samplings, strict=True
        )
    )


def _joined(arrays: Sequence[NDArray[Any]], dtype: Any) -> NDArray[Any]:
    return np.concatenate([np.empty(0, dtype), *arrays], dtype=dtype)


def _parts(joined: NDArray[Any], lengths: Sequence[int]) -> list[NDArray[Any]]:
    ends = np.cumsum(lengths).tolist()
    return [joined[end - length : end] for end, length in zip(ends, lengths, strict=True)]
