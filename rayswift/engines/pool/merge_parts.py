"""Merges the parts of a completion that several engines made, and cuts parts out of a completion; pure."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from rayswift.engines.samples import Completion, Finish, SampleRequest, Span


def joined(key: str, parts: Sequence[Completion], finish: Finish | None) -> Completion:
    """Join the parts of a completion, in their order; the spans of each are counted from its own first token."""
    filled = [part for part in parts if len(part.token_ids)]
    if len(filled) == 1:
        return replace(filled[0], key=key, finish=finish)
    spans: list[Span] = []
    begin = 0
    for part in filled:
        for span in part.spans:
            if not spans or spans[-1].version != span.version:
                spans.append(Span(begin + span.begin, span.version))
        begin += len(part.token_ids)
    empty_ids, empty_logprobs = np.empty(0, np.int32), np.empty(0, np.float32)
    token_ids = np.concatenate([part.token_ids for part in filled]) if filled else empty_ids
    logprobs = np.concatenate([part.logprobs for part in filled]) if filled else empty_logprobs
    return Completion(key, token_ids, logprobs, tuple(spans), finish)


def alone(part: Completion) -> Completion:
    """Copy a part, so that it does not keep the whole message in memory."""
    return replace(part, token_ids=part.token_ids.copy(), logprobs=part.logprobs.copy())


def num_tokens(parts: Sequence[Completion]) -> int:
    """Return the number of tokens of all parts."""
    return sum(len(part.token_ids) for part in parts)


def part(
    key: str,
    spans: Sequence[Span],
    begin: int,
    tokens: Sequence[int],
    logprobs: Sequence[float],
    finish: Finish | None,
) -> Completion:
    """Return the tokens of a completion from `begin` on, with spans counted from there."""
    moved = [Span(max(0, span.begin - begin), span.version) for span in spans if span.begin < len(tokens)]
    behind = [i for i, span in enumerate(moved) if span.begin == 0]
    return Completion(
        key=key,
        token_ids=np.array(tokens[begin:], np.int32),
        logprobs=np.array(logprobs[begin : len(tokens)], np.float32),
        spans=tuple(moved[behind[-1] :] if behind else moved),
        finish=finish,
    )


def continued_seed(request: SampleRequest) -> int:
    """Return the seed of a request: a continued completion must not draw the random numbers of its beginning again."""
    if not len(request.begun):
        return request.seed
    return int(np.random.SeedSequence([request.seed, len(request.begun)]).generate_state(1)[0])
