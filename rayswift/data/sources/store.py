"""What every source becomes: a store of numbered rows, read in any order; and views of stores.

Stores are small frozen values: a data task gets them with its plan and maps files and indices itself.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from rayswift.data.rows import BadRow
from rayswift.data.sequence.order import repeated

# A longer row would fill a data task's memory once it is parsed and tokenised; it is quarantined unread.
MAX_ROW_BYTES = 1 << 24
_EXCERPT_BYTES = 2000
_SPLIT_KEY = 0x5EED  # the order that divides training rows from held-out ones; no epoch number

Rows = Sequence[int] | NDArray[np.int64]


@dataclass(frozen=True)
class RawRow:
    """A row as it stands in its source: its `value` or the `error` of reading it; `id` is `source:line`.

    source: number of its source in the set of rows that it was read from.
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
        """Rows from 0 to this."""

    @property
    def files(self) -> tuple[str, ...]:
        """The local files it reads."""

    def read(self, rows: Rows) -> list[RawRow]:
        """Read rows by number, in the order asked for."""


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
        numbers = np.asarray(rows, np.int64)
        starts = np.cumsum([0, *(store.num_rows for store in self.stores)])
        owner = np.searchsorted(starts, numbers, side="right") - 1
        raw: list[RawRow | None] = [None] * len(numbers)
        for index in np.unique(owner):
            where = np.flatnonzero(owner == index)
            for position, row in zip(where, self.stores[index].read(numbers[where] - starts[index]), strict=True):
                raw[position] = row
        return [row for row in raw if row is not None]


@dataclass(frozen=True)
class View:
    """`num_rows` rows of a store from position `begin` on, in the shuffled order of it that `key` names, or its own.

    Beyond the store's size its rows come again, each pass in an order of its own where it is shuffled.
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
    """Divide stores into rows to train and `round(fraction x all rows)` rows held out.

    Each store gives its share, so that both parts hold the sources in the same proportions: rows that the seed
    chooses, or without `shuffle` its last ones.

    Returns:
        (stores to train, stores held out), one of each for each store; either may be empty.
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
    """The row that a JSON text holds, or why it holds none."""
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
    """A row beyond `MAX_ROW_BYTES`, with only its beginning as text."""
    text = start[:_EXCERPT_BYTES].decode("utf-8", errors="replace")
    limit = f"row over {MAX_ROW_BYTES >> 20} MiB"
    return RawRow(row_id, error=BadRow(limit, f"{num_bytes:,} bytes; its beginning is kept here"), text=f"{text}...")
