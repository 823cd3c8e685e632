"""The position of each token in its text, from the bytes of each token id; pure.

A byte-level tokenizer maps each id to fixed bytes. If the bytes of a text's ids, end to end, are the text, each token
begins where the previous one ends. This is exact, and much cheaper than the offsets of a tokenizer.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer


class TokenBytes:
    """The bytes of each token id: `pieces[id]`."""

    def __init__(self, pieces: Sequence[bytes]):
        self._pieces = pieces
        self._lengths = np.array([len(piece) for piece in pieces], dtype=np.int64)

    @classmethod
    def of(cls, tokenizer: Tokenizer, described: Any) -> "TokenBytes | None":
        """The bytes of a byte-level tokenizer; None for another kind. `described` is its parsed tokenizer.json."""
        decoder = described.get("decoder") or {"decoders": []}
        if not any(part.get("type") == "ByteLevel" for part in decoder.get("decoders", [decoder])):
            return None
        added = {number: token.content for number, token in tokenizer.get_added_tokens_decoder().items()}
        vocabulary = tokenizer.get_vocab(with_added_tokens=True)
        pieces = [b""] * (max(vocabulary.values(), default=-1) + 1)
        for token, number in vocabulary.items():
            try:
                pieces[number] = added[number].encode() if number in added else bytes(_BYTE_OF[c] for c in token)
            except KeyError:
                continue  # the token has no bytes, so a text with it takes the tokenizer's offsets
        return cls(pieces)

    def begins(self, ids: NDArray[np.int32], listed: Sequence[int], text: bytes) -> NDArray[np.int64] | None:
        """The byte at which each token begins, int64 [T]; None if their bytes are not the text.

        `listed` holds the same ids as a list, which is faster for look-ups.
        """
        if b"".join(map(self._pieces.__getitem__, listed)) != text:
            return None
        lengths = self._lengths[ids]
        begins: NDArray[np.int64] = np.cumsum(lengths) - lengths
        return begins


def byte_positions(text: str, positions: Sequence[int]) -> list[int]:
    """The number of bytes before each character position; positions ascend, and may lie outside of the text."""
    if text.isascii():
        return list(positions)
    found, done, num_bytes = [], 0, 0
    for position in positions:
        num_bytes += len(text[done : max(done, position)].encode())
        done = max(done, position)
        found.append(num_bytes)
    return found


def _byte_of() -> dict[str, int]:
    """GPT-2's table: printable bytes stand for themselves, the others are characters from 256 on."""
    printable = {*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


_BYTE_OF = _byte_of()
