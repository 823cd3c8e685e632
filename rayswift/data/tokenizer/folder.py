"""Read a tokenizer's folder: its chat template, its named special tokens, and its frame around a text.

`transformers` reads the same files by the same rules. Data tasks do not use it, because it loads torch.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Encoding, Tokenizer

from rayswift.log import UserError

CONFIG = "tokenizer_config.json"
PROCESSOR_TEMPLATE = "chat_template.json"
"""The template file of processors for text and images; tokenizers of `transformers` do not read it."""
_SPECIAL_TOKENS = "special_tokens_map.json"


@dataclass(frozen=True)
class Frame:
    """The token ids that a tokenizer adds before and after a text, such as BOS, or [CLS] and [SEP].

    between: token ids between the two texts of a pair; second_type: token type of the second text and of `behind`, 0 if
    both texts have the same.
    """

    before: tuple[int, ...] = ()
    behind: tuple[int, ...] = ()
    between: tuple[int, ...] = ()
    second_type: int = 0

    def __len__(self) -> int:
        return len(self.before) + len(self.behind)


def read_config(folder: Path) -> dict[str, Any]:
    """`tokenizer_config.json`; empty if there is none."""
    return _read(folder / CONFIG)


def read_tokenizer(path: Path, what: str) -> Tokenizer:
    """The tokenizer in a tokenizer.json; raise UserError if it is damaged, where `what` names its model."""
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the type that `tokenizers` raises
        raise UserError(f"{what}: {path.name} is damaged ({error}); copy or download it again") from error


def _read(path: Path) -> dict[str, Any]:
    """The object in a JSON file, empty if there is no file; raise UserError if it is damaged."""
    try:
        found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}); copy or download it again") from error
    if not isinstance(found, dict):
        raise UserError(f"{path} holds no JSON object; copy or download it again")
    return found


def read_chat_template(folder: Path) -> tuple[str | None, dict[str, str]]:
    """The chat template and the named special tokens of a tokenizer folder."""
    config = read_config(folder)
    source = config.get("chat_template")
    if (folder / "chat_template.jinja").exists():
        source = (folder / "chat_template.jinja").read_text(encoding="utf-8")
    if source is None and (folder / PROCESSOR_TEMPLATE).exists():
        source = _read(folder / PROCESSOR_TEMPLATE).get("chat_template")
    if isinstance(source, list):  # several named templates
        source = {entry["name"]: entry["template"] for entry in source}.get("default")
    return source, _special_tokens(folder, config)


def _special_tokens(folder: Path, config: dict[str, Any]) -> dict[str, str]:
    """Special tokens by name. If the config lists all added tokens, the older file only adds missing ones."""
    older = _read(folder / _SPECIAL_TOKENS)
    named = {**older, **config} if "added_tokens_decoder" in config else {**config, **older}
    tokens = {}
    for name, value in named.items():
        value = value or older.get(name) or config.get(name)
        if name.endswith("_token") and value:
            tokens[name] = value["content"] if isinstance(value, dict) else value
    return {name: value for name, value in tokens.items() if isinstance(value, str)}


def frame_of(tokenizer: Tokenizer) -> Frame:
    """The frame of a tokenizer. Only its post-processor decides: `transformers` ignores `add_bos_token` too."""
    single, pair = tokenizer.encode("a"), tokenizer.encode("a", "a")
    first = _texts(single)
    if not first:  # the tokenizer leaves nothing of the text
        return Frame(tuple(single.ids))
    before, behind = single.ids[: first[0]], single.ids[first[-1] + 1 :]
    texts = _texts(pair)
    border = texts[len(texts) // 2 - 1] + 1
    second = texts[len(texts) // 2]
    return Frame(tuple(before), tuple(behind), tuple(pair.ids[border:second]), pair.type_ids[second])


def _texts(encoding: Encoding) -> list[int]:
    """Positions of the tokens of the text, without special ones."""
    return [place for place, special in enumerate(encoding.special_tokens_mask) if not special]
