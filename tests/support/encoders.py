"""Small random encoders of well-known families, each with a tokenizer of its class trained on word problems."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoModel

ROWS = Path(__file__).parents[2] / "examples" / "gsm8k" / "train.jsonl"
VOCABULARY = 400
_BERT = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
_ROBERTA = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
_DEBERTA = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]"]
_SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 130,
}
_NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def write(family: str, folder: Path, seed: int = 0) -> Path:
    """The family's model without a head, without dropout, and its tokenizer, in `folder`."""
    torch.manual_seed(seed)
    AutoModel.from_config(_CONFIGS[family]()).save_pretrained(folder)
    tokenizer: Any = _TOKENIZERS[family]()
    tokenizer.save_pretrained(folder)
    return folder


def _texts() -> Iterator[str]:
    for line in ROWS.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        yield row["question"]
        yield row["answer"]


def _word_pieces() -> dict[str, int]:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=VOCABULARY, special_tokens=_BERT, show_progress=False)
    tokenizer.train_from_iterator(_texts(), trainer)
    return dict(tokenizer.get_vocab())


def _bert() -> Any:
    return transformers.BertTokenizer(vocab=_word_pieces(), model_max_length=128)


def _distilbert() -> Any:
    return transformers.DistilBertTokenizer(vocab=_word_pieces(), model_max_length=128)


def _byte_pairs(special: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, initial_alphabet=alphabet, special_tokens=special, show_progress=False
    )
    tokenizer.train_from_iterator(_texts(), trainer)
    return tokenizer


def _roberta() -> Any:
    model = json.loads(_byte_pairs(_ROBERTA).to_str())["model"]
    merges = [tuple(pair) for pair in model["merges"]]
    return transformers.RobertaTokenizer(vocab=model["vocab"], merges=merges, model_max_length=128)


def _modernbert() -> Any:
    tokenizer = _byte_pairs(_BERT)
    ids = [(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=ids
    )
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), _BERT, strict=True))
    kwargs = {"model_max_length": 128, "model_input_names": ["input_ids", "attention_mask"]}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names, **kwargs)


def _pieces(special: list[str]) -> list[tuple[str, float]]:
    """SentencePiece's Unigram: special tokens first, then pieces of words with their log-probabilities."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    unknown = next(token for token in special if "unk" in token.lower())
    trainer = trainers.UnigramTrainer(
        vocab_size=VOCABULARY - len(special), special_tokens=[unknown], unk_token=unknown, show_progress=False
    )
    tokenizer.train_from_iterator(_texts(), trainer)
    found = json.loads(tokenizer.to_str())["model"]["vocab"]
    return [(token, 0.0) for token in special] + [(piece, score) for piece, score in found if piece != unknown]


def _xlm_roberta() -> Any:
    vocab = [*_pieces(["<s>", "<pad>", "</s>", "<unk>"]), ("<mask>", 0.0)]
    return transformers.XLMRobertaTokenizer(vocab=vocab, model_max_length=128)


def _deberta() -> Any:
    return transformers.DebertaV2Tokenizer(vocab=_pieces(_DEBERTA), unk_id=3, model_max_length=128)


_TOKENIZERS: dict[str, Callable[[], Any]] = {
    "bert": _bert,
    "roberta": _roberta,
    "xlm-roberta": _xlm_roberta,
    "deberta-v2": _deberta,
    "modernbert": _modernbert,
    "distilbert": _distilbert,
}
_CONFIGS: dict[str, Callable[[], Any]] = {
    "bert": lambda: transformers.BertConfig(**_SIZES, **_NO_DROPOUT),
    "roberta": lambda: transformers.RobertaConfig(**_SIZES, **_NO_DROPOUT, type_vocab_size=1),
    "xlm-roberta": lambda: transformers.XLMRobertaConfig(**_SIZES, **_NO_DROPOUT, type_vocab_size=1),
    "deberta-v2": lambda: transformers.DebertaV2Config(
        **_SIZES, **_NO_DROPOUT, pooler_dropout=0.0, relative_attention=True, position_buckets=32,
        pos_att_type=["p2c", "c2p"], position_biased_input=False, share_att_key=True, norm_rel_ebd="layer_norm",
    ),
    "modernbert": lambda: transformers.ModernBertConfig(
        **_SIZES, pad_token_id=0, cls_token_id=2, sep_token_id=3, bos_token_id=2, eos_token_id=3,
        global_attn_every_n_layers=2, local_attention=32,
    ),
    "distilbert": lambda: transformers.DistilBertConfig(
        vocab_size=VOCABULARY, dim=32, hidden_dim=64, n_layers=2, n_heads=4, max_position_embeddings=130, dropout=0.0,
        attention_dropout=0.0, seq_classif_dropout=0.0,
    ),
}  # fmt: skip
FAMILIES = tuple(_CONFIGS)
