"""What a worker group agrees on before it trains: the checkpoint to continue, and the weights to begin with."""

from pathlib import Path
from typing import cast

import torch.distributed as dist

from rayswift.config.tuner_fields import begins_with_other_weights, looks_at_rows
from rayswift.log import logger
from rayswift.train import checkpoint, events, initial_weights, universal
from rayswift.train.feed_client import FeedClient
from rayswift.train.launch import RunSpec, Worker
from rayswift.train.run_folder import Resume, load_resume
from rayswift.train.tasks import TASKS


def agree_on_checkpoint(spec: RunSpec, worker: Worker) -> tuple[Resume | None, int]:
    """Rank 0 looks, all follow: the newest complete checkpoint of the run, else the one the launch named.

    Ray Train's own record is not asked: it learns of a checkpoint only at the controller's next poll.

    Returns:
        The checkpoint, and this attempt's number, which fences off the groups before.
    """
    decided: list[str | int | None] = [None, None]
    if worker.rank == 0:
        checkpoint.sweep(spec.run_dir)
        newest = checkpoint.newest(spec.run_dir)
        path = newest.path if newest else spec.resume_from
        decided = [str(path) if path else None, worker.supply.new_attempt()]
        logger.info("%d worker(s) begin at %s", worker.size, path.name if path else "the first step")
    if worker.size > 1:
        dist.broadcast_object_list(decided)
    path_name, attempt = decided
    saved = checkpoint.read_complete(Path(path_name)) if isinstance(path_name, str) else None
    assert isinstance(attempt, int)
    if worker.rank == 0:
        events.record(spec.run_dir, "start", step=saved.step if saved else 0, workers=worker.size)
    return (load_resume(saved) if saved else None), attempt


def prepare_checkpoint(resume: Resume | None, worker: Worker) -> bool:
    """Make the checkpoint loadable by this number of workers; rank 0 works, the others wait for it.

    Returns:
        Whether its universal form must be loaded, in place of the ranks' own files.
    """
    if resume is None or not universal.is_needed(resume.saved, worker.size):
        return False
    if worker.rank == 0:
        universal.convert(resume.saved)
    if worker.size > 1:
        dist.barrier()
    return True


def weights_to_load(spec: RunSpec, worker: Worker) -> str:
    """Path or hub id of the weights; where they are not `model.path` as it is, rank 0 writes them first."""
    model = spec.config.model
    if not begins_with_other_weights(model):
        return model.path
    folder = spec.run_dir / "init"
    if worker.rank == 0 and not folder.exists():
        rows = cast(FeedClient, worker.supply).first_rows(model.init_rows) if looks_at_rows(model) else ()
        head = TASKS[spec.config.train.task].head
        initial_weights.write(model, spec.tokenizer_dir, folder, spec.config.train.seed, head, rows)
    if worker.size > 1:
        dist.barrier()
    return str(folder)
