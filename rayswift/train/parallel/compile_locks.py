"""Removes locks of DeepSpeed's compiler: a killed compilation leaves one, and later processes would wait for ever."""

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

from rayswift.log import logger

_LOOK_S = 0.5
_COMPILED_WITHIN_S = 600.0
"""No operator takes longer to compile: an older lock of another machine counts as left behind."""


def folder() -> Path:
    """Return the folder where torch compiles extensions, those of DeepSpeed too."""
    from torch.utils.cpp_extension import get_default_build_root

    return Path(os.environ.get("TORCH_EXTENSIONS_DIR") or get_default_build_root())


def remove_stale(extensions: Path, is_shared: bool, at: Callable[[str], None]) -> None:
    """Wait for processes that compile there, and remove locks that no process holds.

    torch keeps a lock file open while it compiles.

    Args:
        extensions: See `folder`.
        is_shared: Whether processes of other machines may compile there.
        at: Called with what this waits for.
    """
    for lock in _locks(extensions):
        while lock.exists():
            if not _is_open(lock) and (not is_shared or _age_s(lock) > _COMPILED_WITHIN_S):
                lock.unlink(missing_ok=True)
                logger.warning("removed %s: the process that compiled there is gone", lock)
                break
            at(f"waits for the process that compiles in {lock.parent}")
            time.sleep(_LOOK_S)


def _locks(extensions: Path) -> Iterator[Path]:
    yield from sorted(extensions.glob("*/lock"))  # TORCH_EXTENSIONS_DIR
    yield from sorted(extensions.glob("*/*/lock"))  # a folder for each Python and device


def _is_open(lock: Path) -> bool:
    for process in psutil.process_iter():
        try:
            if any(Path(each.path) == lock for each in process.open_files()):
                return True
        except psutil.Error:  # it has ended, or is another user's
            continue
    return False


def _age_s(lock: Path) -> float:
    try:
        return time.time() - lock.stat().st_mtime
    except FileNotFoundError:
        return 0.0
