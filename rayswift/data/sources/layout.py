"""The files of a folder that hold the rows of a split, by their names, as on the hub.

The rules are those of `datasets`: `data/NAME-00000-of-00001.parquet` is a shard of split NAME; otherwise a folder or a
file belongs to a split if one of the split's keywords is a word of its name. A folder without such names has no splits,
and all its files are read.
"""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import yaml

from rayswift.data.sources.named import CODECS, SUFFIXES, Source
from rayswift.log import UserError

_KEYWORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
_HELD_OUT = ("validation", "test")
_SHARD = re.compile(r"(.+)-\d{5}-of-\d{5}")
_BETWEEN_WORDS = re.compile(r"[-._ 0-9]+")
# Files beside the rows that have a suffix of rows.
_NO_ROWS = re.compile(
    r"(licen[cs]e|readme|notice|copying|change-?log|citation|authors|contributing|requirements|robots).*\.txt"
    r"|(dataset_infos?|dataset_dict|state|croissant|config|package|generation_config)\.json",
    re.IGNORECASE,
)
Read = Callable[[PurePosixPath], bytes]
"""Path in the folder -> the bytes of the file."""


@dataclass(frozen=True)
class Chosen:
    """The files to read of a folder; split: their split, None if the folder has none; left: files that are not read.

    by_datasets: the README of the folder names its splits, so `datasets` opens it.
    """

    files: tuple[PurePosixPath, ...]
    split: str | None = None
    left: tuple[PurePosixPath, ...] = ()
    by_datasets: bool = False


def is_hidden(path: PurePosixPath) -> bool:
    """Whether a file or a folder above it is hidden; hidden folders are caches."""
    return any(part.startswith(".") for part in path.parts)


def _may_hold_rows(path: PurePosixPath) -> bool:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in CODECS:
        suffixes.pop()
    return bool(suffixes) and suffixes[-1] in SUFFIXES and not is_hidden(path)


def choose(source: Source, paths: Sequence[PurePosixPath], read: Read, held_out: bool) -> Chosen:
    """The files of a folder to read; `paths`: all files below it, relative; `held_out`: for evaluation."""
    saved = _saved_by_datasets(source, PurePosixPath(), paths, read, held_out)
    if saved is not None:
        return saved
    found = sorted(path for path in paths if _may_hold_rows(path))
    if source.subset or (PurePosixPath("README.md") in paths and _names_files(read(PurePosixPath("README.md")))):
        return Chosen(tuple(found), source.split, by_datasets=True)
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
        return Chosen(tuple(rows), None, tuple(path for path in found if path not in rows))
    # If only evaluation splits have names, the other files are the training split.
    has_train = any(_KEYWORDS.get(name, name) == "train" for name in names)
    if not has_train and None in splits:
        splits, names = [split or "train" for split in splits], [*names, "train"]
    picked = pick(source, names, held_out)
    taken = [path for path, split in zip(rows, splits, strict=True) if split == picked]
    return Chosen(tuple(taken), picked, tuple(path for path in found if path not in taken))


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
    source: Source, folder: PurePosixPath, paths: Sequence[PurePosixPath], read: Read, held_out: bool
) -> Chosen | None:
    """The files of a folder written by `save_to_disk` of `datasets`, of one split; None for another folder."""
    if folder / "dataset_dict.json" in paths:
        names = _json(source, folder / "dataset_dict.json", read).get("splits", [])
        split = pick(source, names, held_out)
        found = _saved_by_datasets(source, folder / split, paths, read, held_out)
        if found is None:
            raise UserError(f"data.dataset: {source.path} names the split {split}, whose files are not there")
        left = tuple(path for path in paths if path.suffix == ".arrow" and path not in found.files)
        return Chosen(found.files, split, left)
    if folder / "state.json" not in paths or folder / "dataset_info.json" not in paths:
        return None
    entries = _json(source, folder / "state.json", read).get("_data_files")
    return Chosen(tuple(folder / entry["filename"] for entry in entries)) if entries else None


def _json(source: Source, path: PurePosixPath, read: Read) -> dict[str, Any]:
    try:
        tree = json.loads(read(path))
    except ValueError as error:
        raise UserError(f"data.dataset: {source.path}/{path} is not valid JSON: {error}") from error
    return tree if isinstance(tree, dict) else {}
