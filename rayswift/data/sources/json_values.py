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

from rayswift.data.sources.lines import Around, IndexedFile, Stamp, mapped_int64, read_spans
from rayswift.data.sources.store import RawRow, Rows, parse_json
from rayswift.log import UserError, logger

_CHUNK_BYTES = 1 << 22
_FIRST_LINE_BYTES = 1 << 20
_BOM = b"\xef\xbb\xbf"
_SPACE, _QUOTE, _COMMA, _BACKSLASH = b' ",\\'
_OPENS, _CLOSES = b"[{", b"]}"
_AROUND_ELEMENTS: Around = (b"[,", b",]")
_BEHIND_OBJECTS: Around = (b"]}", b"")
# What people call the list of rows in the object around it; more than one may be there.
_WRAPPERS = ("data", "rows", "examples", "instances", "items", "records", "samples", "dataset", "results")
_TO_TRAIN, _TO_EVALUATE = ("train",), ("validation", "valid", "val", "dev", "test", "eval")
# Columns whose values may be objects: such an object is a row.
_ROW_NAMES = {
    "messages",
    "conversations",
    "conversation",
    "chosen",
    "rejected",
    "prompt",
    "query",
    "instruction",
    "text",
}
_START_BYTES = 1 << 16
_VALUE_BYTES, _MOST_MEMBERS, _LEFT_NAMED, _LINES_LOOKED_AT = 4096, 1000, 5, 200
_MARKS = np.isin(np.arange(256), list(b"[]{},"))


@dataclass(frozen=True)
class SpanStore(IndexedFile):
    """JSON values of a file; `index_path` holds int64 [rows, 2]: begin and end of each. Ids number them from 1."""

    around: Around

    def read(self, rows: Rows) -> list[RawRow]:
        index = mapped_int64(self.index_path, os.stat(self.index_path).st_mtime_ns).reshape(-1, 2)
        numbers = np.asarray(rows, np.int64)
        ids = (f"{self.name}:{row + 1}" for row in numbers.tolist())
        spans = read_spans(self.path, index[numbers].tolist(), ids, self.stamp, self.around)
        return [span if isinstance(span, RawRow) else parse_json(span, row_id) for span, row_id in spans]


def holds_lines(path: Path, is_jsonl: bool = False) -> bool:
    """Whether a file is jsonl: its first line is a JSON value by itself, and no array of objects.

    A file that is called jsonl needs more to be taken for something else: no line but the first is an object.
    """
    with open(path, "rb") as file:
        start = file.read(_FIRST_LINE_BYTES).removeprefix(_BOM).lstrip()
    line, newline, rest = start.partition(b"\n")
    if is_jsonl and _has_rows(rest):
        return True
    if rest.strip() and _is_value(line) and (is_jsonl or not line.startswith(b"[")):
        return True
    if start.startswith(b"[") or (rest.strip() == b"" and _is_value(line)):
        return False
    if not newline and len(start) > _FIRST_LINE_BYTES - 100:
        return is_jsonl
    # What is left open at the end of the line is an object over several lines, and one behind another a stream of
    # them; anything else is a bad line.
    scan = _Scan()
    _, _, depths = scan.marks(line)
    is_open = scan.depth > 0 and not (is_jsonl and rest.lstrip()[:1] in (b"", b"{"))
    is_open = is_open or bool((depths[:-1] == 0).any())
    return not (line.startswith(b"{") and is_open and not scan.in_string)


def _is_value(line: bytes) -> bool:
    try:
        json.loads(line.decode("utf-8", errors="replace"))
    except (ValueError, RecursionError):
        return False
    return True


def _has_rows(lines: bytes) -> bool:
    """Whether one of these lines is an object by itself, and no element of an array over several lines."""
    each = [line.rstrip() for line in lines.split(b"\n")[:_LINES_LOOKED_AT] if line.strip()]
    behind = [*each[1:], b""]
    return any(
        line[:1] == b"{" and after[:1] not in (b"]", b",") and _is_value(line)
        for line, after in zip(each, behind, strict=False)
    )


def open_values(name: str, path: Path, work: Path, split: str | None = None, held_out: bool = False) -> SpanStore:
    """Index the JSON values of a local file.

    Args:
        name: Of the file, for ids and errors.
        path: The file.
        work: Where the index goes, less its suffix.
        split: Which of several lists is wanted, if the file is one object that holds them by name.
        held_out: Whether rows to evaluate on are wanted, where no split is named.
    """
    index_path, partial = work.with_suffix(".index"), work.with_suffix(".partial")
    with open(path, "rb") as file, open(partial, "wb") as index:
        stamp = Stamp.of(file.fileno())
        part = _list_inside(name, file, split, held_out)
        is_array = part is not None or _first_byte(file) == b"["
        num_rows = 0
        for spans in _spans(name, file, is_array, *(part or (0, stamp.num_bytes))):
            index.write(np.ascontiguousarray(spans, np.int64).tobytes())
            num_rows += len(spans)
    if not num_rows:
        partial.unlink()
        raise UserError(f"data.dataset: {name} holds no row; leave it out")
    partial.replace(index_path)
    around = _AROUND_ELEMENTS if is_array else _BEHIND_OBJECTS
    return SpanStore(name, str(path.resolve()), str(index_path), num_rows, stamp, around)


# ---- one object around the rows ----


def _list_inside(name: str, file: BinaryIO, split: str | None, held_out: bool) -> tuple[int, int] | None:
    """Begin and end of the list of rows that is a member of the one object which a file is; None: the file is no such.
    """
    members = _members(file)
    if members is None or _ROW_NAMES & members.keys():
        if split:
            raise UserError(f"data.dataset: {name} holds no splits by name; leave split {split} out")
        return None
    starts = {key: os.pread(file.fileno(), _VALUE_BYTES, begin).lstrip() for key, (begin, _) in members.items()}
    lists = [key for key, start in starts.items() if start[:1] == b"[" and start[1:].lstrip()[:1] == b"{"]
    wanted = [split] if split else [*(_TO_EVALUATE if held_out else _TO_TRAIN), *_WRAPPERS]
    found = [key for key in wanted if key in lists]
    if found:
        left = [key for key in members if key != found[0]]
        if left:
            logger.info("%s: the rows are those of %s; left out: %s", name, found[0], ", ".join(left[:_LEFT_NAMED]))
        return members[found[0]]
    if split or {*lists}.intersection((*_TO_TRAIN, *_TO_EVALUATE)):
        what = split or " or ".join(wanted[: -len(_WRAPPERS)])
        raise UserError(f"data.dataset: {name} holds no list {what}; it holds {', '.join(members)}: name its split")
    if len(starts) > 1 and all(start[:1] == b"{" for start in starts.values()):
        raise UserError(
            f"data.dataset: {name} is one object whose values are objects ({', '.join(list(members)[:3])}, ...), where "
            'a list of rows is wanted; write its values as one, as in python -c "import json, sys; '
            'json.dump(list(json.load(sys.stdin).values()), sys.stdout)" < rows.json > list.json'
        )
    return None


def _members(file: BinaryIO) -> dict[str, tuple[int, int]] | None:
    """Where the values lie of the one object that a file holds, of its first ones; None: it holds something else."""
    if _first_byte(file) != b"{":
        return None
    begin, scan, offset, cuts = os.pread(file.fileno(), _START_BYTES, 0).index(b"{") + 1, _Scan(), 0, list[int]()
    file.seek(0)
    while len(cuts) <= _MOST_MEMBERS:
        chunk = file.read(_CHUNK_BYTES)
        if not chunk:
            return None  # it is cut off
        marks, kinds, depths = scan.marks(chunk)
        closing = int(np.argmax(depths == 0)) if (depths == 0).any() else len(marks)
        cuts += (marks[:closing][(depths[:closing] == 1) & (kinds[:closing] == _COMMA)] + offset).tolist()
        if closing < len(marks):
            cuts.append(offset + int(marks[closing]))
            if chunk[int(marks[closing]) + 1 :].strip() or any(more.strip() for more in _chunks(file)):
                return None
            break
        offset += len(chunk)
    members: dict[str, tuple[int, int]] = {}
    for end in cuts[:_MOST_MEMBERS]:
        # A character a byte, so that places are those of the file.
        start = os.pread(file.fileno(), min(_VALUE_BYTES, end - begin), begin).decode("latin-1")
        try:
            at = len(start) - len(start.lstrip())
            _, after = json.JSONDecoder().raw_decode(start, at)
            key = json.loads(start[at:after].encode("latin-1").decode("utf-8", errors="replace"))
            value = start.index(":", after) + 1
        except ValueError:
            return None
        members[str(key)] = (begin + value, end)
        begin = end + 1
    return members


def _chunks(file: BinaryIO) -> Iterator[bytes]:
    while chunk := file.read(_CHUNK_BYTES):
        yield chunk


def _first_byte(file: BinaryIO) -> bytes:
    return os.pread(file.fileno(), _START_BYTES, 0).removeprefix(_BOM).lstrip()[:1]


# ---- where the values are ----


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


def _spans(name: str, file: BinaryIO, is_array: bool, begin: int, end: int) -> Iterator[NDArray[np.int64]]:
    """[n, 2] spans of the values in a part of a file; a comma before the end of an array is a bad element."""
    cut = _array_cut if is_array else _stream_cut
    scan, offset, closed_at = _Scan(), begin, -1
    file.seek(begin)
    if is_array:
        begin += os.pread(file.fileno(), _START_BYTES, begin).index(b"[") + 1
    first = begin
    while chunk := file.read(min(_CHUNK_BYTES, end - offset)):
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
