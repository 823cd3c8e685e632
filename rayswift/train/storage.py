"""A run folder behind a URL: the run works in a scratch folder, and what must last is copied up, manifests last.

`s3://bucket/run`, and every other scheme of pyarrow and fsspec. Credentials, region and endpoint are found where their
clients look for them (`AWS_ENDPOINT_URL`, ...).

What lies behind the URL is the truth: a launch begins with an empty scratch folder, takes the run's record and its
newest checkpoint from there, and removes the folder when it ends.
"""

import json
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import contextmanager
from pathlib import Path

from pyarrow import ArrowException, fs

from rayswift.data.filesystem import is_url, open_filesystem
from rayswift.log import UserError, logger
from rayswift.train import checkpoint
from rayswift.train.run_folder import FINGERPRINT, check_ownership

_THREADS = 8
# Of use to this launch only: Ray Train's own folder, and copies and indices of the rows.
_NOT_KEPT = re.compile(r"ray/.*|data/[^/]+/.*|.*\.partial(\..*)?|\.[^/]*|checkpoint-.*")


class Remote:
    """The files below a URL, by their names relative to it.

    Raises:
        UserError: from every method: the service refuses or does not answer.
    """

    def __init__(self, url: str):
        self.url = url.rstrip("/")
        with self._explained("cannot be opened"):
            self._fs, root = open_filesystem(self.url)
            self._root = root.rstrip("/")

    def check_writable(self) -> None:
        """Write a file and delete it."""
        probe = f"{self._root}/.writable"
        with self._explained("cannot be written"):
            self._fs.create_dir(self._root, recursive=True)
            with self._fs.open_output_stream(probe) as file:
                file.write(b"rayswift")
            self._fs.delete_file(probe)

    def sizes(self) -> dict[str, int]:
        """Size in bytes of every file."""
        with self._explained("cannot be listed"):
            found = self._fs.get_file_info(fs.FileSelector(self._root, allow_not_found=True, recursive=True))
        begin = len(self._root) + 1
        return {info.path[begin:]: info.size for info in found if info.type == fs.FileType.File}

    def read(self, name: str) -> bytes:
        """The content of a file."""
        with self._explained("cannot be read"), self._fs.open_input_stream(f"{self._root}/{name}") as file:
            return bytes(file.read())

    def put(self, folder: Path, names: Iterable[str]) -> None:
        """Copy files of a folder up, several at a time."""

        def copy(name: str) -> None:
            source, target = str(folder / name), f"{self._root}/{name}"
            fs.copy_files(source, target, fs.LocalFileSystem(), self._fs, use_threads=False)

        names = list(names)
        with self._explained("cannot be written"), ThreadPoolExecutor(_THREADS) as pool:
            for parent in {f"{self._root}/{name}".rpartition("/")[0] for name in names}:
                self._fs.create_dir(parent, recursive=True)
            list(pool.map(copy, names))

    def get(self, names: Iterable[str], folder: Path) -> None:
        """Copy files down into a folder, several at a time."""

        def copy(name: str) -> None:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            fs.copy_files(f"{self._root}/{name}", str(folder / name), self._fs, fs.LocalFileSystem(), use_threads=False)

        with self._explained("cannot be read"), ThreadPoolExecutor(_THREADS) as pool:
            list(pool.map(copy, names))

    def discard(self, name: str) -> None:
        """Remove a checkpoint; its manifest goes first, so that no half of it ever counts as complete."""
        with self._explained("cannot be cleared"):
            if f"{name}/{checkpoint.MANIFEST}" in self.sizes():
                self._fs.delete_file(f"{self._root}/{name}/{checkpoint.MANIFEST}")
            self._fs.delete_dir(f"{self._root}/{name}")

    @contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError, ImportError, ArrowException) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise UserError(
                f"train.output_dir = {self.url!r} {what}: {reason}; check URL, credentials and permissions"
            ) from error


def complete_checkpoints(remote: Remote, sizes: dict[str, int]) -> dict[int, str]:
    """Step -> name of every checkpoint whose manifest verifies, oldest first."""
    found = {}
    for file in sizes:
        name, _, last = file.rpartition("/")
        if last != checkpoint.MANIFEST or not name.startswith("checkpoint-") or "/" in name:
            continue
        manifest = json.loads(remote.read(file))
        if all(sizes.get(f"{name}/{part}") == size for part, size in manifest["files"].items()):
            found[int(manifest["step"])] = name
    return dict(sorted(found.items()))


@contextmanager
def working_copy(output_dir: str, resume: str, scratch_dir: str | None) -> Iterator[Path]:
    """The folder that a run works in: `output_dir` itself, or a scratch folder for what lies behind its URL.

    Args:
        output_dir: A folder or a URL.
        resume: `train.resume`: unless it is never, the newest checkpoint is fetched.
        scratch_dir: Where the scratch folder is made; None: the system's temporary folder.

    Raises:
        UserError: the URL cannot be read or written (exit code 2), or what the run leaves could not be copied up (1).
    """
    if not is_url(output_dir):
        if _in_a_jobs_folder() and not Path(output_dir).is_absolute():
            logger.warning(
                "train.output_dir = %r lies in this job's working folder, which Ray deletes when it needs the room; "
                "give an absolute path, or a URL, to keep the run",
                output_dir,
            )
        yield Path(output_dir).resolve()
        return
    remote = Remote(output_dir)
    remote.check_writable()
    try:
        if scratch_dir:
            Path(scratch_dir).mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix="rayswift-", dir=scratch_dir)).resolve()
    except OSError as error:
        raise UserError(f"cluster.scratch_dir = {scratch_dir!r} cannot be written: {error.strerror}") from error
    run_dir = scratch / remote.url.rpartition("/")[2]
    run_dir.mkdir()
    try:
        pull(remote, run_dir, resume)
        yield run_dir
    except BaseException as failure:
        _push_what_is_left(remote, run_dir)
        shutil.rmtree(scratch, ignore_errors=True)
        if isinstance(failure, UserError):
            raise UserError(str(failure).replace(str(run_dir), remote.url), failure.exit_code) from failure
        raise
    try:
        push(remote, run_dir)
    except UserError as error:
        raise UserError(f"{error}\n  the run is whole in {run_dir}: copy it from there", exit_code=1) from error
    shutil.rmtree(scratch, ignore_errors=True)


def _in_a_jobs_folder() -> bool:
    # Where Ray unpacks `--working-dir`.
    return "working_dir_files" in Path.cwd().parts


def _push_what_is_left(remote: Remote, run_dir: Path) -> None:
    # Nothing to keep before the run has made the folder its own.
    if not (run_dir / FINGERPRINT).exists():
        return
    try:
        push(remote, run_dir)
    except UserError as error:  # what ended the run is what its user must see last
        logger.warning("the logs of this run are lost: %s", error)


def pull(remote: Remote, run_dir: Path, resume: str) -> None:
    """Fetch a run's record, and its newest and its best checkpoint if the run is to be continued.

    Raises:
        UserError: the URL holds another's files, or a run that was not to be continued.
    """
    sizes = remote.sizes()
    check_ownership({name.partition("/")[0] for name in sizes}, FINGERPRINT in sizes, remote.url)
    complete = complete_checkpoints(remote, sizes)
    if resume == "never" and complete:
        raise UserError(
            f"train.output_dir = {remote.url!r} holds {complete[max(complete)]} of an earlier run; continue it with "
            "--resume auto, or choose another --train.output_dir"
        )
    for name in {name.partition("/")[0] for name in sizes if name.startswith("checkpoint-")} - {*complete.values()}:
        remote.discard(name)  # what a killed upload left
    if not complete:
        return
    remote.get([name for name in sizes if not _NOT_KEPT.fullmatch(name)], run_dir)
    wanted = {max(complete)}
    state = f"{complete[max(complete)]}/trainer_state.json"
    if state in sizes:
        best = json.loads(remote.read(state)).get("best_global_step")
        wanted |= {best} & complete.keys()
    logger.info("fetching %s", ", ".join(f"{remote.url}/{complete[step]}" for step in sorted(wanted)))
    for step in wanted:
        remote.get([name for name in sizes if name.startswith(f"{complete[step]}/")], run_dir)


def push(remote: Remote, run_dir: Path, limit: int | None = None, best_step: int | None = None) -> None:
    """Copy up what changed: the record, then each complete checkpoint with its manifest last; then retain.

    Args:
        remote: Where to.
        run_dir: Where from.
        limit: Checkpoints kept there besides the best; None: all.
        best_step: The best checkpoint.

    Raises:
        UserError: the service refuses or does not answer.
    """
    there = remote.sizes()
    files = (str(path.relative_to(run_dir)) for path in run_dir.rglob("*") if path.is_file())
    # The fingerprint first: it marks the folder as a run's own.
    record = sorted((name for name in files if not _NOT_KEPT.fullmatch(name)), key=lambda name: name != FINGERPRINT)
    remote.put(run_dir, record[:1])
    remote.put(run_dir, [name for name in record[1:] if _may_differ(run_dir, name, there)])
    complete = complete_checkpoints(remote, there)
    for saved in checkpoint.find_all(run_dir):
        name = saved.path.name
        if name in complete.values() and remote.read(f"{name}/{checkpoint.MANIFEST}") == _manifest(saved.path):
            continue
        parts = [f"{name}/{part}" for part in json.loads(_manifest(saved.path))["files"]]
        remote.put(run_dir, parts)
        remote.put(run_dir, [f"{name}/{checkpoint.MANIFEST}"])
        complete[saved.step] = name
        logger.info("uploaded %s/%s", remote.url, name)
    for step in sorted(complete)[: -limit if limit else 0]:
        if step != best_step:
            remote.discard(complete[step])


def _may_differ(run_dir: Path, name: str, there: dict[str, int]) -> bool:
    # Weights are written once; all else is small, and may change without growing.
    return not name.endswith(".safetensors") or there.get(name) != (run_dir / name).stat().st_size


def _manifest(folder: Path) -> bytes:
    return (folder / checkpoint.MANIFEST).read_bytes()


class Uploads:
    """Copies checkpoints up while training goes on, one at a time; what goes wrong is raised at the next call.

    Args:
        output_dir: The run's URL; a plain folder needs no upload, and nothing happens.
        run_dir: The scratch folder.
        limit: See `push`.
        timeout_s: Longest wait for one upload.
    """

    def __init__(self, output_dir: str, run_dir: Path, limit: int | None, timeout_s: float):
        self._remote = Remote(output_dir) if is_url(output_dir) else None
        self._run_dir, self._limit, self._timeout_s = run_dir, limit, timeout_s
        self._pool = ThreadPoolExecutor(1)
        self._under_way: Future[None] | None = None

    def start(self, best_step: int | None) -> None:
        """Copy up what is complete."""
        if self._remote:
            self._under_way = self._pool.submit(push, self._remote, self._run_dir, self._limit, best_step)

    def wait(self) -> None:
        """Return once nothing is under way.

        Raises:
            UserError: the upload failed or took too long.
        """
        if self._under_way is None:
            return
        try:
            self._under_way.result(self._timeout_s)
        except FutureTimeoutError as error:
            raise UserError(
                f"a checkpoint was not uploaded within cluster.timeout_s = {self._timeout_s:g}; raise it, or save less "
                "often",
                exit_code=1,
            ) from error
        except UserError as error:
            raise UserError(str(error), exit_code=1) from error
        self._under_way = None
