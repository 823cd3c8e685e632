"""The files of `cluster/`: valid for the tools that read them, and consistent with the repository."""

import copy
import os
import re
import signal
import subprocess
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from rayswift.config.load import load

CLUSTER = Path(__file__).resolve().parents[3] / "cluster"
PINS = [
    re.split(r"[\[=]", pin)[0] + "==" + pin.partition("==")[2]
    for pin in tomllib.loads((CLUSTER.parent / "pyproject.toml").read_text())["project"]["dependencies"]
    if "==" in pin
]
MANIFESTS = ["kuberay-cluster.yaml", "kuberay-job.yaml"]


def user_id(image: str) -> int:
    """The number of the user of an image; ubuntu:24.04 gives 1000 to a user of its own, python:3.11 does not."""
    (found,) = re.findall(r"useradd --uid (\d+)", (CLUSTER / f"Dockerfile.{image}").read_text())
    return int(found)


def manifest(name: str) -> dict[str, Any]:
    return dict(yaml.safe_load((CLUSTER / name).read_text()))


def test_every_file_has_its_line_in_the_readme() -> None:
    readme = (CLUSTER / "README.md").read_text()
    files = {path.name for path in CLUSTER.iterdir() if path.is_file()} - {"README.md"}
    assert {name for name in files if f"]({name})" not in readme} == set()
    assert set(re.findall(r"\]\(([^)]*)\)", readme)) == files


@pytest.mark.parametrize("name", ["bootstrap.sh", "slurm.sh"])
def test_scripts_parse(name: str) -> None:
    done = subprocess.run(["bash", "-n", str(CLUSTER / name)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert (CLUSTER / name).stat().st_mode & 0o111


def test_slurm_asks_for_a_verb() -> None:
    done = subprocess.run(["bash", str(CLUSTER / "slurm.sh")], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("usage: sbatch")


@pytest.fixture
def slurm(tmp_path: Path) -> Callable[..., "subprocess.Popen[str]"]:
    """Start the script where each of Slurm's and Ray's commands is a few words of shell, and the run a long one."""
    commands = {
        "scontrol": 'if [ "$1" = requeue ]; then echo "requeued $2"; else echo node-1; fi',
        "srun": """while [ "$1" != bash ]; do shift; done
            SLURM_CPUS_ON_NODE=3 SLURM_GPUS_ON_NODE=1 exec "$@\"""",
        "hostname": 'if [ "$1" = --ip-address ]; then echo "::1 127.0.1.1"; else echo "fd00::7 10.0.0.5 10.1.0.5 "; fi',
        "ray": 'echo "$*" >"$0.log"',
        "python3": "cat >/dev/null; echo 1",
        "rayswift": """echo "run $*"
            trap 'sleep 0.3; echo interrupted; exit 143' TERM
            if [ "$1" = quick ]; then exit 0; fi
            echo ready; while :; do sleep 0.05; done""",
    }
    for name, body in commands.items():
        (tmp_path / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
        (tmp_path / name).chmod(0o755)

    def start(*words: str, **environment: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            ["bash", str(CLUSTER / "slurm.sh"), *words],
            env={"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_NODELIST": "n", "SLURM_JOB_ID": "7"}
            | environment,
            stdout=subprocess.PIPE,
            text=True,
        )

    return start


@pytest.mark.parametrize(
    ("number", "last"), [(signal.SIGTERM, "interrupted\n"), (signal.SIGUSR1, "interrupted\nrequeued 7\n")]
)
def test_slurm_hands_a_signal_on_and_waits_for_the_run(
    slurm: Callable[..., "subprocess.Popen[str]"], number: signal.Signals, last: str
) -> None:
    script = slurm("sft", "--model", "m")
    assert script.stdout
    assert [script.stdout.readline(), script.stdout.readline()] == ["run sft --model m\n", "ready\n"]
    script.send_signal(number)
    out, _ = script.communicate(timeout=20)
    assert (out, script.returncode) == (last, 143)


def test_slurm_hands_on_a_signal_that_comes_while_the_run_starts(
    slurm: Callable[..., "subprocess.Popen[str]"], tmp_path: Path
) -> None:
    """The script is slow here at its traps: one behind the start of the run comes too late."""
    slow = tmp_path / "slow.sh"
    slow.write_text('trap() { [[ $0 != *slurm.sh ]] || sleep 1; builtin trap "$@"; }\n')
    script = slurm("sft", BASH_ENV=str(slow))
    assert script.stdout
    assert [script.stdout.readline(), script.stdout.readline()] == ["run sft\n", "ready\n"]
    script.send_signal(signal.SIGTERM)
    out, _ = script.communicate(timeout=20)
    assert (out, script.returncode) == ("interrupted\n", 143)


def test_slurm_continues_what_it_queued_again(slurm: Callable[..., "subprocess.Popen[str]"]) -> None:
    again = slurm("quick", SLURM_RESTART_COUNT="1")
    assert (again.communicate(timeout=20)[0], again.returncode) == ("run quick --resume auto\n", 0)
    for words in (["--resume", "runs/x"], ["--resume=never"], ["--train.resume", "auto"]):
        named = slurm("quick", *words, SLURM_RESTART_COUNT="1")
        assert named.communicate(timeout=20)[0] == f"run quick {' '.join(words)}\n"


def test_slurm_starts_ray_with_each_nodes_own_counts_and_no_loopback(
    slurm: Callable[..., "subprocess.Popen[str]"], tmp_path: Path
) -> None:
    slurm("quick", SLURM_CPUS_ON_NODE="64").communicate(timeout=20)
    words = "start --block --num-cpus=3 --num-gpus=1 --head --node-ip-address=10.0.0.5 --port=20007"
    assert (tmp_path / "ray.log").read_text() == f"{words} --include-dashboard=false\n"


def test_the_ray_up_config_is_valid() -> None:
    """By Ray's own schema and rules; they miss a minimum above its maximum."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = manifest("aws.yaml")
    validate_config(prepare_config(copy.deepcopy(config)))
    types = config["available_node_types"]
    assert config["head_node_type"] in types
    for node_type in types.values():
        assert node_type.get("min_workers", 0) <= node_type.get("max_workers", 0) <= config["max_workers"]
    assert "--autoscaling-config" in " ".join(config["head_start_ray_commands"])


@pytest.mark.parametrize("name", MANIFESTS)
def test_kuberay_manifests_are_consistent(name: str) -> None:
    tree = manifest(name)
    assert tree["apiVersion"] == "ray.io/v1"
    spec = tree["spec"] if tree["kind"] == "RayCluster" else tree["spec"]["rayClusterSpec"]
    assert f"ray=={spec['rayVersion']}" in PINS
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        assert group.get("minReplicas", 0) <= group.get("replicas", 0) <= group.get("maxReplicas", 0)
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
        pod = group["template"]["spec"]
        assert pod["securityContext"]["fsGroup"] == user_id("cpu") == user_id("gpu")  # all write to one volume
        (container,) = pod["containers"]
        assert container["resources"]["requests"] == container["resources"]["limits"]
        assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
        dockerfile = container["image"].rpartition(":")[2]
        assert (CLUSTER / f"Dockerfile.{dockerfile}").exists()


def test_versions_are_the_pinned_ones() -> None:
    for path in CLUSTER.iterdir():
        if path.is_file():
            named = re.findall(r"\b(torch|ray|vllm)==([\d.]*\d)", path.read_text())
            assert [f"{package}=={version}" for package, version in named if f"{package}=={version}" not in PINS] == []


def commands() -> list[str]:
    """Every `rayswift <verb> ...` of the folder, on one line."""
    found = []
    for path in sorted(CLUSTER.iterdir()):
        if path.is_file():
            text = path.read_text().replace("\\\n#", "").replace("\\\n", "")
            found += re.findall(r"(?:-- +|entrypoint: |slurm\.sh )(?:rayswift )?(sft --[^\n\"`]*)", text)
    return found


def test_command_lines_are_understood() -> None:
    assert len(commands()) >= 6
    for command in commands():
        verb, *argv = re.sub(r"--config \S+|\.\.\.", "", command).split()
        load(verb, ["--model", "m", "--dataset", "d.jsonl", *argv])
