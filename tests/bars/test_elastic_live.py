"""A run whose cluster changes under it: a node joins, a node is killed; the loss curve is that of a fixed run.

Minutes, so not part of the suite: pytest --log-cli-level INFO tests/bars/test_elastic_live.py
"""

import logging
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tests.ray.conftest import Run, assert_same_curve, curve, sft, start

STEPS, SAVE_EVERY = 60, 5
TOLERANCE = 1e-4
logger = logging.getLogger(__name__)
RUN = (
    "--max_steps", str(STEPS), "--save_strategy", "steps", "--save_steps", str(SAVE_EVERY), "--global_batch_size", "16",
    "--per_device_train_batch_size", "4", "--max_length", "512", "--device", "cpu", "--learning_rate", "1e-4",
    "--threads_per_worker", "1",
)  # fmt: skip


class Node:
    """A Ray node of one CPU as processes of its own; the first is the head."""

    def __init__(self, temp_dir: Path, address: str, head: bool):
        where = (
            ["--head", "--port", address.split(":")[1], "--include-dashboard", "false", "--temp-dir", str(temp_dir)]
            if head
            else ["--address", address]
        )
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--num-cpus", "1", *where]
        log = open(temp_dir / f"node-{time.monotonic_ns()}.log", "w")  # noqa: SIM115
        self.log = Path(log.name)
        self.process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)

    def holds_a_worker(self) -> bool:
        return any("RayTrainWorker" in _title(p) for p in psutil.Process(self.process.pid).children(recursive=True))

    def kill(self) -> None:
        """As a machine that loses power: all its processes at once."""
        if self.process.poll() is not None:
            return
        node = psutil.Process(self.process.pid)
        processes = [*node.children(recursive=True), node]
        for process in processes:
            if process.is_running():
                process.send_signal(signal.SIGKILL)
        psutil.wait_procs(processes, timeout=30)


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""


class Cluster:
    """A head and nodes that come and go."""

    def __init__(self, temp_dir: Path):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{probe.getsockname()[1]}"
        self._temp_dir = temp_dir
        self.head = Node(temp_dir, self.address, head=True)
        _wait_for(self._answers, "the head", self.head)
        self.nodes: list[Node] = []

    def _answers(self) -> bool:
        host, port = self.address.split(":")
        with socket.socket() as probe:
            return probe.connect_ex((host, int(port))) == 0 and "Ray runtime started" in self.head.log.read_text()

    def add(self) -> None:
        node = Node(self._temp_dir, self.address, head=False)
        self.nodes.append(node)
        _wait_for(lambda: "Ray runtime started" in node.log.read_text(), "the node", node)

    def close(self) -> None:
        for node in [*self.nodes, self.head]:
            node.kill()


def _wait_for(condition: Callable[[], bool], what: str, node: Node) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert node.process.poll() is None, f"{what} ended: {node.log.read_text()}"
        assert time.monotonic() < deadline, f"no {what} within 120 s: {node.log.read_text()}"
        time.sleep(0.2)


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    temp_dir = Path(tempfile.mkdtemp(prefix="rsw-", dir="/tmp"))  # sockets want short paths
    cluster = Cluster(temp_dir)
    yield cluster
    cluster.close()
    shutil.rmtree(temp_dir, ignore_errors=True)


def _trains_with(run: Run, workers: int, steps: int = 2) -> bool:
    """Whether the newest `steps` steps were trained by that many workers."""
    if not (run.run_dir / "metrics.jsonl").exists():
        return False
    newest = list(curve(run.run_dir, "workers").values())[-steps:]
    return newest == [workers] * steps


@pytest.mark.parametrize("stage", [2, 3])
def test_a_node_joins_and_one_is_killed(
    stage: int, cluster: Cluster, run_dir: Path, tmp_path: Path, tiny: tuple[str, ...]
) -> None:
    flags = (*tiny, *RUN, "--zero_stage", str(stage))
    cluster.add()  # two CPUs: one worker, one for the data
    run = start("sft", run_dir, *flags, "--num_workers", "1", "2", "--address", cluster.address)
    run.wait_for(lambda: _trains_with(run, 1), "step with one worker", 240)
    cluster.add()
    joined_at = time.monotonic()
    run.wait_for(lambda: _trains_with(run, 2), "step with two workers", 240)
    grown_s = time.monotonic() - joined_at
    victim = next(node for node in cluster.nodes if node.holds_a_worker())
    victim.kill()
    killed_at = time.monotonic()
    run.wait_for(lambda: _trains_with(run, 1), "step with one worker again", 240)
    shrunk_s = time.monotonic() - killed_at
    code, out = run.wait(400)
    assert code == 0, out
    cluster.close()
    fixed = tmp_path / "fixed"
    sft(fixed, *flags, "--num_workers", "1")
    assert_same_curve(run_dir, fixed, TOLERANCE)
    logger.info("ZeRO %d: joined to trained with: %.0f s; killed to trained without: %.0f s", stage, grown_s, shrunk_s)
    logger.info("workers by step: %s", list(curve(run_dir, "workers").values()))
