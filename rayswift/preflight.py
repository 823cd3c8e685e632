"""Before a run on a cluster that is there: does the head answer, does the run fit, do the nodes share the run folder?

Each answer takes seconds. The one wait is for nodes that the autoscaler can add or that other work holds: it is
announced, and `cluster.wait_for_nodes_s` bounds it.
"""

import socket
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rayswift.log import UserError, logger

Resources = dict[str, float]

_CONNECT_S = 5
_POLL_S = 0.5
_REMIND_S = 30
_LOOK_S = 60


@dataclass(frozen=True)
class Ask:
    """What a run needs at once: `num_workers` times `worker`, and one CPU for Ray Data beside them."""

    num_workers: int
    worker: Resources

    def bundles(self) -> list[Resources]:
        """One entry a process, as the autoscaler takes them."""
        return [*([self.worker] * self.num_workers), {"CPU": 1.0}]

    def __str__(self) -> str:
        each = describe(self.worker)
        return f"{self.num_workers} worker(s) of {each} each, and 1 CPU for Ray Data"


@dataclass(frozen=True)
class NodeType:
    """A kind of node that the autoscaler may add, and how many of them there may be."""

    resources: Resources
    most: int


def describe(resources: Resources) -> str:
    """`2 CPU + 1 GPU`; what Ray adds of its own (node names, memory) is left out."""
    shown = {k: v for k, v in resources.items() if v and not k.startswith(("node:", "memory", "object_store_memory"))}
    return " + ".join(f"{amount:g} {name}" for name, amount in sorted(shown.items())) or "nothing"


def num_workers_that_fit(ask: Ask, nodes: Sequence[Resources]) -> int:
    """Workers that the nodes hold at once (at most those asked for) with a CPU left for Ray Data; -1: not even that."""
    slots, spare_cpus = 0, 0.0
    for node in nodes:
        here = min(int(node.get(name, 0) / amount + 1e-9) for name, amount in ask.worker.items())
        slots += here
        spare_cpus = max(spare_cpus, node.get("CPU", 0) - here * ask.worker.get("CPU", 0))
    if spare_cpus < 1:  # a worker's place goes to Ray Data
        slots -= 1
    return min(slots, ask.num_workers)


def can_ever_fit(ask: Ask, nodes: Sequence[Resources], types: Sequence[NodeType]) -> bool:
    """Whether the run fits once the autoscaler has added all it may.

    Args:
        ask: What the run needs.
        nodes: What is there.
        types: What may be added; the nodes that are there are not subtracted from `most`, which errs towards waiting.
    """
    enough = ask.num_workers + 1
    added = [kind.resources for kind in types for _ in range(min(kind.most, enough))]
    return num_workers_that_fit(ask, [*nodes, *added]) >= ask.num_workers


def check_head_answers(address: str) -> None:
    """Open a connection to the head, so that a wrong address is named at once: Ray itself tries for a long time.

    Raises:
        UserError: the address is none, or nothing listens there.
    """
    if address in ("auto", "local"):
        return
    host, _, port = address.rpartition(":")
    if "://" in address or not host or not port.isdigit():
        raise UserError(
            f"cluster.address (or RAY_ADDRESS) = {address!r} is no head node's host:port, such as 10.0.0.1:6379; to "
            "train through a dashboard (http://...), use `ray job submit`"
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_S).close()
    except (OSError, OverflowError) as error:
        raise UserError(
            f"no Ray cluster answers at {address} (cluster.address, or RAY_ADDRESS): {error}; check the address, and "
            "that `ray status` works on its head node"
        ) from error


def wait_until_it_fits(ask: Ask, timeout_s: float) -> None:
    """Return once the cluster has room for the run.

    Args:
        ask: What the run needs.
        timeout_s: Longest wait for nodes that the autoscaler can add, or that other work holds.

    Raises:
        UserError: it never can have (exit code 2), or had none in time (exit code 1).
    """
    import ray.autoscaler.sdk

    there, free = _nodes()
    if num_workers_that_fit(ask, free) >= ask.num_workers:
        return
    fits_when_free = num_workers_that_fit(ask, there) >= ask.num_workers
    types = _addable_types()
    if not fits_when_free and not can_ever_fit(ask, there, types or ()):
        raise UserError(_too_little(ask, there, types))
    if fits_when_free:
        reason = f"other work holds part of the cluster: {describe(_sum(free))} of {describe(_sum(there))} is free"
    else:
        reason = f"the autoscaler is asked for nodes: {_summary(ask, there)}"
    logger.info("waiting up to %g s (cluster.wait_for_nodes_s) for %s; %s", timeout_s, ask, reason)
    try:
        if not fits_when_free:
            ray.autoscaler.sdk.request_resources(bundles=ask.bundles())
        _wait(ask, timeout_s)
    finally:
        if not fits_when_free:
            ray.autoscaler.sdk.request_resources(bundles=[])  # or the nodes would stay when the run is over


def _wait(ask: Ask, timeout_s: float) -> None:
    begun = reminded = time.monotonic()
    while True:
        there, free = _nodes()
        now = time.monotonic()
        if num_workers_that_fit(ask, free) >= ask.num_workers:
            logger.info("the cluster has room after %.0f s", now - begun)
            return
        if now - begun >= timeout_s:
            raise UserError(
                f"the Ray cluster had no room within cluster.wait_for_nodes_s = {timeout_s:g}: "
                f"{_summary(ask, there)}; free: {describe(_sum(free))}; lower cluster.num_workers, wait longer, or see "
                "`ray status` for why no node came",
                exit_code=1,
            )
        if now - reminded >= _REMIND_S:
            reminded = now
            logger.info("still waiting after %.0f s: %s", now - begun, _summary(ask, there))
        time.sleep(_POLL_S)


def _summary(ask: Ask, there: list[Resources]) -> str:
    possible = max(0, num_workers_that_fit(ask, there))
    lacking = ask.num_workers - possible
    what = f"{lacking} x ({describe(ask.worker)})" if lacking else "1 CPU for Ray Data"
    room = f"room for {possible} of the {ask.num_workers} worker(s)"
    return f"asked {ask}; there {len(there)} node(s) with {describe(_sum(there))}: {room}; lacking {what}"


def _too_little(ask: Ask, there: list[Resources], types: list[NodeType] | None) -> str:
    if types is None:
        why = "no autoscaler is running that could add nodes"
    else:
        limits = ", ".join(f"{kind.most} x ({describe(kind.resources)})" for kind in types) or "none"
        why = f"the autoscaler cannot add enough (it may have {limits})"
    return (
        f"cluster.num_workers = {ask.num_workers} does not fit the Ray cluster: {_summary(ask, there)}; {why}; lower "
        "cluster.num_workers or add nodes"
    )


def _sum(nodes: list[Resources]) -> Resources:
    return {name: sum(node.get(name, 0) for node in nodes) for name in {n for node in nodes for n in node}}


def _nodes() -> tuple[list[Resources], list[Resources]]:
    """Total and free resources of every living node, in the same order."""
    import ray
    from ray._private.state import available_resources_per_node

    free = available_resources_per_node()
    alive = [node for node in ray.nodes() if node["Alive"]]
    return [dict(node["Resources"]) for node in alive], [dict(free.get(node["NodeID"], {})) for node in alive]


def _addable_types() -> list[NodeType] | None:
    """Kinds of node that the autoscaler may add; None: there is no autoscaler."""
    from ray._private.state import state

    config = state.get_cluster_config()
    if config is None:
        return None
    unbounded = 1 << 30
    types = []
    for group in config.node_group_configs:
        most = unbounded if group.max_count < 0 else group.max_count
        types.append(NodeType({k: float(v) for k, v in group.resources.items()}, most))
    return types or None


def check_shared(run_dir: Path) -> None:
    """Every node must see the run folder: workers write their checkpoints into it, data tasks read from it.

    Args:
        run_dir: The folder, as this process sees it.

    Raises:
        UserError: a node does not see what this process writes there.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU", 0) >= 1]
    here = ray.get_runtime_context().get_node_id()
    others = {node["NodeID"]: node["NodeManagerAddress"] for node in nodes if node["NodeID"] != here}
    if not others:
        return
    mark = run_dir / f".shared-{uuid.uuid4().hex[:8]}"
    mark.touch()
    try:
        sees: dict[Any, str] = {
            ray.remote(_exists)
            .options(num_cpus=0, max_retries=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node_id, soft=False))
            .remote(str(mark)): address
            for node_id, address in others.items()
        }
        answered, silent = ray.wait(list(sees), num_returns=len(sees), timeout=_LOOK_S)
        blind = sorted({sees[ref] for ref in answered if not ray.get(ref)})
    except ray.exceptions.RayError as error:
        raise UserError(f"a node of the Ray cluster died while it was asked for the run folder: {error}") from error
    finally:
        mark.unlink(missing_ok=True)
    if silent:
        names = ", ".join(sorted({sees[ref] for ref in silent}))
        raise UserError(f"node(s) {names} of the Ray cluster ran no task within {_LOOK_S} s; see `ray status` there")
    if blind:
        raise UserError(
            f"the run folder {run_dir} is not shared: node(s) {', '.join(blind)} of the Ray cluster do not see what is "
            "written here; put train.output_dir (or, if that is a URL, cluster.scratch_dir) on storage that all nodes "
            "mount under one path"
        )


def _exists(path: str) -> bool:
    return Path(path).exists()
