"""Runs over three hosts when hosts, links and heads fail: each continues, or ends with one named error.

The outcome and the time of each are printed (`-s`); two cases without trouble are in tests/ray/test_hosts.py.
"""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from cluster.local_hosts import SWITCH, Host, LocalHosts
from tests.on_hosts import ENVIRONMENT, GRPO, SFT, Command, make_project, rayswift, skip_without_hosts
from tests.ray.conftest import curve

SAID_S, ENDED_S = 35.0, 60.0
"""30 s until a line says what is waited for, and the time of a look; a minute until a named error."""
LONG = ("--max_steps", "60", "--save_strategy", "steps", "--save_steps", "2", "--save_total_limit", "2")
FIXED = ("--num_workers", "3", "--zero_stage", "2", "--timeout_s", "60", "--wait_for_nodes_s", "30")
ELASTIC = ("--num_workers", "2", "3", "--timeout_s", "60", "--wait_for_nodes_s", "60")
S3_URL, REDIS = f"http://{SWITCH}:5555", f"{SWITCH}:6380"
S3_SERVER = [sys.executable, "-m", "moto.server", "-H", "0.0.0.0", "-p", "5555"]
REDIS_SERVER = ["redis-server", "--port", "6380", "--protected-mode", "no", "--save", ""]


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """The folder that the hosts share, with a project in it."""
    skip_without_hosts()
    make_project(tmp_path / "project")
    return tmp_path


def three(shared: Path, environment: Mapping[str, str] | None = None, **more: Any) -> LocalHosts:
    """Hosts with two, one and one CPU; the last two have a place for an engine each."""
    made = {"dashboard": False, "environment": {**ENVIRONMENT, **(environment or {})}, **more}
    return LocalHosts(3, (2, 1, 1), {1: {"engine": 1}, 2: {"engine": 1}}, [shared], **made)


def outcome(case: str, command: Command, since: float, *what: str) -> None:
    """Print a line of the table of outcomes."""
    last = (command.lines or [(0.0, "")])[-1][1].strip()
    print(f"\n| {case} | {'; '.join(what)} | {command.now - since:.0f} s | {last[:160]}")  # noqa: T201


def assert_ends_with_a_named_error(command: Command, since: float, name: str) -> None:
    """The command ends within a minute, reports within half a minute, and prints no traceback."""
    assert command.wait(ENDED_S + 60) == 1
    assert command.now - since < ENDED_S + 5
    assert command.longest_silence_s(since) < SAID_S
    assert "Traceback" not in command.text
    error = command.text[command.text.index("error: ") :]
    assert name in error


def assert_goes_on(command: Command, run_dir: Path, since_step: int, timeout_s: float = 200) -> float:
    """Wait until it trains later steps; returns the time."""
    deadline = time.monotonic() + timeout_s
    while max(curve(run_dir), default=0) <= since_step + 2:
        assert command._process.poll() is None, command.text
        assert time.monotonic() < deadline, command.text
        time.sleep(0.2)
    return command.now


# ---- without trouble ----


def test_driver_on_the_head(shared: Path) -> None:
    with three(shared) as hosts:
        flags = (*FIXED, "--max_steps", "3", "--output_dir", "../run")
        command = rayswift(hosts, 0, shared / "project", [*SFT, *flags])
        assert command.wait() == 0
        assert sorted(curve(shared / "run")) == [1, 2, 3]
        outcome("driver on the head", command, 0, "trains")


def test_a_submitted_job(shared: Path) -> None:
    with three(shared, dashboard=True) as hosts:
        project = shared / "project"
        submit = [sys.executable, "-m", "ray.scripts.scripts", "job", "submit", "--address", hosts.dashboard_url]
        entry = ["rayswift", *SFT, *FIXED, "--max_steps", "3", "--output_dir", str(shared / "run")]
        # From a folder that is none of its paths' beginning.
        command = Command(hosts[1], [*submit, "--working-dir", str(project), "--", *entry], Path("/"), {})
        assert command.wait() == 0
        assert sorted(curve(shared / "run")) == [1, 2, 3]
        outcome("`ray job submit`", command, 0, "trains")


def test_grpo_in_a_submitted_job(shared: Path) -> None:
    with three(shared, dashboard=True) as hosts:
        project = shared / "project"
        submit = [sys.executable, "-m", "ray.scripts.scripts", "job", "submit", "--address", hosts.dashboard_url]
        flags = ("--num_workers", "1", "--num_engines", "1", "--engine_resources", '{"engine": 1}')
        entry = ["rayswift", *GRPO, *flags, "--max_steps", "2", "--output_dir", str(shared / "run")]
        command = Command(hosts[1], [*submit, "--working-dir", str(project), "--", *entry], Path("/"), {})
        assert command.wait() == 0
        assert sorted(curve(shared / "run", "reward")) == [1, 2]
        outcome("GRPO by `ray job submit`", command, 0, "trains")


# ---- where the run folder lies ----


def make_bucket(hosts: LocalHosts) -> None:
    """A bucket in the S3-compatible server at the switch."""
    put = f"import urllib.request as r; r.urlopen(r.Request('{S3_URL}/bucket', method='PUT')).close()"
    deadline = time.monotonic() + 60
    while subprocess.run(hosts[0].command([sys.executable, "-c", put]), capture_output=True, check=False).returncode:
        assert time.monotonic() < deadline, "no S3 server"
        time.sleep(0.5)


def test_a_run_folder_in_a_bucket(shared: Path) -> None:
    keys = {"AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}
    with three(shared, environment={"AWS_ENDPOINT_URL": S3_URL, **keys}, at_switch=[S3_SERVER]) as hosts:
        make_bucket(hosts)
        flags = (*FIXED, "--max_steps", "3", "--output_dir", "s3://bucket/run")
        with_scratch = (*flags, "--scratch_dir", str(shared / "scratch"))
        command = rayswift(hosts, 1, shared / "project", [*SFT, *with_scratch])
        assert command.wait() == 0
        assert "model: s3://bucket/run/checkpoint-3" in command.text
        outcome("run folder in a bucket, scratch on the shared path", command, 0, "trains")
        command = rayswift(hosts, 1, shared / "project", [*SFT, *flags, "--output_dir", "s3://bucket/other"])
        assert command.wait() == 2
        assert "is not shared: node(s) 10.77.0.1, 10.77.0.3 of the Ray cluster" in command.text
        assert "cluster.scratch_dir" in command.text
        outcome("run folder in a bucket, no shared path", command, 0, "refused")


def test_files_that_a_node_lacks(shared: Path) -> None:
    with three(shared) as hosts:
        hosts[1].run("cp", "-r", str(shared / "project"), "/tmp/project")  # on this host only
        flags = ("--num_workers", "1", "--num_engines", "1", "--max_steps", "2", "--output_dir", str(shared / "run"))
        command = rayswift(hosts, 1, Path("/tmp/project"), [*GRPO, *flags])
        assert command.wait(90) == 2
        assert command.now < ENDED_S
        assert "model.path = '/tmp/project/tiny' is not there on node(s) 10.77.0.1, 10.77.0.3 of" in command.text
        rewards = "rollout.reward_funcs = '/tmp/project/rewards.py:digits' is not there on node(s) 10.77.0.1, 10.77.0.3"
        assert rewards in command.text
        outcome("model and rewards on one host only", command, 0, "refused")


# ---- nodes behind a firewall ----


@pytest.mark.parametrize("driver", [0, 2])
def test_a_node_behind_a_firewall(shared: Path, driver: int) -> None:
    with three(shared) as hosts:
        hosts[2].fence()
        command = rayswift(hosts, driver, shared / "project", [*SFT, *FIXED, "--output_dir", "../run"])
        assert command.wait(ENDED_S + 30) != 0
        assert command.now < ENDED_S + 10  # with the start of the command itself
        assert command.longest_silence_s() < SAID_S
        assert "10.77.0.3" in command.text[command.text.index("error: ") :]
        outcome(f"host 2 behind a firewall, driver on host {driver}", command, 0, "refused")


# ---- a host is lost ----


def begun(hosts: LocalHosts, shared: Path, *flags: str, driver: int = 0) -> tuple[Command, Path]:
    """A run that has saved its first checkpoint."""
    command = rayswift(hosts, driver, shared / "project", [*SFT, *LONG, *flags, "--output_dir", "../run"])
    command.wait_for("step 3 ", 200)
    return command, shared / "run"


def with_a_worker(hosts: LocalHosts) -> Host:
    """A host without the driver where a train worker runs."""
    look = "import psutil; print(any('RayTrainWo' in each.name() for each in psutil.process_iter()))"
    return next(hosts[number] for number in (2, 1) if hosts[number].run(sys.executable, "-c", look).strip() == "True")


@pytest.mark.parametrize("how", ["crash", "lose_power", "cut"])
def test_a_host_is_lost_and_the_run_goes_on_with_the_others(shared: Path, how: str) -> None:
    with three(shared) as hosts:
        command, run_dir = begun(hosts, shared, *ELASTIC)
        lost = with_a_worker(hosts)
        since, step = command.now, max(curve(run_dir))
        getattr(lost, how)()
        at = assert_goes_on(command, run_dir, step)
        silent = command.longest_silence_s(since)
        command.end()
        outcome(
            f"a host: {how}, 2 to 3 workers", command, since, f"goes on after {at - since:.0f} s, silent {silent:.0f} s"
        )
        assert silent < SAID_S


@pytest.mark.parametrize("how", ["crash", "cut"])
def test_a_host_is_lost_that_the_run_needs(shared: Path, how: str) -> None:
    with three(shared) as hosts:
        command, _ = begun(hosts, shared, *FIXED)
        lost = with_a_worker(hosts)
        since = command.now
        getattr(lost, how)()
        outcome(f"a host: {how}, 3 workers", command, since)
        assert_ends_with_a_named_error(command, since, "cluster.num_workers")
        outcome(f"a host: {how}, 3 workers", command, since, "ends")


def test_a_link_becomes_slow_and_lossy(shared: Path) -> None:
    with three(shared) as hosts:
        command, run_dir = begun(hosts, shared, *FIXED)
        slow = with_a_worker(hosts)
        since, step = command.now, max(curve(run_dir))
        how = slow.degrade("10mbit", "50ms", 5.0)
        at = assert_goes_on(command, run_dir, step)
        command.end()
        outcome(f"a slow and lossy link ({how})", command, since, f"goes on, three steps in {at - since:.0f} s")


def test_a_host_with_an_engine_is_lost(shared: Path) -> None:
    with three(shared) as hosts:
        engines = ("--num_engines", "2", "--engine_resources", '{"engine": 1}')
        flags = ("--num_workers", "1", *engines, "--max_steps", "200", "--timeout_s", "120")
        command = rayswift(hosts, 0, shared / "project", [*GRPO, *flags, "--output_dir", "../run"])
        command.wait_for("engines 2 ", 300)
        since, step = command.now, max(curve(shared / "run", "reward"))
        hosts[2].lose_power()
        at = assert_goes_on(command, shared / "run", step)
        command.end()
        outcome("a host with one of two engines: no power", command, since, f"goes on after {at - since:.0f} s")


# ---- the head is lost ----


def test_the_head_is_lost(shared: Path) -> None:
    with three(shared) as hosts:
        command, _ = begun(hosts, shared, "--num_workers", "1", "--timeout_s", "60", driver=1)
        since = command.now
        hosts[0].lose_power()
        assert_ends_with_a_named_error(command, since, "the head of the Ray cluster, 10.77.0.1:6379, has not answered")
        outcome("the head: no power, no fault tolerance", command, since, "ends")


def test_the_head_is_lost_and_comes_back_with_redis(shared: Path) -> None:
    if shutil.which("redis-server") is None:
        pytest.skip("redis-server is not installed (Debian: apt install redis-server)")
    with three(shared, head_environment={"RAY_REDIS_ADDRESS": REDIS}, at_switch=[REDIS_SERVER]) as hosts:
        command, run_dir = begun(hosts, shared, "--num_workers", "1", "--timeout_s", "120", driver=1)
        since, step = command.now, max(curve(run_dir))
        hosts[0].lose_power()
        time.sleep(5)
        hosts.add(0)
        hosts.start_ray(0)
        hosts[0].wait_for_ray()
        at = assert_goes_on(command, run_dir, step + 5)
        command.end()
        outcome("the head: no power, back with Redis", command, since, f"goes on after {at - since:.0f} s")
        assert json.loads((run_dir / "events.jsonl").read_text().splitlines()[0])["kind"] == "launch"
