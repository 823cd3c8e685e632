"""Adapter folders: whether they can be used, and their settings; pure, without torch."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from rayswift.config.fields.tuners import lora_fields
from rayswift.config.model import ModelConfig, RlhfModelConfig, adapters_of_reference, named_reference
from rayswift.config.schema import TrainingConfig
from rayswift.config.tasks import Head
from rayswift.log import UserError, logger
from rayswift.model.kind.kinds import read_config
from rayswift.model.size.parameters import BY_NAME, read_header
from rayswift.run.checkpoint import model_folder

_CONFIG = "adapter_config.json"
_PLAIN = ("F32", "F16", "BF16")
_HEADS = {"classifier", "score"}
PEFT_TASK_TYPES: dict[Head, str] = {
    "causal_lm": "CAUSAL_LM",
    "reward": "SEQ_CLS",
    "classes": "SEQ_CLS",
    "none": "FEATURE_EXTRACTION",
}
"""PEFT's name for the task of an adapter on a model with this head."""
ConfigT = TypeVar("ConfigT", bound=TrainingConfig)


def adapter_folder(name: str, field: str = "model.adapters") -> Path:
    """The adapter's folder: as named, or the result of a run folder; raise UserError if there is none."""
    folder = Path(name)
    if not folder.is_dir():
        raise UserError(f"{field}: {name!r} is not a folder here; give an adapter's folder or a run folder")
    return folder if (folder / _CONFIG).exists() else model_folder(folder)


def adapter_problems(model: ModelConfig, head: Head = "causal_lm") -> list[str]:
    """One line for each adapter of the model, its reference or its teacher that cannot be used.

    head: that of the trained model.
    """
    found = folder_problems("model.adapters", model.adapters, Path(model.path))
    if model.adapters and not found:
        folder = adapter_folder(model.adapters[-1])
        new = new_tokens(folder, Path(model.path))
        found += [f"model.adapters: {new}"] if new else []
        other = _other_task(_saved_config(folder), head)
        found += [f"model.adapters: {folder} {other}"] if other else []
        kind = str(_saved_config(folder).get("peft_type", "LORA")).lower()
        if kind != model.tuner:
            found.append(f"model.adapters: {folder} is of kind {kind}; set model.tuner {kind} to continue its training")
    if named := named_reference(model):
        found += folder_problems("model.reference_adapters", adapters_of_reference(model), Path(named))
    if isinstance(model, RlhfModelConfig) and model.teacher:
        found += folder_problems("model.teacher_adapters", model.teacher_adapters, Path(model.teacher))
    return found


def settled(config: ConfigT) -> ConfigT:
    """The config with the settings of the LoRA that training continues: those of its folder, whatever `model` says.

    A line names the fields that change. A folder that cannot be used changes none: see `adapter_problems`.
    """
    model = config.model
    if not model.adapters or model.tuner != "lora":
        return config
    try:
        folder = adapter_folder(model.adapters[-1])
        saved = _saved_config(folder)
    except (UserError, OSError, ValueError):
        return config
    changed = {name: value for name, value in lora_fields(saved).items() if getattr(model, name) != value}
    if changed:
        fields = ", ".join(f"model.{name} = {value}" for name, value in changed.items())
        logger.info("training continues the adapter %s as it is: %s", folder, fields)
    return config.model_copy(update={"model": model.model_copy(update=changed)}) if changed else config


def folder_problems(field: str, names: Sequence[str], weights: Path) -> list[str]:
    """Why the adapters that a field names cannot be put onto the model in the folder `weights`, a line each."""
    found = []
    for name in names:
        try:
            folder = adapter_folder(name, field)
        except UserError as error:
            found.append(str(error))
            continue
        if not (folder / _CONFIG).exists():
            found.append(f"{field}: {folder} holds no {_CONFIG}, so it is not an adapter")
        elif not any(folder.glob("adapter_model.*")):
            found.append(f"{field}: {folder} holds no weights (adapter_model.safetensors)")
        elif problem := misfit(folder, weights):
            found.append(f"{field}: {problem}")
    return found


def target_problem(model: ModelConfig, modules: Sequence[str], matrices: Sequence[str]) -> str:
    """Why a new adapter cannot be made: a field names no module of the model; empty: each does.

    modules: full names of all modules; matrices: of those that can be adapted.
    """
    if model.target_regex and not any(re.fullmatch(model.target_regex, name) for name in modules):
        example = min(matrices, key=lambda name: ("layer" not in name, name), default="")
        return (
            f"model.target_regex = {model.target_regex!r} matches no module of the model; whole names look like "
            f"{example}"
        )
    lists = {"model.target_modules": [] if model.target_regex else model.target_modules}
    lists["model.modules_to_save"] = model.modules_to_save
    for field, wanted in lists.items():
        missing = [
            name for name in wanted if name != "all-linear" and not any(f".{n}".endswith(f".{name}") for n in modules)
        ]
        if missing:
            known = sorted({name.rpartition(".")[2] for name in matrices})
            return f"{field}: the model has no module {', '.join(missing)}; it has {', '.join(known)}"
    return ""


def misfit(adapter: Path, weights: Path) -> str:
    """The first tensor of an adapter that does not fit its base weights, if both are local; empty: all fit."""
    family = read_config(weights).get("model_type")
    shapes: dict[str, list[int]] = {}
    for file in weights.glob("*.safetensors"):
        shapes |= {name: tensor["shape"] for name, tensor in read_header(file).items() if tensor["dtype"] in _PLAIN}
    modules = {name.removeprefix("model.").rpartition(".")[0] for name in shapes}
    for name, own in _tensors(adapter).items():
        module, _, matrix = name.rpartition(".lora_")
        below = shapes.get(f"{module}.weight")
        # A is [rank, in] and B is [out, rank]; GPT-2 stores weights transposed.
        side = {"A.weight": own[-1:], "B.weight": own[:1]}.get(matrix)
        if below and side and side[0] not in below:
            return f"{adapter} does not fit the model {weights}: its {module} is {own}, the model's {below}"
        inner = module.removeprefix("model.")
        if side and family in BY_NAME and modules and inner not in modules and ".layers." in f".{inner}":
            return f"{adapter} does not fit the model {weights}, which has no {module}"
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


def _other_task(saved: Mapping[str, Any], head: Head) -> str:
    """Why an adapter with these settings cannot be trained further under this head; empty: it can."""
    own, wanted = saved.get("task_type"), PEFT_TASK_TYPES[head]
    has_head = own == "SEQ_CLS" or bool(_HEADS & {*(saved.get("modules_to_save") or ())})
    if own in (None, wanted) and (has_head or wanted != "SEQ_CLS"):
        return ""
    merge = "merge it with rayswift export --merge_lora, and train the result"
    remedy = "name another one" if own == "SEQ_CLS" else merge
    return f"is an adapter of {own or 'no task'}, and this task continues one of {wanted}; {remedy}"


def served_config(folder: Path) -> dict[str, Any]:
    """PEFT's config of an adapter; it also names embeddings that PEFT saved whole because they have grown."""
    layers = sorted({name.rpartition(".")[0] for name in saved_shapes(folder)})
    return _saved_config(folder) | ({"modules_to_save": layers} if layers else {})


def _saved_config(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / _CONFIG).read_text(encoding="utf-8")))


def saved_shapes(folder: Path) -> dict[str, list[int]]:
    """Shapes of the whole layers in an adapter's safetensors file (`modules_to_save`), by their names in the model."""
    found = _tensors(folder).items()
    return {name: shape for name, shape in found if name.endswith((".weight", ".bias")) and ".lora_" not in name}


def _tensors(folder: Path) -> dict[str, list[int]]:
    """Shapes in an adapter's safetensors file, by names in the model."""
    files = [read_header(file) for file in folder.glob("adapter_model.safetensors")]
    return {name.removeprefix("base_model.model."): each["shape"] for file in files for name, each in file.items()}
