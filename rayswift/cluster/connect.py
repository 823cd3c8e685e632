"""The Ray cluster of a run: joined, or started on this machine, and checked before the run begins."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rayswift import signals
from rayswift.cluster import nodes, preflight
from rayswift.cluster.layout import TRAINER, Layout, is_local, worker_resources
from rayswift.config.schema import ClusterConfig
from rayswift.log import UserError, announced, first_line, logger

_OF_RAY = ("CPU", "GPU")
_SHARED_MEMORY = "/dev/shm"


def join(cluster: ClusterConfig) -> dict[str, float] | None:
    """Join the cluster that the config names, and return its total resources; None if it names no cluster."""
    if is_local(cluster):
        return None
    address = cluster.address or os.environ["RAY_ADDRESS"]
    preflight.check_head_answers(address)
    import ray

    if not ray.is_initialized():
        _set_up_ray_train(cluster)
        problem = f"the Ray cluster at {address} (cluster.address, or RAY_ADDRESS) cannot be joined"
        with announced(f"joining the Ray cluster at {address}"):
            _init(problem, tries=2, address=address)
    resources: dict[str, float] = ray.cluster_resources()
    return resources


def connect(
    cluster: ClusterConfig,
    layout: Layout,
    run_dir: Path,
    for_workers: Mapping[str, Path] | None = None,
    for_all: Mapping[str, Path] | None = None,
) -> None:
    """Start Ray for this run, or check that the joined cluster has the resources and files that the run needs.

    for_workers: files that nodes with workers or engines must have, by field and value; for_all: that all must have.
    """
    import ray

    if not layout.local:
        join(cluster)
        fewest = layout.min_workers or layout.num_workers
        reward_model = {"GPU": layout.reward_model_gpus}
        num_engines = layout.min_engines + layout.teacher_engines
        ask = preflight.Ask(
            fewest, worker_resources(layout), num_engines, layout.engine, layout.reward_models, reward_model
        )
        preflight.wait_until_it_fits(ask, cluster.wait_for_nodes_s)
        holders = tuple(each for each in (ask.worker, layout.engine) if each)
        needed = [nodes.Needed(what, path, holders) for what, path in (for_workers or {}).items()]
        needed += [nodes.Needed(what, path, ({"CPU": 1.0},)) for what, path in (for_all or {}).items()]
        nodes.check(run_dir, needed, cluster.node_timeout_s)
        return
    if ray.is_initialized():
        return
    _set_up_ray_train(cluster)
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")  # the only node is never preempted
    os.environ.setdefault("RAY_WARN_BLOCKING_GET_INSIDE_ASYNC", "0")  # Ray Train's controller blocks in `get`
    num_gpus, most_engines = layout.num_reward_gpus, layout.max_engines + layout.teacher_engines
    if layout.device == "cuda":
        num_gpus += layout.world_size + int(most_engines * layout.engine.get("GPU", 0.0))
    _init(
        "Ray cannot start on this machine",
        tries=4,
        address="local",  # never a cluster of `ray start` on this machine
        num_cpus=cluster.num_data_cpus,
        num_gpus=num_gpus,
        resources={
            # This node has all custom resources of the user.
            **{name: most_engines * each for name, each in layout.engine.items() if name not in _OF_RAY},
            TRAINER: float(layout.world_size),
        },
        include_dashboard=False,
    )


def _init(problem: str, tries: int, **how: Any) -> None:
    """`ray.init` with retries: on a busy machine Ray's own limit of half a minute may be too short."""
    import ray

    for number in range(1, tries + 1):
        try:
            with signals.kept():
                ray.init(log_to_driver=False, logging_level="ERROR", **how)
            return
        except Exception as error:  # Ray raises plain `Exception` for a node that starts too slowly
            reason = first_line(error)
            ray.shutdown()
            if isinstance(error, OSError) and error.filename == _SHARED_MEMORY:
                raise UserError(f"{problem}: {reason}; mount a tmpfs there (docker run --shm-size 8g)") from error
            if isinstance(error, OSError) and not isinstance(error, ConnectionError | TimeoutError):
                # Paths of Ray's sockets, below the temporary folder, may have at most 107 bytes.
                raise UserError(f"{problem}: {reason}; set RAY_TMPDIR to a short path on a local disk") from error
            if isinstance(error, ValueError) or "Version mismatch" in reason:
                raise UserError(f"{problem}: {' '.join(str(error).split())}") from error
            if number == tries:
                tried = f"tried {tries} times: is it too busy? Ray's logs say more"
                raise UserError(f"{problem}: {reason}; {tried}", exit_code=1) from error
            logger.warning("%s: %s; trying again", problem, reason)


def _set_up_ray_train(cluster: ClusterConfig) -> None:
    # Notice a finished or dead worker sooner.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    os.environ.setdefault("RAY_TRAIN_COLLECTIVE_TIMEOUT_S", str(cluster.timeout_s))
    if isinstance(cluster.num_workers, list):
        # If a node dies while workers start, the group is planned again after this time.
        os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "15")
