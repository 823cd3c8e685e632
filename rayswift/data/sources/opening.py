"""Open sources: the suffix of a file decides how it is opened, and each source becomes one store.

Indices and copies go to a work folder that every data task can read.
"""

import csv
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pyarrow as pa

from rayswift import __version__
from rayswift.config.fields.source import SourceConfig
from rayswift.data.rows import is_read
from rayswift.data.sources.arrow import ArrowStore, open_arrow, open_parquet
from rayswift.data.sources.csv_rows import open_csv
from rayswift.data.sources.encodings import as_utf8
from rayswift.data.sources.find import find
from rayswift.data.sources.hub import open_hub
from rayswift.data.sources.json_values import holds_lines, open_values
from rayswift.data.sources.layout import SourceFile
from rayswift.data.sources.lines import open_lines
from rayswift.data.sources.named import CODECS, SUFFIXES, Source, parse_source
from rayswift.data.sources.store import Concatenated, Store, View
from rayswift.log import UserError, logger

_SAMPLE_KEY = 0x5A3E
_SLOW_BYTES = 1 << 29
_NAMED_FILES = 5

# Files that are read in place later, not copied to another format.
_READ_IN_PLACE = (".jsonl", ".json", ".txt", ".arrow")
_WITH_SPLITS = (".json", ".jsonl")


@dataclass(frozen=True)
class _How:
    """How a file is read; split, held_out: choose one of several lists in a JSON file."""

    encoding: str | None
    split: str | None
    held_out: bool


def _open_kind(suffix: str, name: str, path: Path, work: Path, how: _How) -> Store:
    if suffix in (".json", ".jsonl"):
        if not how.split and holds_lines(path, is_jsonl=suffix == ".jsonl"):
            return open_lines(name, path, work, "json")
        return open_values(name, path, work, how.split, how.held_out)
    if suffix in (".csv", ".tsv"):
        return open_csv(name, path, work, "," if suffix == ".csv" else "\t")
    if suffix == ".txt":
        return open_lines(name, path, work, "text")
    return open_parquet(name, path, work) if suffix == ".parquet" else open_arrow(name, path, work)


def open_sources(
    sources: Sequence[str | SourceConfig],
    work_dir: Path,
    seed: int = 0,
    held_out: bool = False,
    shuffle: bool = True,
    columns: Mapping[str, str] | None = None,
) -> tuple[Store, ...]:
    """Open every source of a `data.dataset` or `data.eval` list, as one store each.

    Args:
        sources: Files, folders, globs, URLs or hub ids; a source with `#N` gives N of its rows.
        work_dir: Folder for indices and copies.
        seed: Chooses the rows of `#N`.
        held_out: Whether to take the validation or test split of a source with several splits, for evaluation.
        shuffle: Whether the seed chooses the rows of `#N`; otherwise they are the first ones.
        columns: `data.columns`, if columns that no family of rows knows are never read; None: all may be read.
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
            # Only this function knows which of the two lists names the source.
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
        logger.info("%s: %s%d files; %d are left out: %s", source.path, taken, len(found.files), len(found.left), names)
    # In a folder the split chooses files; in a file it chooses one of its lists.
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
        store = _open_kind(file.suffix, file.name, path, work, how)
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
    """The store that an earlier launch made of the same file, so that a continued run does not copy it again."""
    try:
        was, store = pickle.loads(record.read_bytes())
    except (OSError, AttributeError, ImportError):  # there is none, or another version wrote it
        return None
    return store if was == identity and all(Path(path).exists() for path in store.files) else None
