"""Small folders of every kind of model, with random weights and the tokenizer of examples/tiny."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedModel

TINY = Path(__file__).parents[2] / "examples" / "tiny"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
_SMALL = {"vocab_size": 512, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "pad_token_id": 0}
_HEADS = {"num_attention_heads": 2}
_LLAMA = _SMALL | _HEADS | {"num_key_value_heads": 1, "head_dim": 16, "max_position_embeddings": 512, "eos_token_id": 1}
_BERT = _SMALL | _HEADS | {"max_position_embeddings": 512}
_VISION = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "image_size": 28, "patch_size": 14}
# Kind of folder -> model type, settings, class that is saved.
_BUILT: dict[str, tuple[str, dict[str, Any], str]] = {
    "decoder": ("llama", _LLAMA, "LlamaForCausalLM"),
    "headless": ("llama", _LLAMA, "LlamaModel"),
    "encoder": ("bert", _BERT, "BertForMaskedLM"),
    "encoder-decoder": (
        "t5", {"vocab_size": 512, "d_model": 32, "d_ff": 64, "num_layers": 1, "num_heads": 2, "d_kv": 16},
        "T5ForConditionalGeneration",
    ),
    "gemma3": (
        "gemma3",
        {"text_config": _LLAMA, "vision_config": _VISION | {"num_attention_heads": 2}, "mm_tokens_per_image": 4},
        "Gemma3ForConditionalGeneration",
    ),
    "gemma4": (
        "gemma4",
        {
            "text_config": _LLAMA | {"vocab_size_per_layer_input": 512, "hidden_size_per_layer_input": 8},
            "vision_config": _VISION | {"num_attention_heads": 2, "num_key_value_heads": 2},
        },
        "Gemma4ForConditionalGeneration",
    ),
    "one output": ("llama", _LLAMA | {"num_labels": 1}, "LlamaForSequenceClassification"),
    "encoder, one output": ("bert", _BERT | {"num_labels": 1}, "BertForSequenceClassification"),
    "three outputs": ("bert", _BERT | {"num_labels": 3}, "BertForSequenceClassification"),
    "token labels": ("bert", _BERT, "BertForTokenClassification"),
}  # fmt: skip


def built(kind: str, folder: Path, edit: Callable[[PreTrainedModel], None] | None = None, **settings: Any) -> Path:
    """A model folder that loads.

    Args:
        kind: A kind of the table above.
        folder: The folder to write.
        edit: Changes the model before it is saved.
        settings: Further settings of its config.
    """
    import transformers

    model_type, usual, name = _BUILT[kind]
    torch.manual_seed(0)
    model = getattr(transformers, name)(AutoConfig.for_model(model_type, **usual | settings))
    if edit:
        edit(model)
    model.save_pretrained(folder)
    return with_tokenizer(folder)


def with_tokenizer(folder: Path) -> Path:
    """The folder, with the tokenizer of examples/tiny."""
    for name in TOKENIZER_FILES:
        shutil.copyfile(TINY / name, folder / name)
    return folder


def packed(folder: Path, method: str) -> Path:
    """A decoder's folder whose config says that its weights are quantised."""
    built("decoder", folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps(config | {"quantization_config": {"quant_method": method, "bits": 4}})
    )
    return folder


def written(folder: Path, **files: str) -> Path:
    """A folder with these files, `__` standing for a dot in their names."""
    folder.mkdir(parents=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)
    return folder


def adapter(folder: Path, base: str, task_type: str = "CAUSAL_LM") -> Path:
    """The files of a PEFT adapter, whose weights file has a header and no tensors."""
    config = json.dumps({"peft_type": "LORA", "base_model_name_or_path": base, "task_type": task_type, "r": 4})
    return written(folder, adapter_config__json=config, adapter_model__safetensors="\x02" + "\0" * 7 + "{}")
