"""Columns that are computed once from the raw rows, such as reference log-probabilities for DPO.

    columns = compute(rows, function, folder, {"model": model_hash, ...}, partial(make_in_order, num_actors=4))
    columns.read(numbers, ids) -> {"chosen_logps": [...], ...}

The key of a value is the row's number in its `RowSet`; the row's id is compared when the value is read. The columns are
written in parts, so an interrupted computation continues after the finished parts. The manifest is written last. A
folder with other ingredients is refused.
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

from rayswift.data.cache.fingerprint import changes
from rayswift.data.filesystem import write_whole
from rayswift.data.sequence.windows import RowSet
from rayswift.data.sources import RawRow
from rayswift.log import UserError

MANIFEST = "manifest.json"
_VALUES = "values.arrow"
_DIGEST = b"rayswift"
_ID = "id"

RowFunction = Callable[[Sequence[RawRow]], Mapping[str, Sequence[Any]]]
"""Raw rows, including those with an `error` -> for each computed column one value (or None) per row."""


@dataclass(frozen=True)
class PartWriter:
    """Computes and writes a part: rows [part * part_rows, (part + 1) * part_rows)."""

    rows: RowSet
    function: RowFunction
    folder: str
    digest: str
    part_rows: int

    @property
    def num_rows(self) -> int:
        """Rows of all stores, also if an epoch does not use all of them."""
        return sum(store.num_rows for store in self.rows.stores)

    @property
    def num_parts(self) -> int:
        """Number of parts."""
        return -(-self.num_rows // self.part_rows)

    def path(self, part: int) -> Path:
        """The path of a part."""
        return Path(self.folder) / f"part-{part:05d}.parquet"

    def __call__(self, part: int) -> int:
        """Write a part, or keep a complete one; returns its number."""
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
            return (pq.read_metadata(path).metadata or {}).get(_DIGEST) == self.digest.encode()
        except (OSError, pa.ArrowException):
            return False


WriteParts = Callable[[PartWriter, range], Iterator[int]]
"""(writer, part numbers) -> the same numbers, each once its part is written."""


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
    """Computed values, read from a memory map in any order."""

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
    """The columns of all rows: complete ones in the folder, otherwise computed, after the parts that are there.

    Args:
        rows: The rows; the order of epochs does not matter.
        function: Computes the columns of some rows. It is sent to other processes, so it loads a model there, once.
        folder: Folder of the columns.
        ingredients: JSON values that decide the columns: fingerprint of the sources, hash of the model, settings.
        write_parts: Runs a writer over part numbers, in data tasks or in this process.
        part_rows: Rows that are computed and written together.
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
        write_whole(folder / MANIFEST, json.dumps(manifest))
        shutil.rmtree(folder / "parts")
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    if lines := changes(manifest["ingredients"], described):
        raise UserError("\n  ".join([f"{folder} holds columns computed from something else; delete it:", *lines]))
    return ComputedColumns(str(folder), manifest["num_rows"], tuple(manifest["names"]))


def _join(writer: PartWriter, path: Path) -> list[str]:
    """Join all parts, in order, to one Arrow file; returns the names of the columns."""
    paths = [writer.path(part) for part in range(writer.num_parts)]
    try:
        # In a part where all values of a column are None, the column has no type.
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
