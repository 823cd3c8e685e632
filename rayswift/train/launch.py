"""Start what supplies the batches, and the workers, and see them to the end.

The driver owns the supply (the feed of rows, or the rollout plane); Ray Train's controller owns the workers and
restarts them after a death. With `num_workers` 0 the worker runs in this process, with the same code below it.
"""

import os
import socket
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

from rayswift import preflight, signals
from rayswift.config.schema import TrainingConfig
from rayswift.data.global_batches import FeedPlan, micro_batches
from rayswift.data.stream import user_error_in
from rayswift.log import UserError, logger, setup_worker
from rayswift.resources import Layout, interfaces, network_environment, worker_resources
from rayswift.train import checkpoint, events, waiting, watch
from rayswift.train.clock import Clock
from rayswift.train.console import Console
from rayswift.train.failures import Failures, explain, first_line, main_cause
from rayswift.train.supply import Connect, Supply, SupplyClient


class NotSeen(OSError):
    """A rank does not see what the group agreed on; Ray Train restarts the group."""


@dataclass(frozen=True)
class RunSpec:
    """All a worker needs, as plain values.

    clock: where the time since the command went so far. resume_from: the checkpoint to continue, unless the
    run folder holds a newer one. work_dir: where relative paths of the config begin.
    """

    config: TrainingConfig
    layout: Layout
    run_dir: Path
    tokenizer_dir: Path
    feed_plan: FeedPlan
    clock: Clock
    resume_from: Path | None
    work_dir: Path

    def as_seen_by(self, size: int) -> "RunSpec":
        """The run for a group of `size` workers: micro-batches that share the global batch."""
        train = self.config.train
        rows, accumulation = micro_batches(self.feed_plan.global_batch, train.per_device_train_batch_size, size)
        cut = {"per_device_train_batch_size": rows, "gradient_accumulation_steps": accumulation}
        config = self.config.model_copy(update={"train": train.model_copy(update=cut)})
        num_workers = size if self.layout.num_workers else 0
        return replace(self, config=config, layout=replace(self.layout, num_workers=num_workers, min_workers=None))


@dataclass(frozen=True)
class Worker:
    """Who a training process is, and how it reaches the others; `at` notes what it does, for who waits for it."""

    rank: int
    size: int
    supply: SupplyClient
    at: Callable[[str], None] = waiting.unnoted


TrainLoop = Callable[[RunSpec, Worker], None]


def fit(spec: RunSpec, train_loop: TrainLoop, supply: Supply) -> None:
    """Run `train_loop` on every worker until the data ends.

    Raises:
        UserError: what stopped the run; exit code 1.
    """
    if spec.layout.num_workers == 0:
        return _fit_here(spec, train_loop, supply)
    import ray
    from ray.train import FailureConfig, RunConfig

    from rayswift.train.group import scaling, trainer_class

    name = f"rayswift-{uuid.uuid4().hex[:8]}"
    connect = supply.start(name)
    look_out = watch.Watch(
        spec.run_dir, spec.layout.min_world_size, supply.standing, _cluster(spec), spec.config.cluster.timeout_s
    )
    trainer = trainer_class(spec.layout, spec.run_dir, name, spec.config.cluster.wait_for_nodes_s, look_out.check)(
        partial(_worker_main, spec, train_loop, connect),
        scaling_config=scaling(spec.layout),
        run_config=RunConfig(
            name=name,
            storage_path=str(spec.run_dir / "ray"),
            failure_config=FailureConfig(max_failures=spec.config.cluster.max_failures),
            callbacks=[_on_failure(spec.run_dir)],
        ),
    )
    try:
        with Console(spec.run_dir, supply.progress, spec.feed_plan), look_out:
            trainer.fit()
    except ray.train.TrainingFailedError as error:
        raise _explain(error, spec) from error
    except ray.exceptions.RayActorError as error:
        raise UserError(
            f"Ray Train's controller died: {_death(error)}; continue with --resume auto", exit_code=1
        ) from error
    finally:
        if not signals.asked_to_end():  # else all of it ends with this process
            supply.close()


def _cluster(spec: RunSpec) -> watch.Cluster | None:
    if spec.layout.local:
        return None
    import ray

    address, _, port = ray.get_runtime_context().gcs_address.rpartition(":")
    ask = preflight.Ask(spec.layout.min_world_size, worker_resources(spec.layout))
    return watch.Cluster((address.strip("[]"), int(port)), ask, spec.config.cluster.wait_for_nodes_s)


def _fit_here(spec: RunSpec, train_loop: TrainLoop, supply: Supply) -> None:
    client = supply.start_here()
    if spec.config.cluster.uses_deepspeed:
        os.environ.update(_rank_environment(0, 1, 0, 1, "127.0.0.1", _free_port()))
        os.environ.update(network_environment("127.0.0.1", interfaces(), os.environ))
    driver_handlers = logger.handlers
    setup_worker(spec.run_dir / "logs", "rank-0")
    look_out = watch.Watch(spec.run_dir, 1, supply.standing, None, spec.config.cluster.timeout_s)
    try:
        with (
            Console(spec.run_dir, supply.progress, spec.feed_plan),
            look_out,
            waiting.Notes(spec.run_dir / "logs", 0, 1, "this machine") as notes,
        ):
            train_loop(spec.as_seen_by(1), Worker(0, 1, client, notes))
    except (Exception, SystemExit) as error:  # a callback may call sys.exit
        failure = explain(error, spec.config, spec.run_dir, 0)
        raise (failure if isinstance(failure, UserError) else UserError(str(failure), exit_code=1)) from error
    finally:
        if not signals.asked_to_end():
            supply.close()
        logger.handlers = driver_handlers


def _worker_main(spec: RunSpec, train_loop: TrainLoop, connect: Connect) -> None:
    """A train worker's process: join the group, then train."""
    import ray.train
    import ray.train.collective

    if spec.work_dir.is_dir():
        os.chdir(spec.work_dir)
    context = ray.train.get_context()
    rank, size = context.get_world_rank(), context.get_world_size()
    setup_worker(spec.run_dir / "logs", f"rank-{rank}")
    here = ray.util.get_node_ip_address()
    notes = waiting.Notes(spec.run_dir / "logs", rank, size, here)
    if size > 1 or spec.config.cluster.uses_deepspeed:
        notes("waits for all ranks to start")
        address = ray.train.collective.broadcast_from_rank_zero((here, _free_port()))
        local_rank, local_size = context.get_local_rank(), context.get_local_world_size()
        os.environ.update(_rank_environment(rank, size, local_rank, local_size, *address))
        os.environ.update(network_environment(here, interfaces(), os.environ))
    try:
        train_loop(spec.as_seen_by(size), Worker(rank, size, connect(rank, size), notes))
    except (Exception, SystemExit) as error:
        raise explain(error, spec.config, spec.run_dir, rank) from None
    finally:
        notes.close()


def join_process_group(spec: RunSpec, worker: Worker) -> None:
    """Connect this process with the other ranks; a collective that takes longer than the timeout is an error."""
    import torch
    import torch.distributed as dist

    layout, timeout = spec.layout, timedelta(seconds=spec.config.cluster.timeout_s)
    torch.set_num_threads(layout.threads_per_worker)
    if layout.device == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    backend = "gloo" if layout.device == "cpu" else "nccl"
    interface = os.environ.get("GLOO_SOCKET_IFNAME" if backend == "gloo" else "NCCL_SOCKET_IFNAME", "").strip("=")
    worker.at(f"connects to the other ranks ({backend} on {interface or 'any interface'})")
    if spec.config.cluster.uses_deepspeed:
        import deepspeed
        import deepspeed.ops

        # A shared-memory all-reduce for inference: compiled for half a minute at the first run, and not used here.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        # Before the arguments and the model: `zero.Init` would see a world of one.
        deepspeed.init_distributed(dist_backend=backend, timeout=timeout, verbose=False)
    elif worker.size > 1:
        dist.init_process_group(backend, timeout=timeout)


def _rank_environment(rank: int, size: int, local_rank: int, local_size: int, host: str, port: int) -> dict[str, str]:
    return {
        "RANK": str(rank),
        "WORLD_SIZE": str(size),
        "LOCAL_RANK": str(local_rank),
        "LOCAL_WORLD_SIZE": str(local_size),
        "MASTER_ADDR": host,
        "MASTER_PORT": str(port),
    }


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


def _on_failure(run_dir: Path) -> Any:
    from ray.train import UserCallback

    class OnFailure(UserCallback):
        """Ends the run at once where a restart would not help; any other failure is recorded."""

        def __init__(self) -> None:
            self._failures = Failures()

        def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
            newest = checkpoint.newest(run_dir)
            self._failures.check(worker_exceptions, newest.step if newest else 0)
            rank, first = main_cause(worker_exceptions)
            events.record(run_dir, "failure", text=f"worker {rank}: {first_line(first)}")

    return OnFailure()


def _explain(error: Exception, spec: RunSpec) -> UserError:
    causes = _causes(error)
    for cause in causes.values():
        found = user_error_in(cause)
        if found:
            found.exit_code = 1
            return found
    who, first = next(iter(causes.items()), ("", error))
    return UserError(
        f"training failed after cluster.max_failures = {spec.config.cluster.max_failures} restarts: "
        f"{who}{first_line(first)}\n  see {spec.run_dir / 'logs'}; continue with --resume auto",
        exit_code=1,
    )


def _causes(error: Exception) -> dict[str, Exception]:
    """What failed, by whom, worker by worker where it was they."""
    from ray.train import ControllerError, WorkerGroupError

    if isinstance(error, ControllerError):
        return {"": error.controller_failure}
    if isinstance(error, WorkerGroupError):
        rank, first = main_cause(error.worker_failures)
        return {f"worker {rank}: ": first, **{f"worker {n}: ": each for n, each in error.worker_failures.items()}}
    return {"": error}


def _death(error: Exception) -> str:
    """Ray's first line on a dead actor; behind a traceback of its constructor, what that ended in."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if "Traceback" in str(error) else first_line(error)
