"""Workers that do not start: tried again within limits, reported on the screen, and ended with a reason."""

import pickle
import time
from pathlib import Path

import pytest
import ray
from ray.train import ControllerError, FailureConfig, WorkerGroupError
from ray.train.v2._internal.exceptions import WorkerGroupStartupFailedError, WorkerGroupStartupTimeoutError
from ray.train.v2._internal.execution.failure_handling import FailureDecision

from rayswift.data.sequence.global_batches import FeedPlan
from rayswift.launch.elastic import BoundedStarts
from rayswift.log import UserError
from rayswift.report.console import Console
from rayswift.run import events

PLAN = FeedPlan(8, 100, 2000, 1, -1, 0.01)


def died_at_start() -> ControllerError:
    failure = WorkerGroupStartupFailedError("At least one of the worker actors failed to initialize.")
    failure.__cause__ = ray.exceptions.RayActorError(error_msg="The actor died: No module named 'rayswift'")
    return ControllerError(failure)


def no_place() -> ControllerError:
    return ControllerError(WorkerGroupStartupTimeoutError(2))


def ended_with(error: ControllerError) -> str:
    found = pickle.loads(pickle.dumps(error)).controller_failure  # as the driver gets it
    assert isinstance(found, UserError)
    assert found.exit_code == 1
    return str(found)


def test_workers_that_die_while_they_start_are_tried_again_a_few_times(tmp_path: Path) -> None:
    policy = BoundedStarts(FailureConfig(max_failures=2), tmp_path, 600)
    for _ in range(2):
        assert policy.make_decision(died_at_start()) == FailureDecision.RETRY
    assert [event.kind for event in events.read(tmp_path)] == ["failure", "failure"]
    last = died_at_start()
    assert policy.make_decision(last) == FailureDecision.RAISE
    assert "did not start" in ended_with(last)
    assert "No module named 'rayswift'" in ended_with(last)
    assert "cluster.max_failures = 2" in ended_with(last)


def test_a_group_that_began_gives_all_tries_back(tmp_path: Path) -> None:
    policy = BoundedStarts(FailureConfig(max_failures=1), tmp_path, 600)
    for _ in range(5):
        assert policy.make_decision(died_at_start()) == FailureDecision.RETRY
        events.record(tmp_path, "start", step=0, workers=2)


def test_a_place_is_waited_for_as_long_as_the_config_says(tmp_path: Path) -> None:
    policy = BoundedStarts(FailureConfig(max_failures=0), tmp_path, 0.5)
    assert policy.make_decision(no_place()) == FailureDecision.RETRY
    assert policy.make_decision(no_place()) == FailureDecision.RETRY
    time.sleep(0.6)
    last = no_place()
    assert policy.make_decision(last) == FailureDecision.RAISE
    assert "cluster.wait_for_nodes_s = 0.5" in ended_with(last)
    assert "no place for all 2 worker(s)" in ended_with(last)


def test_workers_that_ran_are_rays_own_business(tmp_path: Path) -> None:
    policy = BoundedStarts(FailureConfig(max_failures=1), tmp_path, 600)
    assert policy.make_decision(WorkerGroupError("", {0: OSError()})) == FailureDecision.RETRY
    assert policy.make_decision(WorkerGroupError("", {0: OSError()})) == FailureDecision.RAISE
    assert policy.make_decision(ControllerError(ValueError("ours"))) == FailureDecision.RAISE


def test_the_screen_says_what_failed_and_is_tried_again(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    events.record(tmp_path, "failure", text="of the launch before")
    with Console(tmp_path, lambda: (0, 0.0), PLAN):
        events.record(tmp_path, "failure", text="worker 1: OSError: no route to host")
        time.sleep(0.8)
    assert capfd.readouterr().err.splitlines() == ["failed: worker 1: OSError: no route to host"]
