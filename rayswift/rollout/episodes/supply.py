"""Makes the parts that play episodes in the coordinator's actor, from a config."""

from functools import partial
from pathlib import Path
from typing import Any

from ray.exceptions import RayActorError

from rayswift.config.schema import RlhfConfig
from rayswift.rollout.admission import RolloutPlan
from rayswift.rollout.episodes.contract import spec_of
from rayswift.rollout.episodes.hosts import Hosts
from rayswift.rollout.episodes.play import EpisodeLimits, Episodes
from rayswift.rollout.episodes.process import EnvironmentProcess
from rayswift.rollout.episodes.turns import Turns
from rayswift.rollout.groups import Sampler
from rayswift.rollout.rewards.worker import ActorWorker, nodes_of_workers, on_node

_CALLS_AT_ONCE = 1000


def hosts_of(config: RlhfConfig, number: int, work_dir: Path, log_dir: Path) -> Hosts | None:
    """Return the processes for tools and environments, not started yet; None if completions are single turns."""
    rollout = config.rollout
    if not rollout.has_episodes:
        return None
    spec = spec_of(rollout, config.train.plugins)
    nodes = nodes_of_workers(number)
    who = [*rollout.tools, *([rollout.environment] if rollout.environment else [])]

    def process(number: int) -> ActorWorker:
        make = partial(_start, (spec, work_dir, log_dir, f"tools-{number}"))
        return ActorWorker(who, make, rollout.tool_timeout_s, nodes[number])

    return Hosts(process, number, rollout.tool_timeout_s, rollout.environment is not None, (RayActorError,))


def _start(arguments: tuple[Any, ...], node: str) -> Any:
    return on_node(EnvironmentProcess, node, max_concurrency=_CALLS_AT_ONCE).remote(*arguments)


def turns_of(config: RlhfConfig, tokenizer_dir: Path) -> Turns:
    """Return the converter of turns to tokens, with the settings of the prompts.

    Raises:
        UserError: the chat template cannot take tools.
    """
    kwargs = {**config.data.chat_template_kwargs, **config.rollout.chat_template_kwargs}
    return Turns(tokenizer_dir, config.rollout.tool_schemas, kwargs, config.data.template_date)


def episodes_of(config: RlhfConfig, plan: RolloutPlan, sampler: Sampler, hosts: Hosts, tokenizer_dir: Path) -> Episodes:
    """Return a sampler whose completions are episodes."""
    rollout = config.rollout
    per_round = rollout.completion_length_limit_scope == "per_round"
    limits = EpisodeLimits(rollout.max_turns, rollout.max_completion_length, per_round, plan.max_sequence_length)
    return Episodes(sampler, hosts, turns_of(config, tokenizer_dir), limits)
