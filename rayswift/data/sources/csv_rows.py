"""csv and tsv: each record is copied once as a line, a JSON list of its fields, because a record may span lines."""

import csv
import itertools
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rayswift.data.rows import BadRow, Cells
from rayswift.data.sources.lines import IndexedStore, open_lines
from rayswift.data.sources.store import MAX_ROW_BYTES, RawRow, Rows
from rayswift.log import UserError, logger

_DELIMITERS = ",;\t|"
_SAID = re.compile(r"sep=([,;\t|])")
_RECORDS_LOOKED_AT = 21


@dataclass(frozen=True)
class CsvStore:
    """Records with a header; `records` holds each as a JSON list of its fields."""

    header: tuple[str, ...]
    records: IndexedStore

    @property
    def num_rows(self) -> int:
        return self.records.num_rows

    @property
    def files(self) -> tuple[str, ...]:
        return self.records.files

    def read(self, rows: Rows) -> list[RawRow]:
        return [self._named(row) for row in self.records.read(rows)]

    def _named(self, row: RawRow) -> RawRow:
        if row.error is not None:
            return row
        if len(row.value) != len(self.header):
            detail = f"the header has {len(self.header)}, the row {len(row.value)}"
            return RawRow(row.id, error=BadRow("wrong number of fields", detail), text=row.text)
        try:
            "".join(row.value).encode()
        except UnicodeEncodeError:
            text = json.dumps(row.value, ensure_ascii=False).encode(errors="surrogateescape").decode(errors="replace")
            return RawRow(row.id, error=BadRow("invalid UTF-8", "a field holds bytes that are no UTF-8"), text=text)
        return RawRow(row.id, Cells(zip(self.header, row.value, strict=True)), text=row.text)


def open_csv(name: str, path: Path, work: Path, delimiter: str) -> CsvStore:
    """Copy a local file's records.

    Raises:
        csv.Error: a field is larger than a row may be.
    """
    copy, partial = work.with_suffix(".records.jsonl"), work.with_suffix(".records.partial")
    found, skipped = _delimiter(path, delimiter)
    if found != delimiter:
        logger.info("%s is read with the delimiter %r", name, found)
    records = itertools.islice(_records(path, found), skipped, None)
    header = next(records, [])
    try:
        "".join(header).encode()
    except UnicodeEncodeError as error:
        raise UserError(f"data.dataset: the header of {name} is no UTF-8; save the file as UTF-8") from error
    twice = sorted({column for column in header if header.count(column) > 1})
    if twice:
        raise UserError(f"data.dataset: the header of {name} names {', '.join(twice)} more than once; rename one")
    num_rows = 0
    with open(partial, "w", encoding="utf-8") as file:
        for num_rows, record in enumerate(records, 1):  # noqa: B007
            file.write(json.dumps(record) + "\n")
    if not num_rows:
        raise UserError(f"data.dataset: {name} holds no row; leave it out")
    partial.replace(copy)
    return CsvStore(tuple(header), open_lines(name, copy, work, "json"))


def _delimiter(path: Path, expected: str) -> tuple[str, int]:
    """The delimiter of a file, and how many of its first records are no rows.

    Another delimiter than the suffix says is used only if the header is one field with the expected one, and the header
    and the first records have the same number of fields, two or more, with the other.
    """
    first = next(_records(path, expected), [])
    if len(first) == 1 and (said := _SAID.fullmatch(first[0])):  # Excel's
        return said[1], 1
    if len(first) != 1:
        return expected, 0
    for other in _DELIMITERS.replace(expected, ""):
        try:
            header, *rows = itertools.islice(_records(path, other), _RECORDS_LOOKED_AT)
        except csv.Error:
            continue
        is_header = len(set(header)) == len(header) > 1 and all(column.strip() for column in header)
        if is_header and rows and all(len(row) == len(header) for row in rows):
            return other, 0
    return expected, 0


def _records(path: Path, delimiter: str) -> Iterator[list[str]]:
    csv.field_size_limit(MAX_ROW_BYTES)
    # A byte that is no UTF-8 becomes a lone surrogate, so only its row is quarantined.
    with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv.reader(file, delimiter=delimiter)
        try:
            yield from (record for record in reader if record)
        except csv.Error as error:
            raise csv.Error(f"{error} at line {reader.line_num}; is a quote left open before it?") from error
