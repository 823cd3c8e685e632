"""Tokenizers in the style of well-known families: the tokens around a text, and the files that define them."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

TEXTS = ["the quick brown fox jumps over the lazy dog", "What is 2+2?", "It is 4, of course.", "Berlin is a city 🎉 é"]


@dataclass(frozen=True)
class TokenizerFamily:
    """How a tokenizer is built, its named special tokens, and the rest of its config.

    special_tokens_map: whether the names stand in the older `special_tokens_map.json` alone.
    """

    build: Callable[[], Tokenizer]
    named: dict[str, str]
    config: dict[str, Any] = field(default_factory=dict)
    special_tokens_map: bool = False


def _trained(tokenizer: Tokenizer, trainer: Any, special: list[str]) -> Tokenizer:
    tokenizer.train_from_iterator(TEXTS * 4, trainer)
    tokenizer.add_special_tokens(special)
    return tokenizer


def _byte_level(special: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, initial_alphabet=alphabet, special_tokens=special, show_progress=False
    )
    return _trained(tokenizer, trainer, special)


def _around(tokenizer: Tokenizer, single: str, pair: str) -> Tokenizer:
    names = {word.split(":")[0] for word in f"{single} {pair}".split()} - {"$A", "$B"}
    ids = [(name, tokenizer.token_to_id(name)) for name in sorted(names)]
    tokenizer.post_processor = processors.TemplateProcessing(single=single, pair=pair, special_tokens=ids)
    return tokenizer


def llama3() -> Tokenizer:
    """Byte-level, BOS by its post-processor."""
    bos = "<|begin_of_text|>"
    tokenizer = _byte_level([bos, "<|end_of_text|>", "<|eot_id|>"])
    _around(tokenizer, f"{bos} $A", f"{bos} $A {bos}:1 $B:1")
    tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), tokenizer.post_processor])
    return tokenizer


def sentencepiece(prepend: bool = True) -> Tokenizer:
    """SentencePiece's BPE as Llama 2 and Mistral have it: words begin with a mark, bytes where all else fails."""
    special = ["<unk>", "<s>", "</s>"]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    marked = normalizers.Replace(" ", "▁")
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), marked]) if prepend else marked
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special += [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=420, special_tokens=special, show_progress=False)
    return _around(_trained(tokenizer, trainer, special[:3]), "<s> $A", "<s> $A <s>:1 $B:1")


def gemma() -> Tokenizer:
    """As Gemma has it: no mark before the first word."""
    return sentencepiece(prepend=False)


def gpt2() -> Tokenizer:
    """Byte-level, nothing around a text."""
    return _byte_level(["<|endoftext|>"])


def qwen() -> Tokenizer:
    """Byte-level, normalised, split by a pattern, nothing around a text."""
    tokenizer = _byte_level(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    tokenizer.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(r"\p{N}| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+"), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    return tokenizer


def bert() -> Tokenizer:
    """WordPiece between [CLS] and [SEP], a type for each text of a pair."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    _trained(tokenizer, trainers.WordPieceTrainer(vocab_size=200, special_tokens=special, show_progress=False), special)
    return _around(tokenizer, "[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1")


def roberta() -> Tokenizer:
    """Byte-level between <s> and </s>, two </s> between the texts of a pair."""
    tokenizer = _byte_level(["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    ends = ("</s>", tokenizer.token_to_id("</s>")), ("<s>", tokenizer.token_to_id("<s>"))
    tokenizer.post_processor = processors.RobertaProcessing(*ends, trim_offsets=True, add_prefix_space=False)
    return tokenizer


def unigram() -> Tokenizer:
    """SentencePiece's Unigram, </s> behind a text as T5 has it."""
    special = ["<pad>", "</s>", "<unk>"]
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=200, special_tokens=special, unk_token="<unk>", show_progress=False)
    _trained(tokenizer, trainer, special)
    return _around(tokenizer, "$A </s>", "$A </s> $B </s>")


_PLAIN = {"tokenizer_class": "PreTrainedTokenizerFast"}
_S = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "</s>"}
FAMILIES = {
    "llama3": TokenizerFamily(llama3, {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"}, _PLAIN),
    "llama2": TokenizerFamily(
        sentencepiece, _S, {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "add_eos_token": False}
    ),
    "gemma": TokenizerFamily(
        gemma,
        {**_S, "pad_token": "<unk>"},
        {"tokenizer_class": "GemmaTokenizer", "add_bos_token": True, "add_eos_token": False},
    ),
    "mistral": TokenizerFamily(sentencepiece, _S, {**_PLAIN, "add_bos_token": True, "add_eos_token": False}),
    "gpt2": TokenizerFamily(
        gpt2, {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}, {"tokenizer_class": "GPT2Tokenizer"}
    ),
    "qwen": TokenizerFamily(
        qwen, {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}, _PLAIN, special_tokens_map=True
    ),
    "bert": TokenizerFamily(
        bert,
        {
            "cls_token": "[CLS]",
            "sep_token": "[SEP]",
            "pad_token": "[PAD]",
            "unk_token": "[UNK]",
            "mask_token": "[MASK]",
        },
        {"tokenizer_class": "BertTokenizer"},
    ),
    "roberta": TokenizerFamily(
        roberta,
        {**_S, "pad_token": "<pad>", "cls_token": "<s>", "sep_token": "</s>", "mask_token": "<mask>"},
        {"tokenizer_class": "RobertaTokenizer"},
    ),
    "t5": TokenizerFamily(unigram, {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}, _PLAIN),
}
ENCODERS = ("bert", "roberta", "t5")
CHAT_TEMPLATE = (
    "{{ bos_token or '' }}{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ eos_token or '' }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def write(folder: Path, family: TokenizerFamily, chat_template: str | None = None) -> Path:
    """A family's tokenizer folder."""
    folder.mkdir(parents=True, exist_ok=True)
    family.build().save(str(folder / "tokenizer.json"))
    named = {} if family.special_tokens_map else family.named
    (folder / "tokenizer_config.json").write_text(json.dumps({**named, **family.config}), encoding="utf-8")
    if family.special_tokens_map:
        (folder / "special_tokens_map.json").write_text(json.dumps(family.named), encoding="utf-8")
    if chat_template:
        (folder / "chat_template.jinja").write_text(chat_template, encoding="utf-8")
    return folder
