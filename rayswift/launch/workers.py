"""Start the data service and the workers, and wait for their end.

The driver owns the data service; Ray Train's controller owns the workers and restarts them after a failure. With
`num_workers` 0 the worker runs in this process.
"""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from rayswift import signals
from rayswift.cluster import preflight
from rayswift.cluster.layout import worker_resources
from rayswift.cluster.machine import interfaces, network_environment
from rayswift.data.feed.pipeline import user_error_in
from rayswift.launch import watch
from rayswift.launch.failures import Failures, explain, main_cause
from rayswift.launch.supply import DataService
from rayswift.log import UserError, first_line, logger, setup_worker
from rayswift.report.console import Console
from rayswift.run import checkpoint, events, waiting
from rayswift.train.parallel.process_group import free_port, rank_environment
from rayswift.train.spec import Connect, RunSpec, TrainLoop, Worker


def fit(spec: RunSpec, train_loop: TrainLoop, supply: DataService) -> None:
    """Run `train_loop` on every worker; raise UserError (exit code 1) if the run fails."""
    if spec.layout.num_workers == 0:
        with _worker_here(spec, supply) as worker:
            return train_loop(spec.for_world_size(1), worker)
    import ray
    from ray.train import FailureConfig, RunConfig

    from rayswift.launch.elastic import scaling, trainer_class

    name = f"rayswift-{uuid.uuid4().hex[:8]}"
    connect = supply.start(name)
    cluster = None
    if not spec.layout.local:
        address, _, port = ray.get_runtime_context().gcs_address.rpartition(":")
        ask = preflight.Ask(spec.layout.min_world_size, worker_resources(spec.layout))
        head = (address.strip("[]"), int(port))
        cluster = watch.Cluster(head, ask, spec.config.cluster.wait_for_nodes_s)
    watcher = watch.Watch(
        spec.run_dir, spec.layout.min_world_size, supply.standing, cluster, spec.config.cluster.timeout_s
    )
    trainer = trainer_class(spec.layout, spec.run_dir, name, spec.config.cluster.wait_for_nodes_s, watcher.check)(
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
        with Console(spec.run_dir, supply.progress, spec.feed_plan), watcher:
            trainer.fit()
    except ray.train.TrainingFailedError as error:
        raise _explain(error, spec) from error
    except ray.exceptions.RayActorError as error:
        raise UserError(
            f"Ray Train's controller died: {_death(error)}; continue with --resume auto", exit_code=1
        ) from error
    finally:
        if not signals.asked_to_end():  # otherwise all actors end with this process
            supply.close()


@contextmanager
def _worker_here(spec: RunSpec, supply: DataService) -> Iterator[Worker]:
    """The driver as the only worker, with the same watch and the same errors."""
    client = supply.start_here()
    if spec.config.cluster.uses_deepspeed:
        os.environ.update(rank_environment(0, 1, 0, 1, "127.0.0.1", free_port()))
        os.environ.update(network_environment("127.0.0.1", interfaces(), os.environ))
    driver_handlers = logger.handlers
    setup_worker(spec.run_dir / "logs", "rank-0")
    watcher = watch.Watch(spec.run_dir, 1, supply.standing, None, spec.config.cluster.timeout_s)
    try:
        with (
            Console(spec.run_dir, supply.progress, spec.feed_plan),
            watcher,
            waiting.Notes(spec.run_dir / "logs", 0, 1, "this machine") as notes,
        ):
            yield Worker(0, 1, client, notes)
    except (Exception, SystemExit) as error:  # a callback may call `sys.exit`
        failure = explain(error, spec.config, spec.run_dir, 0)
        raise (failure if isinstance(failure, UserError) else UserError(str(failure), exit_code=1)) from error
    finally:
        if not signals.asked_to_end():
            supply.close()
        logger.handlers = driver_handlers


def _worker_main(spec: RunSpec, train_loop: TrainLoop, connect: Connect) -> None:
    """The process of a train worker: join the group, then train."""
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
        address = ray.train.collective.broadcast_from_rank_zero((here, free_port()))
        local_rank, local_size = context.get_local_rank(), context.get_local_world_size()
        os.environ.update(rank_environment(rank, size, local_rank, local_size, *address))
        os.environ.update(network_environment(here, interfaces(), os.environ))
    try:
        train_loop(spec.for_world_size(size), Worker(rank, size, connect(rank, size), notes))
    except (Exception, SystemExit) as error:
        raise explain(error, spec.config, spec.run_dir, rank) from None
    finally:
        notes.close()


def _on_failure(run_dir: Path) -> Any:
    from ray.train import UserCallback

    class OnFailure(UserCallback):
        """Ends the run if a restart cannot help; records all other failures."""

        def __init__(self) -> None:
            self._failures = Failures()

        def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
            newest = checkpoint.newest(run_dir)
            self._failures.check(worker_exceptions, newest.step if newest else 0)
            rank, first = main_cause(worker_exceptions)
            events.record(run_dir, "failure", text=f"worker {rank}: {first_line(first)}")

    return OnFailure()


def _explain(error: Exception, spec: RunSpec) -> UserError:
    from ray.train import ControllerError, WorkerGroupError

    causes: dict[str, Exception] = {"": error}
    if isinstance(error, ControllerError):
        causes = {"": error.controller_failure}
    elif isinstance(error, WorkerGroupError):
        rank, first = main_cause(error.worker_failures)
        causes = {f"worker {rank}: ": first, **{f"worker {n}: ": each for n, each in error.worker_failures.items()}}
    for cause in causes.values():
        found = user_error_in(cause)
        if found:
            found.exit_code = 1
            return found
    who, first = next(iter(causes.items()))
    return UserError(
        f"training failed after cluster.max_failures = {spec.config.cluster.max_failures} restarts: "
        f"{who}{first_line(first)}\n  see {spec.run_dir / 'logs'}; continue with --resume auto",
        exit_code=1,
    )


def _death(error: Exception) -> str:
    """The first line of Ray's error about a dead actor, or the last line of the traceback in it."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if "Traceback" in str(error) else first_line(error)
