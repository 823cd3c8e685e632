"""Stores: every source becomes numbered rows that are read in any order.

A store is a small frozen value. Data tasks receive it with their plan and map its files themselves.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from rayswift.data.rows import BadRow
from rayswift.data.sequence.order import repeated

# A longer row would fill the memory of a data task; it is quarantined without being read.
MAX_ROW_BYTES = 1 << 24
_EXCERPT_BYTES = 2000
_SPLIT_KEY = 0x5EED  # key of the order that divides training rows from held-out rows

Rows = Sequence[int] | NDArray[np.int64]


@dataclass(frozen=True)
class RawRow:
    """A row of a source: its `value`, or the `error` of reading it; `id` is `source:line`, `text` the row as text.

    source: number of its source in the `RowSet` that it was read from.
    """

    id: str
    value: Any = None
    error: BadRow | None = None
    text: str = ""
    source: int = 0


class Store(Protocol):
    """Numbered rows of one source."""

    @property
    def num_rows(self) -> int:
        """Number of rows; the first is row 0."""

    @property
    def files(self) -> tuple[str, ...]:
        """The local files it reads."""

    def read(self, rows: Rows) -> list[RawRow]:
        """Rows by number, in the order asked for."""


def read_parts(
    rows: Rows, starts: NDArray[np.int64], read: Callable[[int, NDArray[np.int64]], Sequence[RawRow]]
) -> list[RawRow]:
    """Rows by number from several parts, in the order asked for.

    starts: the number of the first row of each part; read: (part, numbers within it) -> its rows.
    """
    numbers = np.asarray(rows, np.int64)
    parts = np.searchsorted(starts, numbers, side="right") - 1
    raw: dict[int, RawRow] = {}
    for part in np.unique(parts).tolist():
        where = np.flatnonzero(parts == part)
        raw.update(zip(where.tolist(), read(part, numbers[where] - starts[part]), strict=True))
    return [raw[position] for position in range(len(numbers))]


@dataclass(frozen=True)
class Concatenated:
    """Rows of all stores, one store after the other."""

    stores: tuple[Store, ...]

    @property
    def num_rows(self) -> int:
        return sum(store.num_rows for store in self.stores)

    @property
    def files(self) -> tuple[str, ...]:
        return tuple(file for store in self.stores for file in store.files)

    def read(self, rows: Rows) -> list[RawRow]:
        starts = np.cumsum([0, *(store.num_rows for store in self.stores)])
        return read_parts(rows, starts, lambda part, within: self.stores[part].read(within))


@dataclass(frozen=True)
class View:
    """`num_rows` rows of a store from position `begin` on, in the shuffled order of `key`; key None: in its own order.

    Beyond the store's size its rows repeat; with a key, each pass has its own order.
    """

    store: Store
    key: tuple[int, ...] | None
    begin: int
    num_rows: int

    @property
    def files(self) -> tuple[str, ...]:
        return self.store.files

    def read(self, rows: Rows) -> list[RawRow]:
        positions = self.begin + np.asarray(rows, np.int64)
        if self.key is None:
            return self.store.read(positions % self.store.num_rows)
        return self.store.read(repeated(positions, self.store.num_rows, self.key))


def hold_out(
    stores: Sequence[Store], fraction: float, seed: int, shuffle: bool = True
) -> tuple[tuple[Store, ...], tuple[Store, ...]]:
    """Divide each store into rows to train and rows to hold out; `round(fraction x all rows)` are held out in all.

    Each store gives its share: rows that the seed chooses, or without `shuffle` its last rows.

    Returns:
        (stores to train, stores held out), with one of each for each store; a store may be empty.
    """
    sizes = np.array([store.num_rows for store in stores])
    shares = sizes * fraction
    held_out = np.floor(shares).astype(int)
    for index in np.argsort(held_out - shares, kind="stable")[: round(sizes.sum() * fraction) - held_out.sum()]:
        held_out[index] += 1
    train, held = [], []
    for i, (store, size, n) in enumerate(zip(stores, sizes.tolist(), held_out.tolist(), strict=True)):
        key = (seed, _SPLIT_KEY, i) if shuffle else None
        train.append(View(store, key, n if shuffle else 0, size - n))
        held.append(View(store, key, 0 if shuffle else size - n, n))
    return tuple(train), tuple(held)


def parse_json(line: bytes, row_id: str) -> RawRow:
    """The row that a JSON text holds, or the error of parsing it."""
    text = line.decode("utf-8", errors="replace")
    try:
        text = line.decode("utf-8").lstrip("\ufeff").rstrip("\r")
        return RawRow(row_id, _DECODER.decode(text), text=text)
    except UnicodeDecodeError as error:
        return RawRow(row_id, error=BadRow("invalid UTF-8", str(error)), text=text)
    except BadRow as error:
        return RawRow(row_id, error=error, text=text)
    except (ValueError, RecursionError) as error:  # JSONDecodeError, or an integer of thousands of digits
        return RawRow(row_id, error=BadRow("malformed JSON", str(error)), text=text)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise BadRow("duplicate keys", f"an object has the key {twice!r} more than once")
    return value


_DECODER = json.JSONDecoder(object_pairs_hook=_unique)


def too_large(row_id: str, num_bytes: int, start: bytes) -> RawRow:
    """The bad row for a row beyond `MAX_ROW_BYTES`; `start` is its beginning, kept as text."""
    text = start[:_EXCERPT_BYTES].decode("utf-8", errors="replace")
    limit = f"row over {MAX_ROW_BYTES >> 20} MiB"
    return RawRow(row_id, error=BadRow(limit, f"{num_bytes:,} bytes; only its beginning is kept"), text=f"{text}...")
