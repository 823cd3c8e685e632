"""Checks of the adapter folders that a run starts from; pure, without torch."""

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
        problem = misfit(adapter_folder(name), Path(model.path))
        found += [f"model.adapters: {problem}"] if problem else []
    if model.adapters and not found:
        folder = adapter_folder(model.adapters[-1])
        kind = str(json.loads((folder / _CONFIG).read_text(encoding="utf-8")).get("peft_type", "LORA")).lower()
        if kind != model.tuner:
            found.append(f"model.adapters: {folder} is of kind {kind}; set model.tuner {kind} to continue its training")
    return found


def misfit(adapter: Path, weights: Path) -> str:
    """The first LoRA matrix whose shape does not fit its base weights, if both are local; empty: all fit."""
    shapes: dict[str, list[int]] = {}
    for file in weights.glob("*.safetensors"):
        shapes |= {name: tensor["shape"] for name, tensor in read_header(file).items() if tensor["dtype"] in _PLAIN}
    for file in adapter.glob("adapter_model.safetensors"):
        for name, tensor in read_header(file).items():
            module, _, matrix = name.removeprefix("base_model.model.").rpartition(".lora_")
            own, below = tensor["shape"], shapes.get(f"{module}.weight")
            # A is [rank, in] and B is [out, rank]; GPT-2 stores weights transposed.
            side = {"A.weight": own[-1], "B.weight": own[0]}.get(matrix)
            if below and side is not None and side not in below:
                return f"{adapter} does not fit the model {weights}: its {module} is {own}, the model's {below}"
    return ""
