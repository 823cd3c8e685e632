"""Python code that a config names as `module:name` or `file.py:name`, and its import.

A file is found from the working directory, a module there or on Python's path; every node must have it, on shared
storage or in the working directory of a submitted job.
"""

import difflib
import hashlib
import importlib
import importlib.util
import inspect
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any

from rayswift.config.reading import other_modules
from rayswift.config.swift import plugin_modules
from rayswift.config.train import TrainConfig
from rayswift.log import UserError

_REGISTRIES = {"rollout.reward_funcs": "orms", "rollout.reward_model_plugins": "rm_plugins"}
"""Where plugins of ms-swift register what a field names, often under another name than that of the class."""
Named = tuple[str, str]
"""A config field and what the user wrote in it."""


def load(field: str, name: str) -> Any:
    """Import the object of a name; for a plugin, its module.

    Raises:
        UserError: no such file, module or attribute, or its import fails.
    """
    place, attribute = split(field, name)
    module = _import(field, name, place)
    registered = plugin_modules.registry(_REGISTRIES[field]) if field in _REGISTRIES else {}
    if attribute in registered and attribute not in vars(module):
        return registered[attribute]
    value: Any = module
    for part in attribute.split(".") if attribute else []:
        if part not in dir(value):
            known = sorted(key for key in vars(module) if not key.startswith("_"))
            close = difflib.get_close_matches(attribute, known, 1)
            fix = f"did you mean {close[0]}?" if close else f"it has {', '.join(known[:10]) or 'no name at all'}"
            raise UserError(f"{field} = {name!r}: {place} has no `{attribute}`; {fix}")
        value = getattr(value, part)
    return value


def split(field: str, name: str) -> tuple[str, str]:
    """Split a name into the file or module, and the name in it.

    Raises:
        UserError: the name has another form.
    """
    if field == "train.plugins" or (field == "rollout.tools" and name.endswith(".py")):
        return name, ""
    place, colon, attribute = name.rpartition(":")
    if not (colon and place and attribute):
        raise UserError(f"{field} = {name!r} wants module:name or file.py:name")
    return place, attribute


def _import(field: str, name: str, place: str) -> ModuleType:
    plugin_modules.install()
    other_modules.install()
    key, file = place, Path(place)
    if place.endswith(".py"):
        if not file.is_file():
            raise UserError(f"{field} = {name!r}: no file {place} in {Path.cwd()}")
        # A unique module name: user files are often called metrics.py or loss.py.
        key = f"{file.stem}_{hashlib.sha256(str(file.resolve()).encode()).hexdigest()[:8]}"
    folder = str(file.resolve().parent if place.endswith(".py") else Path.cwd())
    if folder not in sys.path:
        sys.path.append(folder)  # at the end: a user's folder `datasets/` must not hide the library
    try:
        if key in sys.modules or not place.endswith(".py"):
            return importlib.import_module(key)
        return _import_file(key, file)
    except (Exception, SystemExit) as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        at = f" ({Path(where.filename).name}:{where.lineno})" if not isinstance(error, ModuleNotFoundError) else ""
        why = f"{type(error).__name__}: {error}{at}" + "".join(
            f"; {each}" for each in [plugin_modules.remark()] if each
        )
        raise UserError(f"{field} = {name!r} cannot be imported: {why}") from error


def _import_file(key: str, file: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(key, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[key] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[key]
        raise
    return module


def file_of(field: str, name: str) -> Path | None:
    """The file of a name; None: the module is not imported, or has no file."""
    place, _ = split(field, name)
    if place.endswith(".py"):
        return Path(place).resolve()
    module = sys.modules.get(place)
    return Path(module.__file__).resolve() if module and module.__file__ else None


def takes(value: Any, positional: tuple[str, ...], keywords: tuple[str, ...]) -> bool:
    """Whether something can be called with such arguments, as far as its signature shows."""
    try:
        inspect.signature(value).bind(*positional, **dict.fromkeys(keywords))
    except TypeError:
        return False
    except ValueError:  # a builtin without a signature
        return True
    return True


def import_plugins(train: TrainConfig) -> None:
    """Import every plugin, in order.

    Raises:
        UserError: no such file or module, or its import fails.
    """
    for plugin in train.plugins:
        load("train.plugins", plugin)


def make_callback(name: str) -> Any:
    """The callback of a name: an instance as it is, a class or a function called without arguments.

    Raises:
        UserError: the result is not a `transformers.TrainerCallback`.
    """
    from transformers import TrainerCallback

    value = load("train.callbacks", name)
    made = value() if callable(value) and not isinstance(value, TrainerCallback) else value
    if not isinstance(made, TrainerCallback):
        raise UserError(f"train.callbacks = {name!r} gives a {type(made).__name__}, wanted a TrainerCallback")
    return made
