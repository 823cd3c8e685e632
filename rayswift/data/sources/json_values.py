"""json files: the index of the elements of an array, or of objects one after the other.

numpy scans the file in chunks for quotes and brackets, so memory does not depend on its size. A row is parsed when it
is read, so a malformed row is quarantined alone. A library that parses the stream would change lone surrogates, refuse
long integers and stop at the first malformed element.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from rayswift.data.sources.lines import Around, IndexedStore, Stamp
from rayswift.log import UserError, logger

_CHUNK_BYTES = 1 << 22
_FIRST_LINE_BYTES = 1 << 20
_BOM = b"\xef\xbb\xbf"
_SPACE, _QUOTE, _COMMA, _BACKSLASH = b' ",\\'
_OPENS, _CLOSES = b"[{", b"]}"
_AROUND_ELEMENTS: Around = (b"[,", b",]")
_BEHIND_OBJECTS: Around = (b"]}", b"")
# Keys under which a file of one object may hold its list of rows, the first that is there.
_WRAPPERS = ("data", "rows", "examples", "instances", "items", "records", "samples", "dataset", "results")
_TO_TRAIN, _TO_EVALUATE = ("train",), ("validation", "valid", "val", "dev", "test", "eval")
# An object with one of these keys is a row, even if a value is a list.
_ROW_NAMES = {
    *("messages", "conversations", "conversation", "chosen", "rejected", "prompt", "query", "instruction", "text"),
}
_START_BYTES = 1 << 16
_VALUE_BYTES, _MOST_MEMBERS, _LEFT_NAMED, _LINES_LOOKED_AT = 4096, 1000, 5, 200
_MARKS = np.isin(np.arange(256), list(b"[]{},"))


def holds_lines(path: Path, is_jsonl: bool = False) -> bool:
    """Whether a file is jsonl: its first line is a complete JSON value, and not an array of objects.

    A file named jsonl is jsonl too if another of its first lines is a complete object.
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
    # An object that is open at the end of the line spans several lines, and an object after another on the line begins
    # a stream of objects. Anything else is a bad line.
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
    """Whether one of these lines is a complete object, and no element of an array over several lines."""
    each = [line.rstrip() for line in lines.split(b"\n")[:_LINES_LOOKED_AT] if line.strip()]
    behind = [*each[1:], b""]
    return any(
        line[:1] == b"{" and after[:1] not in (b"]", b",") and _is_value(line)
        for line, after in zip(each, behind, strict=False)
    )


def open_values(name: str, path: Path, work: Path, split: str | None = None, held_out: bool = False) -> IndexedStore:
    """Index the JSON values of a local file; the index is `work` with the suffix .index.

    split: the list to read, if the file is one object that holds lists by name; held_out: read evaluation rows if no
    split is named.
    """
    index_path, partial = work.with_suffix(".index"), work.with_suffix(".partial")
    with open(path, "rb") as file, open(partial, "wb") as index:
        stamp = Stamp.of(file.fileno())
        part = _list_inside(name, file, split, held_out)
        is_array = part is not None or _first_byte(file) == b"["
        num_rows = 0
        for spans in _spans(name, file, is_array, *(part or (0, stamp.num_bytes))):
            numbers = np.arange(num_rows, num_rows + len(spans)) + 1
            index.write(np.column_stack([spans, numbers]).astype(np.int64).tobytes())
            num_rows += len(spans)
    if not num_rows:
        partial.unlink()
        raise UserError(f"data.dataset: {name} holds no row; leave it out")
    partial.replace(index_path)
    around = _AROUND_ELEMENTS if is_array else _BEHIND_OBJECTS
    return IndexedStore(name, str(path.resolve()), str(index_path), num_rows, stamp, around)


# ---- one object around the rows ----


def _list_inside(name: str, file: BinaryIO, split: str | None, held_out: bool) -> tuple[int, int] | None:
    """Begin and end of the list of rows, if the file is one object around it; None for another file."""
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
    """Begin and end of the first values of the object that a file holds, by key; None for another file."""
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
            rest = iter(lambda: file.read(_CHUNK_BYTES), b"")
            if chunk[int(marks[closing]) + 1 :].strip() or any(more.strip() for more in rest):
                return None
            break
        offset += len(chunk)
    members: dict[str, tuple[int, int]] = {}
    for end in cuts[:_MOST_MEMBERS]:
        # latin-1 decodes each byte to one character, so positions are those of the file.
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


def _first_byte(file: BinaryIO) -> bytes:
    return os.pread(file.fileno(), _START_BYTES, 0).removeprefix(_BOM).lstrip()[:1]


# ---- where the values are ----


@dataclass
class _Scan:
    """State of a scan of JSON text from chunk to chunk."""

    depth: int = 0
    in_string: bool = False
    escaped: bool = False  # the next byte follows a backslash

    def marks(self, chunk: bytes) -> tuple[NDArray[np.int64], NDArray[np.uint8], NDArray[np.int64]]:
        """Offsets of a chunk's brackets and commas outside strings, their bytes, and the depth after each: [n] each."""
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
        """Offsets of quotes without a backslash; updates whether the next chunk begins escaped."""
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
    """Spans [n, 2] of the values in a part of a file; a comma before the end of an array gives a bad element."""
    scan, offset, closed_at = _Scan(), begin, -1
    file.seek(begin)
    if is_array:
        begin += os.pread(file.fileno(), _START_BYTES, begin).index(b"[") + 1
    first = begin
    while chunk := file.read(min(_CHUNK_BYTES, end - offset)):
        marks, kinds, depths = scan.marks(chunk)
        if (depths < 0).any():
            at = offset + int(marks[np.argmax(depths < 0)])
            raise UserError(f"data.dataset: {name} is not valid JSON: byte {at} closes a bracket that is not open")
        # A comma or the last bracket ends an element of an array; a bracket at depth 0 ends an object of a stream.
        is_end = (depths == 1) & (kinds == _COMMA) | (depths == 0) if is_array else (depths == 0) & (kinds != _COMMA)
        ends = offset + marks[is_end]
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
