"""Requests that score in vLLM: log-probabilities of the last tokens of a prompt."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from rayswift.engines.samples import Completion, SampleRequest, Span, TopTokens


def scored(request: SampleRequest, spans: Sequence[Span], prompt_logprobs: Any) -> Completion:
    """Return the answer to a scoring request.

    Args:
        request: The request.
        spans: Of versions; the last one scored.
        prompt_logprobs: vLLM's flat log-probabilities of all tokens of the prompt but its first: at each position first
            the token of the prompt, then the likeliest ones.
    """
    length, width = len(request.begun), 1 + (request.top or 0)
    begins = np.array(prompt_logprobs.start_indices[-length:], np.int64) if length else np.empty(0, np.int64)
    places = begins[:, None] + np.arange(width)
    ids, logprobs = np.array(prompt_logprobs.token_ids, np.int32), np.array(prompt_logprobs.logprobs, np.float32)
    top = TopTokens(ids[places[:, 1:]], logprobs[places[:, 1:]]) if request.top else None
    spans = (Span(0, spans[-1].version),)
    return Completion(request.key, request.begun, logprobs[begins], spans, "stop", top)
