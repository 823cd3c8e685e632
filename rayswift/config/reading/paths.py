"""Makes the paths of a config absolute once, because actors have other working folders.

Not in a submitted job: each of its processes starts in its node's copy of the working folder, perhaps under another
path, so relative paths are right.
"""

import json
from pathlib import Path
from typing import Any, TypeVar

from rayswift.config.schema import TrainingConfig

# Fields with files that train workers and engines load.
FOR_WORKERS = (
    "model.path",
    "model.adapters",
    "model.reference",
    "model.reference_adapters",
    "model.teacher",
    "model.teacher_adapters",
    "model.chat_template",
    "model.new_special_tokens",
    "cluster.deepspeed",
    "train.plugins",
    "train.callbacks",
    "train.metrics",
    "train.loss",
)
# Fields with files that the coordinator of rollouts, its helpers and data tasks load.
FOR_REWARDS = (
    "rollout.reward_funcs",
    "rollout.reward_models",
    "rollout.reward_model_plugins",
    "rollout.tools",
    "rollout.environment",
    "data.map",
)
# Those of them with `file.py:name`, or a name instead of a path.
_CODE = ("rollout.tools", "rollout.environment")
_PACKAGES = "working_dir_files"
ConfigT = TypeVar("ConfigT", bound=TrainingConfig)


def in_a_jobs_folder(folder: Path) -> bool:
    """Whether Ray has unpacked the folder of `ray job submit --working-dir` here."""
    return _PACKAGES in folder.parts


def first_module(folder: Path) -> Path:
    """The folder of the model within one of sentence-transformers: the folder itself, or in the old layout the
    subfolder that `modules.json` names (`0_Transformer`)."""
    try:
        found = folder / json.loads((folder / "modules.json").read_text(encoding="utf-8"))[0]["path"]
    except (OSError, ValueError, LookupError, TypeError):
        return folder  # it is read again where its settings are used
    return found if (found / "config.json").exists() else folder


def at_first_module(config: Any) -> Any:
    """The config with the model of a local folder in its subfolder, if it is there, see `first_module`."""
    model = dict(config).get("model")
    if model is None or (found := first_module(Path(model.path))) == Path(model.path):
        return config
    return config.model_copy(update={"model": model.model_copy(update={"path": str(found)})})


def absolute(config: ConfigT, folder: Path) -> ConfigT:
    """The config with absolute paths for all files that exist in `folder`; hub ids and names stay."""
    if in_a_jobs_folder(folder):
        return config

    def made(written: str) -> str:
        found = _place(written)
        return str(folder / found) + written[len(found) :] if (folder / found).exists() else written

    def made_code(written: str) -> str:
        return made(written) if _is_file(written) else written  # else it is a name, even if the folder has such a file

    changed: dict[str, dict[str, Any]] = {}
    for name in (*FOR_WORKERS, *FOR_REWARDS):
        section, _, field = name.partition(".")
        value = _value(config, name)
        if value:
            each = made_code if name in _CODE else made
            changed.setdefault(section, {})[field] = each(value) if isinstance(value, str) else [*map(each, value)]
    kwargs = _value(config, "rollout.reward_kwargs")
    if kwargs:  # keys may be names of functions in files
        changed.setdefault("rollout", {})["reward_kwargs"] = {made(name): given for name, given in kwargs.items()}
    sections = {name: dict(config)[name].model_copy(update=fields) for name, fields in changed.items()}
    return config.model_copy(update=sections)


def needed(config: TrainingConfig, folder: Path, names: tuple[str, ...]) -> dict[str, Path]:
    """`field = 'value'` -> file or folder, for those of these fields that exist; in a job, paths are relative."""
    found = {}
    for name in names:
        value = _value(config, name)
        for written in [value] if isinstance(value, str) else value or ():
            place = _place(written)
            if name in _CODE and not _is_file(written):
                continue
            if (folder / place).exists():
                found[f"{name} = {written!r}"] = Path(place)
    return found


def _place(written: str) -> str:
    """The file of `file.py:name`, or the path itself."""
    file, colon, _ = written.rpartition(":")
    return file if colon and file.endswith(".py") else written


def _is_file(written: str) -> bool:
    """Whether code is in a file: `file.py:name`, or all of `file.py`."""
    return _place(written).endswith(".py")


def _value(config: TrainingConfig, name: str) -> Any:
    section, _, field = name.partition(".")
    return dict(dict(config).get(section, ())).get(field)
