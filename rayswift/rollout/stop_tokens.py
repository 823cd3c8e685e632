"""Which tokens end an answer."""

from collections.abc import Iterable
from pathlib import Path

import jinja2
from transformers import GenerationConfig, PreTrainedTokenizerBase

from rayswift.log import UserError

_GENERATION = "generation_config.json"
_MARK = "rayswift"


def stop_token_ids(tokenizer: PreTrainedTokenizerBase, folders: Iterable[Path]) -> list[int]:
    """The tokenizer's, those of the generation configs in model folders, the end of a template's turn.

    A base model that was taught a chat template often names the last one nowhere else.
    """
    found: set[int] = {tokenizer.eos_token_id} if tokenizer.eos_token_id is not None else set()
    for folder in folders:
        if (folder / _GENERATION).exists():
            eos = GenerationConfig.from_pretrained(folder).eos_token_id
            found.update([eos] if isinstance(eos, int) else eos or [])
    if tokenizer.chat_template:
        turns = [{"role": "user", "content": "-"}, {"role": "assistant", "content": _MARK}]
        behind = render(tokenizer, turns, generate=False).rpartition(_MARK)[2]
        first = tokenizer(behind, add_special_tokens=False)["input_ids"][:1]
        found.update(token for token in first if _is_special(tokenizer, token))
    return sorted(found)


def render(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]], generate: bool) -> str:
    """A conversation in the model's chat template, up to where an answer begins if one is to be generated.

    Raises:
        UserError: the template refuses it.
    """
    try:
        text: str = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=generate)
    except (jinja2.TemplateError, TypeError) as error:
        roles = ", ".join(message["role"] for message in messages)
        raise UserError(f"the model's chat template refuses a conversation of {roles}: {error}") from error
    return text


def _is_special(tokenizer: PreTrainedTokenizerBase, token: int) -> bool:
    added = tokenizer.added_tokens_decoder
    return token in added and bool(added[token].special)
