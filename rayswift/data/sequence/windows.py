"""A window is the raw rows that are read, encoded and packed together: the unit of streaming, order and resume.

Window w of an epoch takes positions [w * W, (w + 1) * W) of the epoch's order. So it depends only on (data, seed,
epoch), not on timing, parallelism or the number of workers.
"""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import ceil
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from rayswift.data.encode.config import EncodeConfig
from rayswift.data.encode.encoder import EncodedRow, LeftOut
from rayswift.data.encode.turns import Numbers
from rayswift.data.raw_rows import encode_raw
from rayswift.data.rows import BadRow
from rayswift.data.sequence.mixing import Mix
from rayswift.data.sequence.order import repeated, shuffled
from rayswift.data.sequence.packing import pack
from rayswift.data.sources import RawRow, Store
from rayswift.data.sources.store import Concatenated

TRAINED = "trained"
TRAINED_CUT = "trained, cut to data.max_length"
_BIN_KEY = 0xB145
_MIX_KEY = 0x3A1C


@dataclass(frozen=True)
class PackedRow:
    """One row of a batch: packed documents, or the sequences of an example, end to end.

    input_ids [T] int32 and trained [T] bool of all documents; lengths: tokens of each document; num_source_rows: raw
    rows counted with it, including rows that were left out, so that progress counts every raw row once; weights [T]
    float32: the loss weight of each trained token, None if all are 1; num_continued: documents that are a further piece
    of a raw row; num_cut: documents whose raw row lost tokens to `data.max_length`; ids: `source:line` of each
    document; numbers: as in `turns.Document`; record: as in `EncodedRow`, of the first document.
    """

    input_ids: NDArray[np.int32]
    trained: NDArray[np.bool_]
    lengths: tuple[int, ...]
    num_source_rows: int
    weights: NDArray[np.float32] | None = None
    num_continued: int = 0
    num_cut: int = 0
    ids: tuple[str, ...] = ()
    numbers: Numbers = ()
    record: str = ""

    @property
    def counts(self) -> Counter[str]:
        """Its trained raw rows, by outcome."""
        whole = len(self.lengths) - self.num_continued - self.num_cut
        return +Counter({TRAINED: whole, TRAINED_CUT: self.num_cut})


@dataclass(frozen=True)
class Quarantined:
    """A bad row, as it is written to the quarantine file."""

    id: str
    reason: str
    detail: str
    row: str


@dataclass(frozen=True)
class Window:
    """A packed window; `counts`: raw rows by outcome (`trained...`, `filtered: ...`, `quarantined: ...`)."""

    rows: tuple[PackedRow, ...]
    counts: Counter[str]
    quarantined: tuple[Quarantined, ...]


@dataclass(frozen=True)
class RowSet:
    """The rows of all stores, numbered consecutively, and their order in an epoch.

    With a mix, an epoch takes `mix.draws` rows of each store, and the next epoch continues after them. No row repeats
    before every other row of its store has been used.
    """

    stores: tuple[Store, ...]
    seed: int
    shuffle: bool = True
    mix: Mix | None = None

    @property
    def num_rows(self) -> int:
        """Raw rows of an epoch."""
        return self.mix.num_rows if self.mix else self._all.num_rows

    @property
    def _all(self) -> Concatenated:
        return Concatenated(self.stores)

    def rows_at(self, begin: int, end: int, epoch: int) -> NDArray[np.int64]:
        """Row numbers at positions [begin, end) of an epoch's order."""
        end = min(end, self.num_rows)
        if self.mix:
            return self._mixed(self.mix, begin, end, epoch)
        positions = np.arange(begin, end, dtype=np.int64)
        return shuffled(positions, self.num_rows, (self.seed, epoch)) if self.shuffle else positions

    def _mixed(self, mix: Mix, begin: int, end: int, epoch: int) -> NDArray[np.int64]:
        owners, draws = mix.at(begin, end)
        rows = np.empty_like(owners)
        start = 0
        for owner, store in enumerate(self.stores):
            where = owners == owner
            positions = draws[where] + epoch * mix.draws[owner]
            key = (self.seed, _MIX_KEY, owner)
            within = repeated(positions, store.num_rows, key) if self.shuffle else positions % store.num_rows
            rows[where] = start + within
            start += store.num_rows
        return rows

    def read(self, rows: NDArray[np.int64]) -> list[RawRow]:
        """Raw rows by number, in the order asked for."""
        raw = self._all.read(rows)
        if len(self.stores) == 1:
            return raw
        ends = np.cumsum([store.num_rows for store in self.stores])
        owners = np.searchsorted(ends, np.asarray(rows, np.int64), side="right").tolist()
        return [RawRow(row.id, row.value, row.error, row.text, i) for row, i in zip(raw, owners, strict=True)]


class Windows(Protocol):
    """The windows of every epoch, encoded from rows or read from a cache."""

    @property
    def num_windows(self) -> int:
        """Windows of an epoch."""

    @property
    def window_rows(self) -> int:
        """Raw rows of a window; the last one may have fewer."""

    @property
    def num_rows(self) -> int:
        """Raw rows of an epoch."""

    @property
    def tokenizer_hash(self) -> str:
        """Hash of the tokenizer's files."""

    def make(self, epoch: int, window: int) -> Window:
        """One window."""


class Columns(Protocol):
    """Columns that were computed from the raw rows (`cache.columns`)."""

    def read(self, numbers: NDArray[np.int64], ids: Sequence[str]) -> dict[str, list[Any]]:
        """For each column, one value per row: a number for each row of a batch that the raw row becomes, or None."""


class _Document(NamedTuple):
    """An encoded document of a raw row; continued: it is a further piece of its row."""

    encoded: EncodedRow
    id: str
    continued: bool
    opens_raw_row: bool


@dataclass(frozen=True)
class WindowPlan:
    """All that a data task needs to make any window; values of `columns` are added to the rows' numbers."""

    row_set: RowSet
    encode: EncodeConfig
    packing: bool
    window_rows: int
    columns: Columns | None = None

    @property
    def num_windows(self) -> int:
        return ceil(self.row_set.num_rows / self.window_rows)

    @property
    def num_rows(self) -> int:
        return self.row_set.num_rows

    @property
    def tokenizer_hash(self) -> str:
        return self.encode.tokenizer_hash

    def make(self, epoch: int, window: int) -> Window:
        """Read, encode and pack one window."""
        begin = window * self.window_rows
        row_numbers = self.row_set.rows_at(begin, begin + self.window_rows, epoch)
        raw = self.row_set.read(row_numbers)
        columns = self.columns.read(row_numbers, [row.id for row in raw]) if self.columns else {}
        counts: Counter[str] = Counter()
        documents: list[_Document] = []
        quarantined: list[Quarantined] = []
        num_left_out = 0
        for position, made in enumerate(encode_raw(self.encode, raw)):
            of_raw: list[tuple[EncodedRow, str, bool]] = []
            for row, result in made:
                if isinstance(result, LeftOut):
                    counts[f"filtered: {result.reason}"] += 1
                elif isinstance(result, BadRow):
                    counts[f"quarantined: {result.reason}"] += 1
                    text = row.text or json.dumps(row.value, ensure_ascii=False, default=str)
                    quarantined.append(Quarantined(row.id, result.reason, result.detail, text))
                else:
                    of_raw += [(encoded, row.id, i > 0) for i, encoded in enumerate(result)]
            num_left_out += not of_raw
            size = self.encode.num_members or len(of_raw)
            for i, (encoded, row_id, continued) in enumerate(of_raw):
                if columns and i % size == 0:  # the first document of a row of a batch
                    own = tuple((name, float(values[position][i // size])) for name, values in columns.items())
                    encoded = replace(encoded, numbers=encoded.numbers + own)
                documents.append(_Document(encoded, row_id, continued, opens_raw_row=i == 0))
        rows = self._pack(documents, num_left_out, (self.row_set.seed, epoch, window, _BIN_KEY))
        counts.update(sum((row.counts for row in rows), Counter()))
        return Window(tuple(rows), counts, tuple(quarantined))

    def _pack(self, documents: Sequence[_Document], num_left_out: int, key: tuple[int, ...]) -> list[PackedRow]:
        if self.packing:
            bins = pack([len(document.encoded.input_ids) for document in documents], self.encode.max_length)
        else:
            bins = _alone([document.continued for document in documents], self.encode.num_members)
        if self.packing and self.row_set.shuffle:
            # Packing puts rows of similar length together, so without shuffling a batch would have one length.
            bins = [bins[i] for i in shuffled(np.arange(len(bins)), len(bins), key)]
        rows = []
        for number, members in enumerate(bins):
            own = [documents[i] for i in members]
            encoded = [document.encoded for document in own]
            left_out = num_left_out if number == len(bins) - 1 else 0
            rows.append(
                PackedRow(
                    np.concatenate([each.input_ids for each in encoded]),
                    np.concatenate([each.trained for each in encoded]),
                    tuple(len(each.input_ids) for each in encoded),
                    sum(document.opens_raw_row for document in own) + left_out,
                    _weights(encoded),
                    sum(document.continued for document in own),
                    sum(each.cut for each in encoded),
                    tuple(document.id for document in own),
                    tuple(number for each in encoded for number in each.numbers),
                    encoded[0].record,
                )
            )
        return rows


def _alone(continued: Sequence[bool], size: int | None) -> list[list[int]]:
    """Documents of each row without packing: `size` consecutive ones, or all of a raw row."""
    begins = [i for i, more in enumerate(continued) if not more] if size is None else range(0, len(continued), size)
    return [list(range(begin, end)) for begin, end in pairwise([*begins, len(continued)])]


def _weights(documents: Sequence[EncodedRow]) -> NDArray[np.float32] | None:
    if all(document.weights is None for document in documents):
        return None
    ones = [np.ones(len(document.input_ids), np.float32) for document in documents]
    return np.concatenate([one if d.weights is None else d.weights for one, d in zip(ones, documents, strict=True)])
