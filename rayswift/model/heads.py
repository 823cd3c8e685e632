"""The heads of models: the class that loads each, and its fields in the config."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedConfig

from rayswift.config.derived import problem_type
from rayswift.config.model import ModelConfig
from rayswift.config.tasks import Head
from rayswift.log import UserError
from rayswift.model.adapters import PEFT_TASK_TYPES
from rayswift.model.size.parameters import read_header

# File beside an adapter with a classification head: the meaning of its outputs.
_SETTINGS = "head_config.json"
# Names of the last layer of a classification head.
_LAST_LAYERS = ("score.weight", "classifier.weight", "out_proj.weight")

CLASSES: dict[Head, Any] = {
    "causal_lm": AutoModelForCausalLM,
    "reward": AutoModelForSequenceClassification,
    "classes": AutoModelForSequenceClassification,
    "none": AutoModel,
}


def settings(model: ModelConfig, head: Head) -> dict[str, Any]:
    """Fields of `config.json` that the head needs."""
    if head == "classes":
        kind = {"problem_type": problem_type(model)}
        if model.label_names:
            names = dict(enumerate(model.label_names))
            return kind | {"id2label": names, "label2id": {name: number for number, name in names.items()}}
        return kind | ({"num_labels": model.num_labels} if model.num_labels else {})
    return {"num_labels": 1} if head == "reward" else {}


def write_settings(folder: Path, config: PreTrainedConfig) -> None:
    """Write the labels of a classification head beside an adapter."""
    labels = {str(number): name for number, name in config.id2label.items()}
    said = {"problem_type": config.problem_type, "id2label": labels, "label2id": config.label2id}
    (folder / _SETTINGS).write_text(json.dumps(said, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def class_of_adapter(adapter: Mapping[str, Any], folder: Path) -> tuple[Any, dict[str, Any]]:
    """The class of an adapter's base model, and the fields of its head that the base's `config.json` lacks.

    Raises:
        UserError: the adapter is of a task of neither text nor scores nor embeddings.
    """
    task, own = adapter.get("task_type"), (adapter.get("auto_mapping") or {}).get("base_model_class")
    if task is None and own is not None and hasattr(transformers, own):  # PEFT's record of an adapter without a task
        return getattr(transformers, own), _outputs(folder) if "SequenceClassification" in own else {}
    found: list[Head] = [head for head, kind in PEFT_TASK_TYPES.items() if kind == task]
    if task is not None and not found:
        raise UserError(
            f"{folder} is an adapter of {task}; those of {', '.join(dict.fromkeys(PEFT_TASK_TYPES.values()))} are known"
        )
    head = found[0] if found else "causal_lm"
    if PEFT_TASK_TYPES[head] != "SEQ_CLS":
        return CLASSES[head], {}
    if (folder / _SETTINGS).exists():
        said = json.loads((folder / _SETTINGS).read_text(encoding="utf-8"))
        return CLASSES[head], said | {"id2label": {int(number): name for number, name in said["id2label"].items()}}
    return CLASSES[head], _outputs(folder)


def _outputs(folder: Path) -> dict[str, int]:
    """The number of outputs of the head in an adapter."""
    file = folder / "adapter_model.safetensors"
    if file.exists():
        shapes = {name: tensor["shape"] for name, tensor in read_header(file).items()}
    else:
        tensors = torch.load(folder / "adapter_model.bin", map_location="meta", weights_only=True)
        shapes = {name: list(tensor.shape) for name, tensor in tensors.items()}
    rows = [shape[0] for name, shape in shapes.items() if name.endswith(_LAST_LAYERS)]
    return {"num_labels": rows[0]} if rows else {}
