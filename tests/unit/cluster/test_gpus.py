"""The GPUs of this machine, counted from device files and nvidia-smi."""

from pathlib import Path

import psutil
import pytest

from rayswift.cluster.layout import Layout, memory_per_worker_bytes
from rayswift.cluster.machine import count_gpus

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
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert count_gpus() == 1


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
    assert memory_per_worker_bytes(ON_GPUS) == int(psutil.virtual_memory().total * 0.8) // 2
