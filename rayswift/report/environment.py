"""Command line, commit, machine and versions of a run."""

import os
import platform
import shlex
import shutil
import socket
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

from rayswift import __version__
from rayswift.cluster.machine import count_gpus

_PACKAGES = ("torch", "ray", "transformers", "trl", "peft", "accelerate", "deepspeed", "datasets", "tokenizers")
_COMMAND_TIMEOUT_S = 5


def environment() -> dict[str, str]:
    """Name -> fact, for this process and its machine."""
    commit = _output_of("git", "rev-parse", "HEAD")
    changed = commit and _output_of("git", "status", "--porcelain", "--untracked-files=no")
    facts = {
        "command": shlex.join(["rayswift", *sys.argv[1:]]),
        "folder": str(Path.cwd()),
        "commit": commit + (" with changes" if changed else ""),
        "host": socket.gethostname(),
        "system": f"{platform.platform()}, Python {platform.python_version()}",
        "processor": f"{os.cpu_count()} cores, {psutil.virtual_memory().total / 2**30:.1f} GiB of memory",
        "GPUs here": _gpus(),
        "rayswift": __version__,
    }
    for package in _PACKAGES:
        try:
            facts[package] = version(package)
        except PackageNotFoundError:
            continue
    return {name: fact for name, fact in facts.items() if fact}


def _gpus() -> str:
    if not count_gpus():
        return "none"
    names = _output_of("nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader").splitlines()
    return ", ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names)) or str(count_gpus())


def _output_of(*command: str) -> str:
    if not shutil.which(command[0]):
        return ""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_COMMAND_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
