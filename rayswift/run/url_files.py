"""Files behind a URL, through pyarrow or fsspec."""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from pyarrow import ArrowException, fs

from rayswift.data.filesystem import open_filesystem
from rayswift.log import UserError, first_line, logger
from rayswift.run import checkpoint

_THREADS = 8
_CHUNK_BYTES = 1 << 24


class Remote:
    """The files below a URL, named relative to it. Every method raises UserError if the service fails."""

    def __init__(self, url: str):
        self.url = url.rstrip("/")
        # pyarrow cuts a URL at "#", and without a place "s3:" would be a folder of this machine.
        if "#" in url or not url.partition("://")[2].strip("/"):
            raise UserError(f"train.output_dir = {url!r}: a URL names a bucket or folder, and has no # in it")
        with self._explained("cannot be opened"):
            self._fs, root = open_filesystem(self.url)
            self._root = root.rstrip("/")

    def check_writable(self) -> None:
        self.write(".writable", b"rayswift")
        self.remove(".writable")

    def sizes(self) -> dict[str, int]:
        """Size in bytes of every file."""
        with self._explained("cannot be listed"):
            found = self._fs.get_file_info(fs.FileSelector(self._root, allow_not_found=True, recursive=True))
        begin = len(self._root) + 1
        return {info.path[begin:]: info.size for info in found if info.type == fs.FileType.File}

    def read(self, name: str) -> bytes:
        with self._explained("cannot be read"), self._fs.open_input_stream(f"{self._root}/{name}") as file:
            return bytes(file.read())

    def has(self, name: str) -> bool:
        with self._explained("cannot be read"):
            found = self._fs.get_file_info(f"{self._root}/{name}")
        return bool(found.type == fs.FileType.File)

    def write(self, name: str, content: bytes) -> None:
        """Write a small file."""
        with self._explained("cannot be written"):
            self._fs.create_dir(self._root, recursive=True)
            with self._fs.open_output_stream(f"{self._root}/{name}") as file:
                file.write(content)

    def remove(self, name: str) -> None:
        with self._explained("cannot be written"):
            self._fs.delete_file(f"{self._root}/{name}")

    def put(self, folder: Path, names: Iterable[str]) -> None:
        """Upload files of a folder, in parallel."""

        def copy(name: str) -> None:
            source, target = str(folder / name), f"{self._root}/{name}"
            fs.copy_files(source, target, fs.LocalFileSystem(), self._fs, use_threads=False)

        names = list(names)
        with self._explained("cannot be written"), ThreadPoolExecutor(_THREADS) as pool:
            for parent in {f"{self._root}/{name}".rpartition("/")[0] for name in names}:
                self._fs.create_dir(parent, recursive=True)
            list(pool.map(copy, names))

    def get(self, names: Iterable[str], folder: Path) -> None:
        """Download files into a folder, in parallel."""

        def copy(name: str) -> None:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            fs.copy_files(f"{self._root}/{name}", str(folder / name), self._fs, fs.LocalFileSystem(), use_threads=False)

        with self._explained("cannot be read"), ThreadPoolExecutor(_THREADS) as pool:
            list(pool.map(copy, names))

    def discard(self, name: str) -> None:
        """As `checkpoint.discard`."""
        with self._explained("cannot be cleared"):
            if f"{name}/{checkpoint.MANIFEST}" in self.sizes():
                self._fs.delete_file(f"{self._root}/{name}/{checkpoint.MANIFEST}")
            self._fs.delete_dir(f"{self._root}/{name}")

    def set_aside(self, name: str, why: str) -> None:
        """As `checkpoint.set_aside`, for a folder."""
        sizes = self.sizes()
        parts = [each for each in sizes if each.startswith(f"{name}/")]
        if not any(checkpoint.is_weights(each) for each in parts):
            return self.discard(name)
        taken = {each.split("/")[1] for each in sizes if each.startswith(f"{checkpoint.SET_ASIDE}/")}
        names = (f"{name}-{number}" if number else name for number in range(1 << 20))
        target = f"{checkpoint.SET_ASIDE}/{next(each for each in names if each not in taken)}"
        parts.sort(key=lambda each: not each.endswith(f"/{checkpoint.MANIFEST}"))
        with self._explained("cannot be cleared"), ThreadPoolExecutor(_THREADS) as pool:
            for parent in {f"{self._root}/{target}{each[len(name) :]}".rpartition("/")[0] for each in parts}:
                self._fs.create_dir(parent, recursive=True)
            list(pool.map(lambda each: self._move(each, f"{target}{each[len(name) :]}"), parts))
            self._fs.delete_dir(f"{self._root}/{name}")
        logger.info("%s/%s is set aside as %s: %s; delete it if you do not need it", self.url, name, target, why)

    def _move(self, name: str, target: str) -> None:
        source, target = f"{self._root}/{name}", f"{self._root}/{target}"
        try:
            self._fs.move(source, target)
        except (OSError, NotImplementedError):  # S3 cannot copy objects of more than 5 GB
            with self._fs.open_input_stream(source) as reader, self._fs.open_output_stream(target) as writer:
                while chunk := reader.read(_CHUNK_BYTES):
                    writer.write(chunk)
            self._fs.delete_file(source)

    @contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError, ImportError, ArrowException) as error:
            problem = f"train.output_dir = {self.url!r} {what}: {first_line(error)}"
            raise UserError(f"{problem}; check URL, credentials and permissions") from error
