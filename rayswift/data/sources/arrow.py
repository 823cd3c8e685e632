"""Parquet and Arrow: rows of memory-mapped Arrow record batches.

An uncompressed Arrow file is read in place. Other files are copied once, a few thousand rows at a time, so memory does
not depend on the size of row groups, and any row is read with a few page reads.
"""

import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from rayswift.data.rows import BadRow
from rayswift.data.sources.lines import OPEN_MAPS
from rayswift.data.sources.store import MAX_ROW_BYTES, RawRow, Rows, read_parts, too_large
from rayswift.log import UserError

_BATCH_ROWS, _BATCH_BYTES = 4096, 1 << 25
_STREAM_BUFFER_BYTES = 1 << 20
_FILE_MAGIC = b"ARROW1"
_STREAM_END = b"\xff\xff\xff\xff\0\0\0\0"


@dataclass(frozen=True)
class ArrowStore:
    """Rows of an Arrow IPC file or stream. Ids hold the row number, from 0.

    unread: columns that no family of rows reads; a row that is too large is read without them.
    """

    name: str
    path: str
    num_rows: int
    unread: frozenset[str] = frozenset()

    @property
    def files(self) -> tuple[str, ...]:
        return (self.path,)

    def read(self, rows: Rows) -> list[RawRow]:
        batches, starts = _mapped_batches(self.path, os.stat(self.path).st_mtime_ns)
        num_rows = int(starts[-1]) + batches[-1].num_rows if batches else 0
        if num_rows != self.num_rows:
            raise UserError(
                f"data.dataset: {self.path} changed while it was read: it had {self.num_rows} rows, it has {num_rows}; "
                "start anew with a new folder"
            )

        def read_batch(index: int, within: NDArray[np.int64]) -> list[RawRow]:
            ids = [f"{self.name}:{row}" for row in (within + starts[index]).tolist()]
            return self._raw_rows(batches[index].take(pa.array(within)), ids)

        return read_parts(rows, starts, read_batch)

    def without(self, is_read: Callable[[str], bool]) -> "ArrowStore":
        """The store with the columns marked that `is_read` does not name."""
        names = _mapped_batches(self.path, os.stat(self.path).st_mtime_ns)[0][0].schema.names
        return replace(self, unread=frozenset(name for name in names if not is_read(name)))

    def _raw_rows(self, batch: pa.RecordBatch, ids: list[str]) -> list[RawRow]:
        try:
            if batch.nbytes <= MAX_ROW_BYTES:
                return list(map(RawRow, ids, batch.to_pylist()))
        except (ValueError, OverflowError):  # a value is no UTF-8, or a time that Python cannot hold
            pass
        return [self._raw_row(batch.slice(index, 1), row_id) for index, row_id in enumerate(ids)]

    def _raw_row(self, batch: pa.RecordBatch, row_id: str) -> RawRow:
        if batch.nbytes > MAX_ROW_BYTES:
            batch = batch.select([name for name in batch.schema.names if name not in self.unread])
        if batch.nbytes > MAX_ROW_BYTES:
            return too_large(row_id, batch.nbytes, str(batch.schema.names).encode())
        try:
            return RawRow(row_id, batch.to_pylist()[0])
        except UnicodeDecodeError as error:
            return RawRow(row_id, error=BadRow("invalid UTF-8", str(error)), text=_excerpt(batch))
        except (ValueError, OverflowError) as error:
            return RawRow(row_id, error=BadRow("unreadable value", str(error)), text=_excerpt(batch))


def _excerpt(batch: pa.RecordBatch) -> str:
    """A row as JSON; unreadable text is decoded with replacement characters, other values show their type."""
    values: dict[str, Any] = {}
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        try:
            values[name] = column.to_pylist()[0]
        except (ValueError, OverflowError):
            is_text = pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
            binary = pa.large_binary() if pa.types.is_large_string(column.type) else pa.binary()
            raw = column.view(binary).to_pylist()[0] if is_text else None
            values[name] = raw.decode("utf-8", errors="replace") if raw is not None else f"<{column.type}>"
    return json.dumps(values, ensure_ascii=False, default=str)


def open_parquet(name: str, path: Path, work: Path) -> ArrowStore:
    """Copy a local Parquet file."""
    # Page by page: a row group may be the whole file.
    with pq.ParquetFile(path, buffer_size=_STREAM_BUFFER_BYTES, pre_buffer=False) as file:
        groups = [file.metadata.row_group(i) for i in range(file.num_row_groups)]
        row_bytes = sum(group.total_byte_size for group in groups) // max(1, file.metadata.num_rows)
        batch_rows = min(max(_BATCH_BYTES // max(1, row_bytes), 1), _BATCH_ROWS)
        # A batch over two row groups is two chunks, which Arrow cannot make of nested dictionaries.
        batches = (file.iter_batches(batch_rows, row_groups=[i]) for i in range(file.num_row_groups))
        return copy_to_arrow(name, file.schema_arrow, itertools.chain.from_iterable(batches), work)


def open_arrow(name: str, path: Path, work: Path) -> ArrowStore:
    """Use a local Arrow file or stream in place, or copy it if its buffers are compressed."""
    with pa.memory_map(str(path)) as source:
        content = source.read_buffer(source.size())
        schema, batches = _batches(source)
        first = next(batches, None)
        if first is not None and not _lies_in(content, first):
            return copy_to_arrow(name, schema, itertools.chain([first], batches), work)
        num_rows = (first.num_rows if first is not None else 0) + sum(batch.num_rows for batch in batches)
    if not num_rows:
        raise UserError(f"data.dataset: {name} holds no row; leave it out")
    return ArrowStore(name, str(path.resolve()), num_rows)


def copy_to_arrow(name: str, schema: pa.Schema, batches: Iterable[pa.RecordBatch], work: Path) -> ArrowStore:
    """Write batches, one at a time, to a local Arrow file."""
    path, partial, num_rows = work.with_suffix(".arrow"), work.with_suffix(".partial"), 0
    # An Arrow file allows one dictionary per column, but batches may have several.
    plain = pa.schema([field.with_type(_without_dictionaries(field.type)) for field in schema])
    with pa.OSFile(str(partial), "wb") as sink, pa.ipc.new_file(sink, plain) as writer:
        for batch in batches:
            writer.write_batch(batch if plain.equals(batch.schema) else batch.cast(plain))
            num_rows += batch.num_rows
    if not num_rows:
        raise UserError(f"data.dataset: {name} holds no row; leave it out")
    partial.replace(path)
    return ArrowStore(name, str(path), num_rows)


def _without_dictionaries(kind: pa.DataType) -> pa.DataType:
    """The type with dictionaries replaced by their values, at any depth."""
    if pa.types.is_dictionary(kind):
        return _without_dictionaries(kind.value_type)
    if pa.types.is_struct(kind):
        fields = [kind.field(i) for i in range(kind.num_fields)]
        return pa.struct([field.with_type(_without_dictionaries(field.type)) for field in fields])
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        make = pa.list_ if pa.types.is_list(kind) else pa.large_list
        return make(kind.value_field.with_type(_without_dictionaries(kind.value_type)))
    return kind


def _batches(source: pa.NativeFile) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
    """Schema and batches of an Arrow file or stream."""
    source.seek(0)
    if source.read(len(_FILE_MAGIC)) == _FILE_MAGIC:
        file = pa.ipc.open_file(source)
        return file.schema, (file.get_batch(i) for i in range(file.num_record_batches))
    source.seek(max(0, source.size() - len(_STREAM_END)))
    if source.read() != _STREAM_END:
        raise pa.ArrowInvalid("it has no end mark: it is no Arrow file, or is cut off")
    source.seek(0)
    stream = pa.ipc.open_stream(source)
    return stream.schema, iter(stream)


def _lies_in(content: pa.Buffer, batch: pa.RecordBatch) -> bool:
    """Whether a batch's buffers lie in the file's memory map; decompressed buffers do not."""
    buffers = [b for column in batch.columns for b in column.buffers() if b is not None and b.size]
    return all(content.address <= b.address < content.address + content.size for b in buffers)


# Keyed by the file's time too: a data task outlives a run folder that is written anew.
@lru_cache(OPEN_MAPS)
def _mapped_batches(path: str, mtime_ns: int) -> tuple[list[pa.RecordBatch], NDArray[np.int64]]:
    """All batches of a file, with values on disk, and the number of each batch's first row."""
    batches = [batch for batch in _batches(pa.memory_map(path))[1] if batch.num_rows]
    return batches, np.cumsum([0, *(batch.num_rows for batch in batches[:-1])])
