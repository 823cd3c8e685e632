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

TRAINED = "trained"
TRAINED_CUT = "trained, cut to data.max_length"
_BIN_KEY = 0xB145
_SPLIT_KEY = 0x5EED  # the order that divides training rows from held-out ones; no epoch number


@dataclass(frozen=True)
class PackedRow:
    """One row of a batch: several documents end to end.

    input_ids [T] int32 and trained [T] bool of all documents; lengths: tokens of each; num_source_rows: raw rows it
    accounts for, documents and rows that were left out alike, so that progress counts every raw row once; weights [T]
    float32: the loss weight of each trained token, None if all are 1; num_continued: documents that are a further
    piece of a raw row counted with its first; num_cut: documents whose raw row lost tokens to `data.max_length`.
    """

    input_ids: NDArray[np.int32]
    trained: NDArray[np.bool_]
    lengths: tuple[int, ...]
    num_source_rows: int
    weights: NDArray[np.float32] | None = None
    num_continued: int = 0
    num_cut: int = 0

    @property
    def counts(self) -> Counter[str]:
        """Raw rows that are trained with it, by outcome."""
        whole = len(self.lengths) - self.num_continued - self.num_cut
        return +Counter({TRAINED: whole, TRAINED_CUT: self.num_cut})


@dataclass(frozen=True)
class Quarantined:
    """A row that was left out for being bad."""

    id: str
    reason: str
    detail: str
    row: str


@dataclass(frozen=True)
class Window:
    """A packed window; `counts` says where raw rows went (`trained...`, `filtered: ...`, `quarantined: ...`)."""

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
        documents: list[EncodedRow] = []
        continued: list[bool] = []
        quarantined: list[Quarantined] = []
        for row in raw:
            result = row.error if row.error is not None else next(results)
            if isinstance(result, TooLong):
                counts[f"filtered: {result.reason}"] += 1
            elif isinstance(result, BadRow):
                counts[f"quarantined: {result.reason}"] += 1
                quarantined.append(_quarantine(row, result))
            else:
                documents += result
                continued += [False] + [True] * (len(result) - 1)
        rows = self._pack(documents, continued, counts.total(), (self.row_set.seed, epoch, window, _BIN_KEY))
        counts.update(sum((row.counts for row in rows), Counter()))
        return Window(tuple(rows), counts, tuple(quarantined))

    def _pack(
        self, documents: Sequence[EncodedRow], continued: Sequence[bool], num_left_out: int, key: tuple[int, ...]
    ) -> list[PackedRow]:
        lengths = [len(document.input_ids) for document in documents]
        bins = pack(lengths, self.encode.max_length) if self.packing else [[i] for i in range(len(documents))]
        if self.packing and self.row_set.shuffle:
            # Best-fit puts rows of a length together; in its own order whole batches would be of one length.
            bins = [bins[i] for i in shuffled(np.arange(len(bins)), len(bins), key)]
        rows = []
        for number, members in enumerate(bins):
            num_continued = sum(continued[i] for i in members)
            left_out = num_left_out if number == len(bins) - 1 else 0
            rows.append(
                PackedRow(
                    np.concatenate([documents[i].input_ids for i in members]),
                    np.concatenate([documents[i].trained for i in members]),
                    tuple(lengths[i] for i in members),
                    len(members) - num_continued + left_out,
                    _weights([documents[i] for i in members]),
                    num_continued,
                    sum(documents[i].cut for i in members),
                )
            )
        return rows


def _weights(documents: Sequence[EncodedRow]) -> NDArray[np.float32] | None:
    if all(document.weights is None for document in documents):
        return None
    ones = [np.ones(len(document.input_ids), np.float32) for document in documents]
    return np.concatenate([one if d.weights is None else d.weights for one, d in zip(ones, documents, strict=True)])


def _quarantine(row: RawRow, bad: BadRow) -> Quarantined:
    text = row.text or json.dumps(row.value, ensure_ascii=False, default=str)
    return Quarantined(row.id, bad.reason, bad.detail, text)
