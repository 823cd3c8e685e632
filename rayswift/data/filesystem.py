"""Files that are written whole, and the pyarrow file system of a URL."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs

_PYARROW_SCHEMES = ("s3", "gs", "gcs", "abfs", "abfss", "hdfs", "viewfs", "file")


def is_url(path: str) -> bool:
    """Whether a path is a URL."""
    return "://" in path


def write_whole(path: Path, text: str) -> None:
    """Write a file so that readers and a later launch see all of its text, or what was there before."""
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def open_filesystem(url: str) -> tuple[Any, str]:
    """The file system of a URL, and the path in it: pyarrow's own for the schemes that it knows, else fsspec's.

    Raises:
        ValueError: nothing knows the scheme.
        ImportError: fsspec's package for it is not installed.
        OSError: the service does not answer, or refuses.
    """
    if url.partition("://")[0] in _PYARROW_SCHEMES:
        return pa.fs.FileSystem.from_uri(url)
    import fsspec

    filesystem, path = fsspec.core.url_to_fs(url)
    return pa.fs.PyFileSystem(pa.fs.FSSpecHandler(filesystem)), path
