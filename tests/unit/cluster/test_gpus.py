"""The GPUs of this machine, counted from device files and nvidia-smi, and the cores and memory that it gives."""

import os
from pathlib import Path

import psutil
import pytest

from rayswift.cluster.layout import Layout, memory_per_worker_bytes
from rayswift.cluster.machine import count_cores, count_gpus, memory_bytes

ON_GPUS = Layout(2, "cuda", 1, True)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Device files in `dev`, programs in `bin`."""
    (tmp_path / "dev").mkdir()
    (tmp_path / "bin").mkdir()
    monkeypatch.setattr("rayswift.cluster.machine._DEVICES", tmp_path / "dev")
    monkeypatch.setattr("rayswift.cluster.machine._WSL_FOLDER", str(tmp_path / "wsl"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return tmp_path


def answers(program: Path, text: str) -> None:
    program.parent.mkdir(exist_ok=True)
    program.write_text(f"#!/bin/sh\nwhile read line; do echo \"$line\"; done <<'END'\n{text}\nEND\n")
    program.chmod(0o755)


def test_device_files_are_counted(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert count_gpus() == 0
    for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm"):
        (machine / "dev" / name).touch()
    assert count_gpus() == 2
    for visible, number in (("1", 1), ("0,1", 2), ("GPU-8932f937", 1), ("", 0), ("-1", 0), ("NoDevFiles", 0)):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        assert count_gpus() == number


@pytest.mark.parametrize("folder", ["bin", "wsl"])
def test_a_gpu_under_wsl_has_no_device_file_of_its_own(machine: Path, folder: str) -> None:
    (machine / "dev" / "dxg").touch()
    assert count_gpus() == 0
    answers(machine / folder / "nvidia-smi", "GPU 0: NVIDIA GeForce RTX 4090 (UUID: GPU-1)")
    assert count_gpus() == 1


def test_memory_of_a_gpu_that_has_its_own(machine: Path) -> None:
    answers(machine / "bin" / "nvidia-smi", "81559\n81559")
    assert memory_per_worker_bytes(ON_GPUS) == 81559 << 20


@pytest.mark.parametrize("answer", ["[N/A]", "[Not Supported]", "", "No devices were found"])
def test_memory_of_a_gpu_that_does_not_tell_is_a_share_of_the_hosts(machine: Path, answer: str) -> None:
    answers(machine / "bin" / "nvidia-smi", answer)
    assert memory_per_worker_bytes(ON_GPUS) == int(memory_bytes() * 0.8) // 2


def test_cores_are_those_of_the_affinity() -> None:
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert count_cores() == 1
    finally:
        os.sched_setaffinity(0, before)


@pytest.mark.parametrize(
    ("own", "files", "cores", "memory"),
    [
        ("0::/", {"cpu.max": "250000 100000", "memory.max": "4096"}, 2, 4096),  # a container, version 2
        ("0::/", {"cpu.max": "50000 100000", "memory.max": "max"}, 1, None),
        ("0::/a/b", {"a/cpu.max": "300000 100000", "a/b/cpu.max": "max 100000", "a/b/memory.max": "512"}, 3, 512),
        ("0::/a", {"cpu.max": "max 100000", "memory.max": "max"}, None, None),
        # Version 1 in a container, which names its group by the host's path.
        (
            "4:memory:/docker/1\n1:cpu,cpuacct:/docker/1",
            {"cpu/cpu.cfs_quota_us": "200000", "cpu/cpu.cfs_period_us": "100000", "memory/memory.limit_in_bytes": "64"},
            2,
            64,
        ),
        ("1:cpu:/", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None, None),
        ("", {}, None, None),
    ],
)
def test_a_container_gives_as_much_as_its_limits(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    own: str,
    files: dict[str, str],
    cores: int | None,
    memory: int | None,
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"{text}\n")
    (tmp_path / "own").write_text(own)
    monkeypatch.setattr("rayswift.cluster.machine._CGROUPS", tmp_path)
    monkeypatch.setattr("rayswift.cluster.machine._OWN_CGROUPS", tmp_path / "own")
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(64))
    assert count_cores() == (cores or 64)
    assert memory_bytes() == (memory or psutil.virtual_memory().total)
