"""json: the elements of one array, or objects one after the other, read where they lie through an index of spans.

The file is scanned in chunks for quotes and brackets, by numpy, so memory does not depend on its size. Only reading a
row parses it: each stays byte-true, and a malformed one is quarantined by itself. A library that parses the stream
would alter lone surrogates, refuse long integers and stop at the first malformed element.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from rayswift.data.sources.lines import mapped_int64, read_spans
from rayswift.data.sources.store import RawRow, Rows, parse_json
from rayswift.log import UserError

_CHUNK_BYTES = 1 << 22
_FIRST_LINE_BYTES = 1 << 20
_BOM = b"\xef\xbb\xbf"
_SPACE, _QUOTE, _COMMA, _BACKSLASH = b' ",\\'
_OPENS, _CLOSES = b"[{", b"]}"
_MARKS = np.isin(np.arange(256), list(b"[]{},"))


@dataclass(frozen=True)
class SpanStore:
    """JSON values of a file; `index_path` holds int64 [rows, 2]: begin and end of each. Ids number them from 1."""

    name: str
    path: str
    index_path: str
    num_rows: int

    @property
    def files(self) -> tuple[str, ...]:
        """See Store."""
        return (self.path, self.index_path)

    def read(self, rows: Rows) -> list[RawRow]:
        """See Store.

        Raises:
            UserError: the file changed since it was indexed.
        """
        index = mapped_int64(self.index_path, os.stat(self.index_path).st_mtime_ns).reshape(-1, 2)
        numbers = np.asarray(rows, np.int64)
        ids = (f"{self.name}:{row + 1}" for row in numbers.tolist())
        return [
            span if isinstance(span, RawRow) else parse_json(span, row_id)
            for span, row_id in read_spans(self.path, index[numbers].tolist(), ids)
        ]


def holds_lines(path: Path) -> bool:
    """Whether a .json file is jsonl: its first line is a JSON value by itself, and no array of objects."""
    with open(path, "rb") as file:
        start = file.read(_FIRST_LINE_BYTES).removeprefix(_BOM).lstrip()
    if start.startswith(b"["):
        return False
    line, newline, _ = start.partition(b"\n")
    if not newline and len(start) > _FIRST_LINE_BYTES - 100:
        return True
    try:
        json.loads(line.decode("utf-8", errors="replace"))
    except (ValueError, RecursionError):
        # What is left open at the end of the line is an object over several lines; anything else is a bad line.
        scan = _Scan()
        scan.marks(line)
        return not (line.startswith(b"{") and scan.depth > 0 and not scan.in_string)
    return True


def open_values(name: str, path: Path, work: Path) -> SpanStore:
    """Index the JSON values of a local file.

    Raises:
        UserError: it ends inside a value, text follows the array, or it holds no value.
    """
    index_path, partial = work.with_suffix(".index"), work.with_suffix(".partial")
    with open(path, "rb") as file, open(partial, "wb") as index:
        num_rows = 0
        for spans in _spans(name, file):
            index.write(np.ascontiguousarray(spans, np.int64).tobytes())
            num_rows += len(spans)
    if not num_rows:
        partial.unlink()
        raise UserError(f"data.dataset: {name} holds no row; leave it out")
    partial.replace(index_path)
    return SpanStore(name, str(path.resolve()), str(index_path), num_rows)


@dataclass
class _Scan:
    """Where a scan of JSON text stands, from chunk to chunk."""

    depth: int = 0
    in_string: bool = False
    escaped: bool = False  # the next byte follows a backslash

    def marks(self, chunk: bytes) -> tuple[NDArray[np.int64], NDArray[np.uint8], NDArray[np.int64]]:
        """Marks (brackets and commas outside strings) of a chunk: offsets, bytes, and the depth behind each."""
        array = np.frombuffer(chunk, np.uint8)
        if self.escaped:
            array = array.copy()
            array[0] = _SPACE
        quotes = self._real_quotes(array)
        marks = np.flatnonzero(_MARKS[array])
        inside = (np.searchsorted(quotes, marks) + self.in_string) % 2 == 1
        marks = marks[~inside]
        kinds = array[marks]
        steps = np.isin(kinds, list(_OPENS)).astype(np.int64) - np.isin(kinds, list(_CLOSES))
        depths = self.depth + np.cumsum(steps)
        self.in_string = bool((len(quotes) + self.in_string) % 2)
        if len(depths):
            self.depth = int(depths[-1])
        return marks, kinds, depths

    def _real_quotes(self, array: NDArray[np.uint8]) -> NDArray[np.int64]:
        """Offsets of quotes that no backslash escapes; notes whether the next chunk begins escaped."""
        quotes = np.flatnonzero(array == _QUOTE)
        slashes = np.flatnonzero(array == _BACKSLASH)
        self.escaped = False
        if not len(slashes):
            return quotes
        run_ends = np.flatnonzero(np.diff(slashes, append=slashes[-1] + 2) > 1)
        run_lengths = np.diff(run_ends, prepend=-1)
        escaped = slashes[run_ends[run_lengths % 2 == 1]] + 1
        self.escaped = bool(len(escaped)) and int(escaped[-1]) == len(array)
        return np.setdiff1d(quotes, escaped, assume_unique=True)


def _spans(name: str, file: BinaryIO) -> Iterator[NDArray[np.int64]]:
    """[n, 2] spans of the values in a file, part after part; a comma before the end of an array is a bad element."""
    start = file.read(_CHUNK_BYTES)
    is_array = start.removeprefix(_BOM).lstrip()[:1] == b"["
    file.seek(0)
    cut = _array_cut if is_array else _stream_cut
    scan, offset = _Scan(), 0
    first = start.index(b"[") + 1 if is_array else 0
    begin, closed_at = first, -1
    while chunk := file.read(_CHUNK_BYTES):
        marks, kinds, depths = scan.marks(chunk)
        if (depths < 0).any():
            at = offset + int(marks[np.argmax(depths < 0)])
            raise UserError(f"data.dataset: {name} is not valid JSON: byte {at} closes a bracket that none opened")
        ends = offset + marks[cut(kinds, depths)]
        if is_array and closed_at < 0 and (depths == 0).any():
            closed_at = offset + int(marks[np.argmax(depths == 0)])
            ends = ends[ends <= closed_at]
            if begin == first and not os.pread(file.fileno(), closed_at - begin, begin).strip():
                ends = ends[:0]  # an array without elements
        elif is_array and closed_at >= 0:
            ends = ends[:0]
        if closed_at >= 0 and chunk[max(0, closed_at + 1 - offset) :].strip():
            raise UserError(
                f"data.dataset: {name} is not valid JSON: text follows its array, which ends at byte {closed_at}"
            )
        if len(ends):
            begins = np.concatenate([[begin], ends[:-1] + 1])
            yield np.stack([begins, ends + (not is_array)], axis=1)
            begin = int(ends[-1]) + 1
        offset += len(chunk)
    if scan.depth or scan.in_string:
        raise UserError(f"data.dataset: {name} is not valid JSON: it ends inside a value; is it cut off?")
    if not is_array and os.pread(file.fileno(), _CHUNK_BYTES, begin).strip():
        yield np.array([[begin, offset]])


def _array_cut(kinds: NDArray[np.uint8], depths: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Marks that end an element of an array."""
    return (depths == 1) & (kinds == _COMMA) | (depths == 0)


def _stream_cut(kinds: NDArray[np.uint8], depths: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Marks that end an object of a stream."""
    return (depths == 0) & (kinds != _COMMA)
