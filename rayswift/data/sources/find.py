"""What a source string names: files here, files behind a URL, or a hub id; and how many of its rows to take.

rows.jsonl   data/   'data/*.parquet'   rows.jsonl.gz   s3://bucket/rows/   org/name:subset   any of them#500
"""

import fnmatch
import glob
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.fs

from rayswift.data.filesystem import open_filesystem
from rayswift.log import UserError

SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".txt", ".arrow")
CODECS = {".gz": "gzip", ".zst": "zstd"}
# Schemes that pyarrow opens itself; any other goes through fsspec.
_COPY_BYTES = 1 << 22


@dataclass(frozen=True)
class SourceName:
    """A source as written in the config, taken apart: `path` without `#N`, and N or None."""

    path: str
    num_rows: int | None

    @property
    def is_url(self) -> bool:
        """Whether a scheme leads it."""
        return "://" in self.path

    @property
    def short(self) -> str:
        """Its last part without suffixes: what `data.mix` may call it."""
        last = PurePosixPath(self.path.rstrip("/")).name
        while PurePosixPath(last).suffix.lower() in (*SUFFIXES, *CODECS):
            last = PurePosixPath(last).stem
        return last


@dataclass(frozen=True)
class SourceFile:
    """One file: `name` for ids and errors, `path` within `filesystem` (None: this machine's)."""

    name: str
    path: str
    size_bytes: int
    modified_ns: int
    filesystem: Any = None

    @property
    def codec(self) -> str | None:
        """How it is compressed, if it is."""
        return CODECS.get(PurePosixPath(self.path).suffix.lower())

    @property
    def suffix(self) -> str:
        """The lower-case suffix of its kind."""
        path = PurePosixPath(self.path)
        return (path.with_suffix("") if self.codec else path).suffix.lower()

    @property
    def lies_here(self) -> bool:
        """Whether its bytes can be read in place."""
        return self.filesystem is None and self.codec is None

    def bring(self, copy: Path) -> Path:
        """A local path of its plain bytes: its own, or `copy`, which is written piece by piece."""
        if self.lies_here:
            return Path(self.path)
        filesystem = self.filesystem or pa.fs.LocalFileSystem()
        partial = copy.with_suffix(".partial")
        with filesystem.open_input_stream(self.path, compression=self.codec) as source, open(partial, "wb") as sink:
            while piece := source.read(_COPY_BYTES):
                sink.write(piece)
        partial.replace(copy)
        return copy


def parse_source(source: str) -> SourceName:
    """Take `#N` off a source string.

    Raises:
        UserError: N is 0.
    """
    match = re.fullmatch(r"(.+)#(\d+)", source)
    if not match:
        return SourceName(source, None)
    if int(match[2]) == 0:
        raise UserError(f"data.dataset: {source} asks for no row; give #1 or more, or leave it out")
    return SourceName(match[1], int(match[2]))


def find_files(path: str) -> list[SourceFile]:
    """The files that a source names, ordered by name; none if it may be a hub id.

    Raises:
        UserError: it looks like a path or is a URL, and nothing is there.
    """
    if "://" in path:
        return _files_behind(path)
    local = Path(path).expanduser()
    if local.is_dir():
        return [_local(p) for p in _files_in(local, path)]
    if local.exists():
        return [_local(local)]
    files = [Path(p) for p in sorted(glob.glob(str(local), recursive=True)) if Path(p).is_file()]
    if not files and (_looks_like_file(path) or path.startswith((".", "/", "~")) or path.count("/") != 1):
        if Path(path.partition(":")[0]).is_dir():
            return []  # a folder laid out like a hub data set, with a subset
        raise UserError(f"data.dataset: no file or folder {path}; check the path (hub ids look like org/name)")
    return [_local(p) for p in files]


def _looks_like_file(path: str) -> bool:
    return PurePosixPath(path).suffix.lower() in (*SUFFIXES, *CODECS)


def _is_wanted(relative: PurePosixPath) -> bool:
    """Whether a folder's file holds rows; hidden folders are caches."""
    suffixes = [s.lower() for s in relative.suffixes]
    if suffixes and suffixes[-1] in CODECS:
        suffixes.pop()
    return bool(suffixes) and suffixes[-1] in SUFFIXES and not any(p.startswith(".") for p in relative.parts)


def _files_in(folder: Path, source: str) -> Sequence[Path]:
    saved = _saved_by_datasets(folder)
    if saved is not None:
        return saved
    files = sorted(p for p in folder.rglob("*") if p.is_file() and _is_wanted(PurePosixPath(p.relative_to(folder))))
    if not files:
        raise UserError(f"data.dataset: folder {source} holds no file ending in {', '.join(SUFFIXES)}")
    return files


def _saved_by_datasets(folder: Path) -> list[Path] | None:
    """The files of a folder that `datasets` wrote with `save_to_disk`, of its train split if there are several."""
    if (folder / "dataset_dict.json").exists():
        splits = json.loads((folder / "dataset_dict.json").read_text(encoding="utf-8")).get("splits", [])
        if "train" not in splits:
            raise UserError(f"data.dataset: {folder} has the splits {', '.join(splits)}; name one: {folder}/SPLIT")
        return _saved_by_datasets(folder / "train")
    if not (folder / "state.json").exists() or not (folder / "dataset_info.json").exists():
        return None
    state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    return [folder / entry["filename"] for entry in state.get("_data_files", [])]


def _local(path: Path) -> SourceFile:
    stat = path.stat()
    return SourceFile(str(path), str(path), stat.st_size, stat.st_mtime_ns)


def _files_behind(url: str) -> list[SourceFile]:
    scheme = url.partition("://")[0]
    pattern = re.search(r"[*?\[]", url)
    # The folder above the first wildcard is listed, and the pattern applied to what is in it.
    root = url[: url.rindex("/", 0, pattern.start())] if pattern else url.rstrip("/")
    try:
        filesystem, path = open_filesystem(root)
        info = filesystem.get_file_info(path)
        if info.type == pa.fs.FileType.NotFound:
            raise UserError(f"data.dataset: nothing is at {url}; check the address")
        infos = [info]
        if info.type == pa.fs.FileType.Directory:
            infos = filesystem.get_file_info(pa.fs.FileSelector(path, recursive=True))
    except (OSError, ValueError, ImportError, pa.ArrowException) as error:
        raise UserError(f"data.dataset: cannot reach {url}: {str(error).splitlines()[0]}") from error
    base = path.rstrip("/") + "/"
    wanted = url[len(root) + 1 :] if pattern else None
    files = []
    for entry in sorted((i for i in infos if i.type == pa.fs.FileType.File), key=lambda i: i.path):
        inside = entry.path.removeprefix(base) if entry.path != path else ""
        if inside and not (fnmatch.fnmatch(inside, wanted) if wanted else _is_wanted(PurePosixPath(inside))):
            continue
        name = f"{root}/{inside}" if inside else root
        files.append(SourceFile(name, entry.path, entry.size or 0, entry.mtime_ns or 0, filesystem))
    if not files:
        raise UserError(f"data.dataset: {url} holds no {scheme} object ending in {', '.join(SUFFIXES)}")
    return files
