"""Whether two tokenizers give token ids the same meaning, and how many tokens one has, by their files."""

import json
from pathlib import Path

from tokenizers import Tokenizer


def difference(ours: Path, theirs: Path) -> str:
    """The difference between the vocabularies of two model folders; empty: no id stands for two tokens.

    An id that only one of them has is no difference. If a folder has no tokenizer, the sizes of the heads are
    compared.
    """
    files = [folder / "tokenizer.json" for folder in (ours, theirs)]
    if not all(file.exists() for file in files):
        sizes = [_head_size(folder) for folder in (ours, theirs)]
        return f"{sizes[1]} entries, not {sizes[0]}" if None not in sizes and sizes[0] != sizes[1] else ""
    first, second = (Tokenizer.from_file(str(file)).get_vocab(with_added_tokens=True) for file in files)
    moved = sorted((number, token) for token, number in first.items() if second.get(token, number) != number)
    tokens = {number: token for token, number in second.items()}
    moved += sorted((number, token) for token, number in first.items() if tokens.get(number, token) != token)
    if not moved:
        return ""
    number, token = moved[0]
    return f"{len({token for _, token in moved})} of {len(first)} tokens, for one {token!r} with id {number}"


def size(folder: Path) -> int:
    """The number of tokens of a tokenizer folder."""
    return Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab_size(with_added_tokens=True)


def _head_size(folder: Path) -> int | None:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    size = config.get("text_config", config).get("vocab_size")
    return None if size is None else int(size)
