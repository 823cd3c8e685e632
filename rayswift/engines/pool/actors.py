"""Engines as Ray actors: calls of the pool become remote calls, and the death of a process an `EngineLost`.

An engine without room in the cluster is a pending actor, for which Ray's autoscaler adds a node.
"""

import asyncio
import os
from collections import deque
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import ray
from numpy.typing import NDArray
from ray.exceptions import RayActorError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from rayswift.engines.engine import Collected, EngineLost, Factory
from rayswift.engines.samples import Completion, PolicyVersion, SampleRequest
from rayswift.engines.serialization import Requests

_T = TypeVar("_T")
_NUM_LINES = 15
_CALLS_AT_ONCE = 32
_RAYS_OWN = (":job_id:", ":actor_name:", ":task_name:")
_WHO = ("class_name", "actor_id", "pid", "namespace", "ip", "name:")


def ray_engines(engine: type[Any], arguments: tuple[Any, ...], options: Mapping[str, Any]) -> Factory:
    """Return a factory that makes each engine in its own actor; the calling process owns the actors.

    An engine's process may have to wait for room.

    Args:
        engine: A class with the methods of `Engine`.
        arguments: For its constructor.
        options: Of the actor, see `ray.remote`: its resources and its environment.
    """
    # After a restart by Ray, an engine would answer without its weights.
    options = {"max_concurrency": _CALLS_AT_ONCE, **options, "max_restarts": 0, "max_task_retries": 0}
    actor_class = ray.remote(engine).options(**options)
    return lambda name: ActorEngine(actor_class.remote(*arguments))


@dataclass(frozen=True)
class _Process:
    """Where an actor runs, and the file of its stderr; None: unknown."""

    node_id: str
    pid: int
    log: str | None


class ActorEngine:
    """An engine in a Ray actor; see `EngineHandle`."""

    def __init__(self, actor: Any):
        self._actor = actor
        self._process: _Process | None = None

    async def placed(self) -> None:
        self._process = await self._answer(self._actor.__ray_call__.remote(_process))

    async def start(self) -> None:
        await self._answer(self._actor.start.remote())

    async def submit(self, requests: Sequence[SampleRequest]) -> None:
        await self._answer(self._actor.submit.remote(Requests(requests)))

    async def collect(self, timeout_s: float, part_tokens: int | None) -> Collected:
        collected: Collected = await self._answer(self._actor.collect.remote(timeout_s, part_tokens))
        return collected

    async def abort(self, keys: Sequence[str]) -> tuple[Completion, ...]:
        parts: tuple[Completion, ...] = await self._answer(self._actor.abort.remote(keys))
        return parts

    async def load(self, version: PolicyVersion, weights: Any) -> float:
        pause_s: float = await self._answer(self._actor.load.remote(version, weights))
        return pause_s

    async def score(self, token_ids: NDArray[np.int32], timeout_s: float) -> NDArray[np.float32]:
        logprobs: NDArray[np.float32] = await self._answer(self._actor.score.remote(token_ids, timeout_s))
        return logprobs

    async def last_lines(self) -> str:
        if self._process is None or self._process.log is None:
            return ""
        if self._process.node_id == ray.get_runtime_context().get_node_id():
            return await asyncio.to_thread(_tail, self._process.log)
        there = NodeAffinitySchedulingStrategy(self._process.node_id, soft=False)
        lines: str = await ray.remote(_tail).options(num_cpus=0, scheduling_strategy=there).remote(self._process.log)
        return lines

    def kill(self) -> None:
        ray.kill(self._actor)

    async def _answer(self, call: Awaitable[_T]) -> _T:
        try:
            return await call
        except RayActorError as error:
            raise EngineLost(f"its process {self._place()}died: {_reason(error)}") from error
        except RayTaskError as error:
            raise error.cause from error

    def _place(self) -> str:
        return "" if self._process is None else f"{self._process.pid} on node {self._process.node_id[:8]} "


def _process(_: Any) -> _Process:
    """Describe the current actor process; Ray redirects the stderr of its workers into a file."""
    log = os.path.realpath("/proc/self/fd/2")
    return _Process(ray.get_runtime_context().get_node_id(), os.getpid(), log if os.path.isfile(log) else None)


def _tail(file: str) -> str:
    with Path(file).open(encoding="utf-8", errors="replace") as lines:
        return "".join(deque((line for line in lines if not line.startswith(_RAYS_OWN)), maxlen=_NUM_LINES))


def _reason(error: RayActorError) -> str:
    """Return Ray's reason for a death, without the actor's name and without Ray's list of common causes."""
    lines = [line.strip() for line in str(error).splitlines()[1:]]
    message = " ".join(line for line in lines if line and not line.startswith(_WHO)) or str(error)
    return message.partition(" Some common causes include")[0]
