"""What stands in a tokenizer's folder: its chat template, its named special tokens, and what it puts around a text.

`transformers` reads the same files by the same rules; data tasks do without it, for it loads torch.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Encoding, Tokenizer

CONFIG = "tokenizer_config.json"
PROCESSOR_TEMPLATE = "chat_template.json"
"""Where processors of text and images had the template; `transformers`' tokenizers do not read it."""
_SPECIAL_TOKENS = "special_tokens_map.json"


@dataclass(frozen=True)
class Frame:
    """The token ids that a tokenizer puts before and behind a text, as BOS, or [CLS] and [SEP].

    between: those between the two texts of a pair; second_type: the token type of the second text and of what is
    behind it, 0 where both texts have the same.
    """

    before: tuple[int, ...] = ()
    behind: tuple[int, ...] = ()
    between: tuple[int, ...] = ()
    second_type: int = 0

    def __len__(self) -> int:
        return len(self.before) + len(self.behind)


def read_config(folder: Path) -> dict[str, Any]:
    """`tokenizer_config.json`; empty if there is none."""
    path = folder / CONFIG
    config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return config


def read_chat_template(folder: Path) -> tuple[str | None, dict[str, str]]:
    """The chat template and the named special tokens of a tokenizer folder."""
    config = read_config(folder)
    source = config.get("chat_template")
    if (folder / "chat_template.jinja").exists():
        source = (folder / "chat_template.jinja").read_text(encoding="utf-8")
    if source is None and (folder / PROCESSOR_TEMPLATE).exists():
        source = json.loads((folder / PROCESSOR_TEMPLATE).read_text(encoding="utf-8")).get("chat_template")
    if isinstance(source, list):  # several named templates
        source = {entry["name"]: entry["template"] for entry in source}.get("default")
    return source, _special_tokens(folder, config)


def _special_tokens(folder: Path, config: dict[str, Any]) -> dict[str, str]:
    """Special tokens by name; where the config lists all added tokens, the older file only fills in what it lacks."""
    path = folder / _SPECIAL_TOKENS
    older: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    named = {**older, **config} if "added_tokens_decoder" in config else {**config, **older}
    tokens = {}
    for name, value in named.items():
        value = value or older.get(name) or config.get(name)
        if name.endswith("_token") and value:
            tokens[name] = value["content"] if isinstance(value, dict) else value
    return {name: value for name, value in tokens.items() if isinstance(value, str)}


def frame_of(tokenizer: Tokenizer) -> Frame:
    """What a tokenizer puts around a text, and between those of a pair.

    Its post-processor alone decides: beside a tokenizer.json `transformers` ignores `add_bos_token`, too.
    """
    single, pair = tokenizer.encode("a"), tokenizer.encode("a", "a")
    first = _texts(single)
    if not first:  # nothing is left of the text by which to tell before from behind
        return Frame(tuple(single.ids))
    before, behind = single.ids[: first[0]], single.ids[first[-1] + 1 :]
    texts = _texts(pair)
    border = texts[len(texts) // 2 - 1] + 1
    second = texts[len(texts) // 2]
    return Frame(tuple(before), tuple(behind), tuple(pair.ids[border:second]), pair.type_ids[second])


def _texts(encoding: Encoding) -> list[int]:
    """The places of tokens that are the text's own."""
    return [place for place, special in enumerate(encoding.special_tokens_mask) if not special]
