"""The pyarrow file system of a URL: pyarrow's own for the schemes that it knows, fsspec's for all others."""

from typing import Any

import pyarrow as pa
import pyarrow.fs

_PYARROW_SCHEMES = ("s3", "gs", "gcs", "abfs", "abfss", "hdfs", "viewfs", "file")


def is_url(path: str) -> bool:
    """Whether a path is a URL."""
    return "://" in path


def open_filesystem(url: str) -> tuple[Any, str]:
    """The file system of a URL, and the path in it.

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
