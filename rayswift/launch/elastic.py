"""The worker group: how many workers, on what, and how their number follows the cluster.

Ray Train restarts the group from the newest checkpoint whenever the number of workers changes. Growing restarts the
group, so it saves first and repeats no step.
"""

import itertools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
from ray.train import ControllerError, FailureConfig, ScalingConfig, TrainingFailedError
from ray.train.v2._internal.callbacks import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.constants import get_env_vars_to_propagate
from ray.train.v2._internal.exceptions import WorkerGroupStartupFailedError, WorkerGroupStartupTimeoutError
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.execution.failure_handling import DefaultFailurePolicy, FailureDecision
from ray.train.v2._internal.execution.scaling_policy import (
    ElasticScalingPolicy,
    FixedScalingPolicy,
    NoopDecision,
)

# Not `TorchTrainer`: its config makes driver and controller import torch, seconds before the first worker starts.
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from rayswift.cluster.layout import Layout, worker_resources
from rayswift.cluster.nodes import silent
from rayswift.cluster.preflight import Ask, num_workers_that_fit
from rayswift.launch.failures import first_line
from rayswift.launch.supply import beside_the_driver
from rayswift.log import UserError
from rayswift.run import checkpoint, events

_LOOK_EVERY_S = 1.0
_CHECK_EVERY_S = 1.0
_QUIET = {"RAY_WARN_BLOCKING_GET_INSIDE_ASYNC": "0"}  # Ray Train's controller does so
_ANSWER_WITHIN_S = 2.0


def scaling(layout: Layout) -> ScalingConfig:
    """What Ray Train is asked for."""
    fixed = layout.min_workers is None
    return ScalingConfig(
        num_workers=layout.num_workers if fixed else (layout.min_workers, layout.num_workers),
        use_gpu=layout.device == "cuda",
        resources_per_worker=worker_resources(layout),
    )


def trainer_class(
    layout: Layout, run_dir: Path, feed_name: str, patience_s: float, check: Callable[[], None]
) -> type[DataParallelTrainer]:
    """Ray Train's trainer with our policy of changing the group, and without helper actors that a run has no use for.

    `check` is called every second; what it raises ends the run.

    Each helper takes seconds of CPU to start and wakes a hundred times a second: with two cores, training feels it.
    """
    # The feed hands out the rows, and a Ray started for one run ends with its driver, placement groups and all.
    unused = (DatasetsCallback, PlacementGroupCleanerCallback) if layout.local else (DatasetsCallback,)

    class LeanTrainer(DataParallelTrainer):
        def _create_default_callbacks(self) -> list[Any]:
            return [each for each in super()._create_default_callbacks() if not isinstance(each, unused)]

        def _initialize_and_run_controller(self, **controller: Any) -> Any:
            if self.scaling_config.elasticity_enabled:
                controller["scaling_policy"] = FollowCluster(self.scaling_config, run_dir, feed_name, patience_s)
            elif not layout.local:
                controller["scaling_policy"] = WholeGroup(self.scaling_config, patience_s)
            controller["failure_policy"] = BoundedStarts(self.run_config.failure_config, run_dir, patience_s)
            options: dict[str, Any] = {"num_cpus": 0, "scheduling_strategy": beside_the_driver()}
            if not layout.local:
                options["runtime_env"] = {"env_vars": {**_QUIET, **get_env_vars_to_propagate()}}
            # A Ray of our own needs no runtime environment: the actor then starts in a process that is already there,
            # two seconds sooner.
            actor = ray.remote(**options)(TrainController).remote(**controller)
            running = actor.run.remote()
            while not ray.wait([running], timeout=_CHECK_EVERY_S)[0]:
                check()
            ray.get(running)
            return ray.get(actor.get_result.remote())

        def _register_sigint_handler(self, controller: Any) -> None:
            """Ctrl-C stays Python's: the driver ends, and with it the feed and the group, which it owns."""

    return LeanTrainer


class BoundedStarts(DefaultFailurePolicy):
    """Ray's own policy, which tries to start workers for ever and says nothing; lives in Ray Train's controller.

    Args:
        failure_config: How often workers that ran are restarted; also how often those that die while they start.
        run_dir: Where failures are recorded, and where a start shows.
        patience_s: Longest wait for a place.
    """

    def __init__(self, failure_config: FailureConfig, run_dir: Path, patience_s: float):
        super().__init__(failure_config)
        self._run_dir, self._patience_s = run_dir, patience_s
        self._num_starts, self._num_failed, self._since = -1, 0, 0.0

    def make_decision(self, training_failed_error: TrainingFailedError) -> FailureDecision:
        """Try again, or end the run with what a user can read."""
        failure = (
            training_failed_error.controller_failure if isinstance(training_failed_error, ControllerError) else None
        )
        if not isinstance(failure, WorkerGroupStartupFailedError | WorkerGroupStartupTimeoutError):
            decision: FailureDecision = super().make_decision(training_failed_error)
            return decision
        num_starts = sum(event.kind == "start" for event in events.read(self._run_dir))
        if num_starts != self._num_starts:  # a group began to train since the last of these failures
            self._num_starts, self._num_failed, self._since = num_starts, 0, time.monotonic()
        if isinstance(failure, WorkerGroupStartupTimeoutError):
            reason = f"no place for all {failure.num_workers} worker(s)"
            limit = f"cluster.wait_for_nodes_s = {self._patience_s:g}"
            is_over = time.monotonic() - self._since >= self._patience_s
        else:
            self._num_failed += 1
            reason = f"a worker died while it started: {first_line(failure.__cause__ or failure)}"
            limit = f"cluster.max_failures = {self.failure_config.max_failures} restarts"
            is_over = self._num_failed > self.failure_config.max_failures >= 0
        if not is_over:
            events.record(self._run_dir, "failure", text=reason)
            return FailureDecision.RETRY
        training_failed_error.controller_failure = UserError(
            f"the train workers did not start, {limit} later: {reason}\n  the logs of its processes lie in Ray's "
            "session folder on that node (/tmp/ray/session_latest/logs); continue with --resume auto",
            exit_code=1,
        )
        return FailureDecision.RAISE


class _Room:
    """How long there has been none for the fewest workers.

    Args:
        fewest: Workers.
        patience_s: Longest wait for it.
    """

    def __init__(self, fewest: int, patience_s: float):
        self._fewest, self._patience_s = fewest, patience_s
        self._since: float | None = None

    def found(self) -> None:
        """There is room."""
        self._since = None

    def wait(self) -> None:
        """There is none; Ray's loop asks again at once, so that this takes a while.

        Raises:
            UserError: there was none for too long.
        """
        now = time.monotonic()
        self._since = self._since or now
        if now - self._since > self._patience_s:
            raise UserError(
                f"for {self._patience_s:.0f} s the cluster had no room for the {self._fewest} worker(s) that "
                "cluster.num_workers asks for at least, and a CPU for Ray Data; add nodes and continue with --resume "
                "auto",
                exit_code=1,
            )
        time.sleep(_LOOK_EVERY_S / 4)


class WholeGroup(FixedScalingPolicy):
    """All workers, where they leave a CPU to Ray Data; lives in Ray Train's controller.

    Ray's own policy would give workers the last CPU of a cluster that has lost a node: then no batch ever comes.

    Args:
        scaling_config: How many workers, what each holds.
        patience_s: Longest wait for room for them.
    """

    def __init__(self, scaling_config: ScalingConfig, patience_s: float):
        super().__init__(scaling_config)
        self._ask = Ask(scaling_config.min_workers, scaling_config._resources_per_worker_not_none)
        self._room = _Room(scaling_config.min_workers, patience_s)

    def make_decision_for_non_running_worker_group(self) -> Any:
        """Start, once there is room.

        Raises:
            UserError: there was none for too long.
        """
        alive = [node for node in ray.nodes() if node["Alive"]]
        lost = {node["NodeID"] for node in silent(alive, timeout_s=1.0)}  # that Ray lists for a while
        there = [node["Resources"] for node in alive if node["NodeID"] not in lost]
        if num_workers_that_fit(self._ask, there) < self._ask.num_workers:
            self._room.wait()
            return NoopDecision()
        self._room.found()
        return super().make_decision_for_non_running_worker_group()


class FollowCluster(ElasticScalingPolicy):
    """As many workers as the cluster has room for; lives in Ray Train's controller.

    Args:
        scaling_config: Fewest and most workers, what each holds.
        run_dir: Where checkpoints appear.
        feed_name: The feed's actor, which passes the wish for a checkpoint on to all ranks alike.
        patience_s: Longest wait for room for the fewest.
    """

    def __init__(self, scaling_config: ScalingConfig, run_dir: Path, feed_name: str, patience_s: float):
        super().__init__(scaling_config)
        self._run_dir, self._feed_name = run_dir, feed_name
        self._room = _Room(scaling_config.min_workers, patience_s)
        self._requests = itertools.count(1)
        self._growth: tuple[int, int] | None = None  # request, and the newest checkpoint's step when it was made
        self._looked_at = float("-inf")
        self._reserved: dict[str, dict[str, float]] | None = None
        self._running = False
        self._silent: set[str] = set()  # nodes that Ray still lists and that do not answer
        self._num_cpus = 0.0

    def make_decision_for_non_running_worker_group(self) -> Any:
        """Start with what is there.

        Raises:
            UserError: there was no room for the fewest workers for too long.
        """
        if self._running:  # what was seen a moment ago may be what just died
            self._running, self._looked_at = False, float("-inf")
        decision = super().make_decision_for_non_running_worker_group()
        if isinstance(decision, NoopDecision):
            self._room.wait()
        else:
            self._room.found()
        return decision

    def make_decision_for_running_worker_group(self, worker_group_state: Any, worker_group_status: Any) -> Any:
        """Shrink at once; grow once a checkpoint is there that was saved for it."""
        self._running = True
        self._maybe_send_resource_request()
        reserved = self._get_reserved_resources()
        if reserved is None:
            return NoopDecision()
        now, possible = worker_group_state.num_workers, self._count_possible_workers(reserved)
        if possible == now or possible < self.scaling_config.min_workers:
            self._growth = None  # room that was there is gone again
            return NoopDecision()
        if possible > now and not self._is_saved_for_growth():
            return NoopDecision()
        self._growth = None
        return self._get_resize_decision(possible)

    def _is_saved_for_growth(self) -> bool:
        newest = checkpoint.newest(self._run_dir)
        step = newest.step if newest else -1
        if self._growth is None:
            self._growth = next(self._requests), step
        request, before = self._growth
        if step > before:
            return True
        ray.get_actor(self._feed_name).ask_for_save.remote(request)  # again and again: a feed may die with the wish
        return False

    def _count_possible_workers(self, reserved_resources: Any) -> int:
        """Ray's count, less what would leave Ray Data no CPU: then no batch would ever come."""
        there = {node: held for node, held in reserved_resources.items() if node not in self._silent}
        possible: int = super()._count_possible_workers(there)
        cpus_each = self.scaling_config._resources_per_worker_not_none.get("CPU", 0)
        return min(possible, int((self._num_cpus - 1) // cpus_each)) if cpus_each else possible

    def _get_reserved_resources(self) -> Any:
        """As the cluster is now: Ray's own policy sees a node that came or went 20 seconds late."""
        if time.monotonic() - self._looked_at < _LOOK_EVERY_S:
            return self._reserved
        self._looked_at = time.monotonic()
        nodes = [node for node in ray.nodes() if node["Alive"]]
        answer = self._autoscaling_coordinator.get_reserved_resources.remote(self._requester_id, recompute=True)
        try:
            self._reserved = ray.get(answer, timeout=_ANSWER_WITHIN_S)
        except ray.exceptions.RayError:
            # It lives on the node of whoever asked it first, and dies with that node. A group that runs goes on as it
            # is; one that starts takes what the nodes have.
            self._reserved = None if self._running else {node["NodeID"]: node["Resources"] for node in nodes}
        # Ray lists a node that lost its power for some fifteen seconds more. A group that starts then would be
        # planned too large, so each node is asked; while a group runs, only those that did not answer.
        asked = [node for node in nodes if not self._running or node["NodeID"] in self._silent]
        self._silent = {node["NodeID"] for node in silent(asked, timeout_s=1.0)}
        self._num_cpus = sum(node["Resources"].get("CPU", 0) for node in nodes if node["NodeID"] not in self._silent)
        return self._reserved
