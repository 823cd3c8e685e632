"""The user's own code, named in the config as `module:name` or `file.py:name`, and whose fault an error is.

A file is found from the working directory, a module there or on Python's path; every node must have it, on shared
storage or in the working directory of a submitted job. See README.md in this folder for what each kind is called with.
"""

import difflib
import hashlib
import importlib
import importlib.util
import inspect
import json
import subprocess
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any

from rayswift.config.schema import TrainConfig
from rayswift.log import UserError

_CHECK_TIMEOUT_S = 300
# How each kind is called, as positional and keyword names; plugins are only imported.
_CALLS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "train.metrics": (("batch",), ()),
    "train.loss": (("outputs", "labels"), ("num_items_in_batch",)),
}

# Trackers of `transformers`, and the package that each needs.
_TRACKERS = {
    "clearml": "clearml",
    "comet_ml": "comet_ml",
    "mlflow": "mlflow",
    "swanlab": "swanlab",
    "tensorboard": "tensorboard",
    "trackio": "trackio",
    "wandb": "wandb",
}

Named = tuple[str, str]
"""A config field and what the user wrote in it."""


def named_in(train: TrainConfig) -> list[Named]:
    """All code of the user's own that a run uses, plugins first."""
    lists = {"train.plugins": train.plugins, "train.callbacks": train.callbacks, "train.metrics": train.metrics}
    found = [(field, name) for field, names in lists.items() for name in names]
    return found + ([("train.loss", train.loss)] if train.loss else [])


def check(train: TrainConfig) -> None:
    """Import everything that is named, in a process of its own: the driver stays without torch.

    Raises:
        UserError: a line for each name that cannot be used, and each tracker that is not installed.
    """
    problems = [
        f"train.report_to = {name}: the package {_TRACKERS[name]} is not installed; install it, or leave {name} out"
        for name in train.report_to
        if name in _TRACKERS and importlib.util.find_spec(_TRACKERS[name]) is None
    ]
    named = named_in(train)
    if named:
        problems += _problems_of(named)
    if problems:
        raise UserError("\n".join(problems))


def _problems_of(named: list[Named]) -> list[str]:
    code = "from rayswift.train import user_code; user_code.print_problems()"
    try:
        done = subprocess.run(
            [sys.executable, "-c", code],
            input=json.dumps(named),
            capture_output=True,
            text=True,
            timeout=_CHECK_TIMEOUT_S,
        )
    except subprocess.TimeoutExpired as error:
        names = ", ".join(f"{field} = {name!r}" for field, name in named)
        raise UserError(f"{names}: importing it took more than {_CHECK_TIMEOUT_S} s") from error
    try:
        problems: list[str] = json.loads(done.stdout.splitlines()[-1])
        return problems
    except (IndexError, json.JSONDecodeError) as error:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        names = ", ".join(name for _, name in named)
        raise UserError(f"importing {names} ended the process with exit code {done.returncode}: {last}") from error


def print_problems() -> None:
    """The child's half of `check`: names from stdin, the problems as the last line of stdout."""
    problems = []
    for field, name in json.loads(sys.stdin.read()):
        try:
            _check_kind(field, name, load(field, name))
        except UserError as error:
            problems.append(str(error))
    print("\n" + json.dumps(problems))  # noqa: T201


def load(field: str, name: str) -> Any:
    """What a name stands for; for a plugin, its module.

    Raises:
        UserError: no such file, module or attribute, or its import fails.
    """
    place, attribute = _split(field, name)
    module = _import(field, name, place)
    value: Any = module
    for part in attribute.split(".") if attribute else []:
        if part not in dir(value):
            known = sorted(key for key in vars(module) if not key.startswith("_"))
            close = difflib.get_close_matches(attribute, known, 1)
            fix = f"did you mean {close[0]}?" if close else f"it has {', '.join(known[:10]) or 'no name at all'}"
            raise UserError(f"{field} = {name!r}: {place} has no `{attribute}`; {fix}")
        value = getattr(value, part)
    return value


def make_callback(name: str) -> Any:
    """The callback of a name: an instance as it is, a class or a function called without arguments.

    Raises:
        UserError: what comes of it is no `transformers.TrainerCallback`.
    """
    from transformers import TrainerCallback

    value = load("train.callbacks", name)
    made = value() if callable(value) and not isinstance(value, TrainerCallback) else value
    if not isinstance(made, TrainerCallback):
        raise UserError(f"train.callbacks = {name!r} gives a {type(made).__name__}, wanted a TrainerCallback")
    return made


def blame(error: BaseException, train: TrainConfig) -> str | None:
    """Which of the user's names an error came out of, with file and line; None: of none of them."""
    files = {_file_of(field, name): f"{field} = {name!r}" for field, name in reversed(named_in(train))}
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        file = Path(frame.filename).resolve()
        if file in files:
            return f"{files[file]} ({file.name}:{frame.lineno}, in {frame.name})"
    return None


def content_hash(train: TrainConfig) -> str:
    """Hash of the files whose code changes a step, loss and plugins; "" without any. Modules are their package's."""
    places = [_split(field, name)[0] for field, name in named_in(train) if field in ("train.loss", "train.plugins")]
    files = [Path(place) for place in places if place.endswith(".py")]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16] if files else ""


def _split(field: str, name: str) -> tuple[str, str]:
    if field == "train.plugins":
        return name, ""
    place, colon, attribute = name.rpartition(":")
    if not (colon and place and attribute):
        raise UserError(f"{field} = {name!r} wants module:name or file.py:name")
    return place, attribute


def _import(field: str, name: str, place: str) -> ModuleType:
    key, file = place, Path(place)
    if place.endswith(".py"):
        if not file.is_file():
            raise UserError(f"{field} = {name!r}: no file {place} in {Path.cwd()}")
        # A name of its own: user files are often called metrics.py or loss.py.
        key = f"{file.stem}_{hashlib.sha256(str(file.resolve()).encode()).hexdigest()[:8]}"
    folder = str(file.resolve().parent if place.endswith(".py") else Path.cwd())
    if folder not in sys.path:
        sys.path.append(folder)  # at the end: a user's `datasets/` must not stand before the library
    try:
        if key in sys.modules or not place.endswith(".py"):
            return importlib.import_module(key)
        return _import_file(key, file)
    except (Exception, SystemExit) as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        at = f" ({Path(where.filename).name}:{where.lineno})" if not isinstance(error, ModuleNotFoundError) else ""
        raise UserError(f"{field} = {name!r} cannot be imported: {type(error).__name__}: {error}{at}") from error


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


def _file_of(field: str, name: str) -> Path | None:
    place, _ = _split(field, name)
    if place.endswith(".py"):
        return Path(place).resolve()
    module = sys.modules.get(place)
    return Path(module.__file__).resolve() if module and module.__file__ else None


def _check_kind(field: str, name: str, value: Any) -> None:
    """Refuse what can be seen to be wrong without calling it."""
    if field == "train.callbacks":
        if inspect.isclass(value) or not callable(value):
            _check_callback(name, value)
    elif field in _CALLS:
        positional, keywords = _CALLS[field]
        call = ", ".join([*positional, *(f"{key}=..." for key in keywords)])
        if not callable(value):
            raise UserError(f"{field} = {name!r} is of type {type(value).__name__}, wanted a function ({call})")
        if not _takes(value, positional, keywords):
            raise UserError(f"{field} = {name!r} cannot be called as ({call}): it takes {inspect.signature(value)}")


def _check_callback(name: str, value: Any) -> None:
    from transformers import TrainerCallback

    if not inspect.isclass(value):
        if not isinstance(value, TrainerCallback):
            raise UserError(f"train.callbacks = {name!r} is of type {type(value).__name__}, wanted a TrainerCallback")
    elif not issubclass(value, TrainerCallback):
        raise UserError(f"train.callbacks = {name!r} is a class, but no subclass of transformers.TrainerCallback")
    elif not _takes(value, (), ()):
        raise UserError(f"train.callbacks = {name!r} wants arguments; name a function without any that makes it")


def _takes(value: Any, positional: tuple[str, ...], keywords: tuple[str, ...]) -> bool:
    try:
        inspect.signature(value).bind(*positional, **dict.fromkeys(keywords))
    except TypeError:
        return False
    except ValueError:  # a builtin that does not tell
        return True
    return True
