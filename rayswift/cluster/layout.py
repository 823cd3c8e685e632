"""The layout of a run: its workers, engines and reward processes on the available GPUs and cores."""

import math
import os
from dataclasses import dataclass, field, replace

from rayswift.cluster.machine import count_cores, count_gpus, memory_bytes, nvidia_smi
from rayswift.config.rollout import RolloutConfig
from rayswift.config.schema import ClusterConfig
from rayswift.log import UserError

TRAINER = "rayswift_trainer"
"""Custom resource that train workers hold in a local Ray, so that all its CPUs are for data tasks."""
ENGINE = "rayswift_engine"
"""The same for engines."""
_WORKERS_PER_CORE = 2
_DATA_CPUS = 2
_MOST_REWARD_WORKERS = 64


@dataclass(frozen=True)
class Layout:
    """Processes of a run. local: Ray is started for this run.

    num_workers: the largest number of train workers; min_workers: the smallest, None if the number is fixed.
    min_engines, max_engines: vLLM engines that sample; teacher_engines: those of a teacher; engine: Ray resources of
    each of them; engine_threads: CPU threads of an engine without a GPU. reward_workers, tool_workers: processes for
    reward functions, and for tools and environments, without resources; reward_models: processes with
    reward_model_gpus each.
    """

    num_workers: int
    device: str  # cpu | cuda
    threads_per_worker: int
    local: bool
    min_workers: int | None = None
    min_engines: int = 0
    max_engines: int = 0
    teacher_engines: int = 0
    engine: dict[str, float] = field(default_factory=dict)
    engine_threads: int = 1
    reward_workers: int = 0
    tool_workers: int = 0
    reward_models: int = 0
    reward_model_gpus: float = 0.0

    @property
    def num_reward_gpus(self) -> int:
        """Whole GPUs for all reward models."""
        return gpus_for(self.reward_models, self.reward_model_gpus)

    @property
    def world_size(self) -> int:
        """Largest data-parallel size; the in-process worker counts as one."""
        return max(1, self.num_workers)

    @property
    def min_world_size(self) -> int:
        """Smallest data-parallel size."""
        return self.min_workers or self.world_size


def is_local(cluster: ClusterConfig) -> bool:
    """Whether Ray is started for this run, on this machine."""
    return cluster.address is None and not os.environ.get("RAY_ADDRESS")


def lay_out(
    cluster: ClusterConfig,
    joined: dict[str, float] | None = None,
    rollout: RolloutConfig | None = None,
    samples: bool = True,
    trains: bool = True,
) -> Layout:
    """Decide workers, device, threads, engines and reward processes.

    joined: resources of the cluster (`connect.join`); None: those of this machine, and UserError if it is too small.
    rollout: of a run that has engines; samples: whether any of them samples, and does not only hold a teacher; trains:
    whether there are trainers.
    """
    local = is_local(cluster)
    num_gpus, num_cores = int(joined.get("GPU", 0)) if joined else count_gpus(), count_cores()
    device = cluster.device
    if device == "auto":
        device = "cuda" if num_gpus else "cpu"
    num_workers, min_workers = cluster.num_workers, None
    if isinstance(num_workers, list):
        min_workers, num_workers = num_workers
        if local:  # one machine has a fixed size
            num_workers = max(min_workers, min(num_workers, num_gpus if device == "cuda" else num_cores))
    for_rewards = gpus_for(len(rollout.reward_models), rollout.reward_model_gpus) if rollout else 0
    if local and for_rewards > num_gpus:
        raise UserError(
            f"rollout.reward_model_gpus: the reward models need {for_rewards} GPU(s); this machine shows {num_gpus}; "
            "set it to 0, and they compute on the CPU, or join a cluster with cluster.address"
        )
    for_teacher = rollout.teacher_engines * rollout.tensor_parallel_size if rollout and device == "cuda" else 0
    gpus_left = num_gpus - for_rewards - for_teacher
    sampling = rollout if device == "cuda" and samples else None
    for_engines = for_teacher + _gpus_for_engines(sampling, gpus_left, num_workers)
    if num_workers is None:
        num_workers = max(1, num_gpus - for_rewards - for_engines) if device == "cuda" and (local or joined) else 1
    trainers = max(1, num_workers) if trains else 0
    if local:
        _refuse_too_much(num_workers, trainers, for_engines, for_rewards, device, num_gpus, num_cores)
    threads = cluster.threads_per_worker or max(1, num_cores // max(1, min(num_workers, num_cores)))
    layout = Layout(num_workers, device, threads, local, min_workers)
    if rollout is None:
        return layout
    layout = _with_engines(layout, rollout, for_engines - for_teacher, samples)
    if local:
        layout = _share_cores(layout, cluster, rollout, num_cores)
    return _with_rewards(layout, rollout, joined.get("CPU", 0.0) if joined else num_cores)


def _refuse_too_much(
    num_workers: int, trainers: int, for_engines: int, for_rewards: int, device: str, num_gpus: int, num_cores: int
) -> None:
    """Stop if this machine, which is the whole cluster, lacks the GPUs or cores asked for."""
    if device == "cuda" and trainers + for_engines + for_rewards > num_gpus:
        engines = f" and its engines {for_engines} more" if for_engines else ""
        rewards = f", its reward models {for_rewards} (rollout.reward_model_gpus)" if for_rewards else ""
        raise UserError(
            f"cluster.num_workers = {num_workers} on cuda needs as many GPUs{engines}{rewards}; this machine shows "
            f"{num_gpus}; lower it, set cluster.device cpu, or join a cluster with cluster.address"
        )
    # A few more workers than cores are slow but allowed: a resumed run may need the number.
    if device == "cpu" and num_workers > _WORKERS_PER_CORE * num_cores:
        raise UserError(
            f"cluster.num_workers = {num_workers} is more than the {num_cores} CPU cores of this machine can serve "
            f"({_WORKERS_PER_CORE} each at most); lower it, or join a cluster with cluster.address"
        )


def _gpus_for_engines(rollout: RolloutConfig | None, num_gpus: int, num_workers: int | None) -> int:
    """GPUs for the smallest number of engines; half of all GPUs if neither engines nor workers are given."""
    if rollout is None:
        return 0
    each = rollout.tensor_parallel_size
    if rollout.num_engines is not None:
        return each * (rollout.num_engines[0] if isinstance(rollout.num_engines, list) else rollout.num_engines)
    free = num_gpus - num_workers if num_workers is not None else num_gpus // 2
    return each * max(1, free // each)


def _with_engines(layout: Layout, rollout: RolloutConfig, num_gpus: int, samples: bool) -> Layout:
    num_engines = rollout.num_engines
    if num_engines is None:
        num_engines = num_gpus // rollout.tensor_parallel_size if layout.device == "cuda" else 1
    fewest, most = num_engines if isinstance(num_engines, list) else (num_engines, num_engines)
    fewest, most = (fewest, most) if samples else (0, 0)
    threads = rollout.engine_threads or 1
    place = {ENGINE: 1.0} if layout.local else {"CPU": float(threads)}
    gpus = {"GPU": float(rollout.tensor_parallel_size)} if layout.device == "cuda" else {}
    held = {**place, **gpus, **rollout.engine_resources}
    layout = replace(layout, teacher_engines=rollout.teacher_engines, engine=held, engine_threads=threads)
    return replace(layout, min_engines=fewest, max_engines=most)


def _share_cores(layout: Layout, cluster: ClusterConfig, rollout: RolloutConfig, num_cores: int) -> Layout:
    """The layout on this machine, with its cores shared: on-policy, workers and engines compute in turns."""
    workers = layout.world_size if layout.device == "cpu" else 0
    by_turns = rollout.max_staleness == 0
    engines = max(1, layout.min_engines + layout.teacher_engines)
    for_engines = max(1, num_cores // (engines + (0 if by_turns else workers)))
    for_workers = layout.threads_per_worker if by_turns else max(1, num_cores // (workers + engines))
    return replace(
        layout,
        engine_threads=rollout.engine_threads or for_engines,
        threads_per_worker=cluster.threads_per_worker or for_workers,
    )


def _with_rewards(layout: Layout, rollout: RolloutConfig, num_cpus: float) -> Layout:
    """The layout with reward processes: for functions, as many as there are free CPUs."""
    engine_cpus = layout.engine.get("CPU", float(layout.engine_threads if layout.device == "cpu" else 1))
    trainer_cpus = layout.threads_per_worker if layout.local and layout.device == "cpu" else 1
    # On-policy, workers and engines of this machine compute in turns, and rewards during sampling.
    by_turns = layout.local and rollout.max_staleness == 0
    taken = (layout.max_engines + layout.teacher_engines) * engine_cpus + (
        0 if by_turns else layout.world_size * trainer_cpus
    )
    free = int(num_cpus - taken - (0 if layout.local else _DATA_CPUS))
    workers = rollout.reward_workers or max(1, min(free, _MOST_REWARD_WORKERS))
    models = len(rollout.reward_models) if rollout.reward_model_gpus else 0
    return replace(
        layout,
        reward_workers=workers if rollout.reward_funcs else 0,
        tool_workers=(rollout.tool_workers or workers) if rollout.has_episodes else 0,
        reward_models=models,
        reward_model_gpus=rollout.reward_model_gpus,
    )


def gpus_for(num_processes: int, gpus_each: float) -> int:
    """Whole GPUs for processes with this share each; Ray gives no process fractions of two GPUs."""
    if not gpus_each:
        return 0
    if gpus_each >= 1:
        return num_processes * math.ceil(gpus_each)
    return math.ceil(num_processes / int(1 / gpus_each + 1e-9))


def memory_per_worker_bytes(layout: Layout) -> int:
    """Memory of a worker: its GPU's, or its share of this machine's."""
    if layout.device == "cuda":
        mebibytes = nvidia_smi("--query-gpu=memory.total", "--format=csv,noheader,nounits")
        # A GPU that shares the host's memory reports [N/A].
        if mebibytes and mebibytes[0].strip().isdigit():
            return int(mebibytes[0]) << 20
    return int(memory_bytes() * 0.8) // layout.world_size


def worker_resources(layout: Layout) -> dict[str, float]:
    """Ray resources of a train worker."""
    held = {"GPU": 1.0} if layout.device == "cuda" else {}
    if layout.local:
        return {TRAINER: 1.0, "CPU": 0.0, **held}
    return {"CPU": 1.0, **held}
