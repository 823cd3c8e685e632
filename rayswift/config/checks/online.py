"""Checks of tasks that sample completions: missing fields, and fields without a meaning; before anything starts."""

import re

from rayswift.config.checks.distillation import completions_per_prompt, distillation_problems, has_teacher
from rayswift.config.checks.policy import policy_problems
from rayswift.config.derived import max_prompt_length, num_rewards, round_size
from rayswift.config.schema import RlhfConfig, SampleConfig

_EVAL_NAME = re.compile(r"[\w-]+")


def online_problems(config: RlhfConfig) -> list[str]:
    """One line for each field that such a task needs but lacks, or cannot use."""
    found = _sample_problems(config) if isinstance(config, SampleConfig) else _signal_problems(config)
    found += [*_reward_problems(config), *_length_problems(config), *_round_problems(config)]
    found += [*_turn_problems(config), *_eval_problems(config)]
    if config.train.task in ("grpo", "ppo"):
        found += policy_problems(config)
    found += distillation_problems(config)
    why = f"task {config.train.task} trains completions"
    if config.data.truncation == "split":
        found.append("data.truncation = split has no meaning for prompts; set drop or left")
    if config.data.truncation == "right":
        found.append(
            "data.truncation = right cuts the end of the question off a prompt, and the opening of the answer; set "
            "drop, or left, which cuts its beginning"
        )
    for name in ("loss", "metrics"):
        if getattr(config.train, name):
            found.append(f"train.{name} = {getattr(config.train, name)} is for losses over rows, but {why}; unset it")
    return found


def _length_problems(config: RlhfConfig) -> list[str]:
    rollout = config.rollout
    if max_prompt_length(config) < 1:
        return [
            f"data.max_length = {config.data.max_length} leaves a prompt no room beside rollout.max_completion_length "
            f"= {rollout.max_completion_length}; raise the first, lower the second, or set rollout.max_prompt_length"
        ]
    window = rollout.max_model_len
    if window is not None and max_prompt_length(config) >= window:
        return [
            f"a prompt of {max_prompt_length(config)} tokens (rollout.max_prompt_length, or what data.max_length "
            f"leaves) fills an engine's window of rollout.max_model_len = {window} and leaves its completion none; "
            "raise it, or lower the length of a prompt"
        ]
    return []


def _turn_problems(config: RlhfConfig) -> list[str]:
    rollout = config.rollout
    if not rollout.has_episodes:
        only = {"max_turns": rollout.max_turns not in (None, 1), "tool_schemas": bool(rollout.tool_schemas)}
        return [
            f"rollout.{name} is for completions with tools or an environment; set rollout.tools or rollout.environment"
            for name, is_set in only.items()
            if is_set
        ]
    found = []
    if not config.data.use_chat_template:
        found.append("rollout.tools and rollout.environment need a chat template, but data.use_chat_template is false")
    if rollout.structured_outputs_regex:
        found.append(
            "rollout.structured_outputs_regex holds for whole completions, not for turns between answers; leave it out"
        )
    return found


def _round_problems(config: RlhfConfig) -> list[str]:
    size, each = round_size(config), completions_per_prompt(config)
    if config.train.task not in ("grpo", "ppo") or size is None or size % each == 0:
        return []
    steps = "num_mini_batches" if config.train.task == "ppo" else "steps_per_generation"
    return [
        f"train.global_batch_size x train.{steps} = {size} completions are no whole number of groups of "
        f"rollout.num_generations = {each}; make it a multiple"
    ]


def _eval_problems(config: RlhfConfig) -> list[str]:
    rollout, found = config.rollout, []
    known = [each if isinstance(each, str) else each.path for each in config.data.eval]
    if rollout.eval and not (known or config.data.eval_fraction):
        found.append("rollout.eval has no prompts; set data.eval or data.eval_fraction")
    if rollout.eval and rollout.num_generations_eval is not None:
        found.append("rollout.num_generations_eval: each of rollout.eval has num_generations of its own; unset it")
    if rollout.oversampling and not rollout.dynamic_sampling:
        found.append("rollout.oversampling: no prompt is filtered, so none need be replaced; set dynamic_sampling too")
    for name, each in rollout.eval.items():
        if not _EVAL_NAME.fullmatch(name):
            found.append(f"rollout.eval: {name!r} becomes part of metrics' names; use letters, digits, - and _")
        found += [
            f"rollout.eval.{name}.sources = {source!r} is not in data.eval; it has {', '.join(known) or 'no sources'}"
            for source in each.sources
            if source not in known
        ]
    return found


def _sample_problems(config: SampleConfig) -> list[str]:
    """Problems of sampling without a trainer, which needs no rewards."""
    found = []
    if not num_rewards(config):
        found += [
            f"sample.{name} = {value}: there is no reward to judge by; set rollout.reward_funcs or "
            "rollout.reward_models, or unset it"
            for name in ("min_reward", "easy_query_threshold")
            if (value := getattr(config.sample, name)) is not None
        ]
    number = config.rollout.num_generations
    if config.rollout.temperature == 0 and number > 1:
        found.append(
            f"rollout.temperature = 0 samples the same completion {number} times; set it above 0, or "
            "rollout.num_generations to 1"
        )
    return found


def _signal_problems(config: RlhfConfig) -> list[str]:
    """Why there is nothing to learn from: neither rewards nor a teacher, or no other completions to compare with."""
    task, found = config.train.task, []
    # A teacher can replace rewards.
    distils = has_teacher(config) and (task != "grpo" or config.train.trl_extra.get("teacher_kl_coef", 1.0) != 0)
    if task in ("grpo", "ppo") and not num_rewards(config) and not distils:
        found.append(f"train.task = {task} has no reward; set rollout.reward_funcs or rollout.reward_models")
    if task == "gkd" and not has_teacher(config):
        found.append(
            "train.task = gkd has no teacher; set model.teacher: a model, or self, where the model teaches itself, "
            "told `teacher_prompt` of each row"
        )
    groups = config.train.trl_extra.get("advantage_estimator", "grpo") != "reinforce_plus_plus"
    if task == "grpo" and groups and not distils and config.rollout.num_generations < 2:
        found.append("rollout.num_generations = 1 leaves nothing to compare in a group; set 2 or more")
    return found


def _reward_problems(config: RlhfConfig) -> list[str]:
    rollout, found, number = config.rollout, [], num_rewards(config)
    named = number - (rollout.environment is not None)
    if rollout.reward_weights and len(rollout.reward_weights) not in (named, number):
        found.append(
            f"rollout.reward_weights has {len(rollout.reward_weights)} weights for {number} rewards; give one each"
        )
    plugins, known = rollout.reward_model_plugins, ("default", "genrm")
    if plugins and len(plugins) != len(rollout.reward_models):
        found.append(
            f"rollout.reward_model_plugins has {len(plugins)} names for {len(rollout.reward_models)} reward models; "
            "give one each"
        )
    found += [
        f"rollout.reward_model_plugins = {name}: there are {' and '.join(known)}; name your own as file.py:name"
        for name in plugins
        if name not in known and ":" not in name
    ]
    if set(plugins) - {"default"} and not config.data.use_chat_template:
        found.append("rollout.reward_model_plugins: a plugin reads conversations, and data.use_chat_template is false")
    if rollout.reward_model_gpus > 1 and rollout.reward_model_gpus % 1:
        found.append(
            f"rollout.reward_model_gpus = {rollout.reward_model_gpus}: Ray gives a process a part of one GPU, or whole "
            "ones; set a whole number, or less than 1"
        )
    return found
