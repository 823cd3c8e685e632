"""What a worker group agrees on before it trains: the checkpoint to continue, and the weights to begin with."""

import uuid
from pathlib import Path

import torch.distributed as dist

from rayswift.train import checkpoint
from rayswift.train.launch import RunSpec, Worker
from rayswift.train.model import write_initial_weights
from rayswift.train.run_folder import Resume, load_resume


def agree_on_checkpoint(spec: RunSpec, worker: Worker) -> tuple[Resume | None, str]:
    """Rank 0 looks, all follow: the newest complete checkpoint of the run, else the one the launch named.

    Ray Train's own record is not asked: it learns of a checkpoint only at the controller's next poll.

    Returns:
        The checkpoint, and a name for this attempt that no other has.
    """
    decided: list[str | None] = [None, None]
    if worker.rank == 0:
        checkpoint.sweep(spec.run_dir)
        newest = checkpoint.newest(spec.run_dir)
        path = newest.path if newest else spec.resume_from
        decided = [str(path) if path else None, uuid.uuid4().hex]
    if worker.size > 1:
        dist.broadcast_object_list(decided)
    path_name, attempt = decided
    saved = checkpoint.read_complete(Path(path_name)) if path_name else None
    assert attempt is not None
    return (load_resume(saved) if saved else None), attempt


def initial_weights(spec: RunSpec, worker: Worker) -> str:
    """Path or hub id of the weights to load; with `model.random_init` rank 0 writes them first."""
    if not spec.config.model.random_init:
        return spec.config.model.path
    folder = spec.run_dir / "init"
    if worker.rank == 0 and not (folder / "model.safetensors").exists():
        write_initial_weights(spec.config.model, folder, spec.config.train.seed)
    if worker.size > 1:
        dist.barrier()
    return str(folder)
