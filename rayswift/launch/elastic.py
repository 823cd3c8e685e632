"""The worker group: how Ray Train starts it, and how its size follows the cluster.

Ray Train restarts the group from the newest checkpoint when the number of workers changes. Before it grows, the group
saves a checkpoint, so that no step is repeated.
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
from rayswift.launch.supply import beside_the_driver
from rayswift.log import UserError, first_line
from rayswift.run import checkpoint, events

_LOOK_EVERY_S = 1.0
_CHECK_EVERY_S = 1.0
_QUIET = {"RAY_WARN_BLOCKING_GET_INSIDE_ASYNC": "0"}  # Ray Train's controller blocks in `get`
_ANSWER_WITHIN_S = 2.0


def scaling(layout: Layout) -> ScalingConfig:
    fixed = layout.min_workers is None
    return ScalingConfig(
        num_workers=layout.num_workers if fixed else (layout.min_workers, layout.num_workers),
        use_gpu=layout.device == "cuda",
        resources_per_worker=worker_resources(layout),
    )


def trainer_class(
    layout: Layout, run_dir: Path, feed_name: str, patience_s: float, check: Callable[[], None]
) -> type[DataParallelTrainer]:
    """Ray Train's trainer with our scaling and failure policies. `check` is called every second and may end the run.

    Unused helper actors are left out: each takes seconds of CPU to start and wakes a hundred times a second.
    """
    # Rows come from the data service, and a local Ray ends with its driver, placement groups included.
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
            # Without a runtime environment the actor of a local Ray starts in an idle process, two seconds sooner.
            actor = ray.remote(**options)(TrainController).remote(**controller)
            running = actor.run.remote()
            while not ray.wait([running], timeout=_CHECK_EVERY_S)[0]:
                check()
            ray.get(running)
            return ray.get(actor.get_result.remote())

        def _register_sigint_handler(self, controller: Any) -> None:
            """Leave SIGINT to Python: the driver ends, and with it all actors."""

    return LeanTrainer


class BoundedStarts(DefaultFailurePolicy):
    """Ray's failure policy with bounds on failed starts, which Ray repeats for ever in silence.

    Lives in Ray Train's controller. `failure_config.max_failures` bounds the starts that fail one after the other;
    patience_s bounds the wait for room.
    """

    def __init__(self, failure_config: FailureConfig, run_dir: Path, patience_s: float):
        super().__init__(failure_config)
        self._run_dir, self._patience_s = run_dir, patience_s
        self._num_starts, self._num_failed, self._since = -1, 0, 0.0

    def make_decision(self, training_failed_error: TrainingFailedError) -> FailureDecision:
        """Try again, or end the run with a readable error."""
        failure = (
            training_failed_error.controller_failure if isinstance(training_failed_error, ControllerError) else None
        )
        if not isinstance(failure, WorkerGroupStartupFailedError | WorkerGroupStartupTimeoutError):
            decision: FailureDecision = super().make_decision(training_failed_error)
            return decision
        num_starts = sum(event.kind == "start" for event in events.read(self._run_dir))
        if num_starts != self._num_starts:  # a group has started since the last failed start
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
            f"the train workers did not start, {limit} later: {reason}\n  the logs of its processes are in Ray's "
            "session folder on that node (/tmp/ray/session_latest/logs); continue with --resume auto",
            exit_code=1,
        )
        return FailureDecision.RAISE


class _Room:
    """How long the cluster has had no room for the smallest group; patience_s: the longest allowed wait."""

    def __init__(self, fewest: int, patience_s: float):
        self._fewest, self._patience_s = fewest, patience_s
        self._since: float | None = None

    def found(self) -> None:
        self._since = None

    def wait(self) -> None:
        """Sleep a moment, since Ray asks again at once; raise UserError after `patience_s`."""
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
    """A fixed number of workers, started only if a CPU is left for Ray Data; lives in Ray Train's controller.

    Ray's own policy would use the last CPU of a cluster that has lost a node, and no batch would ever come.
    """

    def __init__(self, scaling_config: ScalingConfig, patience_s: float):
        super().__init__(scaling_config)
        self._ask = Ask(scaling_config.min_workers, scaling_config._resources_per_worker_not_none)
        self._room = _Room(scaling_config.min_workers, patience_s)

    def make_decision_for_non_running_worker_group(self) -> Any:
        """Start once there is room; raise UserError after `patience_s`."""
        alive = [node for node in ray.nodes() if node["Alive"]]
        lost = {node["NodeID"] for node in silent(alive, timeout_s=1.0)}  # Ray still lists them for a while
        there = [node["Resources"] for node in alive if node["NodeID"] not in lost]
        if num_workers_that_fit(self._ask, there) < self._ask.num_workers:
            self._room.wait()
            return NoopDecision()
        self._room.found()
        return super().make_decision_for_non_running_worker_group()


class FollowCluster(ElasticScalingPolicy):
    """As many workers as the cluster has room for; lives in Ray Train's controller.

    feed_name: actor of the data service, which passes the request for a checkpoint to all ranks; patience_s: longest
    wait for room for the smallest group.
    """

    def __init__(self, scaling_config: ScalingConfig, run_dir: Path, feed_name: str, patience_s: float):
        super().__init__(scaling_config)
        self._run_dir, self._feed_name = run_dir, feed_name
        self._room = _Room(scaling_config.min_workers, patience_s)
        self._requests = itertools.count(1)
        self._growth: tuple[int, int] | None = None  # number of the request, and the newest step at its time
        self._looked_at = float("-inf")
        self._reserved: dict[str, dict[str, float]] | None = None
        self._running = False
        self._silent: set[str] = set()  # nodes that Ray lists and that do not answer
        self._num_cpus = 0.0

    def make_decision_for_non_running_worker_group(self) -> Any:
        """Start with the nodes that are there; raise UserError after `patience_s` without room."""
        if self._running:  # the nodes of the last look may have died
            self._running, self._looked_at = False, float("-inf")
        decision = super().make_decision_for_non_running_worker_group()
        if isinstance(decision, NoopDecision):
            self._room.wait()
        else:
            self._room.found()
        return decision

    def make_decision_for_running_worker_group(self, worker_group_state: Any, worker_group_status: Any) -> Any:
        """Shrink at once; grow only after a checkpoint was saved for it."""
        self._running = True
        self._maybe_send_resource_request()
        reserved = self._get_reserved_resources()
        if reserved is None:
            return NoopDecision()
        now, possible = worker_group_state.num_workers, self._count_possible_workers(reserved)
        if possible == now or possible < self.scaling_config.min_workers:
            self._growth = None  # the new room is gone
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
        ray.get_actor(self._feed_name).ask_for_save.remote(request)  # repeated: the actor may die with the request
        return False

    def _count_possible_workers(self, reserved_resources: Any) -> int:
        """Ray's count, with one CPU left for Ray Data."""
        there = {node: held for node, held in reserved_resources.items() if node not in self._silent}
        possible: int = super()._count_possible_workers(there)
        cpus_each = self.scaling_config._resources_per_worker_not_none.get("CPU", 0)
        return min(possible, int((self._num_cpus - 1) // cpus_each)) if cpus_each else possible

    def _get_reserved_resources(self) -> Any:
        """Resources by node, looked up every second; Ray's own policy would do so every 20 seconds."""
        if time.monotonic() - self._looked_at < _LOOK_EVERY_S:
            return self._reserved
        self._looked_at = time.monotonic()
        nodes = [node for node in ray.nodes() if node["Alive"]]
        answer = self._autoscaling_coordinator.get_reserved_resources.remote(self._requester_id, recompute=True)
        try:
            self._reserved = ray.get(answer, timeout=_ANSWER_WITHIN_S)
        except ray.exceptions.RayError:
            # The coordinator may have died with its node. A running group continues; a new one takes all nodes.
            self._reserved = None if self._running else {node["NodeID"]: node["Resources"] for node in nodes}
        # Ray lists a dead node for about fifteen seconds. To plan a new group, ask every node whether it lives; while
        # a group runs, ask only those that did not answer before.
        asked = [node for node in nodes if not self._running or node["NodeID"] in self._silent]
        self._silent = {node["NodeID"] for node in silent(asked, timeout_s=1.0)}
        self._num_cpus = sum(node["Resources"].get("CPU", 0) for node in nodes if node["NodeID"] not in self._silent)
        return self._reserved
