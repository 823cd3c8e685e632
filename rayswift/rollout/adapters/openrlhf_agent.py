"""OpenRLHF's agents: `reset` and `step` of an AgentInstance, called as its MultiTurnAgentExecutor calls them (0.11).

Its texts are raw: an agent gets the prompt as the chat template renders it, and its answer follows the end token of the
model's turn.
"""

import functools
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from rayswift.config.reading import other_modules
from rayswift.data.rows import Message
from rayswift.log import UserError, logger
from rayswift.rollout.episodes.contract import ENVIRONMENT
from rayswift.rollout.episodes.sessions import Answer, Runner, Start, Turn, as_reward, cut

_MODULE = "openrlhf.utils.agent"


def instance_class(written: str, made: Any) -> type | None:
    """Return the AgentInstance of an agent's class or executor; None: it is no agent of OpenRLHF.

    Raises:
        UserError: an agent that samples by itself.
    """
    executor, instance = (other_modules.of(_MODULE, name) for name in ("AgentExecutorBase", "AgentInstanceBase"))
    if executor is None or not inspect.isclass(made):
        return None
    if issubclass(made, instance):
        return made
    if not issubclass(made, executor):
        return None
    turns = other_modules.of(_MODULE, "MultiTurnAgentExecutor")
    if not issubclass(made, turns) or getattr(made, "execute", None) is not getattr(turns, "execute", None):
        raise UserError(
            f"{ENVIRONMENT} = {written!r} has a method execute of its own, which would sample by itself; give a "
            "MultiTurnAgentExecutor or its AgentInstance"
        )
    make: Any = made
    try:
        found: type = make().agent_instance_cls
    except (Exception, SystemExit) as error:
        raise UserError(
            f"{ENVIRONMENT} = {written!r} cannot be made without arguments: {type(error).__name__}: {error}"
        ) from error
    return found


class AgentSession:
    """An episode of an agent.

    Args:
        run: Runs its methods.
        make: Makes the AgentInstance.
        max_chars: Longest text that it adds after a turn.
    """

    def __init__(self, run: Runner, make: type, max_chars: int):
        self._run, self._make, self._max_chars = run, make, max_chars
        self._reward = 0.0

    async def reset(self, start: Start) -> Sequence[Message] | str | None:
        """See Session; returns a text if the agent changes the prompt."""
        self._agent = await self._run(self._make)
        if "label" not in start.columns:
            _say_that_labels_are_missing(self._make.__name__)
        self._label = start.columns.get("label", "")
        states = {"observation": start.text, "label": self._label}
        found = _texts(await self._run(self._agent.reset, states), "reset", "observation")
        self._text = found["observation"]
        return None if self._text == start.text else cut(self._text, len(self._text))

    async def answer(self, turn: Turn) -> Answer:
        said = turn.text + turn.end
        states = {"observation_text": self._text, "action_text": said, "label": self._label, "sampling_params": None}
        found = _texts(await self._run(self._agent.step, states), "step", "environment_feedback")
        for name in ("sampling_params", "environment_images"):
            if found.get(name) is not None:
                raise ValueError(f"step returned {name}, which cannot be taken here; leave it out")
        reward = as_reward(found["rewards"])
        self._reward += reward or 0.0
        heard = cut(found["environment_feedback"], self._max_chars)
        self._text += said + heard
        infos = dict(found.get("extra_logs") or {})
        if found["done"] or turn.last:
            return Answer(done=True, infos=infos)
        return Answer(raw=heard, kept=None, infos=infos)

    async def reward(self) -> float | None:
        """See Session: the sum of all steps."""
        return self._reward

    async def close(self) -> None:
        """See Session."""


def _texts(found: Any, method: str, name: str) -> Mapping[str, Any]:
    """Return the text of this name in a method's result, if there is one."""
    if not isinstance(found, Mapping) or not isinstance(found.get(name), str):
        kind = type(found.get(name) if isinstance(found, Mapping) else found).__name__
        raise TypeError(f"{method} returned {kind}, wanted a dictionary with the text {name!r}")
    return found


@functools.cache
def _say_that_labels_are_missing(agent: str) -> None:
    logger.warning(
        "%s: a row has no column `label`, and the agent gets an empty text in its place, as from OpenRLHF; if it reads "
        "labels, map their column with data.columns",
        agent,
    )
