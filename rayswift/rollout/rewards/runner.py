"""The coordinator's interface to rewards: completions in, weighted rewards or reasons for failure out."""

import asyncio
import json
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import ray
from tokenizers import Tokenizer

from rayswift.config.derived import reward_weights
from rayswift.config.schema import RlhfConfig
from rayswift.engines.samples import Completion, Prompt, Scored
from rayswift.log import logger
from rayswift.rollout.rewards import judges
from rayswift.rollout.rewards.dispatch import Dispatcher
from rayswift.rollout.rewards.functions import Item, Value, names_of, specs_of
from rayswift.rollout.rewards.models import ModelProcess
from rayswift.rollout.rewards.worker import ActorWorker, FunctionProcess, nodes_of_workers, on_node

_MOST_FAILURES_WRITTEN = 10_000
_NO_OPINION = "no reward: every function returned None"


class RewardRunner:
    """Scores groups of completions in its own workers.

    Args:
        config: The run's.
        tokenizer_dir: Folder with the policy's tokenizer.json.
        run_dir: The run folder; completions without a reward go to `completions/failed.jsonl` there.
        work_dir: Where the user's files are found.
        num_workers: Number of processes for functions; at least 1 if there are functions.
    """

    def __init__(self, config: RlhfConfig, tokenizer_dir: Path, run_dir: Path, work_dir: Path, num_workers: int):
        self._config, self._run_dir, self._work_dir = config, run_dir, work_dir
        self._num_workers = num_workers
        self._tokenizer = Tokenizer.from_file(str(tokenizer_dir / "tokenizer.json"))
        self.names = names_of(config.rollout)
        self._weights = reward_weights(config)
        self._workers: list[ActorWorker] = []
        # For each reward: its dispatcher, and the number of the source there.
        self._routes: list[tuple[Dispatcher, int]] = []
        self._dispatchers: list[Dispatcher] = []
        self._failures = _FailureFile(run_dir / "completions" / "failed.jsonl")

    async def start(self) -> None:
        """Start the workers.

        Raises:
            UserError: a function or model cannot be loaded.
        """
        num_functions = len(self._config.rollout.reward_funcs)
        here = ray.get_runtime_context().get_node_id()
        nodes = nodes_of_workers(self._num_workers if num_functions else 0)
        functions = [self._function_worker(number, node) for number, node in enumerate(nodes)]
        models = [self._model_worker(number, here) for number in range(len(self._config.rollout.reward_models))]
        self._workers = [*functions, *models]
        await asyncio.gather(*(worker.start() for worker in self._workers))
        timeout_s = self._config.rollout.reward_timeout_s
        shared = [Dispatcher(functions, timeout_s)] if functions else []
        own = [Dispatcher([model], timeout_s) for model in models]
        self._routes = [(shared[0], source) for source in range(num_functions)] + [(each, 0) for each in own]
        self._dispatchers = [*shared, *own]
        for dispatcher in self._dispatchers:
            dispatcher.start()

    async def score(
        self, prompt: Prompt, completions: Sequence[Completion], rewarded: bool = True
    ) -> list[Scored | str]:
        """Return each completion of a prompt with its rewards, or why it has none, in the order given.

        May be called for many prompts at once.

        Raises:
            UserError: a lost worker could not be started again.
        """
        ids = [completion.token_ids.tolist() for completion in completions]
        texts = self._tokenizer.decode_batch(ids, skip_special_tokens=True)
        if not rewarded:
            none = (math.nan,) * len(self.names)
            return [Scored(each, none, 0.0, text) for each, text in zip(completions, texts, strict=True)]
        items = [_item(prompt, *each) for each in zip(completions, texts, ids, strict=True)]
        columns = await asyncio.gather(*(dispatcher.score(source, items) for dispatcher, source in self._routes))
        if self._config.rollout.environment is not None:
            columns.append([_own_reward(each) for each in completions])
        texts = [_transcript(each, text) for each, text in zip(completions, texts, strict=True)]
        found: list[Scored | str] = []
        for i, completion in enumerate(completions):
            outcome = self._weighted([column[i] for column in columns], completion, texts[i])
            if isinstance(outcome, str):
                self._failures.add(prompt, completion, texts[i], outcome)
            found.append(outcome)
        return found

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a text, without added special tokens."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return tokens as text, special tokens included."""
        return str(self._tokenizer.decode(token_ids, skip_special_tokens=False))

    async def close(self) -> None:
        """End the workers."""
        for dispatcher in self._dispatchers:
            await dispatcher.close()
        for worker in self._workers:
            worker.kill()

    def _weighted(self, values: Sequence[Value], completion: Completion, text: str) -> Scored | str:
        rewards = []
        for value in values:
            if isinstance(value, str):
                return value
            rewards.append(math.nan if value is None else value)
        if rewards and all(math.isnan(reward) for reward in rewards):
            return _NO_OPINION
        total = sum(w * reward for w, reward in zip(self._weights, rewards, strict=True) if not math.isnan(reward))
        return Scored(completion, tuple(rewards), total, text)

    def _function_worker(self, number: int, node: str) -> ActorWorker:
        specs = specs_of(self._config.rollout)
        arguments = (specs, self._conversational, self._work_dir, self._run_dir / "logs", f"reward-{number}")
        make = partial(_start, FunctionProcess, arguments, 0)
        who = [f"reward {spec.name}" for spec in specs]
        return ActorWorker(who, make, self._config.rollout.reward_timeout_s, node)

    def _model_worker(self, number: int, node: str) -> ActorWorker:
        rollout = self._config.rollout
        path, name = rollout.reward_models[number], self.names[len(rollout.reward_funcs) + number]
        trust = self._config.model.trust_remote_code
        plugin = (rollout.reward_model_plugins or [judges.DEFAULT] * (number + 1))[number]
        arguments = (path, name, plugin, self._conversational, trust, self._work_dir, self._run_dir / "logs")
        make = partial(_start, ModelProcess, arguments, rollout.reward_model_gpus)
        return ActorWorker([f"reward {name}"], make, rollout.reward_timeout_s, node)

    @property
    def _conversational(self) -> bool:
        return self._config.data.use_chat_template


def _own_reward(completion: Completion) -> Value:
    """Return the rewards that the environment gave."""
    return None if completion.trajectory is None else completion.trajectory.reward


def _item(prompt: Prompt, completion: Completion, text: str, ids: list[int]) -> Item:
    """Make the input of rewards; of several turns the text is that of the last one."""
    played = completion.trajectory
    if played is None:
        return Item(prompt.messages, prompt.columns, text, ids)
    columns = {**prompt.columns, "rollout_infos": played.infos}
    said = [str(each["content"]) for each in played.messages if each["role"] == "assistant"]
    return Item(prompt.messages, columns, said[-1], ids, played.messages)


def _transcript(completion: Completion, text: str) -> str:
    """Return a completion as text for people; of several turns, each with its role."""
    played = completion.trajectory
    if played is None or len(played.messages) == 1:
        return text
    lines = []
    for message in played.messages:
        calls = [f"calls {call['function']['name']}({_arguments(call)})" for call in message.get("tool_calls", ())]
        who = f"{message['role']} {message['name']}" if "name" in message else message["role"]
        lines.append(f"[{who}] " + "\n".join(filter(None, [str(message["content"]), *calls])))
    return "\n".join(lines)


def _arguments(call: Any) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in call["function"]["arguments"].items())


def _start(actor_class: Any, arguments: tuple[Any, ...], num_gpus: float, node: str) -> Any:
    return on_node(actor_class, node, num_gpus).remote(*arguments)


class _FailureFile:
    """Writes completions without a reward, with the reason: the first ones; further ones are only counted."""

    def __init__(self, path: Path):
        self._path, self._count = path, 0

    def add(self, prompt: Prompt, completion: Completion, text: str, reason: str) -> None:
        """Append a completion."""
        self._count += 1
        if self._count > _MOST_FAILURES_WRITTEN:
            return
        if self._count == _MOST_FAILURES_WRITTEN:
            logger.warning(
                "%d completions without a reward are in %s; further ones are counted only", self._count, self._path
            )
        self._path.parent.mkdir(parents=True, exist_ok=True)
        row = {"id": prompt.id, "ordinal": prompt.ordinal, "key": completion.key, "reason": reason, "completion": text}
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
