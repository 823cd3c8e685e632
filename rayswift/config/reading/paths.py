"""Paths of a config, made absolute once: actors of a run begin in folders of their own, on machines of their own.

Not in a submitted job: Ray unpacks its working folder on every node, perhaps under another path, and each process of
the job begins in its node's copy; there relative paths are right as they are.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from rayswift.config.schema import TrainingConfig

# A model's folder, or a hub id; other weights and settings that workers and engines load.
_FOR_WORKERS = (
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
# What the coordinator of rollouts and its helpers load, and data tasks.
_FOR_REWARDS = (
    "rollout.reward_funcs",
    "rollout.reward_models",
    "rollout.tools",
    "rollout.environment",
    "data.map",
)
# What of these is `file.py:name`, or else no path.
_CODE = ("rollout.tools", "rollout.environment")
_PACKAGES = "working_dir_files"
ConfigT = TypeVar("ConfigT", bound=TrainingConfig)


def in_a_jobs_folder(folder: Path) -> bool:
    """Whether it is where Ray unpacks `ray job submit --working-dir`."""
    return _PACKAGES in folder.parts


def absolute(config: ConfigT, folder: Path) -> ConfigT:
    """The config with every path that names something in `folder` made absolute; hub ids and names stay."""
    if in_a_jobs_folder(folder):
        return config

    def made(written: str) -> str:
        found = _place(written)
        return str(folder / found) + written[len(found) :] if (folder / found).exists() else written

    def made_code(written: str) -> str:
        return made(written) if _place(written) != written else written  # else a name, whatever lies in the folder

    changed: dict[str, dict[str, Any]] = {}
    for name in (*_FOR_WORKERS, *_FOR_REWARDS):
        section, _, field = name.partition(".")
        value = _value(config, name)
        if value:
            each = made_code if name in _CODE else made
            changed.setdefault(section, {})[field] = each(value) if isinstance(value, str) else [*map(each, value)]
    kwargs = _value(config, "rollout.reward_kwargs")
    if kwargs:  # may be written under the function's whole name
        changed.setdefault("rollout", {})["reward_kwargs"] = {made(name): given for name, given in kwargs.items()}
    sections = {name: _section(config, name).model_copy(update=fields) for name, fields in changed.items()}
    return config.model_copy(update=sections)


def needed(config: TrainingConfig, folder: Path) -> dict[str, Path]:
    """Files and folders here that train workers and engines open, by `field = 'value'`; relative ones in a job."""
    return dict(_found(config, folder, _FOR_WORKERS))


def needed_by_rewards(config: TrainingConfig, folder: Path) -> dict[str, Path]:
    """The same for reward functions and models, and for what data tasks load."""
    return dict(_found(config, folder, _FOR_REWARDS))


def _found(config: TrainingConfig, folder: Path, names: tuple[str, ...]) -> Iterator[tuple[str, Path]]:
    for name in names:
        value = _value(config, name)
        for written in [value] if isinstance(value, str) else value or ():
            place = _place(written)
            if name in _CODE and place == written:
                continue
            if (folder / place).exists():
                yield f"{name} = {written!r}", Path(place)


def _place(written: str) -> str:
    """The file of `file.py:name`; anything else is a path as it stands."""
    file, colon, _ = written.rpartition(":")
    return file if colon and file.endswith(".py") else written


def _value(config: TrainingConfig, name: str) -> Any:
    section, _, field = name.partition(".")
    found = _section(config, section)
    return dict(found).get(field) if found is not None else None


def _section(config: TrainingConfig, name: str) -> Any:
    return dict(config).get(name)
