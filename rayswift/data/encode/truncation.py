"""Documents longer than `data.max_length` are dropped, cut at an end, or split; pure.

A bound on the characters of a token avoids tokenising megabytes of text of which only a few thousand tokens are used.
"""

import itertools
import json
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer
from tokenizers.pre_tokenizers import ByteLevel

from rayswift.config.schema import TruncationMode

_PIECE_CHARS = 1 << 20
# The most characters that become one character of the normal form; NFKC has no such number.
_CHARS_IN_ONE = {"NFC": 4, "NFD": 1}
_SPLITTERS = ("ByteLevel", "Digits", "Split", "Metaspace")


@dataclass(frozen=True)
class Bound:
    """The most characters that one token stands for; None if there is no such number for the tokenizer."""

    chars_per_token: int | None

    def min_tokens(self, text: str) -> int:
        """The least number of tokens that a text can have."""
        return 0 if self.chars_per_token is None else -(-len(text) // self.chars_per_token)

    def excerpts(self, text: str, max_length: int, mode: TruncationMode) -> list[tuple[int, str]]:
        """The parts of a text to tokenise, each with its first character: the whole text, unless it is surely too long.

        Then left and right need one end of the text that surely holds `max_length` tokens; split needs all, in pieces.
        """
        if self.chars_per_token is None or self.min_tokens(text) <= max_length:
            return [(0, text)]
        needed = min(len(text), (max_length + 1) * self.chars_per_token)
        if mode == "right":
            return [(0, text[:needed])]
        if mode == "left":
            return [(len(text) - needed, text[-needed:])]
        borders = [*range(0, len(text), _PIECE_CHARS), len(text)]
        return [(begin, text[begin:end]) for begin, end in itertools.pairwise(borders)]


def kept(num_tokens: int, max_length: int, mode: TruncationMode) -> list[slice]:
    """The tokens to keep of a document that is too long.

    Pieces of a split document overlap by one token: it is trained at the end of one piece, because nothing predicts the
    first token of the next.
    """
    if mode == "left":
        return [slice(num_tokens - max_length, num_tokens)]
    if mode == "right":
        return [slice(0, max_length)]
    begins = range(0, num_tokens - 1, max_length - 1)
    return [slice(begin, min(begin + max_length, num_tokens)) for begin in begins]


def longest_first(first: int, second: int, room: int) -> tuple[int, int]:
    """How many tokens of each of two texts to keep: the longer text loses tokens first.

    This is longest_first of `transformers`, as the tokenizers library computes it (`utils/truncation.rs`).
    """
    less, more = min(first, second), max(first, second)
    more = less if less > room else max(less, room - less)
    if less + more > room:
        less, more = room // 2, room // 2 + room % 2
    return (more, less) if first > second else (less, more)


def bound_of(tokenizer: Tokenizer) -> Bound:
    """The bound of a tokenizer, its longest vocabulary entry, if no character can disappear without a token."""
    parts = json.loads(tokenizer.to_str())
    normalizers = _leaves(parts["normalizer"], "normalizers")
    splitters = _leaves(parts["pre_tokenizer"], "pretokenizers")
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    keeps_all = (
        parts["model"]["type"] == "BPE"
        and _has_all_bytes(vocabulary, splitters, parts["model"].get("byte_fallback", False))
        and all(_keeps_characters(normalizer) for normalizer in normalizers)
        and all(splitter["type"] in _SPLITTERS and splitter.get("behavior") != "Removed" for splitter in splitters)
        and not any(token["lstrip"] or token["rstrip"] for token in parts["added_tokens"])
    )
    if not keeps_all:
        return Bound(None)
    shrink = max((_CHARS_IN_ONE.get(normalizer["type"], 1) for normalizer in normalizers), default=1)
    return Bound(max(map(len, vocabulary)) * shrink)


def _has_all_bytes(vocabulary: dict[str, int], splitters: list[dict[str, Any]], byte_fallback: bool) -> bool:
    """Whether every character becomes tokens, if necessary its bytes; then no text becomes a single unknown token."""
    if any(splitter["type"] == "ByteLevel" for splitter in splitters):
        return set(ByteLevel.alphabet()) <= vocabulary.keys()
    return byte_fallback and all(f"<0x{byte:02X}>" in vocabulary for byte in range(256))


def _keeps_characters(normalizer: dict[str, Any]) -> bool:
    if normalizer["type"] == "Replace":
        pattern = normalizer["pattern"].get("String")
        return pattern is not None and len(normalizer["content"]) >= len(pattern)
    return normalizer["type"] == "Prepend" or normalizer["type"] in _CHARS_IN_ONE


def _leaves(part: dict[str, Any] | None, key: str) -> list[dict[str, Any]]:
    """The parts of a normalizer or pre-tokenizer, with nested sequences flattened."""
    if part is None:
        return []
    return [leaf for one in part[key] for leaf in _leaves(one, key)] if part["type"] == "Sequence" else [part]
