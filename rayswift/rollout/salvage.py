"""A completion out of its parts: those of engines that are gone, and what the last one made; pure."""

from collections.abc import Sequence

import numpy as np

from rayswift.rollout.samples import Completion, Finish, Span


def joined(key: str, parts: Sequence[Completion], finish: Finish | None) -> Completion:
    """Parts of one completion in their order, each with its spans counted from its own first token, as a whole."""
    filled = [part for part in parts if len(part.token_ids)]
    if len(filled) == 1:
        return Completion(key, filled[0].token_ids, filled[0].logprobs, filled[0].spans, finish)
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


def num_tokens(parts: Sequence[Completion]) -> int:
    """Tokens of parts together."""
    return sum(len(part.token_ids) for part in parts)
