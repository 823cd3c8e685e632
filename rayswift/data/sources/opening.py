"""Opening sources: each file by the kind that its suffix names, each source as one store.

Indices and copies go to a work folder that every data task reads.
"""

import csv
import pickle
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pyarrow as pa

from rayswift import __version__
from rayswift.config.fields.source import SourceConfig
from rayswift.data.rows import is_read
from rayswift.data.sources import json_values
from rayswift.data.sources.arrow import ArrowStore, open_arrow, open_parquet
from rayswift.data.sources.csv_rows import open_csv
from rayswift.data.sources.encodings import as_utf8
from rayswift.data.sources.find import SourceFile, find
from rayswift.data.sources.hub import open_hub
from rayswift.data.sources.lines import open_lines
from rayswift.data.sources.named import CODECS, SUFFIXES, Source, parse_source
from rayswift.data.sources.store import Concatenated, Store, View
from rayswift.log import UserError, logger

_SAMPLE_KEY = 0x5A3E
_SLOW_BYTES = 1 << 29
_NAMED_FILES = 5

Opener = Callable[[str, Path, Path], Store]


@dataclass(frozen=True)
class _How:
    """How a file is read; split, held_out: which of several lists that a JSON file holds is wanted."""

    encoding: str | None
    split: str | None
    held_out: bool


def _open_json(name: str, path: Path, work: Path, how: _How, is_jsonl: bool = False) -> Store:
    if not how.split and json_values.holds_lines(path, is_jsonl):
        return open_lines(name, path, work, "jsonl")
    return json_values.open_values(name, path, work, how.split, how.held_out)


def _opener(suffix: str, how: _How) -> Opener:
    """What opens a file of a kind."""
    kinds: dict[str, Opener] = {
        ".jsonl": lambda name, path, work: _open_json(name, path, work, how, is_jsonl=True),
        ".json": lambda name, path, work: _open_json(name, path, work, how),
        ".csv": lambda name, path, work: open_csv(name, path, work, ","),
        ".tsv": lambda name, path, work: open_csv(name, path, work, "\t"),
        ".parquet": open_parquet,
        ".txt": lambda name, path, work: open_lines(name, path, work, "text"),
        ".arrow": open_arrow,
    }
    assert tuple(kinds) == SUFFIXES
    return kinds[suffix]


# Kinds that read the brought file itself later, rather than a copy of their own making.
_READ_IN_PLACE = (".jsonl", ".json", ".txt", ".arrow")


_WITH_SPLITS = (".json", ".jsonl")


def open_sources(
    sources: Sequence[str | SourceConfig],
    work_dir: Path,
    seed: int = 0,
    held_out: bool = False,
    shuffle: bool = True,
    columns: Mapping[str, str] | None = None,
) -> tuple[Store, ...]:
    """Open every source of a `data.dataset` or `data.eval` list.

    Args:
        sources: Files, folders, globs, URLs or hub ids; `#N` behind one takes N of its rows.
        work_dir: Where indices and copies go; read by all data tasks.
        seed: Chooses the rows that `#N` takes.
        held_out: Whether they are to evaluate on: of several splits the validation or test split is taken.
        shuffle: Whether the seed chooses; else `#N` takes the first rows.
        columns: `data.columns`, where the columns that no family of rows knows are read by nobody.

    Returns:
        One store for each source.

    Raises:
        UserError: a source is missing, empty, unreadable or of an unknown kind.
    """
    work_dir.mkdir(parents=True, exist_ok=True)
    stores = []
    for i, given in enumerate(sources):
        try:
            source = parse_source(given)
            store = _open_source(source, work_dir / str(i), held_out)
            if columns is not None:
                store = _without_unread(store, columns if source.columns is None else source.columns)
        except UserError as error:
            # Which of the two lists names a source is known here alone.
            field = "data.eval" if held_out else "data.dataset"
            raise UserError(str(error).replace("data.dataset", field), error.exit_code) from error
        if source.num_rows is not None:
            store = View(store, (seed, _SAMPLE_KEY, i) if shuffle else None, 0, source.num_rows)
        stores.append(store)
    return tuple(stores)


def _without_unread(store: Store, columns: Mapping[str, str]) -> Store:
    if isinstance(store, Concatenated):
        return Concatenated(tuple(_without_unread(each, columns) for each in store.stores))
    return store.without(partial(is_read, columns=columns)) if isinstance(store, ArrowStore) else store


def _open_source(source: Source, work: Path, held_out: bool) -> Store:
    found = find(source, held_out)
    if found.by_hub:
        return open_hub(source, work, held_out)
    if found.left:
        names = ", ".join(found.left[:_NAMED_FILES]) + (", ..." if len(found.left) > _NAMED_FILES else "")
        taken = f"split {found.split}, " if found.split else ""
        logger.info("%s: %s%d files; left out are %d: %s", source.path, taken, len(found.files), len(found.left), names)
    # A folder's split is a choice of its files; a file's own is inside it.
    how = _How(source.encoding, None if found.in_folder else source.split, held_out)
    stores = [_open_file(file, work.with_name(f"{work.name}-{i}"), how) for i, file in enumerate(found.files)]
    return stores[0] if len(stores) == 1 else Concatenated(tuple(stores))


def _open_file(file: SourceFile, work: Path, how: _How) -> Store:
    if file.suffix not in SUFFIXES:
        known = ", ".join(SUFFIXES)
        raise UserError(
            f"data.dataset: {file.name}: unknown kind of file; known are {known}, and these with {', '.join(CODECS)}"
        )
    if how.split and file.suffix not in _WITH_SPLITS:
        raise UserError(f"data.dataset: {file.name} has no splits; leave split {how.split} out")
    if file.size_bytes == 0:
        raise UserError(f"data.dataset: {file.name} is empty; give a file with rows, or leave it out")
    record = work.with_suffix(".store")
    identity = (__version__, file.name, file.size_bytes, file.modified_ns, how)
    kept = _kept(record, identity)
    if kept is not None:
        return kept
    if file.size_bytes > _SLOW_BYTES and not (file.lies_here and file.suffix in _READ_IN_PLACE):
        logger.info("copying %s (%.1f GiB) to %s, once for this run", file.name, file.size_bytes / 2**30, work.parent)
    try:
        brought = file.bring(work.with_suffix(f".brought{file.suffix}"))
        path = as_utf8(file.name, brought, work.with_suffix(f".utf8{file.suffix}"), file.suffix, how.encoding)
        store = _opener(file.suffix, how)(file.name, path, work)
    except (OSError, pa.ArrowException, csv.Error) as error:
        raise UserError(f"data.dataset: cannot read {file.name}: {error}") from error
    for copy in {brought, path}:
        is_read_later = copy == path and file.suffix in _READ_IN_PLACE
        if copy != Path(file.path) and not is_read_later:
            copy.unlink()
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
