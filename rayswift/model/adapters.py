"""Checks of adapter folders; pure, without torch."""

import json
from pathlib import Path

from rayswift.config.model import ModelConfig
from rayswift.log import UserError
from rayswift.model.size.parameters import read_header
from rayswift.run.checkpoint import model_folder

_CONFIG = "adapter_config.json"
_PLAIN = ("F32", "F16", "BF16")


def adapter_folder(name: str) -> Path:
    """The adapter's folder: as named, or the result of a run folder; raise UserError if there is none."""
    folder = Path(name)
    if not folder.is_dir():
        raise UserError(f"model.adapters: {name!r} is not a folder here; give an adapter's folder or a run folder")
    return folder if (folder / _CONFIG).exists() else model_folder(folder)


def adapter_problems(model: ModelConfig) -> list[str]:
    """One line for each of `model.adapters` that cannot be used."""
    found = []
    for name in model.adapters:
        try:
            folder = adapter_folder(name)
        except UserError as error:
            found.append(str(error))
            continue
        if not (folder / _CONFIG).exists():
            found.append(f"model.adapters: {folder} holds no {_CONFIG}, so it is not an adapter")
        elif not any(folder.glob("adapter_model.*")):
            found.append(f"model.adapters: {folder} holds no weights (adapter_model.safetensors)")
    for name in model.adapters if not found else ():
        problem = misfit(adapter_folder(name), Path(model.path)) or new_tokens(adapter_folder(name), Path(model.path))
        found += [f"model.adapters: {problem}"] if problem else []
    if model.adapters and not found:
        folder = adapter_folder(model.adapters[-1])
        kind = str(json.loads((folder / _CONFIG).read_text(encoding="utf-8")).get("peft_type", "LORA")).lower()
        if kind != model.tuner:
            found.append(f"model.adapters: {folder} is of kind {kind}; set model.tuner {kind} to train it on")
    return found


def misfit(adapter: Path, weights: Path) -> str:
    """The first tensor of an adapter that does not fit its base weights, if both are local; empty: all fit."""
    shapes: dict[str, list[int]] = {}
    for file in weights.glob("*.safetensors"):
        shapes |= {name: tensor["shape"] for name, tensor in read_header(file).items() if tensor["dtype"] in _PLAIN}
    for name, own in _tensors(adapter).items():
        module, _, matrix = name.rpartition(".lora_")
        below = shapes.get(f"{module}.weight")
        # A is [rank, in] and B is [out, rank]; GPT-2 stores weights transposed.
        side = {"A.weight": own[-1:], "B.weight": own[:1]}.get(matrix)
        if below and side and side[0] not in below:
            return f"{adapter} does not fit the model {weights}: its {module} is {own}, the model's {below}"
    return ""


def new_tokens(adapter: Path, weights: Path) -> str:
    """Why an adapter cannot be trained further: it holds rows of tokens that its base has not; empty: it holds none."""
    for file in weights.glob("*.safetensors"):
        for name, tensor in read_header(file).items():
            below, own = tensor["shape"], saved_shapes(adapter).get(name, tensor["shape"])
            if len(below) == 2 and own[0] > below[0] and own[1] == below[1]:
                return (
                    f"{adapter} holds {own[0]} rows of {name}, the model {weights} has {below[0]}; merge it with "
                    "rayswift export --merge_lora, and train the result"
                )
    return ""


def saved_shapes(folder: Path) -> dict[str, list[int]]:
    """Shapes of the whole layers in an adapter's safetensors file (`modules_to_save`), by their names in the model."""
    return {name: shape for name, shape in _tensors(folder).items() if name.endswith((".weight", ".bias"))}


def _tensors(folder: Path) -> dict[str, list[int]]:
    """Shapes in an adapter's safetensors file, by names in the model."""
    files = [read_header(file) for file in folder.glob("adapter_model.safetensors")]
    return {name.removeprefix("base_model.model."): each["shape"] for file in files for name, each in file.items()}
