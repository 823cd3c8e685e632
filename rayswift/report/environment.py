"""Command line, commit, machine and versions of a run."""

import platform
import shlex
import socket
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from rayswift import __version__
from rayswift.cluster.machine import count_cores, count_gpus, memory_bytes, nvidia_smi

_PACKAGES = ("torch", "ray", "transformers", "trl", "peft", "accelerate", "deepspeed", "datasets", "tokenizers")
_GIT_TIMEOUT_S = 5


def environment() -> dict[str, str]:
    """Name -> fact, for this process and its machine."""
    commit = _git("rev-parse", "HEAD")
    changed = commit and _git("status", "--porcelain", "--untracked-files=no")
    facts = {
        "command": shlex.join(["rayswift", *sys.argv[1:]]),
        "folder": str(Path.cwd()),
        "commit": commit + (" with changes" if changed else ""),
        "host": socket.gethostname(),
        "system": f"{platform.platform()}, Python {platform.python_version()}",
        "processor": f"{count_cores()} cores, {memory_bytes() / 2**30:.1f} GiB of memory",
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
    names = nvidia_smi("--query-gpu=name,memory.total", "--format=csv,noheader")
    return ", ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names)) or str(count_gpus())


def _git(*arguments: str) -> str:
    """The output of a git command; empty if it fails."""
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, timeout=_GIT_TIMEOUT_S, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()
