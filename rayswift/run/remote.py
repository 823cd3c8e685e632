"""A run folder behind a URL: the run works in a scratch folder, and what must last is copied up, manifests last.

`s3://bucket/run`, and every other scheme of pyarrow and fsspec. Credentials, region and endpoint are found where their
clients look for them (`AWS_ENDPOINT_URL`, ...).

What lies behind the URL is the truth: a launch begins with an empty scratch folder, takes the run's record and its
newest checkpoint from there, and removes the folder when it ends and all its weights are there. What is not there stays
in the scratch folder, and is named.
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

from rayswift.config.reading.paths import in_a_jobs_folder
from rayswift.data.filesystem import is_url
from rayswift.log import UserError, logger
from rayswift.run import checkpoint
from rayswift.run.checkpoint import Damaged
from rayswift.run.folder import FINGERPRINT, INITIAL, RECIPE, TRAINER_STATE, check_ownership, refuse_damaged
from rayswift.run.url_files import Remote

# Of use to this launch only: Ray Train's own folder, and copies and indices of the rows.
_NOT_KEPT = re.compile(rf"ray/.*|data/[^/]+/.*|.*\.partial([./].*)?|\.[^/]*|checkpoint-.*|{checkpoint.SET_ASIDE}/.*")
# Made from a checkpoint that lies beside it.
_DERIVED = re.compile(r"global_step\d+_universal/")


def checkpoints(remote: Remote, sizes: dict[str, int]) -> tuple[dict[int, str], dict[str, Damaged]]:
    """Step -> name of every checkpoint whose manifest verifies, oldest first; and what the others lack."""
    found, damaged = {}, {}
    for name in {file.partition("/")[0] for file in sizes if checkpoint.is_name(file.partition("/")[0])}:
        try:
            if f"{name}/{checkpoint.MANIFEST}" not in sizes:
                raise Damaged("its upload did not come to an end", sealed=False)
            manifest = checkpoint.parse_manifest(remote.read(f"{name}/{checkpoint.MANIFEST}"))
            for part, size in manifest["files"].items():
                if sizes.get(f"{name}/{part}") != size:
                    raise Damaged(f"{part} is missing or has another size than it was saved with", sealed=True)
            found[int(manifest["step"])] = name
        except Damaged as damage:
            damaged[name] = damage
    return dict(sorted(found.items())), damaged


def complete_checkpoints(remote: Remote, sizes: dict[str, int]) -> dict[int, str]:
    """Step -> name of every checkpoint whose manifest verifies, oldest first."""
    return checkpoints(remote, sizes)[0]


@contextmanager
def working_copy(output_dir: str, resume: str, scratch_dir: str | None, recipe: str | None = None) -> Iterator[Path]:
    """The folder that a run works in: `output_dir` itself, or a scratch folder for what lies behind its URL.

    Args:
        output_dir: A folder or a URL.
        resume: `train.resume`: unless it is never, the newest checkpoint is fetched.
        scratch_dir: Where the scratch folder is made; None: the system's temporary folder.
        recipe: See `pull`.

    Raises:
        UserError: the URL cannot be read or written (exit code 2), or what the run leaves could not be copied up (1).
    """
    if not is_url(output_dir):
        if in_a_jobs_folder(Path.cwd()) and not Path(output_dir).is_absolute():
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
        pull(remote, run_dir, resume, recipe)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)  # copies of what is there
        raise
    try:
        yield run_dir
    except BaseException as failure:
        # Nothing to keep before the run has made the folder its own.
        kept = _push_all(remote, run_dir) if (run_dir / FINGERPRINT).exists() else ""
        if not kept:
            shutil.rmtree(scratch, ignore_errors=True)
        if isinstance(failure, UserError):
            text = str(failure).replace(str(run_dir), remote.url)
            raise UserError(f"{text}\n  {kept}" if kept else text, failure.exit_code) from failure
        if kept:
            logger.error("%s", kept)
        raise
    kept = _push_all(remote, run_dir)
    if kept:
        raise UserError(kept, exit_code=1)
    shutil.rmtree(scratch, ignore_errors=True)


def _push_all(remote: Remote, run_dir: Path) -> str:
    """Copy up what is not there yet; what must still be copied, for the user, or nothing."""
    problem = ""
    try:
        push(remote, run_dir)
        there = remote.sizes()
    except UserError as error:
        problem, there = f"{error}; ", {}
    files = [str(path.relative_to(run_dir)) for path in run_dir.rglob("*") if path.is_file()]
    here = [name for name in files if not _DERIVED.search(name) and checkpoint.is_weights(name)]
    missing = sorted({_unit(name) for name in here if there.get(name) != (run_dir / name).stat().st_size})
    if not problem and not missing:
        return ""
    what = f"{', '.join(missing)} and the record of the run" if problem else ", ".join(missing)
    return f"{problem}not at {remote.url}: {what or 'the record of the run'}; kept in {run_dir}: copy it from there"


def _unit(name: str) -> str:
    """What a file belongs to: a checkpoint, a folder."""
    parts = name.split("/")
    return "/".join(parts[:2]) if parts[0] == checkpoint.SET_ASIDE else parts[0]


def pull(remote: Remote, run_dir: Path, resume: str, recipe: str | None = None) -> None:
    """Fetch a run's record, and its newest and its best checkpoint if the run is to be continued.

    Args:
        remote: Where from.
        run_dir: Where to.
        resume: `train.resume`.
        recipe: Of the initial weights that a new run would write: if it finds them there, it takes them.

    Raises:
        UserError: the URL holds another's files, a run that was not to be continued, or one that cannot be.
    """
    sizes = remote.sizes()
    check_ownership({name.partition("/")[0] for name in sizes}, FINGERPRINT in sizes, remote.url)
    complete, damaged = checkpoints(remote, sizes)
    if resume == "never" and complete:
        raise UserError(
            f"train.output_dir = {remote.url!r} holds {complete[max(complete)]} of an earlier run; continue it with "
            "--resume auto, or choose another --train.output_dir"
        )
    newest: int | None = None
    for step, name in reversed(complete.items()):
        try:
            _fetch(remote, sizes, name, run_dir)
            newest = step
            break
        except Damaged as damage:
            damaged[name] = damage
            shutil.rmtree(run_dir / name)  # a copy
    if newest is None:
        refuse_damaged(damaged, remote.url)
    for name, why in damaged.items():
        if newest is None or checkpoint.step_of(Path(name)) > newest:
            remote.set_aside(name, str(why))
    if newest is None:
        return _fetch_initial_weights(remote, sizes, run_dir, recipe)
    record = [name for name in sizes if not _NOT_KEPT.fullmatch(name)]
    remote.get(record, run_dir)
    _note_copies(run_dir, record)
    state = json.loads((run_dir / complete[newest] / TRAINER_STATE).read_text(encoding="utf-8"))
    best = complete.get(state.get("best_global_step"))
    if best and best != complete[newest] and best not in damaged:
        try:
            _fetch(remote, sizes, best, run_dir)
        except Damaged as damage:
            logger.warning("the best checkpoint, %s/%s, is damaged: %s", remote.url, best, damage)
            shutil.rmtree(run_dir / best)  # a copy


def _fetch(remote: Remote, sizes: dict[str, int], name: str, run_dir: Path) -> None:
    logger.info("fetching %s/%s", remote.url, name)
    remote.get([each for each in sizes if each.startswith(f"{name}/")], run_dir)
    checkpoint.verify(run_dir / name)
    try:
        json.loads((run_dir / name / TRAINER_STATE).read_text(encoding="utf-8")).keys()
    except (OSError, ValueError, AttributeError) as error:
        raise Damaged(f"{TRAINER_STATE} is missing or cut off", sealed=True) from error


def _fetch_initial_weights(remote: Remote, sizes: dict[str, int], run_dir: Path, recipe: str | None) -> None:
    """A new run's: those that are there if it would write the same, else they are set aside there."""
    names = [name for name in sizes if name.startswith(f"{INITIAL}/")]
    if not names:
        return
    file = f"{INITIAL}/{RECIPE}"
    if recipe and file in sizes and remote.read(file) == recipe.encode():
        remote.get([FINGERPRINT, *names], run_dir)
        _note_copies(run_dir, names)
    else:
        remote.set_aside(INITIAL, "a new run begins")


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
    copied = _read_copies(run_dir)
    changed = [name for name in record if name not in there or copied.get(name) != _stamp(run_dir / name)]
    stamps = {name: _stamp(run_dir / name) for name in changed}  # before the copy: what grows meanwhile goes up again
    for names in (changed[:1], changed[1:]):
        remote.put(run_dir, names)
    _write_copies(run_dir, copied | stamps)
    complete = complete_checkpoints(remote, there)
    for saved in checkpoint.find_all(run_dir):
        name, manifest = saved.path.name, (saved.path / checkpoint.MANIFEST).read_bytes()
        if name in complete.values() and remote.read(f"{name}/{checkpoint.MANIFEST}") == manifest:
            continue
        files = checkpoint.parse_manifest(manifest)["files"]
        if name in complete.values() or not _is_begun(there, name, files):
            remote.set_aside(name, "another one takes its name")
        remote.put(run_dir, [f"{name}/{part}" for part in files])
        remote.put(run_dir, [f"{name}/{checkpoint.MANIFEST}"])
        complete[saved.step] = name
        logger.info("uploaded %s/%s", remote.url, name)
    for step in sorted(complete)[: -limit if limit else 0]:
        if step != best_step:
            remote.discard(complete[step])


def _is_begun(there: dict[str, int], name: str, files: dict[str, int]) -> bool:
    """Whether all weights that are there may be those of an upload of this checkpoint that was broken off."""
    parts = [each for each in there if each.startswith(f"{name}/") and checkpoint.is_weights(each)]
    return all(files.get(each[len(name) + 1 :]) == there[each] for each in parts)


_COPIES = ".copies.json"
Stamp = list[int]
"""Size in bytes and time of the last change in ns, of a local file."""


def _stamp(path: Path) -> Stamp:
    found = path.stat()
    return [found.st_size, found.st_mtime_ns]


def _read_copies(run_dir: Path) -> dict[str, Stamp]:
    """The local files that are there as they are here, as driver and rank 0 noted them."""
    try:
        return dict(json.loads((run_dir / _COPIES).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return {}  # then all is copied


def _write_copies(run_dir: Path, copies: dict[str, Stamp]) -> None:
    partial = run_dir / f"{_COPIES}.partial"
    partial.write_text(json.dumps(copies), encoding="utf-8")
    partial.replace(run_dir / _COPIES)


def _note_copies(run_dir: Path, names: Iterable[str]) -> None:
    _write_copies(run_dir, _read_copies(run_dir) | {name: _stamp(run_dir / name) for name in names})


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
                f"a checkpoint was not uploaded within cluster.storage_timeout_s = {self._timeout_s:g}; raise it, or "
                "save less often",
                exit_code=1,
            ) from error
        except UserError as error:
            raise UserError(str(error), exit_code=1) from error
        self._under_way = None
