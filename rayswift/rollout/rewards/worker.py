"""Processes that run reward functions and reward models, each with a deadline; lost ones are replaced.

A worker is an actor without CPUs that gets one batch at a time. If it gives no answer in time, or its process ends, it
is killed and started again; its batch has failed, and `dispatch.py` isolates the cause. Workers are spread over the
nodes by their CPUs; a worker that cannot start on its node runs on the node of its owner.
"""

import asyncio
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import ActorUnschedulableError, GetTimeoutError, RayActorError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from rayswift.data.feed.pipeline import user_error_in
from rayswift.log import UserError, logger, setup_worker
from rayswift.rollout.rewards import functions
from rayswift.rollout.rewards.functions import Item, RewardSpec, Value

_START_S = 300.0
_TELL_S = 30.0


class FunctionProcess:
    """The actor that runs reward functions.

    Args:
        specs: The functions, in the order of their numbers.
        conversational: See `functions.call`.
        work_dir: Where the user's files are found.
        log_dir: Where this process logs.
        name: Of its log.
    """

    def __init__(self, specs: Sequence[RewardSpec], conversational: bool, work_dir: Path, log_dir: Path, name: str):
        self._specs, self._conversational = specs, conversational
        self._work_dir, self._log_dir, self._name = work_dir, log_dir, name
        self._functions: list[functions.RewardFunction] = []
        self._loop = asyncio.new_event_loop()

    def load(self) -> None:
        """Import the functions.

        Raises:
            UserError: a function is missing or cannot be used.
        """
        setup_worker(self._log_dir, self._name)
        if self._work_dir.is_dir():
            os.chdir(self._work_dir)
        self._functions = [functions.load(spec) for spec in self._specs]

    def score(self, source: int, items: Sequence[Item]) -> list[Value] | str:
        found = functions.call(self._specs[source], self._functions[source], items, self._conversational, self._loop)
        if isinstance(found, str):
            logger.warning("%s", found)
        return found


class ActorWorker:
    """A worker of the dispatcher that runs in an actor.

    Args:
        who: The name of each source, for messages.
        make: Starts its actor, which has `load` and `score`, on a node by id.
        timeout_s: Time limit of one completion.
        node: Its node; if it cannot start there, it runs on the node of its owner.
    """

    def __init__(self, who: Sequence[str], make: Callable[[str], Any], timeout_s: float, node: str):
        self._who, self._make, self._timeout_s, self._node = who, make, timeout_s, node
        self._actor: Any = None

    async def start(self) -> None:
        """Start the actor and have it load.

        Raises:
            UserError: it cannot load, or not in time.
        """
        here = ray.get_runtime_context().get_node_id()
        try:
            await self._start_on(self._node)
        except UserError as error:
            if self._node == here:
                raise
            logger.warning("%s; starting it on the coordinator's node, not on node %s", error, self._node[:8])
            self.kill()
            self._node = here
            await self._start_on(here)

    async def _start_on(self, node: str) -> None:
        who = ", ".join(self._who)
        self._actor = self._make(node)
        loaded = asyncio.ensure_future(_answer(self._actor.load.remote(), _START_S))
        try:
            while not (await asyncio.wait([loaded], timeout=_TELL_S))[0]:
                logger.info("waiting for the process for %s to start (up to %.0f s)", who, _START_S)
            loaded.result()
        except TimeoutError as error:
            raise UserError(f"the process for {who} did not start within {_START_S:.0f} s", exit_code=1) from error
        except (ActorUnschedulableError, RayActorError, RayTaskError) as error:
            raise user_error_in(error) or UserError(f"the process for {who} did not start: {error}", 1) from error

    async def score(self, source: int, items: Sequence[Item], timeout_s: float) -> list[Value] | str:
        who = self._who[source]
        try:
            found: list[Value] | str = await _answer(self._actor.score.remote(source, items), timeout_s)
            return found
        except TimeoutError:
            failure = f"{who} gave no answer: not within rollout.reward_timeout_s = {self._timeout_s:g}"
            if len(items) > 1:
                failure += f", {timeout_s:.0f} s for {len(items)} completions"
        except RayActorError:
            failure = f"{who} ended its process"
        except RayTaskError as error:
            return f"{who} failed: {str(error).strip().splitlines()[-1]}"
        logger.warning("%s; restarting its process", failure)
        self.kill()
        await self.start()
        return failure

    async def ask(self, method: str, *arguments: Any, timeout_s: float | None) -> Any:
        """What a method of the actor answers; many may be asked at a time. timeout_s: None: as long as it lives.

        Raises:
            TimeoutError: it did not answer in time.
            RayActorError: its process has died.
        """
        return await _answer(getattr(self._actor, method).remote(*arguments), timeout_s)

    def kill(self) -> None:
        """End the actor."""
        if self._actor is not None:
            ray.kill(self._actor, no_restart=True)


async def _answer(ref: Any, timeout_s: float | None) -> Any:
    """The value of a reference.

    Raises:
        TimeoutError: it did not come in time.
    """
    try:
        return await asyncio.wait_for(asyncio.wrap_future(ref.future()), timeout_s)
    except GetTimeoutError as error:
        raise TimeoutError(str(error)) from error


def spread(num_workers: int, cpus: Mapping[str, float], here: str) -> list[str]:
    """Return the node of each worker: each goes to the node with the most CPUs per worker.

    Args:
        num_workers: Number of workers.
        cpus: Of each node by id.
        here: The node of the workers' owner; it is preferred among equal ones.
    """
    dealt = dict.fromkeys(cpus or {here: 1.0}, 0)
    nodes = []
    for _ in range(num_workers):
        nodes.append(min(dealt, key=lambda node: (-cpus.get(node, 1.0) / (dealt[node] + 1), node != here, node)))
        dealt[nodes[-1]] += 1
    return nodes


def nodes_of_workers(num_workers: int) -> list[str]:
    """Return the node of each worker, over the nodes that are alive and have CPUs; see `spread`."""
    nodes = [node for node in ray.nodes() if node["Alive"]]
    cpus = {node["NodeID"]: node["Resources"]["CPU"] for node in nodes if node["Resources"].get("CPU", 0) >= 1}
    return spread(num_workers, cpus, ray.get_runtime_context().get_node_id())


def on_node(actor_class: Any, node: str, num_gpus: float = 0, **more: Any) -> Any:
    """Return an actor class without CPUs that Ray never restarts and that, without GPUs, runs on a given node.

    The node is named, because an actor on a node that the autoscaler adds for engines would keep that node alive.
    """
    there = NodeAffinitySchedulingStrategy(node, soft=False)
    options: dict[str, Any] = more | ({"num_gpus": num_gpus} if num_gpus else {"scheduling_strategy": there})
    return ray.remote(actor_class).options(num_cpus=0, max_restarts=0, max_task_retries=0, **options)
