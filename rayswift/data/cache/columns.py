"""Columns computed from the raw rows, once: reference log-probabilities for DPO, scores, ...

    columns = compute(rows, function, folder, {"model": model_hash, ...}, partial(make_in_order, num_actors=4))
    columns.read(numbers, ids) -> {"chosen_logps": [...], ...}

Values are keyed by the row's number in its `RowSet`, and its id is compared with the one it was computed for. Parts are
written as they come, so an interrupted computation goes on behind them, each row computed into exactly one part; the
manifest is written last; a folder made from other ingredients is refused.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from rayswift.data.sequence.windows import RowSet
from rayswift.data.sources import RawRow
from rayswift.log import UserError

MANIFEST = "manifest.json"
_VALUES = "values.arrow"
_DIGEST = b"rayswift"
_ID = "id"

RowFunction = Callable[[Sequence[RawRow]], Mapping[str, Sequence[Any]]]
"""Raw rows, those with an `error` included -> one value (or None) per row for each column it computes."""


@dataclass(frozen=True)
class PartWriter:
    """Computes and writes any part: rows [part * part_rows, (part + 1) * part_rows)."""

    rows: RowSet
    function: RowFunction
    folder: str
    digest: str
    part_rows: int

    @property
    def num_rows(self) -> int:
        """Rows of all stores, whatever an epoch takes of them."""
        return sum(store.num_rows for store in self.rows.stores)

    @property
    def num_parts(self) -> int:
        """Parts in all."""
        return -(-self.num_rows // self.part_rows)

    def path(self, part: int) -> Path:
        """Where a part is written."""
        return Path(self.folder) / f"part-{part:05d}.parquet"

    def __call__(self, part: int) -> int:
        """Write a part under its name when it is complete, or leave the one that is there; returns its number."""
        path = self.path(part)
        if not self._is_finished(path):
            begin = part * self.part_rows
            raw = self.rows.read(np.arange(begin, min(begin + self.part_rows, self.num_rows)))
            table = _table(raw, self.function(raw)).replace_schema_metadata({_DIGEST: self.digest.encode()})
            partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
            pq.write_table(table, partial, compression="zstd")
            partial.replace(path)
        return part

    def _is_finished(self, path: Path) -> bool:
        try:
            metadata = pq.read_metadata(path).metadata or {}
        except (OSError, pa.ArrowException):
            return False
        return bool(metadata.get(_DIGEST) == self.digest.encode())


WriteParts = Callable[[PartWriter, range], Iterator[int]]
"""(writer, part numbers) -> the numbers again, each once its part is written."""


def _table(raw: Sequence[RawRow], columns: Mapping[str, Sequence[Any]]) -> pa.Table:
    for name, values in columns.items():
        if len(values) != len(raw):
            raise UserError(f"computed column {name!r} has {len(values)} values for {len(raw)} rows", exit_code=1)
    if not columns or _ID in columns:
        raise UserError(
            f"computed columns {sorted(columns)}: one or more is wanted, and none named {_ID!r}", exit_code=1
        )
    return pa.table({_ID: [row.id for row in raw], **{name: pa.array(values) for name, values in columns.items()}})


@dataclass(frozen=True)
class ComputedColumns:
    """Computed values, read from a memory map: any row in any order."""

    folder: str
    num_rows: int
    names: tuple[str, ...]

    def read(self, numbers: NDArray[np.int64] | Sequence[int], ids: Sequence[str]) -> dict[str, list[Any]]:
        """Values of rows by number, in the order asked for."""
        path = str(Path(self.folder) / _VALUES)
        table = _mapped(path, os.stat(path).st_mtime_ns).take(pa.array(np.asarray(numbers, np.int64)))
        for number, was, now in zip(numbers, table[_ID].to_pylist(), ids, strict=True):
            if was != now:
                raise UserError(f"{self.folder}: row {number} was {was} when it was computed, is {now}", exit_code=1)
        return {name: table[name].to_pylist() for name in self.names}


@lru_cache(8)
def _mapped(path: str, mtime_ns: int) -> pa.Table:
    return pa.ipc.open_file(pa.memory_map(path)).read_all()


def compute(
    rows: RowSet,
    function: RowFunction,
    folder: Path,
    ingredients: Mapping[str, Any],
    write_parts: WriteParts,
    part_rows: int = 1024,
) -> ComputedColumns:
    """The columns of all rows: those in the folder if they are complete, else computed, from where a start left off.

    Args:
        rows: The rows; the order of epochs plays no part.
        function: Computes the columns of some rows; goes to other processes, so what is large it loads there, once.
        folder: Where they are kept.
        ingredients: JSON values that decide the columns: fingerprint of the sources, hash of the model, settings.
        write_parts: Runs a writer over part numbers, in data tasks or here.
        part_rows: Rows that are computed and written together.

    Raises:
        UserError: the folder holds columns of other ingredients, or the function's values do not fit its rows.
    """
    described = json.loads(json.dumps({"part_rows": part_rows, **ingredients}))
    digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:16]
    writer = PartWriter(rows, function, str(folder / "parts"), digest, part_rows)
    if not (folder / MANIFEST).exists():
        (folder / "parts").mkdir(parents=True, exist_ok=True)
        for _ in write_parts(writer, range(writer.num_parts)):
            continue
        names = _join(writer, folder / _VALUES)
        manifest = {"ingredients": described, "num_rows": writer.num_rows, "names": names}
        partial = folder / f"{MANIFEST}.partial"
        partial.write_text(json.dumps(manifest), encoding="utf-8")
        partial.replace(folder / MANIFEST)
        shutil.rmtree(folder / "parts")
    return open_columns(folder, described)


def open_columns(folder: Path, ingredients: Mapping[str, Any]) -> ComputedColumns:
    """Finished columns."""
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    was = manifest["ingredients"]
    lines = [
        f"  {name}: was {was.get(name)!r}, is {ingredients.get(name)!r}"
        for name in sorted({*was, *ingredients})
        if was.get(name) != ingredients.get(name)
    ]
    if lines:
        raise UserError("\n".join([f"{folder} holds columns computed from something else; delete it:", *lines]))
    return ComputedColumns(str(folder), manifest["num_rows"], tuple(manifest["names"]))


def _join(writer: PartWriter, path: Path) -> list[str]:
    """All parts, in order, as one Arrow file; returns the names of the columns."""
    paths = [writer.path(part) for part in range(writer.num_parts)]
    try:
        # A column without a value in some part has no type there.
        schema = pa.unify_schemas([pq.read_schema(p).remove_metadata() for p in paths])
    except pa.ArrowException as error:
        raise UserError(f"computed columns differ in type from row to row: {error}", exit_code=1) from error
    partial = path.with_suffix(".partial")
    with pa.OSFile(str(partial), "wb") as sink, pa.ipc.new_file(sink, schema) as file:
        for each in paths:
            table = pq.read_table(each)
            missing = sorted({*schema.names} - {*table.column_names})
            if missing:
                raise UserError(f"computed column {missing[0]!r} is missing for some rows; give None", exit_code=1)
            file.write_table(table.select(schema.names).cast(schema))
    partial.replace(path)
    return [name for name in schema.names if name != _ID]
