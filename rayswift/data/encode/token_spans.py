"""Where each token lies in its text, from the bytes that token ids stand for; pure.

A tokenizer that works on bytes maps each id to fixed bytes. Where those of a text's ids, end to end, are the text, each
token lies where the ones before it end: exact, and much cheaper than the offsets a tokenizer keeps.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer


class TokenBytes:
    """The bytes of each token id.

    Args:
        pieces: At each id its bytes.
    """

    def __init__(self, pieces: Sequence[bytes]):
        self._pieces = pieces
        self._lengths = np.array([len(piece) for piece in pieces], dtype=np.int64)

    @classmethod
    def of(cls, tokenizer: Tokenizer, described: Any) -> "TokenBytes | None":
        """Those of a byte-level tokenizer; None for another kind.

        Args:
            tokenizer: The tokenizer.
            described: Its tokenizer.json.
        """
        if not any(part.get("type") == "ByteLevel" for part in _parts(described.get("decoder"))):
            return None
        added = {number: token.content for number, token in tokenizer.get_added_tokens_decoder().items()}
        vocabulary = tokenizer.get_vocab(with_added_tokens=True)
        pieces = [b""] * (max(vocabulary.values(), default=-1) + 1)
        for token, number in vocabulary.items():
            try:
                pieces[number] = added[number].encode() if number in added else bytes(_BYTE_OF[c] for c in token)
            except KeyError:
                continue  # no text's bytes: a text with it is not the sum of its pieces
        return cls(pieces)

    def begins(self, ids: NDArray[np.int32], listed: Sequence[int], text: bytes) -> NDArray[np.int64] | None:
        """Byte [T] at which each token begins; None where the tokens are not just the text, as after normalising it.

        Args:
            ids: The tokens [T].
            listed: The same, which a list is faster to look up by.
            text: What they were made of.
        """
        if b"".join(map(self._pieces.__getitem__, listed)) != text:
            return None
        lengths = self._lengths[ids]
        begins: NDArray[np.int64] = np.cumsum(lengths) - lengths
        return begins


def byte_positions(text: str, positions: Sequence[int]) -> list[int]:
    """The bytes of a text before each character position; positions ascend, and may lie outside of the text."""
    if text.isascii():
        return list(positions)
    found, done, num_bytes = [], 0, 0
    for position in positions:
        num_bytes += len(text[done : max(done, position)].encode())
        done = max(done, position)
        found.append(num_bytes)
    return found


def _parts(decoder: Any) -> list[dict[str, Any]]:
    return [] if not decoder else decoder.get("decoders", [decoder])


def _byte_of() -> dict[str, int]:
    """GPT-2's table: printable bytes are themselves, the others are characters from 256 on."""
    printable = {*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


_BYTE_OF = _byte_of()
