"""The start of a worker group: agrees on the checkpoint to continue and on the initial weights."""

import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import cast

import torch.distributed as dist

from rayswift.config.fields.tuners import begins_with_other_weights, looks_at_rows
from rayswift.config.tasks import TASKS
from rayswift.data.feed.client import FeedClient
from rayswift.log import logger
from rayswift.run import checkpoint, events
from rayswift.run.checkpoint import Damaged
from rayswift.run.fingerprint import initial_recipe
from rayswift.run.folder import INITIAL, Resume, best_step, load_resume, refuse_damaged, result_of
from rayswift.run.hub import HubPushes
from rayswift.train.parallel import universal
from rayswift.train.parallel.group_work import work_together
from rayswift.train.spec import NotSeen, RunSpec, Worker

_SEEN_WITHIN_S = 30.0  # a shared file system may show a file late to other hosts


def agree_on_checkpoint(spec: RunSpec, worker: Worker) -> tuple[Resume | None, int]:
    """Agree on the newest complete checkpoint of the run, found by rank 0, else on the one that the launch named.

    Ray Train's own record is not used: it learns of a checkpoint only at the controller's next poll. The ranks verify a
    checkpoint together, each its share of the files. A damaged one is set aside, and the one before it is taken.

    Returns:
        The checkpoint, and this attempt's number, with which calls of earlier groups are refused.

    Raises:
        UserError: there are checkpoints, and all are damaged.
        NotSeen: a rank does not see the checkpoint.
    """
    attempt = _from_rank_zero(worker, worker.supply.new_attempt() if worker.rank == 0 else None)
    assert isinstance(attempt, int)
    damaged: dict[Path, Damaged] = {}
    while True:
        name = _from_rank_zero(worker, str(_propose(spec, damaged) or "") if worker.rank == 0 else None)
        path = Path(str(name)) if name else None
        if path is None:
            break
        what = f"verifying {path}"
        limit_s = spec.config.cluster.storage_timeout_s
        answers = work_together(worker.rank, worker.size, what, limit_s, partial(_look, path, worker))
        damage = next((answer.damage for answer in answers if answer.damage), "")
        if not damage:
            _refuse_unseen(path, answers)
            break
        damaged[path] = Damaged(damage, was_complete=True)
        logger.info("%s is damaged: %s; looking for the one before it", path, damage)
    if worker.rank == 0:
        step = checkpoint.step_of(path) if path and path.parent == spec.run_dir else None
        checkpoint.clear_way(spec.run_dir, step, damaged)
        logger.info("%d worker(s) begin at %s", worker.size, path.name if path else "the first step")
    resume = load_resume(checkpoint.read(path)) if path else None
    if worker.rank == 0:
        events.record(spec.run_dir, "start", step=resume.saved.step if resume else 0, workers=worker.size)
    return resume, attempt


@dataclass(frozen=True)
class _Answer:
    """The result of a rank: the checkpoint is not visible, or is damaged; both empty: it is good."""

    host: str
    unseen: str = ""
    damage: str = ""


def _propose(spec: RunSpec, damaged: dict[Path, Damaged]) -> Path | None:
    """Return the newest checkpoint that may be complete; None: there never was one. Others are added to `damaged`.

    Raises:
        UserError: all checkpoints are damaged.
    """
    for folder in reversed(checkpoint.folders(spec.run_dir)):
        if folder in damaged:
            continue
        try:
            return checkpoint.read(folder).path
        except Damaged as damage:
            damaged[folder] = damage
    refuse_damaged({path.name: damage for path, damage in damaged.items()}, str(spec.run_dir))
    return spec.resume_from


def _look(path: Path, worker: Worker) -> _Answer:
    host = socket.gethostname()
    deadline = time.monotonic() + (_SEEN_WITHIN_S if worker.rank else 0)
    while True:
        try:
            saved = checkpoint.read(path)
            break
        except Damaged as damage:
            if time.monotonic() > deadline:
                return _Answer(host, unseen=str(damage))
            time.sleep(0.5)
    try:
        load_resume(saved)
        checkpoint.verify(path, (worker.rank, worker.size))
    except Damaged as damage:
        return _Answer(host, damage=str(damage))
    return _Answer(host)


def _refuse_unseen(path: Path, answers: list[_Answer]) -> None:
    blind = [f"worker {rank} on {answer.host}: {answer.unseen}" for rank, answer in enumerate(answers) if answer.unseen]
    if blind:
        raise NotSeen(
            f"{path} is not seen by all workers within {_SEEN_WITHIN_S:.0f} s ({'; '.join(blind)}); train.output_dir "
            "must be one folder for all hosts"
        )


def _from_rank_zero(worker: Worker, value: str | int | None) -> str | int | None:
    if worker.size == 1:
        return value
    decided = [value]
    dist.broadcast_object_list(decided)
    return decided[0]


def prepare_checkpoint(spec: RunSpec, resume: Resume | None, worker: Worker) -> bool:
    """Make the checkpoint loadable by this number of workers; rank 0 works, the others wait.

    Returns:
        Whether its universal format must be loaded, in place of the ranks' own files.
    """
    worker.at("makes the checkpoint fit this number of ranks, or waits for rank 0 to do so")
    if resume is None or not universal.is_needed(resume.saved, worker.size):
        return False
    saved = resume.saved
    _rank_zero_works(spec, worker, f"converting {saved.path.name}", lambda: universal.convert(saved))
    return True


def weights_to_load(spec: RunSpec, worker: Worker) -> str:
    """Return the path or hub id of the weights; if they differ from `model.path`, rank 0 writes them first."""
    worker.at("makes the weights to begin with, or waits for rank 0 to make them")
    model = spec.config.model
    if not begins_with_other_weights(model):
        return model.path
    folder = spec.run_dir / INITIAL

    def write() -> None:
        if folder.exists():
            return
        from rayswift.model.initial import weights as initial_weights

        rows = cast(FeedClient, worker.supply).first_rows(model.init_rows) if looks_at_rows(model) else ()
        head, recipe = TASKS[spec.config.train.task].head, initial_recipe(spec.config)
        initial_weights.write(model, spec.tokenizer_dir, folder, spec.config.train.seed, head, rows, recipe)

    _rank_zero_works(spec, worker, "writing the initial weights", write)
    return str(folder)


def finish_ended(spec: RunSpec, resume: Resume, worker: Worker) -> None:
    """Do what is left of a run whose workers died after their last save: no step is left to train."""
    train, last = spec.config.train, resume.saved.path
    logger.info("%s is the end of the run", last.name)

    def push() -> None:
        pushes = HubPushes(train, Path(train.output_dir).name, spec.config.cluster.storage_timeout_s)
        pushes.open()
        pushes.finish(result_of(spec.run_dir, train, best_step(last)) or last)

    _rank_zero_works(spec, worker, "pushing the result", push)


def _rank_zero_works(spec: RunSpec, worker: Worker, what: str, work: Callable[[], None]) -> None:
    limit_s = spec.config.cluster.storage_timeout_s
    work_together(worker.rank, worker.size, what, limit_s, work if worker.rank == 0 else lambda: None)
