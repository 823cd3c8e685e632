"""Text files that other processes read, or that a kill or a full disk must not leave half-written."""

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
