"""Checks of a joined cluster before a run: does the head answer, and is there room for the run?

The run waits up to `cluster.wait_for_nodes_s` for nodes that the autoscaler adds or that other work uses.
"""

import json
import os
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from rayswift.log import UserError, logger

Resources = dict[str, float]

_CONNECT_S = 5
_ANSWER_S = 1
_SETTINGS = b"\x04"  # the type of a frame, after three bytes of length
_HTTP2_OPENING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + _SETTINGS + bytes(5)
_POLL_S = 0.5
_REMIND_S = 30
# Several updates of the autoscaler, which come every 5 s.
_VERDICT_S = 30


@dataclass(frozen=True)
class Ask:
    """What a run needs: workers, vLLM engines, reward models, and one CPU for Ray Data."""

    num_workers: int
    worker: Resources
    num_engines: int = 0
    engine: Resources = field(default_factory=dict)
    num_reward_models: int = 0
    reward_model: Resources = field(default_factory=dict)

    def beside_workers(self) -> list[Resources]:
        """The resources of each engine and reward model."""
        return [*([self.engine] * self.num_engines), *([self.reward_model] * self.num_reward_models)]

    def bundles(self) -> list[Resources]:
        """The resources of each process, for the autoscaler."""
        return [*([self.worker] * self.num_workers), *self.beside_workers(), {"CPU": 1.0}]

    def __str__(self) -> str:
        engines = f", {self.num_engines} engine(s) of {describe(self.engine)} each" if self.num_engines else ""
        if self.num_reward_models:
            engines += f", {self.num_reward_models} reward model(s) of {describe(self.reward_model)} each"
        return f"{self.num_workers} worker(s) of {describe(self.worker)} each{engines}, and 1 CPU for Ray Data"


def describe(resources: Resources) -> str:
    """`2 CPU + 1 GPU`, without Ray's own entries (node names, memory)."""
    shown = {k: v for k, v in resources.items() if v and not k.startswith(("node:", "memory", "object_store_memory"))}
    return " + ".join(f"{amount:g} {name}" for name, amount in sorted(shown.items())) or "nothing"


def num_workers_that_fit(ask: Ask, nodes: Sequence[Resources]) -> int:
    """Number of workers, at most those asked for, that fit beside the engines and a CPU for Ray Data; -1: no room for
    the engines."""
    left = _beside_engines(ask, nodes)
    if left is None:
        return -1
    slots, spare_cpus = 0, 0.0
    for node in left:
        here = _slots(ask.worker, node)
        slots += here
        spare_cpus = max(spare_cpus, node.get("CPU", 0) - here * ask.worker.get("CPU", 0))
    if spare_cpus < 1:  # Ray Data takes the place of a worker
        slots -= 1
    return min(slots, ask.num_workers)


def _slots(each: Resources, node: Resources) -> int:
    return min(int(node.get(name, 0) / amount + 1e-9) for name, amount in each.items() if amount)


def _beside_engines(ask: Ask, nodes: Sequence[Resources]) -> list[Resources] | None:
    """Resources left by engines and reward models, each placed where it costs the fewest workers; None: no room."""
    left = [dict(node) for node in nodes]
    for held in ask.beside_workers():
        best: tuple[int, int] | None = None
        for number, node in enumerate(left):
            if any(node.get(name, 0) < amount for name, amount in held.items()):
                continue
            cost = _slots(ask.worker, node) - _slots(ask.worker, _less(node, held))
            best = min(best, (cost, number)) if best else (cost, number)
        if best is None:
            return None
        left[best[1]] = _less(left[best[1]], held)
    return left


def _less(node: Resources, taken: Resources) -> Resources:
    return {**node, **{name: node.get(name, 0) - amount for name, amount in taken.items()}}


def check_head_answers(address: str) -> None:
    """Raise UserError for a wrong address or a head that does not answer, since Ray itself tries for a long time."""
    if address in ("auto", "local"):
        return
    host, _, port = address.rpartition(":")
    if "://" in address or not host or not port.isdecimal():
        raise UserError(
            f"cluster.address (or RAY_ADDRESS) = {address!r} is not the host:port of a head node, such as "
            "10.0.0.1:6379; to train through a dashboard (http://...), use `ray job submit`"
        )
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_S) as connection:
            speaks = _speaks_grpc(connection)
    except (OSError, OverflowError, UnicodeError) as error:
        raise UserError(
            f"no Ray cluster answers at {address} (cluster.address, or RAY_ADDRESS): {error}; check the address, and "
            "that `ray status` works on its head node"
        ) from error
    if not speaks:
        raise UserError(
            f"what answers at {address} (cluster.address, or RAY_ADDRESS) is not the head of a Ray cluster; name the "
            "--port of `ray start --head`, 6379 by default, and not that of the dashboard"
        )


def _speaks_grpc(connection: socket.socket) -> bool:
    """Whether a server answers the opening of HTTP/2 (RFC 9113, 3.4) with its settings; a silent one may be busy."""
    if os.environ.get("RAY_USE_TLS", "0") != "0":
        return True
    connection.settimeout(_ANSWER_S)
    try:
        connection.sendall(_HTTP2_OPENING)
        answer = connection.recv(64)
    except TimeoutError:
        return True
    return answer[3:4] == _SETTINGS


def could_fit(ask: Ask) -> bool:
    """Whether the current nodes have room, if nothing else runs on them."""
    return num_workers_that_fit(ask, _nodes()[0]) >= ask.num_workers


def wait_until_it_fits(ask: Ask, timeout_s: float) -> None:
    """Wait until the cluster has room for the run, at most `timeout_s` if the autoscaler adds nodes or others use them.

    Raise UserError if it can never have room (exit code 2), or had none in time (1).
    """
    from ray.autoscaler.sdk import request_resources

    there, free = _nodes()
    if num_workers_that_fit(ask, free) >= ask.num_workers:
        return
    waits = f"waiting up to {timeout_s:g} s (cluster.wait_for_nodes_s) for {ask}"
    if num_workers_that_fit(ask, there) >= ask.num_workers:
        logger.info("%s: other work holds part of the cluster, %s is free", waits, describe(_sum(free)))
        return _wait(ask, timeout_s)
    try:
        request_resources(bundles=ask.bundles())
        if not _autoscaler_agrees():
            raise UserError(
                f"cluster.num_workers = {ask.num_workers} does not fit the Ray cluster: {_summary(ask, there)}; no "
                "autoscaler is there that may add enough; lower cluster.num_workers or add nodes"
            )
        logger.info("%s: the autoscaler adds nodes, %s", waits, _summary(ask, there))
        _wait(ask, timeout_s)
    finally:
        request_resources(bundles=[])  # or the nodes would stay when the run is over


def _autoscaler_agrees() -> bool:
    """Whether the autoscaler can provide what it was just asked for; one without a configuration can add no nodes."""
    from ray.autoscaler.v2.utils import is_autoscaler_v2

    verdict = _verdict_of_v2() if is_autoscaler_v2(fetch_from_server=True) else _verdict_of_v1()
    deadline = time.monotonic() + _VERDICT_S
    while time.monotonic() < deadline:
        agrees = next(verdict)
        if agrees is not None:
            return agrees
        time.sleep(_POLL_S)
    return False


def _verdict_of_v2() -> Iterator[bool | None]:
    """None until it has seen the request."""
    import ray
    import ray._raylet
    from ray.core.generated.autoscaler_pb2 import GetClusterStatusReply

    client, asked_version = ray._raylet.GcsClient(address=ray.get_runtime_context().gcs_address), None
    while True:
        status = GetClusterStatusReply.FromString(client.get_cluster_status(timeout_s=_VERDICT_S))
        asked_version = asked_version or status.cluster_resource_state.cluster_resource_state_version
        scaling = status.autoscaling_state
        seen = scaling.last_seen_cluster_resource_state_version >= asked_version
        yield not scaling.infeasible_cluster_resource_constraints if seen else None


def _verdict_of_v1() -> Iterator[bool | None]:
    """True once it starts nodes, False after two updates without; None before that."""
    from ray._private.ray_constants import DEBUG_AUTOSCALING_STATUS
    from ray.experimental.internal_kv import _internal_kv_get

    times: set[float] = set()
    asked_at = time.time()
    while True:
        status = json.loads(_internal_kv_get(DEBUG_AUTOSCALING_STATUS) or b"{}")
        report = status.get("autoscaler_report", {})
        if status.get("time", 0) > asked_at:
            times.add(status["time"])
        starts = bool(report.get("pending_nodes") or report.get("pending_launches"))
        yield True if starts else False if len(times) > 1 else None


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
    if _beside_engines(ask, there) is None:
        what = f"a place for {ask.num_engines} x ({describe(ask.engine)}), rollout.num_engines"
        if ask.num_reward_models:
            models = f"{ask.num_reward_models} x ({describe(ask.reward_model)}), rollout.reward_model_gpus"
            what = f"{what}, and {models}" if ask.num_engines else f"a place for {models}"
    room = f"room for {possible} of the {ask.num_workers} worker(s)"
    return f"asked {ask}; there {len(there)} node(s) with {describe(_sum(there))}: {room}; lacking {what}"


def _sum(nodes: list[Resources]) -> Resources:
    return {name: sum(node.get(name, 0) for node in nodes) for name in {n for node in nodes for n in node}}


def _nodes() -> tuple[list[Resources], list[Resources]]:
    """Total and free resources of every living node, in the same order."""
    import ray
    from ray._private.state import available_resources_per_node

    free = available_resources_per_node()
    alive = [node for node in ray.nodes() if node["Alive"]]
    return [dict(node["Resources"]) for node in alive], [dict(free.get(node["NodeID"], {})) for node in alive]
