"""A window: the raw rows that are read, encoded and packed together, the unit of streaming, order and resume.

Window w of an epoch takes positions [w * W, (w + 1) * W) of that epoch's order, so what it holds depends on (data,
seed, epoch) alone, never on timing, parallelism or the number of workers.
"""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import ceil

import numpy as np
from numpy.typing import NDArray

from rayswift.data.encode import EncodeConfig, EncodedRow, TooLong, cached_encoder
from rayswift.data.order import shuffled
from rayswift.data.packing import pack
from rayswift.data.rows import BadRow
from rayswift.data.sources import RawRow, Store

_BIN_KEY = 0xB145
_SPLIT_KEY = 0x5EED  # the order that divides training rows from held-out ones; no epoch number


@dataclass(frozen=True)
class PackedRow:
    """One row of a batch: several documents end to end.

    input_ids [T] int32 and trained [T] bool of all documents; lengths: tokens of each; num_source_rows: raw rows it
    accounts for, documents and rows that were left out alike, so that progress counts every raw row once.
    """

    input_ids: NDArray[np.int32]
    trained: NDArray[np.bool_]
    lengths: tuple[int, ...]
    num_source_rows: int


@dataclass(frozen=True)
class Quarantined:
    """A row that was left out for being bad."""

    id: str
    reason: str
    detail: str
    row: str


@dataclass(frozen=True)
class Window:
    """A packed window; `counts` says where raw rows went (`trained`, `filtered: ...`, `quarantined: ...`)."""

    rows: tuple[PackedRow, ...]
    counts: Counter[str]
    quarantined: tuple[Quarantined, ...]


@dataclass(frozen=True)
class RowSet:
    """Rows of all stores, one after the other; `part` selects those to train or those that are held out."""

    stores: tuple[Store, ...]
    seed: int
    shuffle: bool = True
    part: str = "all"  # all | train | held_out
    eval_fraction: float = 0.0

    @property
    def num_rows(self) -> int:
        """Raw rows in the part."""
        if self.part == "all":
            return self._total
        return self._held_out if self.part == "held_out" else self._total - self._held_out

    @property
    def _total(self) -> int:
        return sum(store.num_rows for store in self.stores)

    @property
    def _held_out(self) -> int:
        return round(self._total * self.eval_fraction)

    def rows_at(self, begin: int, end: int, epoch: int) -> NDArray[np.int64]:
        """Row numbers at positions [begin, end) of an epoch's order."""
        positions = np.arange(begin, min(end, self.num_rows), dtype=np.int64)
        if self.shuffle:
            positions = shuffled(positions, self.num_rows, (self.seed, epoch))
        if self.part == "all":
            return positions
        offset = self._held_out if self.part == "train" else 0
        return shuffled(positions + offset, self._total, (self.seed, _SPLIT_KEY))

    def read(self, rows: NDArray[np.int64]) -> list[RawRow]:
        """Raw rows by number, in the order asked for."""
        starts = np.cumsum([0, *(store.num_rows for store in self.stores)])
        owner = np.searchsorted(starts, rows, side="right") - 1
        raw: list[RawRow | None] = [None] * len(rows)
        for index in np.unique(owner):
            where = np.flatnonzero(owner == index)
            for position, row in zip(where, self.stores[index].read(rows[where] - starts[index]), strict=True):
                raw[position] = row
        return [row for row in raw if row is not None]


@dataclass(frozen=True)
class WindowPlan:
    """All that a data task needs to make any window of any epoch."""

    row_set: RowSet
    encode: EncodeConfig
    packing: bool
    window_rows: int

    @property
    def num_windows(self) -> int:
        """Windows in an epoch."""
        return ceil(self.row_set.num_rows / self.window_rows)

    def make(self, epoch: int, window: int) -> Window:
        """Read, encode and pack one window."""
        begin = window * self.window_rows
        raw = self.row_set.read(self.row_set.rows_at(begin, begin + self.window_rows, epoch))
        readable = [row for row in raw if row.error is None]
        encoder = cached_encoder(json.dumps(asdict(self.encode)))
        results = iter(encoder.encode([row.value for row in readable]))
        counts: Counter[str] = Counter()
        encoded: list[EncodedRow] = []
        quarantined: list[Quarantined] = []
        for row in raw:
            result = row.error if row.error is not None else next(results)
            if isinstance(result, EncodedRow):
                counts["trained"] += 1
                encoded.append(result)
            elif isinstance(result, TooLong):
                counts[f"filtered: {result.reason}"] += 1
            else:
                counts[f"quarantined: {result.reason}"] += 1
                quarantined.append(_quarantine(row, result))
        rows = self._pack(encoded, len(raw), (self.row_set.seed, epoch, window, _BIN_KEY))
        return Window(tuple(rows), counts, tuple(quarantined))

    def _pack(self, encoded: Sequence[EncodedRow], num_raw: int, key: tuple[int, ...]) -> list[PackedRow]:
        lengths = [len(row.input_ids) for row in encoded]
        bins = pack(lengths, self.encode.max_length) if self.packing else [[i] for i in range(len(encoded))]
        if self.packing and self.row_set.shuffle:
            # Best-fit puts rows of a length together; in its own order whole batches would be of one length.
            bins = [bins[i] for i in shuffled(np.arange(len(bins)), len(bins), key)]
        rows = []
        for number, members in enumerate(bins):
            left_out = num_raw - len(encoded) if number == len(bins) - 1 else 0
            rows.append(
                PackedRow(
                    np.concatenate([encoded[i].input_ids for i in members]),
                    np.concatenate([encoded[i].trained for i in members]),
                    tuple(lengths[i] for i in members),
                    len(members) + left_out,
                )
            )
        return rows


def _quarantine(row: RawRow, bad: BadRow) -> Quarantined:
    text = row.text or json.dumps(row.value, ensure_ascii=False, default=str)
    return Quarantined(row.id, bad.reason, bad.detail, text)
