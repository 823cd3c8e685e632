"""Parse a source as the config writes it.

rows.jsonl   data/   'data/*.parquet'   rows.jsonl.gz   s3://bucket/rows/   org/name:subset/split@revision   any#500
"""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from rayswift.config.fields.source import SourceConfig
from rayswift.data.filesystem import is_url
from rayswift.log import UserError

SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".txt", ".arrow")
CODECS = {".gz": "gzip", ".zst": "zstd"}

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_PARTS = re.compile(r"(?P<path>[^:@]+)(?::(?P<subset>[^/:@]*)(?:/(?P<split>[^@]+))?)?(?:@(?P<revision>.+))?")


@dataclass(frozen=True)
class Source:
    """A source: `path` is a file, folder, glob, URL or hub id; other parts are None if they are not given.

    columns, system: replace `data.columns` and `data.system` for its rows.
    """

    path: str
    subset: str | None = None
    split: str | None = None
    revision: str | None = None
    num_rows: int | None = None
    weight: float | None = None
    columns: Mapping[str, str] | None = None
    system: str | None = None
    encoding: str | None = None

    @property
    def name(self) -> str:
        """path:subset/split@revision."""
        subset = f":{self.subset or ''}" if self.subset or self.split else ""
        split = f"/{self.split}" if self.split else ""
        return self.path + subset + split + (f"@{self.revision}" if self.revision else "")

    @property
    def written(self) -> str:
        """path:subset/split@revision#rows."""
        return self.name if self.num_rows is None else f"{self.name}#{self.num_rows}"

    @property
    def short(self) -> str:
        """The last part of the path without suffixes; `data.mix` may use it as a name."""
        last = PurePosixPath(without_query(self.name).rstrip("/")).name
        while PurePosixPath(last).suffix.lower() in (*SUFFIXES, *CODECS):
            last = PurePosixPath(last).stem
        return last


def parse_source(given: str | SourceConfig) -> Source:
    """The source that a string or a mapping of the config describes."""
    if isinstance(given, str):
        return _parse(given)
    found = _parse(given.path)
    parts: dict[str, Any] = {
        "subset": given.subset,
        "split": given.split,
        "revision": given.revision,
        "num_rows": given.rows,
    }
    own = {name: value for name, value in parts.items() if value}
    if twice := [name.removeprefix("num_") for name in own if asdict(found)[name] is not None]:
        raise UserError(f"data.dataset: path = {given.path!r} says {twice[0]} too; say it once")
    return replace(
        found, **own, weight=given.weight, columns=given.columns, system=given.system, encoding=given.encoding
    )


def _parse(text: str) -> Source:
    num_rows = None
    if match := re.fullmatch(r"(.+)#(\d+)", text):
        text, num_rows = match[1], int(match[2])
        if num_rows == 0:
            raise UserError(f"data.dataset: {match[0]} asks for no row; give #1 or more, or leave it out")
    parts = None if is_url(text) or looks_like_file(text) or _is_here(text) else _PARTS.fullmatch(text)
    if parts is None or not (_HUB_ID.fullmatch(parts["path"]) or _is_here(parts["path"])):
        return Source(text, num_rows=num_rows)
    return Source(parts["path"], parts["subset"] or None, parts["split"], parts["revision"], num_rows)


def _is_here(path: str) -> bool:
    return Path(path).expanduser().exists()


def looks_like_file(path: str) -> bool:
    """Whether it ends as a file of rows does."""
    return PurePosixPath(path).suffix.lower() in (*SUFFIXES, *CODECS)


def without_query(path: str) -> str:
    """A path, or a URL without its query, which may hold credentials or options of the file system."""
    return path.partition("?")[0] if is_url(path) else path
