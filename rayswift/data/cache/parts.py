"""Packed windows on disk: encoded once by `rayswift data encode`, read by any number of runs.

    PATH/manifest.json                       written last; without it the folder is not a cache
    PATH/train/part-00000.parquet            one row per packed row, one row group per window with rows
    PATH/train/part-00000.quarantine.jsonl   bad rows, if there are any
    PATH/eval/...                            the same for evaluation rows

The first `num_epochs` epochs equal those of a run without a cache, row for row. Later epochs read them again, with the
windows in a new order (the last one, which may be short, stays last) and the packed rows of each window in a new order.
"""

import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rayswift.data.sequence.order import shuffled
from rayswift.data.sequence.windows import PackedRow, Quarantined, Window, WindowPlan
from rayswift.log import UserError

MANIFEST = "manifest.json"
FORMAT = 4  # increased when the files change, or when a row is encoded to other tokens
_FOOTER = b"rayswift"
_WINDOW_KEY, _ROW_KEY = 0xCAC4E, 0xCAC4F
_OPEN_PARTS = 64
# The fields of `PackedRow`, in order; a test checks that none is missing.
SCHEMA = pa.schema(
    [
        pa.field("input_ids", pa.list_(pa.int32())),
        pa.field("trained", pa.list_(pa.bool_())),
        pa.field("lengths", pa.list_(pa.int32())),
        pa.field("num_source_rows", pa.int32()),
        pa.field("weights", pa.list_(pa.float32())),
        pa.field("num_continued", pa.int32()),
        pa.field("num_cut", pa.int32()),
        pa.field("ids", pa.list_(pa.string())),
        pa.field("numbers", pa.map_(pa.string(), pa.float64())),
        pa.field("record", pa.string()),
    ]
)


@dataclass(frozen=True)
class PartSummary:
    """The contents of a part, or of all parts of a cache."""

    file: str
    num_bytes: int
    counts: dict[str, int]
    num_packed_rows: int
    num_tokens: int
    num_trained_tokens: int


@dataclass(frozen=True)
class PartWriter:
    """Writes any part of a cache; `digest`: hash of the cache's ingredients, stored in each part."""

    plan: WindowPlan
    folder: str
    digest: str
    num_epochs: int
    windows_per_part: int

    @property
    def num_parts(self) -> int:
        """Parts of all epochs."""
        return -(-self.plan.num_windows * self.num_epochs // self.windows_per_part)

    def __call__(self, part: int) -> PartSummary:
        """Write a part, or keep a complete one; a part gets its name only when it is complete."""
        path = Path(self.folder) / f"part-{part:05d}.parquet"
        try:
            footer = _footer(pq.read_metadata(path))
        except (OSError, pa.ArrowException, KeyError):
            return self._write(part, path)
        if footer["digest"] != self.digest:
            return self._write(part, path)
        return PartSummary(path.name, path.stat().st_size, *footer["totals"])

    def _write(self, part: int, path: Path) -> PartSummary:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
        quarantine = path.with_suffix(".quarantine.jsonl")
        windows: list[dict[str, Any]] = []
        counts: Counter[str] = Counter()
        num_rows = num_tokens = num_trained = 0
        row_groups, left_out = 0, []
        with pq.ParquetWriter(partial, SCHEMA, compression="zstd") as writer:
            first, num_windows = part * self.windows_per_part, self.plan.num_windows
            for number in range(first, min(first + self.windows_per_part, num_windows * self.num_epochs)):
                window = self.plan.make(*divmod(number, num_windows))
                windows.append({"row_group": row_groups if window.rows else None, "counts": dict(window.counts)})
                if window.rows:
                    writer.write_table(_table(window.rows), row_group_size=len(window.rows))
                    row_groups += 1
                left_out += [{"window": len(windows) - 1, **asdict(row)} for row in window.quarantined]
                counts.update(window.counts)
                num_rows += len(window.rows)
                num_tokens += sum(len(row.input_ids) for row in window.rows)
                num_trained += sum(int(row.trained.sum()) for row in window.rows)
            totals = (dict(counts), num_rows, num_tokens, num_trained)
            footer = {"digest": self.digest, "windows": windows, "totals": totals}
            writer.add_key_value_metadata({_FOOTER.decode(): json.dumps(footer)})
        quarantine.unlink(missing_ok=True)
        if left_out:
            quarantine.write_text("".join(json.dumps(row) + "\n" for row in left_out), encoding="utf-8")
        partial.replace(path)
        return PartSummary(path.name, path.stat().st_size, *totals)


def _table(rows: Sequence[PackedRow]) -> pa.Table:
    columns = [pa.array([getattr(row, field.name) for row in rows], field.type) for field in SCHEMA]
    return pa.table(columns, schema=SCHEMA)


@dataclass(frozen=True)
class CachedWindows:
    """The windows of a cache, in place of a `WindowPlan`; num_rows: raw rows of an epoch; num_epochs: stored epochs."""

    folder: str
    num_rows: int
    window_rows: int
    num_windows: int
    num_epochs: int
    windows_per_part: int
    seed: int
    shuffle: bool
    tokenizer_hash: str

    def make(self, epoch: int, window: int) -> Window:
        """Read one window."""
        stored_epoch, again = epoch % self.num_epochs, epoch >= self.num_epochs and self.shuffle
        if again and window < self.num_windows - 1:
            full = self.num_windows - 1
            window = int(shuffled(np.array([window]), full, (self.seed, epoch, _WINDOW_KEY))[0])
        part, within = divmod(stored_epoch * self.num_windows + window, self.windows_per_part)
        path = Path(self.folder) / f"part-{part:05d}.parquet"
        try:
            file, entries = _open_part(str(path), path.stat().st_mtime_ns)
            entry = entries[within]
            group = entry["row_group"]
            rows = [] if group is None else _packed_rows(file.read_row_group(group, use_threads=False))
        except (OSError, pa.ArrowException, KeyError, IndexError) as error:
            raise UserError(f"data.cache: cannot read {path}: {error}; encode it again", exit_code=1) from error
        if again:
            key = (self.seed, epoch, window, _ROW_KEY)
            rows = [rows[i] for i in shuffled(np.arange(len(rows)), len(rows), key)]
        bad = any(outcome.startswith("quarantined") for outcome in entry["counts"])
        quarantined = _quarantined(path.with_suffix(".quarantine.jsonl"), within) if bad else ()
        return Window(tuple(rows), Counter(entry["counts"]), quarantined)


@lru_cache(_OPEN_PARTS)
def _open_part(path: str, mtime_ns: int) -> tuple[pq.ParquetFile, list[dict[str, Any]]]:
    """A part, and an entry for each of its windows; the time of the file distinguishes a part that is written again."""
    file = pq.ParquetFile(path, memory_map=True)
    return file, _footer(file.metadata)["windows"]


def _footer(metadata: pq.FileMetaData) -> dict[str, Any]:
    return json.loads((metadata.metadata or {})[_FOOTER])


def _packed_rows(table: pa.Table) -> list[PackedRow]:
    columns: dict[str, list[Any]] = {}
    for field in SCHEMA:
        array = table[field.name].combine_chunks()
        is_list = pa.types.is_list(field.type)
        columns[field.name] = list(array.to_numpy(zero_copy_only=False)) if is_list else array.to_pylist()
    for name in ("lengths", "ids"):
        columns[name] = [tuple(values.tolist()) for values in columns[name]]
    columns["numbers"] = [tuple(values) for values in columns["numbers"]]
    names = [field.name for field in fields(PackedRow)]
    return [PackedRow(*values) for values in zip(*(columns[name] for name in names), strict=True)]


def _quarantined(path: Path, window: int) -> tuple[Quarantined, ...]:
    with open(path, encoding="utf-8") as file:
        entries = [json.loads(line) for line in file]
    return tuple(
        Quarantined(entry["id"], entry["reason"], entry["detail"], entry["row"])
        for entry in entries
        if entry["window"] == window
    )
