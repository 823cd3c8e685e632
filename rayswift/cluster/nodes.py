"""The nodes of a cluster before a run: does each reach all others, see the run folder, and have what the run names?

What is wrong here shows much later otherwise, as a group of workers that waits in silence for one of its own.
"""

import concurrent.futures
import socket
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rayswift.log import UserError, logger

_CONNECT_S = 3.0
_LOST_S = 20.0
"""Ray lists a node that is lost for some fifteen seconds more."""
_REMIND_S = 20.0
_AT_ONCE = 64
# A node's kernel answers so many at once that nobody has to accept.
_BACKLOG = 4096


@dataclass(frozen=True)
class Needed:
    """A file or folder that processes of a run open. what: the field and its value; path: absolute, or in a job's
    working folder; resources: a node must have it that can hold one of these."""

    what: str
    path: Path
    resources: tuple[Mapping[str, float], ...]


@dataclass(frozen=True)
class Seen:
    """What a node saw: whether the run folder, what of the needed files not, which nodes it does not reach."""

    run_folder: bool
    missing: tuple[str, ...]
    unreached: tuple[str, ...]


def answers(address: str, port: int, timeout_s: float = _CONNECT_S, tries: int = 1) -> bool:
    """Whether a connection can be opened there."""
    for _ in range(tries):
        try:
            socket.create_connection((address, port), timeout=timeout_s).close()
            return True
        except OSError:
            continue
    return False


def silent(nodes: Sequence[Mapping[str, Any]], timeout_s: float = _CONNECT_S) -> list[Mapping[str, Any]]:
    """Those of Ray's nodes (`ray.nodes()`) on which no connection to the raylet can be opened from here."""

    def lives(node: Mapping[str, Any]) -> bool:
        return answers(node["NodeManagerAddress"], node["NodeManagerPort"], timeout_s)

    with concurrent.futures.ThreadPoolExecutor(_AT_ONCE) as pool:
        return [node for node, alive in zip(nodes, pool.map(lives, nodes), strict=True) if not alive]


def check(run_dir: Path, needed: Sequence[Needed], timeout_s: float) -> None:
    """Look from every node.

    Args:
        run_dir: The run folder, as this process sees it: workers write checkpoints there, data tasks read from it.
        needed: What else must be there.
        timeout_s: Longest wait for a first process on each, and for what it sees.

    Raises:
        UserError: a node does not answer, is not reached by another, or does not see what it must.
    """
    import ray

    here = ray.get_runtime_context().get_node_id()
    _wait_until_reached(here)
    nodes = {node["NodeID"]: node for node in _taking_part(here)}
    if len(nodes) == 1:
        return
    mark = run_dir / f".shared-{uuid.uuid4().hex[:8]}"
    mark.touch()
    probes: dict[str, Any] = {}
    try:
        probes = {node_id: _start_probe(node_id) for node_id in nodes}
        addresses = {node_id: node["NodeManagerAddress"] for node_id, node in nodes.items()}
        ports = _ask(addresses, {node_id: probe.port.remote() for node_id, probe in probes.items()}, timeout_s)
        found = _ask(
            addresses,
            {
                node_id: probe.look.remote(
                    str(mark),
                    {each.what: str(each.path) for each in needed if _concerns(each, nodes[node_id])},
                    {other: (addresses[other], port) for other, port in ports.items() if other != node_id},
                )
                for node_id, probe in probes.items()
            },
            timeout_s,
        )
    except ray.exceptions.RayError as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"a node of the Ray cluster was lost while the run was prepared: {reason}") from error
    finally:
        mark.unlink(missing_ok=True)
        for probe in probes.values():
            ray.kill(probe)
    problems = complaints(run_dir, addresses, found)
    if problems:
        raise UserError("\n".join(problems))


def complaints(run_dir: Path, addresses: Mapping[str, str], found: Mapping[str, Seen]) -> list[str]:
    """What is wrong, a line each.

    Args:
        run_dir: The run folder.
        addresses: Of each node, by its id.
        found: What each saw.
    """
    lines = []
    cut = {(by, to) for by, seen in found.items() for to in seen.unreached}
    if cut:
        # Whoever nobody reaches is to blame, not all who do not reach it.
        alone = {to for _, to in cut if sum(each == to for _, each in cut) == len(found) - 1}
        pairs = sorted(f"{addresses[to]} from {addresses[by]}" for by, to in cut if to not in alone)
        names = ", ".join([*sorted(f"{addresses[to]} from any other" for to in alone), *pairs])
        lines.append(
            f"nodes of the Ray cluster cannot be reached: {names}; processes of a run connect to each other on ports "
            "that the system chooses: let the nodes' firewalls pass TCP between them, or start Ray on each with the "
            "--node-ip-address of the network that they share"
        )
    blind = sorted(addresses[node] for node, seen in found.items() if not seen.run_folder)
    if blind:
        lines.append(
            f"the run folder {run_dir} is not shared: node(s) {', '.join(blind)} of the Ray cluster do not see what is "
            "written here; put train.output_dir (or, if that is a URL, cluster.scratch_dir) on storage that all nodes "
            "mount under one path"
        )
    for what in sorted({name for seen in found.values() for name in seen.missing}):
        without = sorted(addresses[node] for node, seen in found.items() if what in seen.missing)
        lines.append(
            f"{what} is not there on node(s) {', '.join(without)} of the Ray cluster; put it on storage that all nodes "
            "mount under one path, or submit a job with --working-dir"
        )
    return lines


class _Probe:
    """An actor on a node: others connect to it, and it looks around."""

    def __init__(self) -> None:
        self._socket = socket.create_server(("", 0), backlog=_BACKLOG)

    def port(self) -> int:
        """Where it listens."""
        return int(self._socket.getsockname()[1])

    def look(self, mark: str, needed: Mapping[str, str], others: Mapping[str, tuple[str, int]]) -> Seen:
        """See `Seen`; paths are as this process sees them."""
        with concurrent.futures.ThreadPoolExecutor(_AT_ONCE) as pool:
            reached = pool.map(lambda each: answers(each[0], each[1], tries=2), others.values())
            unreached = tuple(node for node, reaches in zip(others, reached, strict=True) if not reaches)
        missing = tuple(what for what, path in needed.items() if not Path(path).exists())
        return Seen(Path(mark).exists(), missing, unreached)


def _start_probe(node_id: str) -> Any:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    there = NodeAffinitySchedulingStrategy(node_id, soft=False)
    return ray.remote(_Probe).options(num_cpus=0, max_restarts=0, scheduling_strategy=there).remote()


def _taking_part(here: str) -> list[Any]:
    import ray

    alive = [node for node in ray.nodes() if node["Alive"]]
    return [node for node in alive if node["NodeID"] == here or node["Resources"].get("CPU", 0) >= 1]


def _wait_until_reached(here: str) -> None:
    """Return once every node that Ray lists can be reached from here; one that was just lost leaves the list."""
    deadline = time.monotonic() + _LOST_S
    while lost := silent([node for node in _taking_part(here) if node["NodeID"] != here]):
        if time.monotonic() > deadline:
            names = ", ".join(f"{node['NodeManagerAddress']}:{node['NodeManagerPort']}" for node in lost)
            raise UserError(
                f"node(s) of the Ray cluster cannot be reached from here: {names} (the raylet) takes no connection, "
                "though Ray lists them; let the nodes' firewalls pass TCP between them, or start Ray on each with the "
                "--node-ip-address of the network that they share"
            )
        time.sleep(1)


def _ask(addresses: Mapping[str, str], asked: Mapping[str, Any], timeout_s: float) -> dict[str, Any]:
    """The answers, by node."""
    import ray

    names = {ref: addresses[node_id] for node_id, ref in asked.items()}
    start = time.monotonic()
    waiting = list(names)
    while waiting:
        left_s = timeout_s - (time.monotonic() - start)
        _, waiting = ray.wait(waiting, num_returns=len(waiting), timeout=max(0.0, min(left_s, _REMIND_S)))
        late = ", ".join(sorted(names[ref] for ref in waiting))
        if waiting and left_s <= _REMIND_S:
            raise UserError(
                f"node(s) {late} of the Ray cluster ran no process within cluster.node_timeout_s = {timeout_s:g}; see "
                "`ray status` and the logs of Ray there, or wait longer, if a job's environment is installed there"
            )
        if waiting:
            logger.info("waiting for node(s) %s of the Ray cluster to run a first process", late)
    return {node_id: ray.get(ref) for node_id, ref in asked.items()}


def _concerns(needed: Needed, node: Mapping[str, Any]) -> bool:
    has = node["Resources"]
    return any(all(has.get(name, 0) >= amount for name, amount in each.items()) for each in needed.resources)
