"""What a task needs, and what has no meaning for it: checks across sections, before anything starts."""

from rayswift.config.schema import RlhfConfig, SftConfig, TrainingConfig

ONLINE_TASKS = ("grpo", "ppo", "gkd")
"""Tasks that sample completions."""


def task_problems(config: TrainingConfig) -> list[str]:
    """One line for each setting that the task lacks or cannot use."""
    found = []
    if config.model.quantization and config.model.tuner == "full":
        found.append(
            f"model.quantization = {config.model.quantization} freezes the weights, so it needs an adapter; "
            "set model.tuner lora"
        )
    if isinstance(config, SftConfig) and config.train.task == "seq_cls" and config.model.num_labels is None:
        found.append("train.task = seq_cls needs the number of classes; set model.num_labels")
    if isinstance(config, RlhfConfig):
        found += _online_problems(config) if config.train.task in ONLINE_TASKS else _offline_problems(config)
    return found


def _online_problems(config: RlhfConfig) -> list[str]:
    task, rollout, found = config.train.task, config.rollout, []
    num_rewards = len(rollout.reward_funcs) + len(rollout.reward_models)
    distils = config.model.teacher is not None  # a teacher is a signal too
    if task in ("grpo", "ppo") and not num_rewards and not distils:
        found.append(f"train.task = {task} has no reward; set rollout.reward_funcs or rollout.reward_models")
    if task == "gkd" and not distils:
        found.append("train.task = gkd has no teacher; set model.teacher")
    if rollout.reward_weights and len(rollout.reward_weights) != num_rewards:
        found.append(
            f"rollout.reward_weights has {len(rollout.reward_weights)} weights for {num_rewards} rewards; give one each"
        )
    groups = config.train.trl_extra.get("advantage_estimator", "grpo") != "reinforce_plus_plus"
    if task == "grpo" and groups and not distils and rollout.num_generations < 2:
        found.append("rollout.num_generations = 1 leaves nothing to compare in a group; set 2 or more")
    return found


def _offline_problems(config: RlhfConfig) -> list[str]:
    values = config.rollout.model_dump()
    fields = type(config.rollout).model_fields
    given = [name for name, field in fields.items() if values[name] != field.default]
    why = f"has no meaning: task {config.train.task} samples no completions; unset it"
    return [f"rollout.{name} {why}" for name in given]
