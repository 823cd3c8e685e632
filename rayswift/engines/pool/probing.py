"""Scores of a fixed text by every engine, for the canary, and how an engine assembles its answer."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rayswift.engines.engine import EngineLost, NoWeights
from rayswift.engines.pool.membership import State
from rayswift.engines.pool.replica import Replica
from rayswift.log import UserError, logger

_TRIES = 3
Until = Callable[[Callable[[], bool]], Awaitable[None]]
"""Waits for a condition, which is checked whenever the state of an engine changes."""


@dataclass(frozen=True)
class Probed:
    """logprobs: each engine's log-probabilities [T - 1] of a text [T]; missing: engines without any, yet."""

    logprobs: dict[str, NDArray[np.float32]]
    missing: tuple[str, ...]


async def ask_all(replicas: Mapping[str, Replica], until: Until, token_ids: NDArray[np.int32]) -> Probed:
    """Have every started engine score a text [T], as soon as it holds the current weights.

    Raises:
        UserError: there are engines, and none of them answers.
    """
    asked = [replica for replica in replicas.values() if _has_started(replica)]
    answers = await asyncio.gather(*(_ask(replica, until, token_ids) for replica in asked))
    found = {replica.name: answer for replica, answer in zip(asked, answers, strict=True) if answer is not None}
    late = [replica.name for replica in asked if replica.name not in found and _has_started(replica)]
    if late and not found:
        raise UserError(
            f"no engine scored a text of {len(token_ids)} tokens, asked {_TRIES} times: {', '.join(late)}", exit_code=1
        )
    coming = [
        replica
        for replica in replicas.values()
        if replica.status.placed and replica.status.alive and not replica.status.draining
    ]
    return Probed(found, tuple(replica.name for replica in coming if replica.name not in found))


async def _ask(replica: Replica, until: Until, token_ids: NDArray[np.int32]) -> NDArray[np.float32] | None:
    for _ in range(_TRIES):
        await until(lambda: not _has_started(replica) or replica.status.state is State.HEALTHY)
        if not _has_started(replica):
            return None
        try:
            return await replica.score(token_ids)
        except EngineLost:
            return None
        except (TimeoutError, NoWeights) as error:
            logger.warning("%s has not scored the fixed text, and is asked again: %s", replica.name, error)
    return None


def _has_started(replica: Replica) -> bool:
    return replica.status.alive and replica.status.started and not replica.status.draining


Scored = Callable[[NDArray[np.float32] | NoWeights], None]
"""Called with the log-probabilities of a text, or with the reason why there are none."""


class TextScore:
    """Collects the log-probabilities [T] of tokens, which come one by one."""

    def __init__(self, tokens: Sequence[int], done: Scored):
        self.tokens, self.done = tokens, done
        self._found: dict[int, float] = {}

    def take(self, place: int, logprobs: Mapping[int, Any]) -> None:
        """Add the distribution from which the token at this position comes."""
        self._found[place] = logprobs[self.tokens[place]].logprob
        if len(self._found) == len(self.tokens):
            self.done(np.array([self._found[each] for each in range(len(self.tokens))], np.float32))
