"""Rows of tokens: `input_ids`, and which of them are trained; pure.

    {"input_ids": [1, 15, 7, 2], "labels": [-100, -100, 7, 2]}

The columns are those of `transformers` and TRL. `labels` holds the token itself or -100. TRL's `completion_mask` and
`assistant_masks` may replace it; if both are there, both count. Without any of them every token is trained. Tokens
whose `attention_mask` is 0 are padding and left out. The first token is never trained, because nothing predicts it.
axolotl's `input_output` (segments of text, each trained or not) becomes such a row too.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from rayswift.data.encode.turns import Document, Tokens
from rayswift.data.rows import BadRow, Row

_TOKENS = "input_ids"
_IGNORED = -100
_MASKS = ("completion_mask", "assistant_masks")


def segmented(segments: Sequence[tuple[str, bool]], tokenizer: Tokenizer) -> Document:
    """Segments, each trained or not, end to end: each is tokenised alone, as in axolotl, without a frame."""
    pieces = tokenizer.encode_batch_fast([text for text, _ in segments], add_special_tokens=False)
    ids = np.array([token for piece in pieces for token in piece.ids], np.int32)
    marks = [label for piece, (_, label) in zip(pieces, segments, strict=True) for _ in piece.ids]
    trained = np.array(marks, np.bool_)
    trained[:1] = False
    if not trained.any():
        raise BadRow("no trainable token", "the row has no segment to train")
    return Document("", (), tokens=Tokens(ids, trained))


def token_columns(columns: Mapping[str, str]) -> frozenset[str]:
    """The column names, ours and the user's, that mark a row of tokens."""
    return frozenset((_TOKENS, *(name for name, ours in columns.items() if ours == _TOKENS)))


def pretokenised(row: Row, num_tokens: int) -> Document:
    """The document of a row of tokens, under our names; `num_tokens`: size of the tokenizer's vocabulary."""
    ids = _integers(row, _TOKENS)
    outside = ids[(ids < 0) | (ids >= num_tokens)]
    if len(outside):
        raise BadRow("unknown token", f"input_ids holds {outside[0]}; the tokenizer has {num_tokens} tokens")
    trained = np.ones(len(ids), np.bool_)
    if "labels" in row:
        labels = _beside(row, "labels", len(ids))
        trained = labels != _IGNORED
        other = np.flatnonzero(trained & (labels != ids))
        if len(other):
            at = int(other[0])
            raise BadRow(
                "labels of other tokens",
                f"labels[{at}] is {labels[at]}, input_ids[{at}] is {ids[at]}: a label is the token of its own place, "
                f"or {_IGNORED}; the model shifts them itself",
            )
    for name in _MASKS:
        if name in row:
            trained &= _beside(row, name, len(ids)) != 0
    if "attention_mask" in row:
        kept = _beside(row, "attention_mask", len(ids)) != 0
        ids, trained = ids[kept], trained[kept]
    trained[:1] = False
    if not trained.any():
        raise BadRow("no trainable token", "no token of input_ids is trained")
    return Document("", (), tokens=Tokens(ids, trained))


def _beside(row: Row, name: str, length: int) -> NDArray[np.int32]:
    values = _integers(row, name)
    if len(values) != length:
        raise BadRow("bad tokens", f"{name} has {len(values)} values, input_ids has {length}")
    return values


def _integers(row: Row, name: str) -> NDArray[np.int32]:
    value: Any = row[name]
    array = np.asarray(value if value is not None else [])
    if array.ndim != 1 or (len(array) and array.dtype.kind not in "iub"):
        raise BadRow("bad tokens", f"{name} is no list of whole numbers")
    if len(array) and (array.min() < -(2**31) or array.max() >= 2**31):
        raise BadRow("bad tokens", f"{name} holds a number that no token has")
    return array.astype(np.int32)
