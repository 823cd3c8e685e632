"""Locks of DeepSpeed's compiler: a killed compile leaves one, and every later process would wait for it for ever."""

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

from rayswift.log import logger

_LOOK_S = 0.5
_COMPILED_WITHIN_S = 600.0
"""No operator takes as long: behind it a lock that another machine may hold is taken for one that was left."""


def folder() -> Path:
    """Where torch compiles extensions, those of DeepSpeed too."""
    from torch.utils.cpp_extension import get_default_build_root

    return Path(os.environ.get("TORCH_EXTENSIONS_DIR") or get_default_build_root())


def settle(extensions: Path, is_shared: bool, at: Callable[[str], None]) -> None:
    """Wait for whoever compiles there, and remove the locks that nobody holds any more.

    torch keeps a lock open for as long as it compiles.

    Args:
        extensions: See `folder`.
        is_shared: Whether processes of other machines may compile there.
        at: Told for whom this waits.
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
