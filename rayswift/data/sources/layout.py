"""The files of a folder that hold the rows of a split, by their names, as on the hub.

The rules are those of `datasets`: `data/NAME-00000-of-00001.parquet` is a shard of split NAME; otherwise a folder or a
file belongs to a split if one of the split's keywords is a word of its name. A folder without such names has no splits,
and all its files are read.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.fs
import yaml

from rayswift.data.sources.named import CODECS, SUFFIXES, Source
from rayswift.log import UserError

_KEYWORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
_COPY_BYTES = 1 << 22
_HELD_OUT = ("validation", "test")
_SHARD = re.compile(r"(.+)-\d{5}-of-\d{5}")
_BETWEEN_WORDS = re.compile(r"[-._ 0-9]+")
# Files beside the rows that have a suffix of rows.
_NO_ROWS = re.compile(
    r"(licen[cs]e|readme|notice|copying|change-?log|citation|authors|contributing|requirements|robots).*\.txt"
    r"|(dataset_infos?|dataset_dict|state|croissant|config|package|generation_config)\.json",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class SourceFile:
    """One file: `name` for ids and errors, `path` within `filesystem` (None: the local one)."""

    name: str
    path: str
    size_bytes: int
    modified_ns: int
    filesystem: Any = None

    @property
    def codec(self) -> str | None:
        """Its compression; None if it has none."""
        return CODECS.get(PurePosixPath(self.name).suffix.lower())

    @property
    def suffix(self) -> str:
        """The suffix of its kind in lower case, without that of the compression."""
        path = PurePosixPath(self.name)
        return (path.with_suffix("") if self.codec else path).suffix.lower()

    @property
    def lies_here(self) -> bool:
        """Whether it can be read in place: it is local and not compressed."""
        return self.filesystem is None and self.codec is None

    def open(self, compression: str | None = None) -> Any:
        """A stream of its bytes."""
        return (self.filesystem or pa.fs.LocalFileSystem()).open_input_stream(self.path, compression=compression)

    def bring(self, copy: Path) -> Path:
        """A local path of the uncompressed file: its own path, or `copy`, which is written in pieces."""
        if self.lies_here:
            return Path(self.path)
        partial = copy.with_suffix(".partial")
        with self.open(self.codec) as source, open(partial, "wb") as sink:
            while piece := source.read(_COPY_BYTES):
                sink.write(piece)
        partial.replace(copy)
        return copy


@dataclass(frozen=True)
class Found:
    """The files of a source.

    split: their split, if a folder has splits; left: names of the folder's files that are not read; in_folder: the
    source is a folder; by_hub: `datasets` opens it, because it is on the hub or its README names its splits.
    """

    files: tuple[SourceFile, ...] = ()
    split: str | None = None
    left: tuple[str, ...] = ()
    in_folder: bool = False
    by_hub: bool = False


def is_hidden(path: PurePosixPath) -> bool:
    """Whether a file or a folder above it is hidden; hidden folders are caches."""
    return any(part.startswith(".") for part in path.parts)


def _may_hold_rows(path: PurePosixPath) -> bool:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in CODECS:
        suffixes.pop()
    return bool(suffixes) and suffixes[-1] in SUFFIXES and not is_hidden(path)


def choose(source: Source, files: Mapping[PurePosixPath, SourceFile], held_out: bool) -> Found:
    """The files of a folder to read; `files`: all files, by the path in the folder; `held_out`: for evaluation."""
    saved = _saved_by_datasets(source, PurePosixPath(), files, held_out)
    if saved is not None:
        return saved
    found = sorted(path for path in files if _may_hold_rows(path))
    readme = files.get(PurePosixPath("README.md"))
    if source.subset or (readme and _names_files(readme.open().read())):
        return Found(tuple(files[path] for path in found), source.split, in_folder=True, by_hub=True)
    rows = [path for path in found if not _NO_ROWS.fullmatch(path.name)]
    if not rows:
        raise UserError(f"data.dataset: folder {source.path} holds no file ending in {', '.join(SUFFIXES)}")
    splits = _splits_of(rows)
    names = list(dict.fromkeys(filter(None, splits)))
    if not names:
        if source.split:
            raise UserError(
                f"data.dataset: {source.path} has no splits by the names of its files, but split {source.split} is "
                "given; name the files instead"
            )
        return _found(files, rows, found, None)
    # If only evaluation splits have names, the other files are the training split.
    has_train = any(_KEYWORDS.get(name, name) == "train" for name in names)
    if not has_train and None in splits:
        splits, names = [split or "train" for split in splits], [*names, "train"]
    picked = pick(source, names, held_out)
    taken = [path for path, split in zip(rows, splits, strict=True) if split == picked]
    return _found(files, taken, found, picked)


def _found(
    files: Mapping[PurePosixPath, SourceFile],
    taken: Sequence[PurePosixPath],
    of: Sequence[PurePosixPath],
    split: str | None,
) -> Found:
    left = tuple(files[path].name for path in of if path not in taken)
    return Found(tuple(files[path] for path in taken), split, left, in_folder=True)


def _splits_of(paths: Sequence[PurePosixPath]) -> list[str | None]:
    """The split of each file by its name; None if the name contains none."""
    shards = [match and match[1] for match in (_SHARD.fullmatch(path.name.partition(".")[0]) for path in paths)]
    if any(name and _keyword(name) for name in shards):
        return shards
    folders = [_keyword(*path.parts[:-1]) for path in paths]
    return folders if any(folders) else [_keyword(path.name.partition(".")[0]) for path in paths]


def pick(source: Source, names: Sequence[str], held_out: bool) -> str:
    """The split of a data set to read: the one named, else train, or for evaluation validation or else test."""
    wanted = [source.split] if source.split else [*_HELD_OUT] if held_out else ["train"]
    for name in wanted:
        if name in names:
            return name
        alike = [each for each in names if _KEYWORDS.get(each) == _KEYWORDS.get(name, name)]
        if alike:
            return alike[0]
    example = f"{source.path}:{source.subset or ''}/{names[0]}"
    raise UserError(
        f"data.dataset: {source.path} has no split {' or '.join(wanted)}, it has {', '.join(names)}; name one, as in "
        f"{example}"
    )


def _keyword(*names: str) -> str | None:
    words = [word for name in names for word in _BETWEEN_WORDS.split(name.lower())]
    return next((_KEYWORDS[word] for word in words if word in _KEYWORDS), None)


def _names_files(readme: bytes) -> bool:
    """Whether the header of a data set's README names the files of its subsets and splits."""
    begin, _, rest = readme.decode("utf-8", errors="replace").partition("---\n")
    header, end, _ = rest.partition("\n---")
    if begin.strip("\ufeff \n") or not end:
        return False
    try:
        tree = yaml.safe_load(header)
    except yaml.YAMLError:
        return False
    configs = tree.get("configs") if isinstance(tree, dict) else None
    return isinstance(configs, list) and any(isinstance(each, dict) and "data_files" in each for each in configs)


def _saved_by_datasets(
    source: Source, folder: PurePosixPath, files: Mapping[PurePosixPath, SourceFile], held_out: bool
) -> Found | None:
    """The files of a folder written by `save_to_disk` of `datasets`, of one split; None for another folder."""
    if folder / "dataset_dict.json" in files:
        split = pick(source, _json(files[folder / "dataset_dict.json"]).get("splits", []), held_out)
        found = _saved_by_datasets(source, folder / split, files, held_out)
        if found is None:
            raise UserError(f"data.dataset: {source.path} names the split {split}, whose files are not there")
        left = [file for path, file in files.items() if path.suffix == ".arrow" and file not in found.files]
        return replace(found, split=split, left=tuple(file.name for file in left))
    if folder / "state.json" not in files or folder / "dataset_info.json" not in files:
        return None
    entries = _json(files[folder / "state.json"]).get("_data_files")
    paths = [folder / entry["filename"] for entry in entries or ()]
    if missing := [path for path in paths if path not in files]:
        raise UserError(f"data.dataset: {source.path} names the file {missing[0]}, which is not there")
    return _found(files, paths, (), None) if paths else None


def _json(file: SourceFile) -> dict[str, Any]:
    try:
        tree = json.loads(file.open().read())
    except ValueError as error:
        raise UserError(f"data.dataset: {file.name} is not valid JSON: {error}") from error
    return tree if isinstance(tree, dict) else {}
