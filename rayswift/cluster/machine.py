"""Cores, memory, GPUs and network interfaces of this machine."""

import contextlib
import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

_DEVICES = Path("/dev")
_CGROUPS, _OWN_CGROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
# WSL2 has no /dev/nvidia0, and its nvidia-smi may not be on PATH.
_WSL_DEVICE, _WSL_FOLDER = "dxg", "/usr/lib/wsl/lib"


def count_cores() -> int:
    """CPU cores that this process may use: those of its affinity (`taskset`, Slurm), at most its container's quota."""
    here = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas: list[Sequence[str]] = [line.split() for line in _limits("", "cpu.max")]
    quotas += zip(_limits("cpu", "cpu.cfs_quota_us"), _limits("cpu", "cpu.cfs_period_us"), strict=True)
    limited = [float(quota) / float(period) for quota, period in quotas if quota not in ("max", "-1")]
    return max(1, int(min([here, *limited])))


def memory_bytes() -> int:
    """Memory that this process may use: the machine's, at most its container's or job's limit."""
    limits = [*_limits("", "memory.max"), *_limits("memory", "memory.limit_in_bytes")]
    return min([psutil.virtual_memory().total, *(int(limit) for limit in limits if limit != "max")])


def _limits(controller: str, name: str) -> list[str]:
    """A file of this process's control group and of all above it, as far as they are visible (man 7 cgroups).

    controller: "" in version 2. In a container, the root is often the container's own group.
    """
    root, groups = _CGROUPS / controller, [Path()]
    with contextlib.suppress(OSError, ValueError):
        for line in _OWN_CGROUPS.read_text(encoding="utf-8").splitlines():
            _, controllers, path = line.split(":", 2)
            if controller in controllers.split(","):
                own = Path(path.lstrip("/"))
                groups = [own, *own.parents] if own.parts else groups
    files = [root / group / name for group in groups]
    return [file.read_text(encoding="ascii").strip() for file in files if file.is_file()]


def count_gpus() -> int:
    """The number of NVIDIA GPUs that a new process would see."""
    num_devices = len([d for d in _DEVICES.glob("nvidia*") if re.fullmatch(r"nvidia\d+", d.name)])
    if not num_devices and (_DEVICES / _WSL_DEVICE).exists():
        num_devices = len([line for line in nvidia_smi("-L") if line.startswith("GPU ")])
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return num_devices
    named = [each.strip() for each in visible.split(",")]  # Slurm gives jobs without GPUs "NoDevFiles"
    return min(num_devices, len([each for each in named if each.isdecimal() or each.startswith(("GPU-", "MIG-"))]))


def nvidia_smi(*arguments: str) -> list[str]:
    """The output lines of nvidia-smi; none if it is missing or fails."""
    program = shutil.which("nvidia-smi") or shutil.which("nvidia-smi", path=_WSL_FOLDER)
    if not program:
        return []
    try:
        done = subprocess.run([program, *arguments], capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return done.stdout.splitlines()


def network_environment(
    address: str, interfaces: Mapping[str, Sequence[str]], set_by_user: Mapping[str, str]
) -> dict[str, str]:
    """Environment variables that make gloo, NCCL, TensorPipe and vLLM use the interface of this node's Ray address.

    By default gloo and TensorPipe use the address of the host's own name, which is 127.0.1.1 on Debian and cannot be
    reached from other hosts. NCCL and vLLM guess, which fails on hosts with several networks.

    interfaces: addresses by interface; set_by_user: variables that are not changed.
    """
    name = next((name for name, addresses in interfaces.items() if address in addresses), None)
    if name is None:  # an address behind NAT: leave the choice to the libraries
        return {}
    # "=" makes NCCL match the whole name, not a prefix.
    wanted = {"GLOO_SOCKET_IFNAME": name, "TP_SOCKET_IFNAME": name, "NCCL_SOCKET_IFNAME": f"={name}"}
    wanted["VLLM_HOST_IP"] = address
    return {variable: value for variable, value in wanted.items() if variable not in set_by_user}


def interfaces() -> dict[str, list[str]]:
    """Network interface -> its addresses."""
    found = psutil.net_if_addrs()
    return {name: [each.address.partition("%")[0] for each in addresses] for name, addresses in found.items()}
