"""What this machine has: GPUs and network interfaces."""

import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

_DEVICES = Path("/dev")
# WSL2 has no /dev/nvidia0, and keeps the tool where PATH need not lead.
_WSL_DEVICE, _WSL_FOLDER = "dxg", "/usr/lib/wsl/lib"


def count_gpus() -> int:
    """NVIDIA GPUs that a process started here would see."""
    num_devices = len([d for d in _DEVICES.glob("nvidia*") if re.fullmatch(r"nvidia\d+", d.name)])
    if not num_devices and (_DEVICES / _WSL_DEVICE).exists():
        num_devices = len([line for line in nvidia_smi("-L") if line.startswith("GPU ")])
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return num_devices
    return min(num_devices, len([d for d in visible.split(",") if d.strip() not in ("", "-1")]))


def nvidia_smi(*arguments: str) -> list[str]:
    """Lines of nvidia-smi's answer; none where it is not installed or does not answer."""
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
    """Variables that make gloo, NCCL, TensorPipe and vLLM talk over the interface that holds this node's address.

    Left to themselves, gloo and TensorPipe take the address that the host's own name resolves to, by default 127.0.1.1
    on Debian, which no other host reaches; NCCL and vLLM guess, and are wrong on hosts with several networks.

    Args:
        address: By which Ray reaches this node.
        interfaces: Addresses of each, see `interfaces`.
        set_by_user: Variables that stay as they are.
    """
    name = next((name for name, addresses in interfaces.items() if address in addresses), None)
    if name is None:  # behind address translation: what the system would choose is as good a guess as any
        return {}
    # NCCL takes a prefix unless told to take the whole name.
    wanted = {"GLOO_SOCKET_IFNAME": name, "TP_SOCKET_IFNAME": name, "NCCL_SOCKET_IFNAME": f"={name}"}
    wanted["VLLM_HOST_IP"] = address
    return {variable: value for variable, value in wanted.items() if variable not in set_by_user}


def interfaces() -> dict[str, list[str]]:
    """Addresses of each network interface of this machine."""
    found = psutil.net_if_addrs()
    return {name: [each.address.partition("%")[0] for each in addresses] for name, addresses in found.items()}
