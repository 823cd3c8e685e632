"""Stand-ins for the modules of ms-swift that plugin files import, if ms-swift is not installed.

Each module has the names that plugins import from it: base classes, registries, and the
arguments of their hooks. `GYMScheduler` runs an `Env` turn by turn, as in ms-swift.
"""

import difflib
import importlib.util
import inspect
import logging
import sys
from copy import deepcopy
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

_MODULES = (
    "swift",
    "swift.infer_engine",
    "swift.infer_engine.protocol",
    "swift.llm",
    "swift.llm.infer",
    "swift.llm.infer.protocol",
    "swift.plugin",
    "swift.plugin.context_manager",
    "swift.plugin.env",
    "swift.plugin.multi_turn",
    "swift.plugin.orm",
    "swift.plugin.rm_plugin",
    "swift.rewards",
    "swift.rewards.orm",
    "swift.rewards.rm_plugin",
    "swift.rollout",
    "swift.rollout.context_manager",
    "swift.rollout.gym_env",
    "swift.rollout.multi_turn",
    "swift.template",
    "swift.utils",
)


@dataclass
class RolloutInferRequest:
    """A conversation; data_dict: the row's columns; uuid: of the episode."""

    messages: list[dict[str, Any]]
    data_dict: dict[str, Any] = field(default_factory=dict)
    uuid: str | None = None
    tools: list[Any] | None = None
    images: list[str] = field(default_factory=list)
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)


@dataclass
class ChatMessage:
    """The text of the model."""

    role: str
    content: str
    tool_calls: list[Any] | None = None


@dataclass
class ChatCompletionResponseChoice:
    """A turn of the model; finish_reason: stop or length."""

    index: int
    message: ChatMessage
    finish_reason: str
    logprobs: Any = None
    token_ids: list[int] | None = None


class ORM:
    """A reward function as a class; called with the texts of completions and the columns of their rows."""

    def __init__(self, *args: Any, **kwargs: Any):
        pass


class Env:
    """An environment; its coroutines are `reset(config)`, `step(messages)` and `close()`."""

    def __init__(self, env_config: Any):
        self.env_config = env_config


class ContextManager:
    """Changes the messages of an episode; files may define and register one, but no row may ask for it."""

    def __init__(self, ctx_config: Any = None):
        self.ctx_config = ctx_config


class MultiTurnScheduler:
    """Acts between two turns, as in ms-swift."""

    def __init__(self, infer_engine: Any = None, max_turns: int | None = None, *args: Any, **kwargs: Any):
        self.infer_engine, self.max_turns = infer_engine, max_turns

    async def on_trajectory_start(self, requests: list[RolloutInferRequest]) -> None:
        """Called before the first turn."""

    async def on_turn_end(
        self, infer_request: RolloutInferRequest, response_choice: ChatCompletionResponseChoice, current_turn: int
    ) -> dict[str, Any]:
        """Called after a turn, which is the last message of the request."""
        return {}

    def check_finished(
        self, infer_request: RolloutInferRequest, response_choice: ChatCompletionResponseChoice, current_turn: int
    ) -> bool:
        """Whether the turn was the last one."""
        is_last = bool(self.max_turns) and current_turn >= int(self.max_turns or 0)
        return response_choice.finish_reason == "length" or is_last

    def step(
        self, infer_request: RolloutInferRequest, response_choice: ChatCompletionResponseChoice, current_turn: int
    ) -> dict[str, Any]:
        """Return the request with the answer to the turn."""
        raise NotImplementedError(f"{type(self).__name__} has no method step")


class GYMScheduler(MultiTurnScheduler):
    """Runs an environment: the one that the row's `env_config` names, or else `gym_env`."""

    def __init__(self, infer_engine: Any = None, max_turns: int | None = None, **kwargs: Any):
        super().__init__(infer_engine, max_turns, **kwargs)
        self.gym_env_name = kwargs.get("gym_env")
        self._envs: dict[str | None, Any] = {}
        self._rewards: dict[str | None, list[float]] = {}
        self._observed: dict[str | None, str | None] = {}

    async def on_trajectory_start(self, requests: list[RolloutInferRequest]) -> None:
        """Reset the environments; their observation is the prompt."""
        for request in requests:
            if request.data_dict.get("ctx_config"):
                raise NotImplementedError("the row's ctx_config: RaySwift has no context managers; leave it out")
            config = request.data_dict.get("env_config") or {}
            env = self._create_env(config)
            observation, _, system = await env.reset(request)
            request.messages = [{"role": "system", "content": system}] if system else []
            request.messages.append({"role": "user", "content": observation})
            self._envs[request.uuid], self._rewards[request.uuid] = env, []

    async def on_turn_end(
        self, infer_request: RolloutInferRequest, response_choice: ChatCompletionResponseChoice, current_turn: int
    ) -> dict[str, Any]:
        """Have the environment step."""
        uuid = infer_request.uuid
        observation, reward, done, _ = await self._envs[uuid].step(deepcopy(infer_request.messages))
        self._rewards[uuid].append(float(reward))
        self._observed[uuid] = None if done else observation
        rewards = list(self._rewards[uuid])
        infos = {"total_reward": sum(rewards), "step_rewards": rewards, "gym_done": bool(done)}
        return {"done": bool(done), "rollout_infos": infos}

    def step(
        self, infer_request: RolloutInferRequest, response_choice: ChatCompletionResponseChoice, current_turn: int
    ) -> dict[str, Any]:
        """Append the environment's observation as the next message."""
        observed = self._observed.pop(infer_request.uuid, None)
        if observed is not None:
            infer_request.messages.append({"role": "user", "content": observed})
        return {"infer_request": infer_request}

    async def end(self, uuid: str | None) -> None:
        """Close an episode's environment."""
        env = self._envs.pop(uuid, None)
        self._rewards.pop(uuid, None)
        self._observed.pop(uuid, None)
        if env is not None:
            await env.close()

    def _create_env(self, env_config: dict[str, Any]) -> Any:
        name = env_config.get("name", self.gym_env_name)
        if name not in envs:
            raise ValueError(f"no environment {name!r} is registered; there are {', '.join(envs) or 'none'}")
        return envs[name](env_config)


envs: dict[str, Any] = {}
multi_turns: dict[str, Any] = {"gym_scheduler": GYMScheduler}
_NAMES: dict[str, Any] = {
    "AsyncORM": ORM,
    "ChatCompletionResponseChoice": ChatCompletionResponseChoice,
    "ContextManager": ContextManager,
    "Env": Env,
    "GYMScheduler": GYMScheduler,
    "InferRequest": RolloutInferRequest,
    "Messages": list[dict[str, Any]],
    "MultiTurnScheduler": MultiTurnScheduler,
    "ORM": ORM,
    "RolloutInferRequest": RolloutInferRequest,
    "RolloutScheduler": MultiTurnScheduler,
    "context_managers": {},
    "envs": envs,
    "get_logger": lambda *_: logging.getLogger("rayswift"),
    "multi_turns": multi_turns,
    "orms": {},
    "remove_response": lambda messages: (
        messages.pop()["content"] if messages and messages[-1]["role"] == "assistant" else None
    ),
    "rm_plugins": {},
}
_asked: dict[str, None] = {}


def install() -> None:
    """Make them importable for the user's files."""
    if "swift" in sys.modules or importlib.util.find_spec("swift") is not None:
        return
    for name in _MODULES:
        module = ModuleType(name)
        module.__path__ = []
        module.__dict__.update(_NAMES, __getattr__=_absent)
        sys.modules[name] = module


def _absent(name: str) -> type:
    """A stand-in for what has none: a file with several plugins may import it, and use it in one that is not asked for.

    Raises:
        AttributeError: it is no name of ms-swift.
    """
    if name.startswith("__"):
        raise AttributeError(name)

    _asked[name] = None

    def refuse(self: Any, *args: Any, **kwargs: Any) -> None:
        raise NotImplementedError(f"ms-swift's {_with_near(name)} is not part of RaySwift")

    return type(name, (), {"__init__": refuse})


def _with_near(name: str) -> str:
    near = difflib.get_close_matches(name, _NAMES, 1)
    return f"{name} (did you mean {near[0]}?)" if near else name


def remark() -> str:
    """What files that were imported take from ms-swift although it has no stand-in, misspelt names too; "" if nothing.

    Only ms-swift knows its names, so it is no error.
    """
    names = ", ".join(map(_with_near, _asked))
    return f"not part of RaySwift are these names of ms-swift, and code that uses them fails: {names}" if names else ""


_WHERE = {
    "envs": "swift.rollout.gym_env",
    "multi_turns": "swift.rollout.multi_turn",
    "orms": "swift.rewards",
    "rm_plugins": "swift.rewards",
}


def registry(name: str) -> dict[str, Any]:
    """The registry `envs`, `multi_turns`, `orms` or `rm_plugins`, of ms-swift itself or of the stand-in."""
    found: dict[str, Any] = getattr(sys.modules.get(_WHERE[name]), name, _NAMES[name])
    return found


def is_reward(function: Any) -> bool:
    """Whether a reward function is one of ms-swift: it takes completions as texts."""
    module = sys.modules.get("swift.rewards")
    bases = {getattr(module, name, ORM) for name in ("ORM", "AsyncORM")}
    return isinstance(function, (*bases, *filter(inspect.isclass, registry("orms").values())))
