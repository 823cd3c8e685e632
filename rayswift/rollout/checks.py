"""Checks, before Ray starts, that this machine and the folders in the config have what sampling needs."""

from pathlib import Path

from rayswift.config.checks.distillation import engines_of, has_teacher_outside, top_of
from rayswift.config.derived import rollout_of
from rayswift.config.model import is_own_teacher
from rayswift.config.rollout import RolloutConfig
from rayswift.config.schema import RlhfConfig, TrainingConfig
from rayswift.data.tokenizer import vocabulary
from rayswift.engines.vllm import setup as engine_setup
from rayswift.log import UserError
from rayswift.model.kind import abilities
from rayswift.run import checkpoint


def check(config: TrainingConfig) -> None:
    """Check, before anything starts, that completions can be sampled and scored.

    Raises:
        UserError: a line for each thing that is missing or that RaySwift sets itself.
    """
    rollout = rollout_of(config)
    if rollout is None:
        return
    assert isinstance(config, RlhfConfig)
    problems = [
        *_teacher_problems(config),
        *_critic_problems(config),
        *_reward_model_problems(rollout),
        *engine_setup.engine_kwargs_problems(rollout),
        *engine_setup.policy_problems(config.model, rollout),
    ]
    try:
        if engines_of(config):
            engine_setup.require_vllm(f"train.task = {config.train.task}")
    except UserError as error:
        problems.append(str(error))
    if problems:
        raise UserError("\n".join(problems))


def check_tokens(config: TrainingConfig, tokenizer_dir: Path) -> None:
    """Check that a teacher outside the workers can tell as many tokens as it is asked for; in them, all are compared.

    Raises:
        UserError: the tokenizer has fewer.
    """
    if not isinstance(config, RlhfConfig) or not has_teacher_outside(config):
        return
    top, most = top_of(config), vocabulary.size(tokenizer_dir)
    if top > most:
        raise UserError(
            f"train.logits_topk = {top}: the tokenizer has {most} tokens, and the teacher's engine or server tells no "
            f"more; set {most} at most"
        )


def _teacher_problems(config: RlhfConfig) -> list[str]:
    """Return problems of the teacher: it is no model on this machine, or it has another vocabulary."""
    model, path = config.model, config.model.teacher
    if not path or is_own_teacher(model):
        return []
    folder = Path(path)
    if not folder.is_dir():
        return _nowhere("model.teacher", path)
    if not (folder / "config.json").exists():
        return [_no_model("model.teacher", path, "config.json")]
    found = vocabulary.difference(Path(model.path), folder) if Path(model.path).is_dir() else ""
    if found:
        return [
            f"model.teacher = {path!r} has another vocabulary than model.path: {found}; a teacher scores token ids, so "
            "that it must read them as the model does: name one of the same family"
        ]
    return abilities.problems("model.teacher", path, "infer")


def _critic_problems(config: RlhfConfig) -> list[str]:
    path = config.model.critic_path
    if not path:
        return []
    if not Path(path).is_dir():
        return _nowhere("model.critic_path", path)
    if not (Path(path) / "config.json").exists():
        return [_no_model("model.critic_path", path, "config.json")]
    return []


def _nowhere(field: str, path: str) -> list[str]:
    """Return a problem if a path, which is no folder, cannot be a hub id either."""
    if path.startswith((".", "/", "~")) or path.count("/") > 1:
        return [f"{field} = {path!r} is no folder here, and no hub id"]
    return []


def _no_model(field: str, path: str, files: str) -> str:
    """The problem of a folder without a model, with the checkpoint that a run folder holds."""
    folder = Path(path)
    is_run = checkpoint.newest(folder) is not None
    remedy = f"name its checkpoint {checkpoint.model_folder(folder)}" if is_run else "name a checkpoint"
    return f"{field} = {path!r} holds no model ({files}); {remedy}"


def _reward_model_problems(rollout: RolloutConfig) -> list[str]:
    found = []
    plugins = rollout.reward_model_plugins or ["default"] * len(rollout.reward_models)
    for path, plugin in zip(rollout.reward_models, plugins, strict=True):
        folder = Path(path)
        if not folder.is_dir():
            found += _nowhere("rollout.reward_models", path)
        elif not any((folder / name).exists() for name in ("config.json", "adapter_config.json")):
            found.append(_no_model("rollout.reward_models", path, "config.json or adapter_config.json"))
        elif plugin == "default":
            found += abilities.score_problems("rollout.reward_models", path)
    return found
