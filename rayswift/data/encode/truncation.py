"""Documents longer than `data.max_length`: dropped, cut at an end, or split; pure.

Also the bound that spares tokenising a text of megabytes of which only a few thousand tokens, or none, are used.
"""

import itertools
import json
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer
from tokenizers.pre_tokenizers import ByteLevel

from rayswift.config.schema import TruncationMode

_PIECE_CHARS = 1 << 20
# One character of a normal form is at most four before it; unlike NFKC, NFC and NFD add and remove nothing else.
_CHARS_IN_ONE = {"NFC": 4, "NFD": 1}
_SPLITTERS = ("ByteLevel", "Digits", "Split", "Metaspace")


@dataclass(frozen=True)
class Bound:
    """How many characters a token stands for at most; None if the tokenizer allows no such number."""

    chars_per_token: int | None

    def min_tokens(self, text: str) -> int:
        """The least number of tokens a text can have."""
        return 0 if self.chars_per_token is None else -(-len(text) // self.chars_per_token)

    def excerpts(self, text: str, max_length: int, mode: TruncationMode) -> list[tuple[int, str]]:
        """The parts of a text to tokenise, with where each begins: one, the whole, unless it is surely too long.

        Args:
            text: A document.
            max_length: Tokens that fit.
            mode: left and right need an end of the text that surely holds as many tokens, split all of it in pieces.
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
    """The tokens of a document that is too long that are kept.

    Pieces of a split one share a token: nothing predicts the first of a piece, so it is trained at the end of the
    piece before.
    """
    if mode == "left":
        return [slice(num_tokens - max_length, num_tokens)]
    if mode == "right":
        return [slice(0, max_length)]
    begins = range(0, num_tokens - 1, max_length - 1)
    return [slice(begin, min(begin + max_length, num_tokens)) for begin in begins]


def longest_first(first: int, second: int, room: int) -> tuple[int, int]:
    """How many tokens of two texts that do not fit are kept: the longer one loses them, down to the shorter one's.

    What `transformers` calls longest_first, as the tokenizers library computes it (`utils/truncation.rs`).
    """
    less, more = min(first, second), max(first, second)
    more = less if less > room else max(less, room - less)
    if less + more > room:
        less, more = room // 2, room // 2 + room % 2
    return (more, less) if first > second else (less, more)


def bound_of(tokenizer: Tokenizer) -> Bound:
    """The bound for a tokenizer: the longest entry of its vocabulary, where nothing can vanish without a token."""
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
    """Whether every character becomes tokens, if need be its bytes, and no run of them a single unknown."""
    if any(splitter["type"] == "ByteLevel" for splitter in splitters):
        return set(ByteLevel.alphabet()) <= vocabulary.keys()
    return byte_fallback and all(f"<0x{byte:02X}>" in vocabulary for byte in range(256))


def _keeps_characters(normalizer: dict[str, Any]) -> bool:
    if normalizer["type"] == "Replace":
        pattern = normalizer["pattern"].get("String")
        return pattern is not None and len(normalizer["content"]) >= len(pattern)
    return normalizer["type"] == "Prepend" or normalizer["type"] in _CHARS_IN_ONE


def _leaves(part: dict[str, Any] | None, key: str) -> list[dict[str, Any]]:
    """The parts of a normalizer or pre-tokenizer that are no sequence of others."""
    if part is None:
        return []
    return [leaf for one in part[key] for leaf in _leaves(one, key)] if part["type"] == "Sequence" else [part]
