"""Trained characters of a text -> the mask and the weights of its tokens; pure."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding

from rayswift.data.encode.turns import Span
from rayswift.data.tokenizer.folder import Frame

Part = tuple[slice, float]
"""Neighbouring tokens and their loss weight; 0: not trained."""
Masked = tuple[NDArray[np.int32], NDArray[np.bool_], NDArray[np.float32] | None]
"""input_ids, trained and weights, as in `EncodedRow`."""
NO_FRAME = Frame()


def clipped(span: Span, begin: int, end: int) -> Span:
    """The part of a span inside characters [begin, end), relative to `begin`."""
    return Span(max(span.begin, begin) - begin, min(span.end, end) - begin, span.weight)


def parts_of(encoding: Encoding, spans: Sequence[Span]) -> list[Part]:
    """The tokens of each span, with its weight."""
    found = []
    for span in spans:
        first = _token_at(encoding, span.begin, span.end, len(encoding))
        found.append((slice(first, _token_after(encoding, span.begin, span.end)), span.weight))
    return found


def masked(tokens: NDArray[np.int32], parts: Sequence[Part], frame: Frame = NO_FRAME) -> Masked:
    """The mask and weights of tokens inside the tokenizer's frame; where parts overlap, the later one counts.

    Tokens of the frame after the text are trained like the last token. Weights None: all are 1.
    """
    ids, before = ids_within(frame, [tokens]), len(frame.before)
    trained = np.zeros(len(ids), dtype=np.bool_)
    weights = None if all(weight == 1 for _, weight in parts) else np.ones(len(ids), dtype=np.float32)
    for part, weight in parts:
        own = slice(part.start + before, len(ids) if part.stop == len(tokens) else part.stop + before)
        trained[own] = weight > 0
        if weights is not None:
            weights[own] = weight
    trained[:1] = False
    if weights is not None and (weights[trained] == 1).all():
        weights = None
    return ids, trained, weights


def ids_within(frame: Frame, pieces: Sequence[Sequence[int] | NDArray[np.int32]]) -> NDArray[np.int32]:
    """The tokens of a text, given in pieces, inside the tokenizer's frame, int32 [T]."""
    arrays = [np.asarray(part, np.int32) for part in (frame.before, *pieces, frame.behind) if len(part)]
    if len(arrays) == 1:
        return arrays[0]
    return np.concatenate(arrays) if arrays else np.empty(0, np.int32)


def _token_at(encoding: Encoding, start: int, end: int, none: int) -> int:
    """The first token that begins inside [start, end)."""
    for position in range(start, end):
        token = encoding.char_to_token(position)
        if token is not None:
            begins = encoding.token_to_chars(token)
            assert begins is not None
            # A token across the border belongs to the prompt.
            return int(token) if begins[0] >= start else int(token) + 1
    return none


def _token_after(encoding: Encoding, start: int, end: int) -> int:
    """One past the last token of [start, end)."""
    for position in range(end - 1, start - 1, -1):
        token = encoding.char_to_token(position)
        if token is not None:
            # One character may be several tokens, all with its span; `char_to_token` names the first.
            span = encoding.token_to_chars(token)
            after = int(token) + 1
            while after < len(encoding) and encoding.token_to_chars(after) == span:
                after += 1
            return after
    return 0
