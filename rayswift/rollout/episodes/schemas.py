"""Makes the JSON schemas of tools, and checks that the chat template can show them; before Ray starts."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, TypeVar

from rayswift.config import user_code
from rayswift.config.rollout import RolloutConfig
from rayswift.config.schema import RlhfConfig, TrainingConfig
from rayswift.log import UserError
from rayswift.rollout.episodes import contract
from rayswift.rollout.episodes.turns import Turns

_TIMEOUT_S = 300
ConfigT = TypeVar("ConfigT", bound=TrainingConfig)


def settled(config: ConfigT) -> ConfigT:
    """Return the config with the JSON schemas of its tools; a child process makes them from the user's code.

    Raises:
        UserError: tools or environment cannot be used.
    """
    if not isinstance(config, RlhfConfig) or not config.rollout.has_episodes:
        return config
    code = "from rayswift.rollout.episodes import schemas; schemas.print_schemas()"
    given = json.dumps([config.rollout.model_dump(mode="json"), list(config.train.plugins)])
    rollout = config.rollout
    names = ", ".join([*rollout.tools, *([rollout.environment] if rollout.environment else [])])
    try:
        done = subprocess.run(
            [sys.executable, "-c", code], input=given, capture_output=True, text=True, timeout=_TIMEOUT_S
        )
    except subprocess.TimeoutExpired as error:
        raise UserError(f"importing {names} took more than {_TIMEOUT_S} s") from error
    try:
        found = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, json.JSONDecodeError) as error:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise UserError(f"importing {names} ended the process with exit code {done.returncode}: {last}") from error
    if "problem" in found:
        raise UserError(found["problem"])
    schemas = config.rollout.tool_schemas or found["schemas"]
    return config.model_copy(update={"rollout": config.rollout.model_copy(update={"tool_schemas": schemas})})


def print_schemas() -> None:
    """Run in the child process: read section and plugins from stdin, print schemas or a problem as last line."""
    section, plugins = json.loads(sys.stdin.read())
    try:
        for plugin in plugins:
            user_code.load("train.plugins", plugin)
        found: dict[str, Any] = {"schemas": contract.checked(RolloutConfig(**section))}
    except UserError as error:
        found = {"problem": str(error)}
    print("\n" + json.dumps(found), flush=True)  # noqa: T201
    os._exit(0)  # threads of the user's code would keep the process


def check_template(config: TrainingConfig, tokenizer_dir: Path) -> None:
    """Check that the chat template can show tools and their answers.

    Raises:
        UserError: why.
    """
    if isinstance(config, RlhfConfig) and config.rollout.has_episodes:
        kwargs = {**config.data.chat_template_kwargs, **config.rollout.chat_template_kwargs}
        Turns(tokenizer_dir, config.rollout.tool_schemas, kwargs, config.data.template_date)
