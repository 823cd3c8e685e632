"""A model's tokenizer as `transformers` loads it, and so as it is served: downloaded, converted, or rewritten."""

import json
from functools import cache
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from rayswift.config.model import ModelConfig
from rayswift.data.hub_files import download
from rayswift.data.tokenizer.folder import CONFIG, read_config, read_tokenizer
from rayswift.log import UserError, first_line, logger

# Classes that use tokenizer.json unchanged; all others build the tokenizer from its vocabulary.
_READ_AS_WRITTEN = ("TokenizersBackend", "PreTrainedTokenizerFast")
_BESIDE_WEIGHTS = (
    *("tokenizer*", "special_tokens_map.json", "chat_template*", "*config.json", "*.model", "vocab*", "merges*"),
    *("*.py", "*.tiktoken"),
    *("modules.json", "config_sentence_transformers.json", "*_*/model.safetensors", "*_*/pytorch_model.bin"),
)
_PROBES = (
    "a",
    "the answer is 4.",
    " It's  2024,\n\n\tÜber 123456 äöü \u4e2d\u6587 \U0001f389",
    "\n\nHello\nWorld  ",
    "x = {'a': 1}",
)


def write_as_loaded(model: ModelConfig, folder: Path) -> None:
    """Rewrite tokenizer.json if the tokenizer's class in `transformers` tokenises otherwise, as vLLM then does too.

    For example, Llama's class writes no word mark after a special token, whatever tokenizer.json says.
    """
    path = folder / "tokenizer.json"
    config = read_config(folder)
    if config.get("tokenizer_class") in (None, *_READ_AS_WRITTEN) or "auto_map" in config:
        return
    written = read_tokenizer(path, f"model.path = {model.path!r}")
    loaded = load(folder, model.trust_remote_code, f"model.path = {model.path!r}")
    backend = Tokenizer.from_str(loaded.backend_tokenizer.to_str())
    backend.no_padding()
    backend.no_truncation()
    special = list(loaded.special_tokens_map.values())
    probes = [*_PROBES, *(f"{token}{text}" for token in special for text in _PROBES[:2])]
    if any(written.encode(text).ids != backend.encode(text).ids for text in probes):
        logger.info("%s tokenises otherwise than its tokenizer.json; training uses the class", type(loaded).__name__)
        backend.save(str(path))
    named = {name: token for name, token in loaded.special_tokens_map.items() if not config.get(name)}
    if named:
        (folder / CONFIG).write_text(json.dumps({**config, **named}, indent=2, ensure_ascii=False), encoding="utf-8")


@cache
def from_hub(path: str, revision: str | None) -> Path:
    """Download a hub model without its weights: tokenizer, configs, modules of sentence-transformers."""
    return download(path, _BESIDE_WEIGHTS, f"model.path = {path!r}", revision)


def convert(model: ModelConfig, source: Path, folder: Path) -> None:
    """Write tokenizer.json for a tokenizer without it."""
    load(source, model.trust_remote_code, f"model.path = {model.path!r}").save_pretrained(folder)
    if not (folder / "tokenizer.json").exists():
        raise UserError(f"model.path = {model.path!r}: its tokenizer has no fast form, which masking the loss needs")


def load(folder: Path, trust_remote_code: bool, what: str) -> Any:
    """The tokenizer as `transformers` loads it; `what` names its folder in the error."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except Exception as error:  # of a damaged tokenizer.json whatever `tokenizers` raises
        raise UserError(f"{what} has no tokenizer that loads: {first_line(error)}") from error
    # Without its files, `transformers` makes one of the model's type, with special tokens alone.
    if len(tokenizer.get_vocab().keys() - set(tokenizer.all_special_tokens)) <= 1:
        raise UserError(f"{what} has no tokenizer: tokenizer.json, or the vocabulary of its class, is missing")
    return tokenizer


def load_with_padding(folder: str, trust_remote_code: bool) -> Any:
    """The tokenizer as `transformers` loads it, with its end token for padding if it has no padding token."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer
