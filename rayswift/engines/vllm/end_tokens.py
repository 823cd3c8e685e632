"""The tokens at which a completion ends, read from the tokenizer's folder alone."""

import json
from pathlib import Path

from tokenizers import Tokenizer

from rayswift.data.encode.template import ChatTemplate
from rayswift.data.rows import BadRow
from rayswift.data.tokenizer.folder import read_chat_template

_MARK = "answer"


def end_tokens(folder: Path) -> tuple[int, ...]:
    """Return the end tokens of the tokenizer and of the generation config, and the end of a chat template's turn.

    A base model that was trained on a chat template often names the last one nowhere else.
    """
    found: set[int | None] = set()
    generation = folder / "generation_config.json"
    if generation.exists():
        ids = json.loads(generation.read_text(encoding="utf-8")).get("eos_token_id")
        found |= set(ids if isinstance(ids, list) else [ids])
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    source, special_tokens = read_chat_template(folder)
    if "eos_token" in special_tokens:
        found.add(tokenizer.token_to_id(special_tokens["eos_token"]))
    if source:
        found.add(_end_of_turn(ChatTemplate(source, special_tokens), tokenizer))
    return tuple(sorted(token for token in found if token is not None))


def _end_of_turn(template: ChatTemplate, tokenizer: Tokenizer) -> int | None:
    """Return the special token right after an answer, if there is one."""
    try:
        text = template.render([{"role": "user", "content": "-"}, {"role": "assistant", "content": _MARK}])
    except BadRow:  # this template wants other conversations
        return None
    first = tokenizer.encode(text.rpartition(_MARK)[2], add_special_tokens=False).ids[:1]
    added = tokenizer.get_added_tokens_decoder()
    return next((token for token in first if token in added and added[token].special), None)
