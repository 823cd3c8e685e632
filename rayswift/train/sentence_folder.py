"""What a checkpoint holds beside weights and tokenizer so that `SentenceTransformer` or `CrossEncoder` loads it."""

import json
from pathlib import Path
from typing import Any

import sentence_transformers
from sentence_transformers.base.modules import Normalize, Transformer
from sentence_transformers.cross_encoder.modules import LogitScore
from sentence_transformers.sentence_transformer.modules import Pooling

from rayswift.config.schema import TrainingConfig


def write_embedding(folder: Path, config: TrainingConfig, pooling: Pooling) -> None:
    """Files of a `SentenceTransformer` that embeds a text as it was trained: `encode(text)`, or `encode_query(text)`
    with `data.system` before it."""
    output = {"method": "forward", "method_output_name": "last_hidden_state"}
    modules = [pooling, *([Normalize()] if config.model.normalize else [])]
    prompts = {"query": config.data.system or "", "document": ""}
    settings = {"prompts": prompts, "default_prompt_name": None, "similarity_fn_name": "cosine"}
    chat = config.data.use_chat_template
    _write_transformer(folder, "feature-extraction", output, "token_embeddings", chat=chat, asks=False)
    _write_modules(folder, "SentenceTransformer", modules, settings)


def write_reranker(folder: Path, config: TrainingConfig, answers: tuple[int, int] | None) -> None:
    """Files of a `CrossEncoder` that scores (query, document) as it was trained.

    Args:
        folder: The checkpoint.
        config: The run's.
        answers: Token ids of a generative reranker's answers, to a document that fits and to one that does not; None:
            the model has a head of one output.
    """
    output = {"method": "forward", "method_output_name": "logits"}
    task, name = ("sequence-classification", "scores") if answers is None else ("text-generation", "causal_logits")
    prompts = {"default": config.data.system} if config.data.system else {}
    settings = {"prompts": prompts, "default_prompt_name": "default" if prompts else None}
    settings |= {"activation_fn": "torch.nn.modules.activation.Sigmoid"}
    _write_transformer(folder, task, output, name, chat=True, asks=answers is not None)
    _write_modules(folder, "CrossEncoder", [] if answers is None else [LogitScore(*answers)], settings)


def _write_transformer(folder: Path, task: str, output: dict[str, str], name: str, *, chat: bool, asks: bool) -> None:
    """The settings of the module that is the model itself: with modality `message` every text is rendered."""
    modalities: dict[str, Any] = {"text": output} | ({"message": {**output, "format": "flat"}} if chat else {})
    settings: dict[str, Any] = {
        "transformer_task": task,
        "modality_config": modalities,
        "module_output_name": name,
    }
    if asks:
        settings["processing_kwargs"] = {"chat_template": {"add_generation_prompt": True}}
    _write(folder / Transformer.config_file_name, settings)


def _write_modules(folder: Path, kind: str, modules: list[Any], settings: dict[str, Any]) -> None:
    listed = [{"idx": 0, "name": "0", "path": "", "type": _name(Transformer)}]
    for number, module in enumerate(modules, start=1):
        path = f"{number}_{type(module).__name__}"
        (folder / path).mkdir(exist_ok=True)
        module.save(str(folder / path))
        listed.append({"idx": number, "name": str(number), "path": path, "type": _name(type(module))})
    _write(folder / "modules.json", listed)
    versions = {"sentence_transformers": sentence_transformers.__version__}
    _write(folder / "config_sentence_transformers.json", {"model_type": kind, "__version__": versions, **settings})


def _name(module: type) -> str:
    return f"{module.__module__}.{module.__name__}"


def _write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2), encoding="utf-8")
