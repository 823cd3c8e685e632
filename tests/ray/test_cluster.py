"""Runs on a cluster of two nodes, each a process: jobs, runs that do not fit, a run folder that is not shared."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.local_cluster import LocalCluster, free_port
from rayswift.run import checkpoint
from tests.ray.conftest import ROOT, TIMEOUT_S, curve

RUN = """
model: {path: tiny, random_init: true}
data: {dataset: [rows.jsonl], max_length: 256, window_rows: 64, max_bad_fraction: 0.1}
train: {learning_rate: 1.0e-3, logging_steps: 1, save_strategy: 'no', gradient_checkpointing: false, report_to: none,
        per_device_train_batch_size: 2}
cluster: {num_workers: 1, device: cpu, timeout_s: 60}
"""


@pytest.fixture(scope="module")
def unshared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in whose place the second node has another."""
    return tmp_path_factory.mktemp("unshared")


@pytest.fixture(scope="module")
def two_nodes(unshared: Path) -> Iterator[LocalCluster]:
    """A head and a node of one CPU each: room for one worker, and for the data."""
    hide = ("unshare", "--mount", "sh", "-c", f'mount -t tmpfs tmpfs "{unshared}" && exec "$@"', "sh")
    may_hide = subprocess.run([*hide, "true"], capture_output=True, timeout=30, check=False).returncode == 0
    with LocalCluster(num_cpus=1, environment={"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}) as cluster:
        cluster.add_node(num_cpus=1, prefix=hide if may_hide else ())
        if not may_hide:
            unshared.rmdir()
        yield cluster


@pytest.fixture(scope="module")
def working_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project folder, with paths relative to it: config, model, rows."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "run.yaml").write_text(RUN)
    shutil.copytree(ROOT / "examples" / "tiny", folder / "tiny")
    lines = (ROOT / "examples" / "gsm8k" / "train.jsonl").read_text().splitlines()[:200]
    (folder / "rows.jsonl").write_text("".join(f"{line}\n" for line in lines))
    bad = [line[:40] if number % 2 else line for number, line in enumerate(lines)]
    (folder / "bad.jsonl").write_text("".join(f"{line}\n" for line in bad))
    return folder


class Job:
    """`ray job submit ... -- rayswift sft --config run.yaml`, whose output is the job's."""

    def __init__(self, cluster: LocalCluster, working_dir: Path, run_dir: Path, *flags: str):
        self.id, self._cluster = f"job-{run_dir.parent.name}", cluster
        self._ray = [sys.executable, "-m", "ray.scripts.scripts", "job"]
        submit = ["submit", "--address", cluster.dashboard_url, "--submission-id", self.id]
        entrypoint = ["rayswift", "sft", "--config", "run.yaml", "--output_dir", str(run_dir), *flags]
        self.process = subprocess.Popen(
            [*self._ray, *submit, "--working-dir", str(working_dir), "--", *entrypoint],
            env=cluster.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def ask(self, verb: str) -> str:
        """`ray job <verb>` for this job."""
        command = [*self._ray, verb, "--address", self._cluster.dashboard_url, self.id]
        done = subprocess.run(
            command, env=self._cluster.environment, capture_output=True, text=True, timeout=120, check=True
        )
        return done.stdout

    def info(self) -> dict[str, Any]:
        """The status that the head reports."""
        with urllib.request.urlopen(f"{self._cluster.dashboard_url}/api/jobs/{self.id}", timeout=30) as answer:
            return dict(json.load(answer))


def rayswift(address: str, working_dir: Path, run_dir: Path, *flags: str) -> tuple[int, str]:
    """Run the command beside the cluster; exit code and everything it printed."""
    command = [sys.executable, "-m", "rayswift", "sft", "--config", "run.yaml", "--output_dir", str(run_dir)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_ADDRESS": address, "RAY_AUTH_MODE": "disabled"}
    done = subprocess.run(
        [*command, *flags],
        cwd=working_dir,
        env=environment,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def test_a_job_trains(two_nodes: LocalCluster, working_dir: Path, run_dir: Path) -> None:
    job = Job(two_nodes, working_dir, run_dir, "--max_steps", "3")
    out, _ = job.process.communicate(timeout=TIMEOUT_S)
    assert job.process.returncode == 0, out
    assert "step 3  " in out
    assert f"model: {run_dir}/checkpoint-3" in out
    assert job.info()["driver_exit_code"] == 0
    assert sorted(curve(run_dir)) == [1, 2, 3]
    assert checkpoint.newest(run_dir)


def test_a_failing_job_ends_with_the_users_error(two_nodes: LocalCluster, working_dir: Path, run_dir: Path) -> None:
    job = Job(two_nodes, working_dir, run_dir, "--max_steps", "500", "--data.dataset", "bad.jsonl")
    out, _ = job.process.communicate(timeout=TIMEOUT_S)
    assert job.process.returncode != 0, out
    info = job.info()
    assert (info["status"], info["driver_exit_code"]) == ("FAILED", 1)
    log = job.ask("logs")
    error = r"error: \d+ of 64 rows are bad, more than data\.max_bad_fraction = 0\.1 allows of 200 in all"
    last_lines = log.strip().splitlines()[-8:]
    assert any(re.match(error, line) for line in last_lines), log
    assert "Traceback" not in log
    assert "Traceback" not in out


def test_a_job_is_followed_and_holds_its_room_until_it_is_stopped(
    two_nodes: LocalCluster, working_dir: Path, run_dir: Path, tmp_path: Path
) -> None:
    job = Job(two_nodes, working_dir, run_dir, "--max_steps", "100000")
    assert job.process.stdout is not None
    for line in job.process.stdout:  # ends with the job, or at a step of the running one
        if line.startswith("step 2 "):
            break
    else:
        pytest.fail("the job ended without a step")
    code, refused = rayswift(two_nodes.address, working_dir, tmp_path / "second", "--wait_for_nodes_s", "1")
    assert code == 1, refused
    assert "waiting up to 1 s (cluster.wait_for_nodes_s) for 1 worker(s) of 1 CPU each, and 1 CPU for Ray" in refused
    assert ": other work holds part of the cluster, " in refused
    assert "the Ray cluster had no room within cluster.wait_for_nodes_s = 1: asked " in refused.splitlines()[-1]
    job.ask("stop")
    job.process.communicate(timeout=TIMEOUT_S)
    assert job.info()["status"] == "STOPPED"
    deadline = time.monotonic() + 60
    while two_nodes.count_processes("ray::RayTrainWorker"):
        assert time.monotonic() < deadline, "its worker goes on"
        time.sleep(0.2)


def test_what_the_cluster_has_no_room_for(two_nodes: LocalCluster, working_dir: Path, run_dir: Path) -> None:
    begun = time.monotonic()
    code, out = rayswift(two_nodes.address, working_dir, run_dir, "--num_workers", "4")
    assert code == 2, out
    assert time.monotonic() - begun < 30
    assert out.splitlines()[-1].startswith("error: cluster.num_workers = 4 does not fit the Ray cluster: "), out
    assert "asked 4 worker(s) of 1 CPU each, and 1 CPU for Ray Data; there 2 node(s) with 2 CPU" in out
    assert "room for 1 of the 4 worker(s); lacking 3 x (1 CPU); no autoscaler is there" in out
    code, out = rayswift(two_nodes.address, working_dir, run_dir, "--device", "cuda", "--num_workers", "2")
    assert code == 2, out
    assert "room for 0 of the 2 worker(s); lacking 2 x (1 CPU + 1 GPU)" in out


def test_a_run_folder_that_the_nodes_do_not_share(two_nodes: LocalCluster, working_dir: Path, unshared: Path) -> None:
    if not unshared.exists():
        pytest.skip("mounts cannot be hidden from a process here")
    code, out = rayswift(two_nodes.address, working_dir, unshared / "run")
    assert code == 2, out
    assert f"error: the run folder {unshared / 'run'} is not shared: node(s) " in out.splitlines()[-1]


def test_a_head_that_does_not_answer(working_dir: Path, run_dir: Path) -> None:
    begun = time.monotonic()
    address = f"127.0.0.1:{free_port()}"
    code, out = rayswift(address, working_dir, run_dir)
    assert code == 2, out
    assert time.monotonic() - begun < 30
    assert f"error: no Ray cluster answers at {address}" in out.splitlines()[-1]
