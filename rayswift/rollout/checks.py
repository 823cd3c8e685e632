"""What sampling needs of this machine and of what the config names, before Ray starts."""

from pathlib import Path

from rayswift.config.derived import rollout_of
from rayswift.config.rollout import RolloutConfig
from rayswift.config.schema import TrainingConfig
from rayswift.engines.vllm import setup as engine_setup
from rayswift.log import UserError
from rayswift.model.kind import abilities


def check(config: TrainingConfig) -> None:
    """Stop before anything starts if completions could not be sampled or scored.

    Raises:
        UserError: a line for each thing that is missing or not the user's to set.
    """
    rollout = rollout_of(config)
    if rollout is None:
        return
    problems = [
        *_reward_model_problems(rollout),
        *engine_setup.engine_kwargs_problems(rollout),
        *engine_setup.policy_problems(config.model, rollout),
    ]
    try:
        engine_setup.require_vllm(f"train.task = {config.train.task}")
    except UserError as error:
        problems.append(str(error))
    if problems:
        raise UserError("\n".join(problems))


def _reward_model_problems(rollout: RolloutConfig) -> list[str]:
    found = []
    for path in rollout.reward_models:
        folder = Path(path)
        if not folder.is_dir():
            if path.startswith((".", "/", "~")) or path.count("/") > 1:
                found.append(f"rollout.reward_models = {path!r} is no folder here, and no hub id")
        elif not any((folder / name).exists() for name in ("config.json", "adapter_config.json")):
            found.append(
                f"rollout.reward_models = {path!r} holds no model (config.json or adapter_config.json); give a "
                "checkpoint of task rm"
            )
        else:
            found += abilities.score_problems("rollout.reward_models", path)
    return found
