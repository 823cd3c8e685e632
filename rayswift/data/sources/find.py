"""The files of a source, local or behind a URL, ordered by name."""

import glob
import re
from pathlib import Path, PurePosixPath

import pyarrow as pa
import pyarrow.fs
from fsspec.utils import glob_translate

from rayswift.data.filesystem import is_url, open_filesystem
from rayswift.data.sources.layout import Found, SourceFile, choose, is_hidden
from rayswift.data.sources.named import Source, looks_like_file
from rayswift.log import UserError, first_line


def find(source: Source, held_out: bool = False) -> Found:
    """The files of a source; `held_out`: of its evaluation split, if it has splits and names none."""
    path = source.path
    if is_url(path):
        return _behind_url(source, held_out)
    local = Path(path).expanduser()
    if local.is_dir():
        if source.revision:
            raise UserError(f"data.dataset: {path} is a folder here; leave revision {source.revision} out")
        inside = [each for each in local.rglob("*") if each.is_file()]
        return choose(source, {PurePosixPath(p.relative_to(local).as_posix()): _local(p) for p in inside}, held_out)
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
        raise UserError(f"data.dataset: cannot reach {url}: {first_line(error)}") from error
    if info.type != pa.fs.FileType.Directory:
        return Found((SourceFile(url, path, info.size or 0, info.mtime_ns or 0, filesystem),))
    base = path.rstrip("/") + "/"
    files: dict[PurePosixPath, SourceFile] = {}
    for entry in sorted((each for each in infos if each.type == pa.fs.FileType.File), key=lambda each: each.path):
        inside = PurePosixPath(entry.path.removeprefix(base))
        files[inside] = SourceFile(f"{root}/{inside}", entry.path, entry.size or 0, entry.mtime_ns or 0, filesystem)
    if pattern:
        fits = re.compile(glob_translate(url[len(root) + 1 :]))
        fitting = [file for path, file in sorted(files.items()) if fits.fullmatch(str(path)) and not is_hidden(path)]
        if not fitting:
            raise UserError(f"data.dataset: no {scheme} object fits {url}; check the pattern")
        return Found(tuple(fitting))
    found = choose(source, files, held_out)
    if found.by_hub:  # `datasets` reads only local folders, so the names of files decide instead
        found = choose(source, {path: file for path, file in files.items() if path.name != "README.md"}, held_out)
    return found
