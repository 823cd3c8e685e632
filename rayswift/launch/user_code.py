"""The user's own code (plugins, callbacks, losses, rewards): checks before a run, and which of it raised an error.

`config/user_code.py` imports it.
"""

import hashlib
import importlib.util
import inspect
import json
import os
import subprocess
import sys
import traceback
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rayswift.config.rollout import RolloutConfig
from rayswift.config.schema import RlhfConfig, TrainingConfig
from rayswift.config.swift import plugin_modules
from rayswift.config.user_code import Named, file_of, load, split, takes
from rayswift.data import raw_rows
from rayswift.log import UserError, announced, logger, refuse
from rayswift.rollout.adapters import named
from rayswift.rollout.episodes import contract
from rayswift.rollout.rewards import functions as rewards

_CHECK_TIMEOUT_S = 300
_PLUGINS = "rollout.reward_model_plugins"
# Positional and keyword arguments of each kind; plugins are only imported.
_CALLS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "train.metrics": (("batch",), ()),
    "train.loss": (("outputs", "labels"), ("num_items_in_batch",)),
    raw_rows.FIELD: (("row",), ()),
    _PLUGINS: (("model", "tokenizer"), ()),
}

# Trackers of `transformers` -> their packages.
_SAME = [
    "clearml",
    "codecarbon",
    "comet_ml",
    "dagshub",
    "dvclive",
    "mlflow",
    "neptune",
    "swanlab",
    "tensorboard",
    "trackio",
    "wandb",
]
_TRACKERS = {"azure_ml": "azureml", "flyte": "flytekit", **{name: name for name in _SAME}}


def named_in(config: TrainingConfig) -> list[Named]:
    """All user code of a run, plugins first."""
    train = config.train
    lists = {"train.plugins": train.plugins, "train.callbacks": train.callbacks, "train.metrics": train.metrics}
    found = [(field, name) for field, names in lists.items() for name in names]
    found += [("train.loss", train.loss)] if train.loss else []
    found += [(raw_rows.FIELD, config.data.map)] if config.data.map else []
    plugins = config.rollout.reward_model_plugins if isinstance(config, RlhfConfig) else []
    found += [(_PLUGINS, name) for name in plugins if ":" in name]
    found += [(rewards.FIELD, spec.written) for spec in _own_rewards(config)]
    return found + (_episode_code(config.rollout) if isinstance(config, RlhfConfig) else [])


def _episode_code(rollout: RolloutConfig) -> list[Named]:
    """The user's own tools and environments."""
    found = [(contract.TOOLS, name) for name in rollout.tools if ":" in name or name.endswith(".py")]
    own = rollout.environment
    return found + ([(contract.ENVIRONMENT, own)] if own and ":" in own and not named.is_in_no_file(own) else [])


def _own_rewards(config: TrainingConfig) -> list[rewards.RewardSpec]:
    specs = rewards.specs_of(config.rollout) if isinstance(config, RlhfConfig) else []
    return [spec for spec in specs if ":" in spec.written]


def check(config: TrainingConfig) -> None:
    """Raise UserError with a line for each name that cannot be used, and each tracker that is not installed.

    The code is imported in a process of its own, so that the driver does not import torch.
    """
    problems = [
        f"train.report_to = {name}: the package {package} is not installed; install it, or leave {name} out"
        for name, package in _TRACKERS.items()
        if name in config.train.report_to and importlib.util.find_spec(package) is None
    ]
    problems += rewards.problems(config.rollout) if isinstance(config, RlhfConfig) else []
    named = named_in(config)
    if named:
        problems += _problems_of(named, _own_rewards(config))
    refuse(problems)


def _problems_of(named: list[Named], own_rewards: list[rewards.RewardSpec]) -> list[str]:
    code = "from rayswift.launch import user_code; user_code.print_problems()"
    try:
        with announced(f"importing {', '.join(name for _, name in named)}"):
            done = subprocess.run(
                [sys.executable, "-c", code],
                input=json.dumps([named, [asdict(spec) for spec in own_rewards]]),
                capture_output=True,
                text=True,
                timeout=_CHECK_TIMEOUT_S,
            )
    except subprocess.TimeoutExpired as error:
        names = ", ".join(f"{field} = {name!r}" for field, name in named)
        raise UserError(f"{names}: importing it took more than {_CHECK_TIMEOUT_S} s") from error
    try:
        problems, remark = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, json.JSONDecodeError) as error:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        names = ", ".join(name for _, name in named)
        raise UserError(f"importing {names} ended the process with exit code {done.returncode}: {last}") from error
    if remark and not problems:
        logger.warning("%s: %s", ", ".join(name for _, name in named), remark)
    return list(problems)


def print_problems() -> None:
    """The child process of `check`: names from stdin, problems and a remark as the last line of stdout."""
    problems = []
    named, own_rewards = json.loads(sys.stdin.read())
    for field, name in named:
        try:
            _check_kind(field, name, load(field, name))
        except UserError as error:
            problems.append(str(error))
    for spec in own_rewards:
        try:
            rewards.load(rewards.RewardSpec(**spec))
        except UserError as error:
            problems += [str(error)] if str(error) not in problems else []
    print("\n" + json.dumps([problems, plugin_modules.remark()]), flush=True)  # noqa: T201
    os._exit(0)  # threads of the user's code would keep the process


def blame(error: BaseException, config: TrainingConfig) -> str | None:
    """The user's name that raised an error, with file and line; None if it was not user code."""
    files = {file_of(field, name): f"{field} = {name!r}" for field, name in reversed(named_in(config))}
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        file = Path(frame.filename).resolve()
        if file in files:
            return f"{files[file]} ({file.name}:{frame.lineno}, in {frame.name})"
    return None


def content_hash(config: TrainingConfig) -> str:
    """Hash of the user's files that can change a step: loss, plugins, row map, rewards, tools; "" if there are none."""
    of_rollouts = (rewards.FIELD, _PLUGINS, contract.TOOLS, contract.ENVIRONMENT)
    changing = ("train.loss", "train.plugins", raw_rows.FIELD, *of_rollouts)
    places = [split(field, name)[0] for field, name in named_in(config) if field in changing]
    files = [Path(place) for place in places if place.endswith(".py")]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16] if files else ""


def _check_kind(field: str, name: str, value: Any) -> None:
    """Raise UserError for code that is wrong, as far as that shows without a call."""
    if field == "train.callbacks" and (inspect.isclass(value) or not callable(value)):
        _check_callback(name, value)
    elif field in _CALLS:
        positional, keywords = _CALLS[field]
        call = ", ".join([*positional, *(f"{key}=..." for key in keywords)])
        if not callable(value):
            raise UserError(f"{field} = {name!r} is of type {type(value).__name__}, wanted a function ({call})")
        if not takes(value, positional, keywords):
            raise UserError(f"{field} = {name!r} cannot be called as ({call}): it takes {inspect.signature(value)}")


def _check_callback(name: str, value: Any) -> None:
    from transformers import TrainerCallback

    if not inspect.isclass(value):
        if not isinstance(value, TrainerCallback):
            raise UserError(f"train.callbacks = {name!r} is of type {type(value).__name__}, wanted a TrainerCallback")
    elif not issubclass(value, TrainerCallback):
        raise UserError(f"train.callbacks = {name!r} is a class, but no subclass of transformers.TrainerCallback")
    elif not takes(value, (), ()):
        raise UserError(
            f"train.callbacks = {name!r} needs arguments; name a function without arguments that returns it"
        )
