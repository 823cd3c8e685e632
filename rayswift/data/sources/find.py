"""The files of a source, local or behind a URL, ordered by name."""

import glob
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.fs
from fsspec.utils import glob_translate

from rayswift.data.filesystem import is_url, open_filesystem
from rayswift.data.sources.layout import Chosen, choose, is_hidden
from rayswift.data.sources.named import CODECS, Source, looks_like_file
from rayswift.log import UserError

_COPY_BYTES = 1 << 22


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

    def bring(self, copy: Path) -> Path:
        """A local path of the uncompressed file: its own path, or `copy`, which is written in pieces."""
        if self.lies_here:
            return Path(self.path)
        filesystem = self.filesystem or pa.fs.LocalFileSystem()
        partial = copy.with_suffix(".partial")
        with filesystem.open_input_stream(self.path, compression=self.codec) as source, open(partial, "wb") as sink:
            while piece := source.read(_COPY_BYTES):
                sink.write(piece)
        partial.replace(copy)
        return copy


@dataclass(frozen=True)
class Found:
    """The files of a source; split, left: as in `layout.Chosen`, with names; in_folder: the source is a folder;
    by_hub: `datasets` opens it, from the hub if there are no files."""

    files: tuple[SourceFile, ...] = ()
    split: str | None = None
    left: tuple[str, ...] = ()
    in_folder: bool = False
    by_hub: bool = False


def find(source: Source, held_out: bool = False) -> Found:
    """The files of a source; `held_out`: of its evaluation split, if it has splits and names none."""
    path = source.path
    if is_url(path):
        return _behind_url(source, held_out)
    local = Path(path).expanduser()
    if local.is_dir():
        return _in_folder(source, local, held_out)
    files = [local] if local.exists() else [Path(p) for p in sorted(glob.glob(str(local), recursive=True))]
    files = [file for file in files if file.is_file()]
    if files:
        _refuse_parts_of_files(source)
        return Found(tuple(_local(file) for file in files))
    if looks_like_file(path) or path.startswith((".", "/", "~")) or path.count("/") != 1:
        raise UserError(f"data.dataset: no file or folder {path}; check the path (hub ids look like org/name)")
    return Found(by_hub=True)


def _refuse_parts_of_files(source: Source) -> None:
    """Raise if a file is given a subset or a revision; only data sets have them."""
    for what, value in (("subset", source.subset), ("revision", source.revision)):
        if value:
            raise UserError(f"data.dataset: {source.path} is no data set of the hub; leave {what} {value} out")


def _local(path: Path) -> SourceFile:
    stat = path.stat()
    return SourceFile(str(path), str(path), stat.st_size, stat.st_mtime_ns)


def _in_folder(source: Source, folder: Path, held_out: bool) -> Found:
    if source.revision:
        raise UserError(f"data.dataset: {source.path} is a folder here; leave revision {source.revision} out")
    paths = [PurePosixPath(p.relative_to(folder).as_posix()) for p in folder.rglob("*") if p.is_file()]
    chosen = choose(source, paths, lambda path: (folder / path).read_bytes(), held_out)
    return _found(chosen, str(folder), [_local(folder / path) for path in chosen.files])


def _found(chosen: Chosen, folder: str, files: Sequence[SourceFile]) -> Found:
    left = tuple(f"{folder}/{path}" for path in chosen.left)
    return Found(tuple(files), chosen.split, left, True, chosen.by_datasets)


def _behind_url(source: Source, held_out: bool) -> Found:
    _refuse_parts_of_files(source)
    # The query holds options of the file system or credentials; a `?` is never a wildcard.
    url, question, query = source.path.partition("?")
    scheme, _, place = url.partition("://")
    pattern = re.search(r"[*\[]", place)
    # The folder above the first wildcard is listed, and the pattern applied to what is in it.
    root = f"{scheme}://{place[: place.rindex('/', 0, pattern.start())]}" if pattern else url.rstrip("/")
    try:
        filesystem, path = open_filesystem(root + question + query)
        info = filesystem.get_file_info(path)
        if info.type == pa.fs.FileType.NotFound:
            raise UserError(f"data.dataset: nothing is at {url}; check the address")
        infos = [info]
        if info.type == pa.fs.FileType.Directory:
            infos = filesystem.get_file_info(pa.fs.FileSelector(path, recursive=True))
    except (OSError, ValueError, ImportError, pa.ArrowException) as error:
        raise UserError(f"data.dataset: cannot reach {url}: {str(error).splitlines()[0]}") from error
    if info.type != pa.fs.FileType.Directory:
        return Found((SourceFile(url, path, info.size or 0, info.mtime_ns or 0, filesystem),))
    base = path.rstrip("/") + "/"
    entries = {PurePosixPath(i.path.removeprefix(base)): i for i in infos if i.type == pa.fs.FileType.File}

    def file(inside: PurePosixPath) -> SourceFile:
        entry = entries[inside]
        return SourceFile(f"{root}/{inside}", entry.path, entry.size or 0, entry.mtime_ns or 0, filesystem)

    if pattern:
        fits = re.compile(glob_translate(url[len(root) + 1 :]))
        files = [file(inside) for inside in sorted(entries) if fits.fullmatch(str(inside)) and not is_hidden(inside)]
        if not files:
            raise UserError(f"data.dataset: no {scheme} object fits {url}; check the pattern")
        return Found(tuple(files))

    def read(inside: PurePosixPath) -> bytes:
        with filesystem.open_input_stream(entries[inside].path) as stream:
            return bytes(stream.read())

    chosen = choose(source, list(entries), read, held_out)
    if chosen.by_datasets:  # it reads only local folders, so the names of files decide instead
        chosen = choose(source, [path for path in entries if path.name != "README.md"], read, held_out)
    return _found(chosen, root, [file(inside) for inside in chosen.files])
