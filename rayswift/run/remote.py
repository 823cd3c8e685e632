"""A run folder behind a URL (`s3://bucket/run`, or any scheme of pyarrow and fsspec).

The run works in an empty scratch folder. A launch downloads the run's record and its newest checkpoint, and uploads
what changes, manifests last. At the end the scratch folder is deleted if all weights are uploaded; otherwise it is
kept, and an error names it. Credentials and endpoints come from the clients' own variables (`AWS_ENDPOINT_URL`, ...).
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
from rayswift.files import write_whole
from rayswift.log import UserError, announced, logger
from rayswift.run import checkpoint
from rayswift.run.checkpoint import Damaged
from rayswift.run.folder import (
    FINGERPRINT,
    INITIAL,
    RECIPE,
    RESULT,
    TRAINER_STATE,
    check_ownership,
    earlier_run,
    refuse_damaged,
)
from rayswift.run.url_files import Remote

# Not uploaded: Ray Train's own folder, copies and indices of the rows, and files that may be gone before they are read.
_NOT_KEPT = re.compile(
    rf"ray/.*|data/[^/]+/.*|logs/[^/]*\.note|.*\.partial([./].*)?|\.[^/]*|checkpoint-.*|{checkpoint.SET_ASIDE}/.*"
)
# Converted from the checkpoint beside it.
_DERIVED = re.compile(r"global_step\d+_universal/")


def checkpoints(remote: Remote, sizes: dict[str, int]) -> tuple[dict[int, str], dict[str, Damaged]]:
    """Step -> name of every complete checkpoint, oldest first; and the others with what they lack."""
    found, damaged = {}, {}
    for name in {file.partition("/")[0] for file in sizes if checkpoint.is_name(file.partition("/")[0])}:
        try:
            if f"{name}/{checkpoint.MANIFEST}" not in sizes:
                raise Damaged("its upload was interrupted", was_complete=False)
            manifest = checkpoint.parse_manifest(remote.read(f"{name}/{checkpoint.MANIFEST}"))
            for part, size in manifest["files"].items():
                if sizes.get(f"{name}/{part}") != size:
                    raise Damaged(f"{part} is missing or has another size than it was saved with", was_complete=True)
            found[int(manifest["step"])] = name
        except Damaged as damage:
            damaged[name] = damage
    return dict(sorted(found.items())), damaged


@contextmanager
def working_copy(output_dir: str, resume: str, scratch_dir: str | None, recipe: str | None = None) -> Iterator[Path]:
    """The folder that a run works in: `output_dir` itself, or a scratch folder below `scratch_dir` if it is a URL.

    Raise UserError if the URL cannot be read or written (exit code 2), or if results could not be uploaded (1).
    """
    if not is_url(output_dir):
        if in_a_jobs_folder(Path.cwd()) and not Path(output_dir).is_absolute():
            logger.warning(
                "train.output_dir = %r is in this job's working folder, which Ray may delete; give an absolute path, "
                "or a URL, to keep the run",
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
        with announced(f"fetching {remote.url}"):
            pull(remote, run_dir, resume, recipe)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)  # it holds downloaded copies only
        raise
    try:
        yield run_dir
    except BaseException as failure:
        # Without a fingerprint the run has written nothing.
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
    """Upload what is missing; return a message about files that could not be uploaded, or ""."""
    problem = ""
    try:
        with announced(f"uploading to {remote.url}"):
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
    """The checkpoint or folder that a file belongs to."""
    parts = name.split("/")
    return "/".join(parts[:2]) if parts[0] == checkpoint.SET_ASIDE else parts[0]


def pull(remote: Remote, run_dir: Path, resume: str, recipe: str | None = None) -> None:
    """Download a run's record and its newest and best checkpoints, or the initial weights of a new run.

    resume: `train.resume`; recipe: only initial weights with the same recipe are downloaded. Raise UserError if the URL
    holds other files, or a run that must not or cannot be continued.
    """
    sizes = remote.sizes()
    check_ownership({name.partition("/")[0] for name in sizes}, FINGERPRINT in sizes, remote.url)
    complete, damaged = checkpoints(remote, sizes)
    if resume == "never" and complete:
        raise earlier_run(remote.url, complete[max(complete)])
    newest: int | None = None
    for step, name in reversed(complete.items()):
        try:
            _fetch(remote, sizes, name, run_dir)
            newest = step
            break
        except Damaged as damage:
            damaged[name] = damage
            shutil.rmtree(run_dir / name)  # the downloaded copy
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
            shutil.rmtree(run_dir / best)  # the downloaded copy


def _fetch(remote: Remote, sizes: dict[str, int], name: str, run_dir: Path) -> None:
    logger.info("fetching %s/%s", remote.url, name)
    remote.get([each for each in sizes if each.startswith(f"{name}/")], run_dir)
    checkpoint.verify(run_dir / name)
    try:
        json.loads((run_dir / name / TRAINER_STATE).read_text(encoding="utf-8")).keys()
    except (OSError, ValueError, AttributeError) as error:
        raise Damaged(f"{TRAINER_STATE} is missing or cut off", was_complete=True) from error


def _fetch_initial_weights(remote: Remote, sizes: dict[str, int], run_dir: Path, recipe: str | None) -> None:
    """Download the initial weights if the new run would write the same ones; otherwise set them aside."""
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
    """Upload what changed: the record, then each complete checkpoint with its manifest last.

    Then delete all checkpoints behind the URL but the newest `limit` (None: all) and the one of `best_step`.
    """
    there = remote.sizes()
    files = (str(path.relative_to(run_dir)) for path in run_dir.rglob("*") if path.is_file())
    # The fingerprint goes first: it marks the folder as a run folder.
    record = sorted((name for name in files if not _NOT_KEPT.fullmatch(name)), key=lambda name: name != FINGERPRINT)
    copied = _read_copies(run_dir)
    changed = [name for name in record if name not in there or copied.get(name) != _stamp(run_dir / name)]
    stamps = {name: _stamp(run_dir / name) for name in changed}  # before the copy, so that later changes are uploaded
    for names in (changed[:1], changed[1:]):
        remote.put(run_dir, names)
    _write_copies(run_dir, copied | stamps)
    complete, _ = checkpoints(remote, there)
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


def withdraw_result(output_dir: str, run_dir: Path) -> None:
    """Delete `result.json`, also behind a URL: a run that goes on has no result, and the old one looks like its own."""
    (run_dir / RESULT).unlink(missing_ok=True)
    if is_url(output_dir) and (remote := Remote(output_dir)).has(RESULT):
        remote.remove(RESULT)


def _is_begun(there: dict[str, int], name: str, files: dict[str, int]) -> bool:
    """Whether all weights behind the URL can be from an interrupted upload of this checkpoint."""
    parts = [each for each in there if each.startswith(f"{name}/") and checkpoint.is_weights(each)]
    return all(files.get(each[len(name) + 1 :]) == there[each] for each in parts)


_COPIES = ".copies.json"
Stamp = list[int]
"""Size in bytes and time of the last change in ns, of a local file."""


def _stamp(path: Path) -> Stamp:
    found = path.stat()
    return [found.st_size, found.st_mtime_ns]


def _read_copies(run_dir: Path) -> dict[str, Stamp]:
    """The local files whose current content is uploaded; driver and rank 0 write this."""
    try:
        return dict(json.loads((run_dir / _COPIES).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return {}  # every file is then uploaded


def _write_copies(run_dir: Path, copies: dict[str, Stamp]) -> None:
    write_whole(run_dir / _COPIES, json.dumps(copies))


def _note_copies(run_dir: Path, names: Iterable[str]) -> None:
    _write_copies(run_dir, _read_copies(run_dir) | {name: _stamp(run_dir / name) for name in names})


class Uploads:
    """Uploads checkpoints during training, one at a time. For an `output_dir` that is no URL it does nothing."""

    def __init__(self, output_dir: str, run_dir: Path, limit: int | None, timeout_s: float):
        self._remote = Remote(output_dir) if is_url(output_dir) else None
        self._run_dir, self._limit, self._timeout_s = run_dir, limit, timeout_s
        self._pool = ThreadPoolExecutor(1)
        self._under_way: Future[None] | None = None

    def start(self, best_step: int | None) -> None:
        """Begin to upload all complete checkpoints."""
        if self._remote:
            self._under_way = self._pool.submit(push, self._remote, self._run_dir, self._limit, best_step)

    def wait(self) -> None:
        """Wait for the upload in progress; raise UserError if it failed or took longer than `timeout_s`."""
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
