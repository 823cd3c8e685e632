"""Rows that are read in place through an index: the lines of jsonl and text files, and (`json_values`) JSON values.

The index is a file of int64 [rows, 3]: begin and end of each row, and its number in the file. It is written in one pass
and memory-mapped, so memory does not depend on the number of rows.
"""

import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray

from rayswift.data.rows import BadRow
from rayswift.data.sources.store import MAX_ROW_BYTES, RawRow, Rows, parse_json, too_large
from rayswift.log import UserError

_CHUNK_BYTES = 1 << 22
_BOM = b"\xef\xbb\xbf"
# Memory maps that a data task keeps open; a folder may hold more files than a process may open.
OPEN_MAPS = 256


Around = tuple[bytes, bytes]
"""The bytes allowed before the begin and at the end of a row, if the index still fits the file; b"": any."""
_AROUND_LINES: Around = (b"\n", b"\n")


@dataclass(frozen=True)
class Stamp:
    """Size and time of a file."""

    num_bytes: int
    modified_ns: int

    @staticmethod
    def of(file: int) -> "Stamp":
        """The stamp of an open file descriptor."""
        stat = os.fstat(file)
        return Stamp(stat.st_size, stat.st_mtime_ns)


@dataclass(frozen=True)
class IndexedStore:
    """Rows of a file that are read in place; `stamp` is the file when it was indexed. Ids hold the row's number."""

    name: str
    path: str
    index_path: str
    num_rows: int
    stamp: Stamp
    around: Around
    kind: Literal["json", "text"] = "json"

    @property
    def files(self) -> tuple[str, ...]:
        return (self.path, self.index_path)

    def read(self, rows: Rows) -> list[RawRow]:
        """Rows by number, in the order asked for; a row that is too large is a bad row.

        Raises:
            UserError: the file changed since it was indexed.
        """
        index = _mapped_index(self.index_path, os.stat(self.index_path).st_mtime_ns)
        file = os.open(self.path, os.O_RDONLY)
        try:
            now = Stamp.of(file)
            if now.num_bytes != self.stamp.num_bytes:
                raise self._changed(f"it had {self.stamp.num_bytes} bytes, it has {now.num_bytes}")
            is_same = now == self.stamp
            return [self._row(file, is_same, *span) for span in index[np.asarray(rows, np.int64)].tolist()]
        finally:
            os.close(file)

    def _row(self, file: int, is_same: bool, begin: int, end: int, number: int) -> RawRow:
        row_id = f"{self.name}:{number}"
        if not is_same:  # of another time, but the same size: it may be a copy on another node
            before, behind = os.pread(file, 1, begin - 1) if begin else b"", os.pread(file, 1, end)
            if before not in self.around[0] or (self.around[1] and behind not in self.around[1]):
                raise self._changed(f"{row_id} is no longer at its place")
        length = min(end - begin, MAX_ROW_BYTES)
        content = os.pread(file, length, begin)
        if length < end - begin:
            return too_large(row_id, end - begin, content)
        return _text_row(content, row_id) if self.kind == "text" else parse_json(content, row_id)

    def _changed(self, how: str) -> UserError:
        return UserError(f"data.dataset: {self.path} changed while it was read: {how}; start anew with a new folder")


def open_lines(name: str, path: Path, work: Path, kind: Literal["json", "text"]) -> IndexedStore:
    """Index the lines of a local file that are not blank; the index is `work` with the suffix .index."""
    index_path, partial = work.with_suffix(".index"), work.with_suffix(".partial")
    with open(path, "rb") as file, open(partial, "wb") as index:
        stamp = Stamp.of(file.fileno())
        num_rows = _index_lines(file, index)
    if not num_rows:
        partial.unlink()
        raise UserError(f"data.dataset: {name} holds no row, only blank lines; leave it out")
    # Never truncated in place: a data task of a killed run may still have it mapped.
    partial.replace(index_path)
    return IndexedStore(name, str(path.resolve()), str(index_path), num_rows, stamp, _AROUND_LINES, kind)


def _index_lines(file: BinaryIO, index: BinaryIO) -> int:
    """Write the index; returns the number of rows."""
    num_rows, num_lines, offset, begin = 0, 0, 0, 0
    open_is_blank = True  # the line that began in an earlier chunk, so far
    while chunk := file.read(_CHUNK_BYTES):
        if offset == 0 and chunk.startswith(_BOM):
            chunk = b"   " + chunk[3:]
        ends = np.flatnonzero(np.frombuffer(chunk, np.uint8) == 10)
        if len(ends):
            blank = _blank_lines(chunk, ends)
            blank[0] = open_is_blank and not chunk[: ends[0]].strip()
            begins = np.concatenate([[begin], ends[:-1] + offset + 1])
            numbers = np.arange(num_lines, num_lines + len(ends)) + 1
            spans = np.stack([begins, ends + offset, numbers], axis=1)[~blank]
            index.write(spans.astype(np.int64).tobytes())
            num_rows += len(spans)
            num_lines += len(ends)
            begin, open_is_blank = offset + int(ends[-1]) + 1, True
        open_is_blank = open_is_blank and not chunk[max(0, begin - offset) :].strip()
        offset += len(chunk)
    if not open_is_blank:
        index.write(np.array([begin, offset, num_lines + 1], np.int64).tobytes())
        num_rows += 1
    return num_rows


def _blank_lines(chunk: bytes, ends: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether each line of a chunk is only white space."""
    array = np.frombuffer(chunk, np.uint8)
    begins = np.concatenate([[0], ends[:-1] + 1])
    first = array[begins]
    blank = begins == ends
    for line in np.flatnonzero(~blank & ((first == 32) | ((first >= 9) & (first <= 13)))):
        blank[line] = not chunk[begins[line] : ends[line]].strip()
    return blank


def _text_row(line: bytes, row_id: str) -> RawRow:
    try:
        text = line.decode("utf-8").removesuffix("\r")
    except UnicodeDecodeError as error:
        return RawRow(row_id, error=BadRow("invalid UTF-8", str(error)), text=line.decode("utf-8", errors="replace"))
    if row_id.endswith(":1"):
        text = text.removeprefix("\ufeff")
    return RawRow(row_id, {"text": text}, text=text)


# Keyed by the file's time too: a data task outlives a run folder that is written anew.
@lru_cache(OPEN_MAPS)
def _mapped_index(path: str, mtime_ns: int) -> NDArray[np.int64]:
    return np.memmap(path, np.int64, "r").reshape(-1, 3)
