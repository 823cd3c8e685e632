"""jsonl and text: the lines of a file, read where they lie through an index of their ends.

The index is one file of int64: the end of every line, then, for each blank line, its number less the blank ones
before it. 8 bytes a line, written in one pass and memory-mapped, so memory does not depend on the number of rows.
"""

import os
from collections.abc import Iterable
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
# Maps kept open by a data task: a folder may hold more files than a process may open.
OPEN_MAPS = 256


# The byte before the begin of a span and the one at its end, where the index still fits the file.
Around = tuple[bytes, bytes]
_AROUND_LINES: Around = (b"\n", b"\n")


@dataclass(frozen=True)
class Stamp:
    """A file as it was indexed."""

    num_bytes: int
    modified_ns: int

    @staticmethod
    def of(file: int) -> "Stamp":
        """Of an open file, by its descriptor."""
        stat = os.fstat(file)
        return Stamp(stat.st_size, stat.st_mtime_ns)


@dataclass(frozen=True)
class IndexedFile:
    """A file whose rows are read where they lie, through the index beside it."""

    name: str
    path: str
    index_path: str
    num_rows: int
    stamp: Stamp

    @property
    def files(self) -> tuple[str, ...]:
        return (self.path, self.index_path)


@dataclass(frozen=True)
class LineStore(IndexedFile):
    """Lines of a file; `index_path` holds the ends of `num_lines` lines, see the module. Ids hold the line number."""

    kind: Literal["jsonl", "text"]
    num_lines: int

    def read(self, rows: Rows) -> list[RawRow]:
        index = mapped_int64(self.index_path, os.stat(self.index_path).st_mtime_ns)
        numbers = np.asarray(rows, np.int64)
        lines = numbers + np.searchsorted(index[self.num_lines :], numbers, side="right")
        ends = index[lines]
        begins = np.where(lines > 0, index[lines - 1] + 1, 0)
        ids = (f"{self.name}:{line + 1}" for line in lines.tolist())
        parse = _text_row if self.kind == "text" else parse_json
        spans = zip(begins.tolist(), ends.tolist(), strict=True)
        return [
            span if isinstance(span, RawRow) else parse(span, row_id)
            for span, row_id in read_spans(self.path, spans, ids, self.stamp, _AROUND_LINES)
        ]


def open_lines(name: str, path: Path, work: Path, kind: Literal["jsonl", "text"]) -> LineStore:
    """Index the lines of a local file."""
    index_path, partial = work.with_suffix(".index"), work.with_suffix(".partial")
    with open(path, "rb") as file, open(partial, "wb") as index:
        stamp = Stamp.of(file.fileno())
        num_lines, num_blank = _index_lines(file, index)
    if num_lines == num_blank:
        partial.unlink()
        raise UserError(f"data.dataset: {name} holds no row, only blank lines; leave it out")
    # Never truncated in place: a data task of a killed run may still have it mapped.
    partial.replace(index_path)
    return LineStore(name, str(path.resolve()), str(index_path), num_lines - num_blank, stamp, kind, num_lines)


def _index_lines(file: BinaryIO, index: BinaryIO) -> tuple[int, int]:
    """Write the index; returns (lines, blank ones among them)."""
    blanks: list[NDArray[np.int64]] = []
    num_lines, offset, begin = 0, 0, 0
    open_is_blank = True  # the line that began in an earlier chunk, so far
    while chunk := file.read(_CHUNK_BYTES):
        if offset == 0 and chunk.startswith(_BOM):
            chunk = b"   " + chunk[3:]
        ends = np.flatnonzero(np.frombuffer(chunk, np.uint8) == 10)
        if len(ends):
            blank = _blank_lines(chunk, ends)
            blank[0] = open_is_blank and not chunk[: ends[0]].strip()
            blanks.append(np.flatnonzero(blank) + num_lines)
            index.write((ends + offset).astype(np.int64).tobytes())
            num_lines += len(ends)
            begin, open_is_blank = offset + int(ends[-1]) + 1, True
        open_is_blank = open_is_blank and not chunk[max(0, begin - offset) :].strip()
        offset += len(chunk)
    if begin < offset:
        index.write(np.int64(offset).tobytes())
        blanks.append(np.array([num_lines] if open_is_blank else [], np.int64))
        num_lines += 1
    all_blanks = np.concatenate([np.array([], np.int64), *blanks])
    index.write((all_blanks - np.arange(len(all_blanks))).astype(np.int64).tobytes())
    return num_lines, len(all_blanks)


def _blank_lines(chunk: bytes, ends: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether each line of a chunk is only white space."""
    array = np.frombuffer(chunk, np.uint8)
    begins = np.concatenate([[0], ends[:-1] + 1])
    first = array[begins]
    blank = begins == ends
    for line in np.flatnonzero(~blank & ((first == 32) | ((first >= 9) & (first <= 13)))):
        blank[line] = not chunk[begins[line] : ends[line]].strip()
    return blank


def read_spans(
    path: str, spans: Iterable[tuple[int, int]], ids: Iterable[str], stamp: Stamp, around: Around
) -> Iterable[tuple[bytes | RawRow, str]]:
    """The bytes of each span of a file with its id; a span that is too large is a bad row.

    A file of another time but the same size may be a node's own copy, so its spans are looked at.

    Args:
        path: The file.
        spans: Begin and end of each.
        ids: An id for each.
        stamp: The file as it was indexed.
        around: What stands around a span.
    """
    file = os.open(path, os.O_RDONLY)
    try:
        now = Stamp.of(file)
        if now.num_bytes != stamp.num_bytes:
            raise _changed(path, f"it had {stamp.num_bytes} bytes, it has {now.num_bytes}")
        for (begin, end), row_id in zip(spans, ids, strict=True):
            if now != stamp and not _fits(file, begin, end, around):
                raise _changed(path, f"{row_id} no longer stands where it stood")
            length = min(end - begin, MAX_ROW_BYTES)
            content = os.pread(file, length, begin)
            yield (too_large(row_id, end - begin, content) if length < end - begin else content), row_id
    finally:
        os.close(file)


def _fits(file: int, begin: int, end: int, around: Around) -> bool:
    before, behind = os.pread(file, 1, begin - 1) if begin else b"", os.pread(file, 1, end)
    return before in around[0] and (not around[1] or behind in around[1])


def _changed(path: str, how: str) -> UserError:
    return UserError(f"data.dataset: {path} changed while it was read: {how}; start anew with a new folder")


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
def mapped_int64(path: str, mtime_ns: int) -> NDArray[np.int64]:
    """A memory-mapped file of int64."""
    return np.memmap(path, np.int64, "r")
