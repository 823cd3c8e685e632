"""Opening sources: each file by the kind that its suffix names, each source as one store.

Indices and copies go to a work folder that every data task reads.
"""

import csv
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow as pa

from rayswift import __version__
from rayswift.data.sources import json_values
from rayswift.data.sources.arrow import open_arrow, open_parquet
from rayswift.data.sources.csv_rows import open_csv
from rayswift.data.sources.find import CODECS, SUFFIXES, SourceFile, find_files, parse_source
from rayswift.data.sources.hub import open_hub
from rayswift.data.sources.lines import open_lines
from rayswift.data.sources.store import Concatenated, Store, View
from rayswift.log import UserError, logger

_SAMPLE_KEY = 0x5A3E
_SLOW_BYTES = 1 << 29

Opener = Callable[[str, Path, Path], Store]


def _open_json(name: str, path: Path, work: Path) -> Store:
    if json_values.holds_lines(path):
        return open_lines(name, path, work, "jsonl")
    return json_values.open_values(name, path, work)


_KINDS: dict[str, Opener] = {
    ".jsonl": lambda name, path, work: open_lines(name, path, work, "jsonl"),
    ".json": _open_json,
    ".csv": lambda name, path, work: open_csv(name, path, work, ","),
    ".tsv": lambda name, path, work: open_csv(name, path, work, "\t"),
    ".parquet": open_parquet,
    ".txt": lambda name, path, work: open_lines(name, path, work, "text"),
    ".arrow": open_arrow,
}
assert tuple(_KINDS) == SUFFIXES
# Kinds that read the brought file itself later, rather than a copy of their own making.
_READ_IN_PLACE = (".jsonl", ".json", ".txt", ".arrow")


def open_sources(sources: Sequence[str], work_dir: Path, seed: int = 0) -> tuple[Store, ...]:
    """Open every source of a `data.dataset` list.

    Args:
        sources: Files, folders, globs, URLs or hub ids; `#N` behind one takes N of its rows.
        work_dir: Where indices and copies go; read by all data tasks.
        seed: Chooses the rows that `#N` takes.

    Returns:
        One store for each source.

    Raises:
        UserError: a source is missing, empty, unreadable or of an unknown kind.
    """
    work_dir.mkdir(parents=True, exist_ok=True)
    return tuple(_open_source(source, work_dir / str(i), (seed, _SAMPLE_KEY, i)) for i, source in enumerate(sources))


def _open_source(source: str, work: Path, key: tuple[int, ...]) -> Store:
    name = parse_source(source)
    files = find_files(name.path)
    if files:
        stores = [_open_file(file, work.with_name(f"{work.name}-{i}")) for i, file in enumerate(files)]
        store = stores[0] if len(stores) == 1 else Concatenated(tuple(stores))
    else:
        store = open_hub(name.path, work)
    return store if name.num_rows is None else View(store, key, 0, name.num_rows)


def _open_file(file: SourceFile, work: Path) -> Store:
    if file.suffix not in _KINDS:
        known = ", ".join(SUFFIXES)
        raise UserError(
            f"data.dataset: {file.name}: unknown kind of file; known are {known}, and these with {', '.join(CODECS)}"
        )
    if file.size_bytes == 0:
        raise UserError(f"data.dataset: {file.name} is empty; give a file with rows, or leave it out")
    record, identity = work.with_suffix(".store"), (__version__, file.name, file.size_bytes, file.modified_ns)
    kept = _kept(record, identity)
    if kept is not None:
        return kept
    if file.size_bytes > _SLOW_BYTES and not (file.lies_here and file.suffix in _READ_IN_PLACE):
        logger.info("copying %s (%.1f GiB) to %s, once for this run", file.name, file.size_bytes / 2**30, work.parent)
    try:
        path = file.bring(work.with_suffix(f".brought{file.suffix}"))
        store = _KINDS[file.suffix](file.name, path, work)
    except (OSError, pa.ArrowException, csv.Error) as error:
        raise UserError(f"data.dataset: cannot read {file.name}: {error}") from error
    if not file.lies_here and file.suffix not in _READ_IN_PLACE:
        path.unlink()
    partial = record.with_suffix(".partial")
    partial.write_bytes(pickle.dumps((identity, store)))
    partial.replace(record)
    return store


def _kept(record: Path, identity: tuple[object, ...]) -> Store | None:
    """The store that an earlier launch made of the same file, so that a continued run copies nothing again."""
    if not record.exists():
        return None
    was, store = pickle.loads(record.read_bytes())
    return store if was == identity and all(Path(path).exists() for path in store.files) else None
