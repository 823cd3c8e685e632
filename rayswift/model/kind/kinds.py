"""The kind of a model, from its `config.json` and file names; pure."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rayswift.config.model import ModelConfig

Kind = Literal[
    "decoder",
    "headless decoder",
    "encoder",
    "encoder-decoder",
    "vision-language",
    "sequence classifier",
    "other head",
    "adapter",
    "GGUF",
    "no model",
]

ENCODERS = {
    "albert", "bert", "big_bird", "camembert", "convbert", "data2vec-text", "deberta", "deberta-v2", "distilbert",
    "electra", "ernie", "esm", "eurobert", "flaubert", "fnet", "funnel", "gte", "ibert", "jina_embeddings_v3",
    "layoutlm", "longformer", "luke", "megatron-bert", "mobilebert", "modernbert", "mpnet", "mra", "neobert", "new",
    "nezha", "nomic_bert", "nystromformer", "rembert", "roberta", "roberta-prelayernorm", "roc_bert", "roformer",
    "splinter", "squeezebert", "xlm", "xlm-roberta", "xlm-roberta-xl", "xmod", "yoso",
}  # fmt: skip
"""`model_type`s with bidirectional attention, unless `is_decoder` is set."""
# Keys of `config.json` that only models of images or sound have.
_OTHER_SENSES = ("vision_config", "audio_config", "image_size", "num_mel_bins", "num_channels")
# Families that tie output matrix and embedding by default.
_TIED = {"bloom", "gemma", "gemma2", "gemma3_text", "gpt2", "gpt_neo", "opt"}
_WHOLE_WEIGHTS = ("model*.safetensors", "pytorch_model*.bin")
_ANY_WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.pth", "*.ckpt")
# Families whose first token has position pad_token_id + 1.
_OFFSET = (
    *("camembert", "data2vec-text", "ibert", "longformer", "mpnet", "roberta", "roberta-prelayernorm"),
    *("xlm-roberta", "xlm-roberta-xl", "xmod"),
)
_POSITIONS = ("max_position_embeddings", "n_positions")  # n_positions: of GPT-2 and its like
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "vocab.txt", "tokenizer.model")
NOTHING_KNOWN = "a folder without config.json"
"""Description of a folder without model files; it may be a run that has saved nothing."""
_ADAPTER = "adapter_config.json"
# Endings of architectures with a language-model head.
_LANGUAGE_HEADS = (
    "ForCausalLM",
    "LMHeadModel",
    "WithLMHead",
    "ForConditionalGeneration",
    "ForPreTraining",
    "ForMaskedLM",
)


@dataclass(frozen=True)
class Model:
    """A model. what: its description, to follow "is"; config: its `config.json`, or empty; base: of an adapter, the
    model in its config; quantization: of the saved weights ("gptq"), or empty."""

    kind: Kind
    what: str
    config: Mapping[str, Any]
    base: str = ""
    quantization: str = ""

    @property
    def num_outputs(self) -> int:
        """Outputs of a sequence classifier; the default of `transformers` is two."""
        labels = self.config.get("id2label")
        return len(labels) if labels else int(self.config.get("num_labels", 2))

    @property
    def vocab_size(self) -> int | None:
        """Rows of the embedding; None: unknown."""
        size = (self.config.get("text_config") or self.config).get("vocab_size")
        return size if isinstance(size, int) else None

    @property
    def model_type(self) -> str:
        return str(self.config.get("model_type", ""))


def look(path: str, revision: str | None = None) -> Model | None:
    """The model in a folder, a file or the hub's cache; None: not in the cache, a run folder, or nothing."""
    here = Path(path)
    if here.is_file():
        return Model("GGUF", "a GGUF file", {}) if here.suffix == ".gguf" else Model("no model", "a file", {})
    if here.is_dir():
        return _folder(here)
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        cached = try_to_load_from_cache(path, "config.json", revision=revision)
    except HFValidationError:
        return None
    return of_config(_read(Path(cached))) if isinstance(cached, str) else None


def vocabulary(path: str) -> Any:
    """The tokens in a folder's `tokenizer.json`, as written in it; None: there is no such file."""
    return (_read(Path(path) / "tokenizer.json").get("model") or {}).get("vocab")


def of_config(config: Mapping[str, Any]) -> Model:
    """The model that a `config.json` describes."""
    if "_class_name" in config:
        return Model("no model", f"a part of a diffusion pipeline ({config['_class_name']})", config)
    architecture, family = str((config.get("architectures") or [""])[0]), str(config.get("model_type", ""))
    name = architecture or family
    if not name:
        return Model(
            "no model", "a folder whose config.json names no model (neither model_type nor architectures)", config
        )
    kind, what = _kind(config, architecture, family)
    packing = config.get("quantization_config") or {}
    quantization = str(packing.get("quant_method") or ("bitsandbytes" if packing else ""))
    return Model(kind, f"{what} ({name})", config, quantization=quantization)


def _kind(config: Mapping[str, Any], architecture: str, family: str) -> tuple[Kind, str]:
    if any(sense in config for sense in _OTHER_SENSES):
        return "vision-language", "a model of images or sound"
    if config.get("is_encoder_decoder"):
        return "encoder-decoder", "an encoder-decoder"
    if architecture.endswith("ForSequenceClassification"):
        return "sequence classifier", "a model with a sequence-classification head"
    looks_both_ways = _looks_both_ways(config, family)
    if "For" in architecture and not architecture.endswith(_LANGUAGE_HEADS):
        return "other head", "a model with a head of another task"
    if looks_both_ways or architecture.endswith("ForMaskedLM"):
        return "encoder", "an encoder"
    is_bare = architecture.endswith("Model") and not architecture.endswith(_LANGUAGE_HEADS)
    if is_bare and not config.get("tie_word_embeddings", family in _TIED):
        return "headless decoder", "a decoder without its language-model head"
    return "decoder", "a decoder"


def _looks_both_ways(config: Mapping[str, Any], family: str) -> bool:
    is_bert = "bert" in family and "decoder" not in family
    return bool(config.get("use_bidirectional_attention")) or (
        (family in ENCODERS or is_bert) and not config.get("is_decoder")
    )


def of_encoder(model: Model) -> bool:
    """Whether attention is bidirectional, with any head."""
    return _looks_both_ways(model.config, model.model_type)


def holds_weights(folder: Path) -> bool:
    """Whether a model's weights are in a folder, under a name that `transformers` loads."""
    return any(any(folder.glob(pattern)) for pattern in _WHOLE_WEIGHTS)


def _folder(folder: Path) -> Model | None:
    if (folder / _ADAPTER).exists() and not holds_weights(folder):
        adapter = _read(folder / _ADAPTER)
        base = str(adapter.get("base_model_name_or_path") or "")
        what = f"an adapter ({adapter.get('peft_type', 'LORA')} on {base or 'a base it does not name'})"
        return Model("adapter", what, {}, base)
    if (folder / _ADAPTER).exists():
        what = "a folder of both a model's weights and an adapter, which would be put onto them"
        return Model("no model", f"{what} (move adapter_config.json and adapter_model.* away)", {})
    if (folder / "config.json").exists():
        config = _object(folder / "config.json")
        if config is None:
            return Model("no model", "a folder whose config.json is no JSON object", {})
        return of_config(config)
    if any(folder.glob("*.gguf")):
        return Model("GGUF", "a folder of GGUF files", {})
    if any(folder.glob("checkpoint-*")):
        return None  # a run folder
    what = NOTHING_KNOWN
    if (folder / "model_index.json").exists():
        what = "a diffusion pipeline"
    elif any(any(folder.glob(pattern)) for pattern in _ANY_WEIGHTS):
        what = "a folder with weights and without config.json"
    elif any((folder / name).exists() for name in _TOKENIZER_FILES):
        what = "the folder of a tokenizer alone"
    return Model("no model", what, {})


def _read(file: Path) -> dict[str, Any]:
    return _object(file) or {}


def _object(file: Path) -> dict[str, Any] | None:
    """The JSON object in a file; None: there is none, or the file is damaged."""
    try:
        read = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return read if isinstance(read, dict) else None


def read_config(folder: Path) -> dict[str, Any]:
    """`config.json`; empty if there is none, or if it is no JSON object, which `look` reports."""
    return _read(folder / "config.json")


def is_encoder(config: Mapping[str, Any]) -> bool:
    """Whether attention is bidirectional."""
    if _looks_both_ways(config, str(config.get("model_type", ""))):
        return True
    # For a model whose folder has its code.
    return any(name.endswith("ForMaskedLM") for name in config.get("architectures") or ())


def num_positions(config: Mapping[str, Any]) -> int | None:
    """Length of the longest text; None: unknown or unlimited."""
    positions = next((config[name] for name in _POSITIONS if name in config), None)
    if not isinstance(positions, int) or positions < 1:
        return None
    if config.get("model_type") not in _OFFSET:
        return positions
    padding = config.get("pad_token_id")
    return positions - (1 if padding is None else int(padding)) - 1


def stretched_positions(model: ModelConfig) -> int | None:
    """Positions of a model in a folder, with the config's rotary scaling; None: unknown."""
    config = read_config(Path(model.path))
    positions = num_positions(config.get("text_config", config))
    scaling = model.rope_scaling or {}
    return model.max_position_embeddings or (positions and int(positions * scaling.get("factor", 1)))
