"""Text files that a kill or a full disk must not leave half-written."""

import errno
import os
from pathlib import Path


def write_whole(path: Path, text: str) -> None:
    """Write a text file under another name, and put it in place by one rename.

    If it fails, the file is as it was before. Half a surrogate pair, which a broken row or a path may hold, is escaped.

    Raises:
        OSError: it cannot be written.
    """
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(text, encoding="utf-8", errors="backslashreplace")
    partial.replace(path)


def disk_is_full(error: BaseException) -> bool:
    """Whether an error says that a disk or quota is full; torch, safetensors and Ray wrap the system's error."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    text = str(error)
    return f"os error {errno.ENOSPC}" in text or os.strerror(errno.ENOSPC) in text
