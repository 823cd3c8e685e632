"""Source strings -> stores that read any row by its number.

jsonl and text are read where they lie, through an index of line offsets. csv and JSON arrays are copied to jsonl,
Parquet and hub datasets to a memory-mapped Arrow file, once, under the run folder: random access is what makes order,
sharding and resume exact. Nothing here is tokenised.
"""

import csv
import glob
import itertools
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from rayswift.data.rows import BadRow
from rayswift.log import UserError

_SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".txt")
_CHUNK_BYTES = 1 << 24


@dataclass(frozen=True)
class RawRow:
    """A row as it stands in its source: its `value` or the `error` of reading it; `id` is `source:line`."""

    id: str
    value: Any = None
    error: BadRow | None = None
    text: str = ""


@dataclass(frozen=True)
class LineStore:
    """Lines of a file; `index_path` holds an int64 array [rows, 3]: begin, end, line number."""

    name: str
    path: str
    index_path: str
    kind: str  # jsonl | text
    num_rows: int

    def read(self, rows: Sequence[int]) -> list[RawRow]:
        """Read rows by number, in the order asked for."""
        index = _mapped_index(self.index_path, os.stat(self.index_path).st_mtime_ns)
        raw = []
        with open(self.path, "rb") as file:
            for row in rows:
                begin, end, line = (int(v) for v in index[row])
                file.seek(begin)
                raw.append(self._parse(file.read(end - begin), f"{self.name}:{line}"))
        return raw

    def _parse(self, line: bytes, row_id: str) -> RawRow:
        text = line.decode("utf-8", errors="replace")
        try:
            text = line.decode("utf-8").lstrip("\ufeff").rstrip("\r")
            return RawRow(row_id, {"text": text} if self.kind == "text" else json.loads(text), text=text)
        except UnicodeDecodeError as error:
            return RawRow(row_id, error=BadRow("invalid UTF-8", str(error)), text=text)
        except (ValueError, RecursionError) as error:  # JSONDecodeError, or an integer of thousands of digits
            return RawRow(row_id, error=BadRow("malformed JSON", str(error)), text=text)


@dataclass(frozen=True)
class ArrowStore:
    """Rows of a memory-mapped Arrow IPC file."""

    name: str
    path: str
    num_rows: int

    def read(self, rows: Sequence[int]) -> list[RawRow]:
        """Read rows by number, in the order asked for."""
        table = _mapped_table(self.path, os.stat(self.path).st_mtime_ns)
        values = table.take(pa.array(rows, pa.int64())).to_pylist()
        return [RawRow(f"{self.name}:{row}", value) for row, value in zip(rows, values, strict=True)]


Store = LineStore | ArrowStore


def open_sources(sources: Sequence[str], work_dir: Path) -> tuple[Store, ...]:
    """Open every source of a `data.dataset` list.

    Args:
        sources: Files, folders, globs or hub ids.
        work_dir: Where indices and copies go; read by all data tasks.

    Raises:
        UserError: a source is missing, empty, unreadable or of an unknown kind.
    """
    work_dir.mkdir(parents=True, exist_ok=True)
    stores: list[Store] = []
    for source in sources:
        files = find_files(source)
        if files:
            stores += [_open_file(file, work_dir / f"{len(stores) + i}") for i, file in enumerate(files)]
        else:
            stores.append(_open_hub(source, work_dir / f"{len(stores)}"))
    return tuple(stores)


def find_files(source: str) -> list[Path]:
    """The files a source string names; none if it may be a hub id.

    Raises:
        UserError: it looks like a path, and nothing is there.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.suffix in _SUFFIXES)
        if not files:
            raise UserError(f"data.dataset: folder {source} holds no file ending in {', '.join(_SUFFIXES)}")
        return files
    if path.exists():
        return [path]
    files = [Path(p) for p in sorted(glob.glob(str(path), recursive=True))]
    if not files and (path.suffix in _SUFFIXES or source.startswith((".", "/", "~")) or source.count("/") != 1):
        raise UserError(f"data.dataset: no file or folder {source}; check the path (hub ids look like org/name)")
    return files


def _open_file(path: Path, work: Path) -> Store:
    suffix = path.suffix.lower()
    try:
        if path.stat().st_size == 0:
            raise UserError(f"data.dataset: {path} is empty; give a file with rows, or leave it out")
        if suffix == ".parquet":
            file = pq.ParquetFile(path)
            return _copy_to_arrow(str(path), file.schema_arrow, file.iter_batches(4096), work.with_suffix(".arrow"))
        if suffix in (".csv", ".tsv"):
            return _copy_to_jsonl(str(path), _csv_rows(path, "\t" if suffix == ".tsv" else ","), work)
        if suffix == ".json" and _first_byte(path) == b"[":
            return _copy_to_jsonl(str(path), _array_rows(path), work)
        if suffix in (".jsonl", ".json", ".txt"):
            return _index_lines(str(path), path, work, "text" if suffix == ".txt" else "jsonl")
    except (OSError, pa.ArrowException, csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"data.dataset: cannot read {path}: {error}") from error
    raise UserError(f"data.dataset: {path}: unknown kind of file; known are {', '.join(_SUFFIXES)}")


def _first_byte(path: Path) -> bytes:
    with open(path, "rb") as file:
        return file.read(64).lstrip(b"\xef\xbb\xbf \t\r\n")[:1]


def _index_lines(name: str, path: Path, work: Path, kind: str) -> LineStore:
    index = _line_index(path)
    if not len(index):
        raise UserError(f"data.dataset: {path} holds no row, only blank lines; leave it out")
    index_path = work.with_suffix(".index.npy")
    # Never truncated in place: a data task of a killed run may still have it mapped.
    partial = work.with_suffix(".partial.npy")
    np.save(partial, index)
    partial.replace(index_path)
    return LineStore(name, str(path.resolve()), str(index_path), kind, len(index))


def _line_index(path: Path) -> NDArray[np.int64]:
    """[lines, 3] int64: begin, end, line number (from 1) of every line that is not blank."""
    newlines, offset, last = [], 0, b""
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            newlines.append(np.flatnonzero(np.frombuffer(chunk, np.uint8) == 10) + offset)
            offset += len(chunk)
            last = chunk[-1:]
    ends = np.concatenate([*newlines, np.array([] if last == b"\n" else [offset], np.int64)])
    begins = np.concatenate([[0], ends[:-1] + 1]).astype(np.int64)
    index = np.stack([begins, ends, np.arange(1, len(ends) + 1)], axis=1).astype(np.int64)
    short = np.flatnonzero(ends - begins <= 80)  # maybe only white space
    with open(path, "rb") as file:
        blank = [i for i in short if not _line(file, begins[i], ends[i]).strip()]
    return np.delete(index, blank, axis=0)


def _line(file: Any, begin: int, end: int) -> bytes:
    file.seek(int(begin))
    return bytes(file.read(int(end - begin)))


def _csv_rows(path: Path, delimiter: str) -> Iterator[dict[str, Any]]:
    csv.field_size_limit(1 << 30)
    with open(path, encoding="utf-8-sig", newline="") as file:
        for row in csv.DictReader(file, delimiter=delimiter):
            yield {str(k): v for k, v in row.items()}


def _array_rows(path: Path) -> Iterator[Any]:
    try:
        yield from json.loads(path.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        raise UserError(f"data.dataset: {path} is not valid JSON: {error}") from error


def _copy_to_jsonl(name: str, rows: Iterable[Any], work: Path) -> LineStore:
    copy = work.with_suffix(".jsonl")
    with open(copy, "w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row) + "\n")
    if copy.stat().st_size == 0:
        raise UserError(f"data.dataset: {name} holds no row")
    return _index_lines(name, copy, work, "jsonl")


def _copy_to_arrow(name: str, schema: pa.Schema, batches: Iterable[pa.RecordBatch], path: Path) -> ArrowStore:
    num_rows, partial = 0, path.with_suffix(".partial")
    with pa.OSFile(str(partial), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        for batch in batches:
            writer.write_batch(batch)
            num_rows += batch.num_rows
    if not num_rows:
        raise UserError(f"data.dataset: {name} holds no row; leave it out")
    partial.replace(path)
    return ArrowStore(name, str(path), num_rows)


def _open_hub(source: str, work: Path) -> ArrowStore:
    import datasets

    name, _, subset = source.partition(":")
    try:
        dataset = datasets.load_dataset(name, subset or None, split="train")
    except Exception as error:  # whatever the hub's client raises, the user asked for this id
        raise UserError(
            f"data.dataset: {source} is no file here and could not be had from the hub: "
            f"{type(error).__name__}: {str(error).splitlines()[0]}"
        ) from error
    tables = dataset.with_format("arrow").iter(4096)
    batches = itertools.chain.from_iterable(table.to_batches() for table in tables)
    return _copy_to_arrow(source, dataset.features.arrow_schema, batches, work.with_suffix(".arrow"))


# Keyed by the file's time too: a data task outlives a run folder that is written anew.
@cache
def _mapped_index(path: str, mtime_ns: int) -> NDArray[np.int64]:
    index: NDArray[np.int64] = np.load(path, mmap_mode="r")
    return index


@cache
def _mapped_table(path: str, mtime_ns: int) -> pa.Table:
    return pa.ipc.open_file(pa.memory_map(path)).read_all()
