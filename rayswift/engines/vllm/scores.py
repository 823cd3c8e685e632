"""Requests that score in vLLM: log-probabilities of the tokens of a prompt's end, as they stand in the prompt."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from rayswift.engines.samples import Completion, SampleRequest, Span, TopTokens


def scored(request: SampleRequest, spans: Sequence[Span], prompt_logprobs: Any) -> Completion:
    """What a scoring request is answered with.

    Args:
        request: The request.
        spans: Of the weights; the last scored.
        prompt_logprobs: vLLM's flat log-probabilities of all tokens of the prompt but its first: of each place first
            the token that stands there, then the likeliest ones.
    """
    length, width = len(request.begun), 1 + (request.top or 0)
    begins = np.array(prompt_logprobs.start_indices[-length:], np.int64) if length else np.empty(0, np.int64)
    places = begins[:, None] + np.arange(width)
    ids, logprobs = np.array(prompt_logprobs.token_ids, np.int32), np.array(prompt_logprobs.logprobs, np.float32)
    top = TopTokens(ids[places[:, 1:]], logprobs[places[:, 1:]]) if request.top else None
    spans = (Span(0, spans[-1].version),)
    return Completion(request.key, request.begun, logprobs[begins], spans, "stop", top)
