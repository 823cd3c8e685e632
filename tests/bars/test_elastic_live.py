"""A run whose cluster changes: a node joins, a node is killed; the loss curve is that of a fixed run.

Minutes, so not part of the suite: pytest --log-cli-level INFO tests/bars/test_elastic_live.py
"""

import logging
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from cluster.local_cluster import LocalCluster
from rayswift.run import checkpoint
from tests.ray.conftest import Run, assert_same_curve, curve, sft, start

STEPS = 80
TOLERANCE = 1e-4
RUN = (
    "--max_steps", str(STEPS), "--save_strategy", "steps", "--save_steps", "5", "--global_batch_size", "8",
    "--per_device_train_batch_size", "4", "--device", "cpu", "--learning_rate", "1e-4", "--threads_per_worker", "1",
    "--timeout_s", "120",
)  # fmt: skip
logger = logging.getLogger(__name__)


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalCluster]:
    """A head of one CPU."""
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with LocalCluster(num_cpus=1, dashboard=False) as cluster:
        yield cluster


def holds_a_worker(node: subprocess.Popen[bytes]) -> bool:
    return any(_name(p).startswith("RayTrainWo") for p in psutil.Process(node.pid).children(recursive=True))


def lose_power(node: subprocess.Popen[bytes]) -> None:
    """All processes of a node end at once."""
    root = psutil.Process(node.pid)
    processes = [root, *root.children(recursive=True)]
    for process in processes:
        process.send_signal(signal.SIGSTOP)
    for process in processes:
        process.send_signal(signal.SIGKILL)
    node.wait()


def _name(process: psutil.Process) -> str:
    try:
        return process.name().removeprefix("ray::")
    except psutil.NoSuchProcess:
        return ""


def trains_with(run: Run, workers: int) -> bool:
    """Whether the two newest steps were trained by that many workers."""
    if not (run.run_dir / "metrics.jsonl").exists():
        return False
    return list(curve(run.run_dir, "workers").values())[-2:] == [workers] * 2


@pytest.mark.parametrize("stage", [2, 3])
def test_a_node_joins_and_one_is_killed(
    stage: int, cluster: LocalCluster, run_dir: Path, tmp_path: Path, tiny: tuple[str, ...]
) -> None:
    flags = (*tiny, *RUN, "--zero_stage", str(stage))
    nodes = [cluster.add_node()]  # two CPUs: one worker, and one for the data
    run = start("sft", run_dir, *flags, "--num_workers", "1", "2", "--address", cluster.address)
    run.wait_for(lambda: trains_with(run, 1), "steps of one worker")
    nodes.append(cluster.add_node())
    began = time.monotonic()
    run.wait_for(lambda: trains_with(run, 2), "steps of two workers")
    grown_s = time.monotonic() - began
    # What they trained must last: a kill before it is saved would have one worker train it again.
    run.wait_for(lambda: any(saved.world_size == 2 for saved in checkpoint.find_all(run_dir)), "their checkpoint")
    logger.info("ZeRO %d: trains with a new node after %.0f s", stage, grown_s)
    lose_power(next(node for node in nodes if holds_a_worker(node)))
    began = time.monotonic()
    run.wait_for(lambda: trains_with(run, 1), "steps of one worker again")
    logger.info("ZeRO %d: trains without a killed node after %.0f s", stage, time.monotonic() - began)
    code, out = run.wait()
    assert code == 0, out
    workers = list(curve(run_dir, "workers").values())
    logger.info("steps by two workers: %s", [step for step, number in enumerate(workers, 1) if number == 2])
    assert {workers[0], workers[-1]} == {1}
    assert 2 in workers
    cluster.stop()
    fixed = tmp_path / "fixed"
    sft(fixed, *flags, "--num_workers", "1")
    assert_same_curve(run_dir, fixed, TOLERANCE)
