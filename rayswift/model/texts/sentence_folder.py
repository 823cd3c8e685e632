"""The modules that sentence-transformers applies after a model, and the files with which it loads the trained model."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sentence_transformers
import torch
from safetensors.torch import save_file
from sentence_transformers.base.modules import Dense, Normalize, Transformer
from sentence_transformers.cross_encoder.modules import LogitScore
from sentence_transformers.sentence_transformer.modules import Dropout, LayerNorm, Pooling
from torch import Tensor

from rayswift.config.schema import TrainingConfig
from rayswift.log import UserError
from rayswift.model.texts.sentence_files import SETTINGS, SentenceFiles, activation_of, read_for
from rayswift.model.texts.settings import MODES, default_length

_CLASSES: dict[str, Any] = {
    "Pooling": Pooling,
    "Dense": Dense,
    "LayerNorm": LayerNorm,
    "Normalize": Normalize,
    "Dropout": Dropout,
}
_SIGMOID = "torch.nn.modules.activation.Sigmoid"


@dataclass(frozen=True)
class Placed:
    """A module after the model, and its folder within the model's."""

    module: torch.nn.Module
    path: str


def modules_of(config: TrainingConfig, folder: Path, hidden_size: int) -> list[Placed]:
    """The modules that turn hidden states into an embedding: those of the folder, with the changes of the config."""
    files, model = read_for(folder, "SentenceTransformer"), config.model
    mode = MODES.get(model.pooling, model.pooling)
    if files is None:
        modules: list[Any] = [Pooling(hidden_size, mode), *([Normalize()] if model.normalize else [])]
        return [Placed(module, _path(number, module)) for number, module in enumerate(modules, start=1)]
    placed = []
    for each in files.modules:
        if each.kind == "Normalize" and model.normalize is False:
            continue
        module = _CLASSES[each.kind].load(str(folder), subfolder=each.path, local_files_only=True)
        if isinstance(module, Pooling) and model.pooling != "auto":
            module = Pooling(module.embedding_dimension, mode, module.include_prompt)
        placed.append(Placed(module, each.path))
    if model.normalize and not files.normalizes:
        placed.append(Placed(Normalize(), _path(len(files.modules) + 1, Normalize())))
    return placed


def prompts_of(config: TrainingConfig, folder: Path) -> tuple[str, str]:
    """The prompts before a query and before a document, for rows without their own."""
    files = read_for(folder, "SentenceTransformer")
    query, document = files.prompts if files else ("", "")
    return (query if config.data.system is None else config.data.system), document


def prompt_length(tokenizer: Any, prompt: str) -> int:
    """Number of a text's first tokens that belong to the prompt, special tokens before it included."""
    if not prompt:
        return 0
    ids = tokenizer(prompt)["input_ids"]
    return len(ids) - (ids[-1] in tokenizer.all_special_ids)


def load_weights(modules: Sequence[Placed], folder: Path) -> None:
    """Load the modules' weights from a checkpoint; raise UserError if it has none."""
    for each in modules:
        if any(True for _ in each.module.parameters()):
            if not (folder / each.path).is_dir():
                raise UserError(f"{folder} has no folder {each.path}, with which the model was trained", exit_code=1)
            saved = _CLASSES[type(each.module).__name__].load(str(folder), subfolder=each.path, local_files_only=True)
            each.module.load_state_dict(saved.state_dict())


def write_embedding(
    folder: Path, config: TrainingConfig, source: Path, modules: Sequence[Placed], weights: Mapping[str, Tensor]
) -> None:
    """Write the files of a `SentenceTransformer` into a checkpoint, so that it embeds texts as in training.

    `encode_query` puts `data.system`, or the folder's own prompt, before the text.

    Args:
        folder: The checkpoint.
        config: Of the run.
        source: Folder of the initial model.
        modules: The modules after the model.
        weights: Theirs, as `NUMBER.NAME`, from 0.
    """
    files = read_for(source, "SentenceTransformer")
    settings: dict[str, Any] = {
        "prompts": {"query": "", "document": ""},
        "default_prompt_name": None,
        "similarity_fn_name": "cosine",
    }
    settings |= dict(files.settings) if files else {}
    if config.data.system is not None:
        settings["prompts"] = {**settings["prompts"], "query": config.data.system}
    output = {"method": "forward", "method_output_name": "last_hidden_state"}
    _write_transformer(folder, "feature-extraction", output, "token_embeddings", config, source, files)
    _write_modules(folder, "SentenceTransformer", modules, settings, weights)


def write_reranker(folder: Path, config: TrainingConfig, source: Path, answers: tuple[int, int] | None) -> None:
    """Write the files of a `CrossEncoder` into a checkpoint, so that it scores (query, document) as in training.

    source: folder of the initial model; answers: token ids of a generative reranker's positive and negative answers,
    None for a model with a head of one output.
    """
    files = read_for(source, "CrossEncoder") if answers is None else None
    file = folder / "config.json"  # an adapter has none
    named = activation_of(json.loads(file.read_text(encoding="utf-8"))) if file.exists() else None
    settings: dict[str, Any] = {"prompts": {}, "default_prompt_name": None, "activation_fn": named or _SIGMOID}
    settings |= dict(files.settings) if files else {}
    if config.data.system is not None:
        name = settings["default_prompt_name"] or "default"
        prompts = {**settings["prompts"], name: config.data.system} if config.data.system else {}
        settings |= {"prompts": prompts, "default_prompt_name": name if prompts else None}
    output = {"method": "forward", "method_output_name": "logits"}
    task, name = ("sequence-classification", "scores") if answers is None else ("text-generation", "causal_logits")
    _write_transformer(folder, task, output, name, config, source, files, asks=answers is not None)
    behind = [] if answers is None else [LogitScore(*answers)]
    _write_modules(folder, "CrossEncoder", [Placed(module, _path(1, module)) for module in behind], settings, {})


def _write_transformer(
    folder: Path,
    task: str,
    output: dict[str, str],
    name: str,
    config: TrainingConfig,
    source: Path,
    files: SentenceFiles | None,
    *,
    asks: bool = False,
) -> None:
    """Write the settings of the model itself; modality `message` renders every text with the chat template."""
    chat = config.data.use_chat_template
    modalities: dict[str, Any] = {"text": output} | ({"message": {**output, "format": "flat"}} if chat else {})
    settings: dict[str, Any] = dict(files.transformer) if files else {}
    settings |= {"transformer_task": task, "modality_config": modalities, "module_output_name": name}
    if asks:
        settings["processing_kwargs"] = {"chat_template": {"add_generation_prompt": True}}
    if not chat and config.data.max_length != default_length(config, source):
        settings["max_seq_length"] = config.data.max_length
    _write(folder / Transformer.config_file_name, settings)


def _write_modules(
    folder: Path, kind: str, modules: Sequence[Placed], settings: dict[str, Any], weights: Mapping[str, Tensor]
) -> None:
    listed = [{"idx": 0, "name": "0", "path": "", "type": _name(Transformer)}]
    for number, each in enumerate(modules, start=1):
        (folder / each.path).mkdir(exist_ok=True)
        prefix = f"{number - 1}."
        own = {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}
        _write_module(each.module, folder / each.path, own)
        listed.append({"idx": number, "name": str(number), "path": each.path, "type": _name(type(each.module))})
    _write(folder / "modules.json", listed)
    versions = {"sentence_transformers": sentence_transformers.__version__}
    _write(folder / SETTINGS, {**settings, "model_type": kind, "__version__": versions})


def _write_module(module: Any, folder: Path, weights: Mapping[str, Tensor]) -> None:
    """Write a module as its own `save` does, with the weights given."""
    if not weights:
        module.save(str(folder))
        return
    module.save_config(str(folder))
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, folder / "model.safetensors")


def _path(number: int, module: torch.nn.Module) -> str:
    return f"{number}_{type(module).__name__}"


def _name(module: type) -> str:
    return f"{module.__module__}.{module.__name__}"


def _write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2), encoding="utf-8")
