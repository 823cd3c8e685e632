"""The Ray cluster of a run: joined, or started on this machine, and looked at before the run begins."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rayswift import signals
from rayswift.cluster import nodes, preflight
from rayswift.cluster.layout import TRAINER, Layout, is_local, worker_resources
from rayswift.config.schema import ClusterConfig
from rayswift.log import UserError, logger

_OF_RAY = ("CPU", "GPU")


def join(cluster: ClusterConfig) -> dict[str, float] | None:
    """Join the cluster that the run goes to, if there is one.

    Returns:
        Its resources in all; None: Ray will be started here, by `connect`.

    Raises:
        UserError: the cluster cannot be reached.
    """
    if is_local(cluster):
        return None
    address = cluster.address or os.environ["RAY_ADDRESS"]
    preflight.check_head_answers(address)
    import ray

    if not ray.is_initialized():
        _set_up_ray_train(cluster)
        problem = f"the Ray cluster at {address} (cluster.address, or RAY_ADDRESS) cannot be joined"
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
    """Start Ray for this run, or make sure that the cluster that was joined has what workers and data tasks need.

    Args:
        cluster: As loaded.
        layout: Workers and engines.
        run_dir: The run folder.
        for_workers: Files that nodes with workers or engines must have, by what names them.
        for_all: Files that every node must have.

    Raises:
        UserError: the cluster has too little, its nodes do not reach each other, or lack files.
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
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")  # nobody reclaims this machine's only node
    os.environ.setdefault("RAY_WARN_BLOCKING_GET_INSIDE_ASYNC", "0")  # Ray Train's controller does so
    num_gpus, most_engines = layout.num_reward_gpus, layout.max_engines + layout.teacher_engines
    if layout.device == "cuda":
        num_gpus += layout.world_size + int(most_engines * layout.engine.get("GPU", 0.0))
    _init(
        "Ray cannot start on this machine",
        tries=4,
        address="local",  # not a cluster begun here with `ray start`: that one is joined by its address
        num_cpus=cluster.num_data_cpus,
        num_gpus=num_gpus,
        resources={
            # What users name for nodes of their own is all here.
            **{name: most_engines * each for name, each in layout.engine.items() if name not in _OF_RAY},
            TRAINER: float(layout.world_size),
        },
        include_dashboard=False,
    )


def _init(problem: str, tries: int, **how: Any) -> None:
    """`ray.init`, again where it fails: a busy machine starts too late for Ray, which waits for half a minute.

    Raises:
        UserError: at the last of the tries, or for a reason that stays.
    """
    import ray

    for number in range(1, tries + 1):
        try:
            with signals.kept():
                ray.init(log_to_driver=False, logging_level="ERROR", **how)
            return
        except Exception as error:  # of a node that starts too slowly Ray raises just this class
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            ray.shutdown()
            if isinstance(error, OSError) and not isinstance(error, ConnectionError | TimeoutError):
                # Its sockets lie below the temporary folder, and their paths may have 107 bytes.
                raise UserError(f"{problem}: {reason}; set RAY_TMPDIR to a short path on a local disk") from error
            if isinstance(error, ValueError):
                raise UserError(f"{problem}: {reason}") from error
            if number == tries:
                tried = f"tried {tries} times: is it too busy? Ray's logs say more"
                raise UserError(f"{problem}: {reason}; {tried}", exit_code=1) from error
            logger.warning("%s: %s; trying again", problem, reason)


def _set_up_ray_train(cluster: ClusterConfig) -> None:
    # A slow poll would leave a finished or dead worker unseen for seconds.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    os.environ.setdefault("RAY_TRAIN_COLLECTIVE_TIMEOUT_S", str(cluster.timeout_s))
    if isinstance(cluster.num_workers, list):
        # A group planned just before a node died waits in vain for its place; then it is planned anew.
        os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "15")
