"""Checks of all nodes before a run: each must reach the others, see the run folder, and have the files of the run.

Without these checks, workers would later wait in silence for a worker that cannot reach them.
"""

import concurrent.futures
import socket
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rayswift.log import UserError, first_line, logger, refuse

_CONNECT_S = 3.0
_LOST_S = 20.0
"""Ray still lists a lost node for about fifteen seconds."""
_REMIND_S = 20.0
_AT_ONCE = 64
# The kernel accepts this many connections without a call of `accept`.
_BACKLOG = 4096


_REMEDY = (
    "let the nodes' firewalls pass TCP between them, or start Ray on each with the --node-ip-address of the network "
    "that they share"
)


@dataclass(frozen=True)
class Needed:
    """A file or folder that processes of a run open.

    what: field and value; resources: a node that has room for one of these must have the file.
    """

    what: str
    path: Path
    resources: tuple[Mapping[str, float], ...]

    def concerns(self, node: Mapping[str, float]) -> bool:
        return any(all(node.get(name, 0) >= amount for name, amount in each.items()) for each in self.resources)


@dataclass(frozen=True)
class Seen:
    """What a node sees: the run folder or not, the missing files, and the nodes that it does not reach."""

    run_folder: bool
    missing: tuple[str, ...]
    unreached: tuple[str, ...]


def answers(address: str, port: int, timeout_s: float = _CONNECT_S, tries: int = 1) -> bool:
    """Whether a TCP connection can be opened."""
    for _ in range(tries):
        try:
            socket.create_connection((address, port), timeout=timeout_s).close()
            return True
        except OSError:
            continue
    return False


def silent(nodes: Sequence[Mapping[str, Any]], timeout_s: float = _CONNECT_S) -> list[Mapping[str, Any]]:
    """The entries of `ray.nodes()` whose raylet accepts no connection from here."""

    def lives(node: Mapping[str, Any]) -> bool:
        return answers(node["NodeManagerAddress"], node["NodeManagerPort"], timeout_s)

    with concurrent.futures.ThreadPoolExecutor(_AT_ONCE) as pool:
        return [node for node, alive in zip(nodes, pool.map(lives, nodes), strict=True) if not alive]


def check(run_dir: Path, needed: Sequence[Needed], timeout_s: float) -> None:
    """Raise UserError if a node does not answer, is not reached by another, or does not see the run folder or a file.

    timeout_s: longest wait for a process on each node, and for its answer.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = ray.get_runtime_context().get_node_id()
    _wait_until_reached(here)
    nodes = {node["NodeID"]: node for node in _taking_part(here)}
    if len(nodes) == 1:
        return
    mark = run_dir / f".shared-{uuid.uuid4().hex[:8]}"
    mark.touch()
    probes: dict[str, Any] = {}
    try:
        for node_id in nodes:
            there = NodeAffinitySchedulingStrategy(node_id, soft=False)
            probe = ray.remote(_Probe).options(num_cpus=0, max_restarts=0, scheduling_strategy=there)
            probes[node_id] = probe.remote()
        addresses = {node_id: node["NodeManagerAddress"] for node_id, node in nodes.items()}
        ports = _ask(addresses, {node_id: probe.port.remote() for node_id, probe in probes.items()}, timeout_s)
        found = _ask(
            addresses,
            {
                node_id: probe.look.remote(
                    str(mark),
                    {each.what: str(each.path) for each in needed if each.concerns(nodes[node_id]["Resources"])},
                    {other: (addresses[other], port) for other, port in ports.items() if other != node_id},
                )
                for node_id, probe in probes.items()
            },
            timeout_s,
        )
    except ray.exceptions.RayError as error:
        raise UserError(
            f"a node of the Ray cluster was lost while the run was prepared: {first_line(error)}"
        ) from error
    finally:
        mark.unlink(missing_ok=True)
        for probe in probes.values():
            ray.kill(probe)
    refuse(complaints(run_dir, addresses, found))


def complaints(run_dir: Path, addresses: Mapping[str, str], found: Mapping[str, Seen]) -> list[str]:
    """One line for each problem. addresses, found: by node id."""
    lines = []
    cut = {(by, to) for by, seen in found.items() for to in seen.unreached}
    if cut:
        # A node that no other node reaches is named alone.
        alone = {to for _, to in cut if sum(each == to for _, each in cut) == len(found) - 1}
        pairs = sorted(f"{addresses[to]} from {addresses[by]}" for by, to in cut if to not in alone)
        names = ", ".join([*sorted(f"{addresses[to]} from any other" for to in alone), *pairs])
        lines.append(
            f"nodes of the Ray cluster cannot be reached: {names}; processes of a run connect to each other on ports "
            f"that the system chooses: {_REMEDY}"
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
    """An actor on a node: the others connect to it, and it checks what the node sees."""

    def __init__(self) -> None:
        self._socket = socket.create_server(("", 0), backlog=_BACKLOG)

    def port(self) -> int:
        return int(self._socket.getsockname()[1])

    def look(self, mark: str, needed: Mapping[str, str], others: Mapping[str, tuple[str, int]]) -> Seen:
        with concurrent.futures.ThreadPoolExecutor(_AT_ONCE) as pool:
            reached = pool.map(lambda each: answers(each[0], each[1], tries=2), others.values())
            unreached = tuple(node for node, reaches in zip(others, reached, strict=True) if not reaches)
        missing = tuple(what for what, path in needed.items() if not Path(path).exists())
        return Seen(Path(mark).exists(), missing, unreached)


def _taking_part(here: str) -> list[Any]:
    import ray

    alive = [node for node in ray.nodes() if node["Alive"]]
    return [node for node in alive if node["NodeID"] == here or node["Resources"].get("CPU", 0) >= 1]


def _wait_until_reached(here: str) -> None:
    """Return once every node that Ray lists can be reached from here; Ray drops lost nodes from its list."""
    deadline = time.monotonic() + _LOST_S
    while lost := silent([node for node in _taking_part(here) if node["NodeID"] != here]):
        if time.monotonic() > deadline:
            names = ", ".join(f"{node['NodeManagerAddress']}:{node['NodeManagerPort']}" for node in lost)
            raise UserError(
                f"node(s) of the Ray cluster cannot be reached from here: {names} (the raylet) accepts no connection, "
                f"though Ray lists them; {_REMEDY}"
            )
        time.sleep(1)


def _ask(addresses: Mapping[str, str], asked: Mapping[str, Any], timeout_s: float) -> dict[str, Any]:
    """Wait for the answers of all nodes; raise UserError if one is late."""
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
