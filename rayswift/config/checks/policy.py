"""Checks of the fields of a policy's loss and advantages; before anything starts."""

from typing import Any

from rayswift.config.checks.distillation import has_teacher
from rayswift.config.derived import critic_start, round_shape, round_size
from rayswift.config.fields.tasks import PpoFields
from rayswift.config.schema import RlhfConfig, SampleConfig

GRPO_LOSSES = (
    "grpo", "bnpo", "dr_grpo", "dapo", "luspo", "cispo", "sapo", "vespo", "fipo", "real", "online_dpo", "rloo",
)  # fmt: skip
"""Values of `train.loss_type` of task grpo."""


def policy_problems(config: RlhfConfig) -> list[str]:
    """One line for each setting of the loss or advantages of tasks grpo and ppo that cannot be used."""
    given, rollout = config.train.trl_extra, config.rollout
    if config.train.task == "ppo":
        found = [*ppo_problems(config), *_correction_problems(config)]
    else:
        found = [*_loss_problems(config), *_correction_problems(config), *_advantage_problems(given)]
    found += _step_problems(config)
    if rollout.temperature == 0 and not isinstance(config, SampleConfig):
        found.append("rollout.temperature = 0 samples the same completion again and again; set it above 0")
    return found


def steps_per_round(config: RlhfConfig) -> int:
    """Optimizer steps between two publications of weights."""
    num_steps, num_passes = round_shape(config.train)
    return num_steps * num_passes


_FRACTIONS = ("gamma", "lam")
_NOT_NEGATIVE = ("kl_coef", "vf_coef", "critic_warmup_rounds")
_POSITIVE = ("cliprange", "cliprange_value", "kl_target", "kl_horizon", "critic_learning_rate")


def ppo_problems(config: RlhfConfig) -> list[str]:
    """One line for each setting of task ppo that cannot be used."""
    given, rollout, found = config.train.trl_extra, config.rollout, []
    for name, value in given.items():
        wanted = ""
        if name in _FRACTIONS and not 0 <= value <= 1:
            wanted = "from 0 to 1"
        elif name in _NOT_NEGATIVE and value < 0:
            wanted = "0 or more"
        elif name in _POSITIVE and value is not None and value <= 0:
            wanted = "above 0"
        if wanted:
            found.append(f"train.{name} = {value}: set it {wanted}")
    begins_as_policy = given.get("critic") == "separate" and critic_start(config)[0] is None
    if begins_as_policy and config.model.adapters and config.cluster.zero_stage == 3:
        found.append(
            "train.critic = separate: the critic begins as the policy with its adapter merged, which cannot be done in "
            "a model that ZeRO-3 spreads; merge it (rayswift export --merge_lora) and name the result in "
            "model.critic_path, or set cluster.zero_stage 2"
        )
    if config.model.critic_path and given.get("critic", "shared") == "shared":
        found.append(
            f"model.critic_path = {config.model.critic_path!r} is a critic of its own, and train.critic is shared; set "
            "that to separate, or unset the path"
        )
    if given.get("kl_control") == "adaptive" and given.get("kl_coef") == 0:
        found.append("train.kl_control = adaptive has nothing to adapt at train.kl_coef = 0; set that above 0")
    size, horizon = round_size(config), given.get("kl_horizon", PpoFields.kl_horizon)
    if given.get("kl_control") == "adaptive" and size and 0 < horizon <= size / 5:
        found.append(
            f"train.kl_horizon = {horizon}: a round of {size} completions changes train.kl_coef by a fifth of round / "
            f"horizon, which makes it 0 or negative; set it to {size} or more"
        )
    if has_teacher(config):
        found.append(
            "model.teacher, rollout.teacher_server: task ppo learns from rewards alone; unset them, or set train.task "
            "grpo, which takes a teacher too"
        )
    if rollout.dynamic_sampling:
        found.append("rollout.dynamic_sampling leaves out groups of equal rewards, of which a critic learns; unset it")
    return found


def _loss_problems(config: RlhfConfig) -> list[str]:
    given, correction = config.train.trl_extra, config.rollout.importance_sampling
    loss, found = given.get("loss_type", "dapo"), []
    if loss not in GRPO_LOSSES:
        found.append(f"train.loss_type = {loss} is no loss of task grpo; there are {', '.join(GRPO_LOSSES)}")
    if loss == "vespo" and correction.startswith("sequence"):
        found.append(
            f"rollout.importance_sampling = {correction}: loss vespo weighs whole completions itself; set "
            "token_truncate, token_mask or none"
        )
    if loss == "rloo" and given.get("importance_sampling_level", "token") != "token":
        found.append("train.importance_sampling_level: loss rloo takes each completion as one action; unset it")
    if given.get("importance_sampling_level", "token") not in ("token", "sequence"):
        found.append(
            f"train.importance_sampling_level = {given['importance_sampling_level']}: there are token and sequence"
        )
    if not given.get("fipo_decay_rate", 1.0) > 0:
        found.append(f"train.fipo_decay_rate = {given['fipo_decay_rate']} is a number of tokens: set it above 0")
    found += _online_dpo_problems(config, loss)
    if loss == "real" and (steps_per_round(config) > 1 or config.rollout.max_staleness):
        found.append(
            "train.loss_type = real compares all completions of a prompt under the weights that sampled them; set "
            "train.steps_per_generation and train.num_iterations to 1, and rollout.max_staleness to 0"
        )
    if loss == "real" and given.get("advantage_estimator", "grpo") != "grpo":
        found.append(f"train.advantage_estimator = {given['advantage_estimator']}: loss real has labels; unset it")
    if not 0 < given.get("top_entropy_quantile", 1.0) <= 1:
        found.append(
            f"train.top_entropy_quantile = {given['top_entropy_quantile']} is the share of tokens to train: above 0, "
            "at most 1"
        )
    return found


def _online_dpo_problems(config: RlhfConfig, loss: str) -> list[str]:
    given, found = config.train.trl_extra, []
    is_dpo = [given.get("advantage_estimator") == "online_dpo", loss == "online_dpo"]
    if not any(is_dpo):
        return []
    if not all(is_dpo):
        found.append("train.advantage_estimator and train.loss_type: both are online_dpo, or neither; set both")
    if config.rollout.num_generations != 2:
        found.append(f"rollout.num_generations = {config.rollout.num_generations}: online_dpo compares 2 completions")
    if not given.get("beta", 0) > 0:
        found.append("train.beta is the scale of the loss of online_dpo; set it above 0")
    if steps_per_round(config) > 1:
        found.append(
            "online_dpo takes one step of each round, whose weights the pairs are judged by; set "
            "train.steps_per_generation and train.num_iterations to 1"
        )
    if config.rollout.max_staleness:
        found.append(f"rollout.max_staleness = {config.rollout.max_staleness}: online_dpo is on-policy; set 0")
    others = {"kl_in_reward": None, "importance_sampling_level": "token", "mask_truncated_completions": False}
    for name, none in others.items():
        if given.get(name, none) != none:
            found.append(f"train.{name}: the loss of online_dpo has none; unset it")
    if has_teacher(config):
        found.append("model.teacher, rollout.teacher_server: online_dpo learns from rewards alone; unset them")
    if config.rollout.importance_sampling != "none":
        found.append("rollout.importance_sampling: the loss of online_dpo is not corrected; set none")
    return found


def _correction_problems(config: RlhfConfig) -> list[str]:
    rollout, found = config.rollout, []
    least, most = rollout.importance_sampling_min, rollout.importance_sampling_max
    if rollout.importance_sampling.endswith("truncate") and least is None and most is None:
        found.append(
            f"rollout.importance_sampling = {rollout.importance_sampling} has no bound to truncate at; set "
            "rollout.importance_sampling_max or rollout.importance_sampling_min, or the first to none"
        )
    if least is not None and most is not None and least >= most:
        found.append(
            f"rollout.importance_sampling_min = {least} is not below rollout.importance_sampling_max = {most}; "
            "lower it, or set one of them to null"
        )
    if rollout.structured_outputs_regex and rollout.repetition_penalty != 1:
        found.append(
            f"rollout.repetition_penalty = {rollout.repetition_penalty} beside rollout.structured_outputs_regex: with "
            "both vLLM cannot report the log-probability of a token under the policy, which the trainer compares with "
            "its own; leave one of them out"
        )
    return found


def _advantage_problems(given: dict[str, Any]) -> list[str]:
    estimator = given.get("advantage_estimator", "grpo")
    scales, sums = given.get("scale_rewards", "group"), given.get("multi_objective_aggregation", "sum_then_normalize")
    found = []
    if scales not in ("group", "batch", "none", "True", "False", True, False):
        found.append(f"train.scale_rewards = {scales}: there are group, batch and none")
    if sums not in ("sum_then_normalize", "normalize_then_sum"):
        found.append(f"train.multi_objective_aggregation = {sums}: there are sum_then_normalize and normalize_then_sum")
    own = {"rloo": "none", "online_dpo": "none", "grpo": scales}.get(estimator, "batch")
    if "scale_rewards" in given and scales != own:
        found.append(f"train.scale_rewards = {scales}: advantage_estimator {estimator} has {own} of its own; unset it")
    if sums == "normalize_then_sum" and estimator != "grpo":
        found.append(
            f"train.multi_objective_aggregation = {sums} is for advantage_estimator grpo, not {estimator}; unset it"
        )
    return found


def _step_problems(config: RlhfConfig) -> list[str]:
    given, found, is_ppo = config.train.trl_extra, list[str](), config.train.task == "ppo"
    names = ("num_mini_batches", "num_ppo_epochs") if is_ppo else ("steps_per_generation", "num_iterations")
    for name, value in zip(names, round_shape(config.train), strict=True):
        if value < 1:
            found.append(f"train.{name} = {value}: set 1 or more")
    completions, batch = given.get("generation_batch_size"), config.train.global_batch_size
    if completions is not None and batch is not None and (completions % batch or given.get("steps_per_generation")):
        found.append(
            f"train.generation_batch_size = {given['generation_batch_size']} is no whole number of optimizer steps of "
            f"train.global_batch_size = {config.train.global_batch_size} completions, or train.steps_per_generation is "
            "given too; set the latter alone"
        )
    steps, most = max(1, steps_per_round(config)), config.train.max_steps
    if most > 0 and most % steps:
        found.append(
            f"train.max_steps = {most} ends within a round of {steps} optimizer steps (train.{names[0]} x "
            f"train.{names[1]}), which no checkpoint holds; set {most - most % steps or steps}"
        )
    return found
