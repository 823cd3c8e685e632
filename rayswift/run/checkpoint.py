"""Checkpoint folders. A checkpoint is complete if its manifest, which is written last, verifies.

checkpoint-20/  model.safetensors, tokenizer, ...   load in transformers and vLLM
                global_step20/, scheduler.pt, ...   optimizer, schedule and random states of every rank
                trainer_state.json, data_state.json state of HF's Trainer and of the data feed
                manifest.json                       every file above with its size and checksum (XXH3)
set_aside/      files with weights that a run could not use: halves of killed saves, damaged checkpoints

Only `retain` deletes complete checkpoints, for `train.save_total_limit`. All other files with weights are set aside.
"""

import contextlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

from rayswift.data.filesystem import is_url
from rayswift.log import UserError, logger

MANIFEST = "manifest.json"
DATA_STATE = "data_state.json"
SET_ASIDE = "set_aside"
_NAME = re.compile(r"checkpoint-\d+")
_WEIGHTS = frozenset((".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".h5", ".msgpack"))
_OF_RANK = re.compile(r"rank_(\d+)_|rng_state_(\d+)\.pth")
_CHUNK_BYTES = 1 << 20
_NUM_THREADS = 4


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint."""

    path: Path
    step: int
    world_size: int
    zero_stage: int


class Damaged(Exception):
    """A checkpoint that is not complete, with the reason. was_complete: it has a manifest."""

    def __init__(self, reason: str, was_complete: bool):
        super().__init__(reason)
        self.was_complete = was_complete


def write_manifest(
    folder: Path, step: int, world_size: int, zero_stage: int, known: Mapping[str, str] | None = None
) -> None:
    """Write the manifest of a checkpoint whose other files are all in place.

    known: checksums that other ranks computed; the missing ones are computed here.
    """
    files = {str(path.relative_to(folder)): path.stat().st_size for path in _files(folder)}
    sums = dict(known or {})
    sums |= checksums(folder, files.keys() - sums.keys(), write_through=True)
    manifest = {"step": step, "world_size": world_size, "zero_stage": zero_stage, "files": files}
    partial = folder / f"{MANIFEST}.partial"
    with open(partial, "w", encoding="utf-8") as file:
        json.dump(manifest | {"checksums": {name: sums[name] for name in files}}, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(folder / MANIFEST)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _files(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != MANIFEST]


def checksums(folder: Path, names: Iterable[str], write_through: bool = False) -> dict[str, str]:
    """XXH3 of files, in parallel; raise OSError if one cannot be read.

    write_through: first make sure that the files are on the disk (fsync).
    """

    def checksum(name: str) -> str:
        digest = xxhash.xxh3_128()
        buffer = memoryview(bytearray(_CHUNK_BYTES))
        with open(folder / name, "rb", buffering=0) as file:
            if write_through:
                os.fsync(file.fileno())
            while length := file.readinto(buffer):
                digest.update(buffer[:length])
        return digest.hexdigest()

    names = sorted(names)
    with ThreadPoolExecutor(_NUM_THREADS) as pool:
        return dict(zip(names, pool.map(checksum, names), strict=True))


def share_of(names: Iterable[str], rank: int, size: int) -> list[str]:
    """The files that one of `size` ranks checks for all: those with its rank in their name, and a part of the rest."""
    owners = ((name, _rank_in(name), index) for index, name in enumerate(sorted(names)))
    return [name for name, owner, index in owners if (index if owner is None else owner) % size == rank]


def written_by(folder: Path, rank: int) -> list[str]:
    """The files of a checkpoint with this rank in their name."""
    return [name for path in _files(folder) if _rank_in(name := str(path.relative_to(folder))) == rank]


def _rank_in(name: str) -> int | None:
    numbers = _OF_RANK.search(name)
    return int(numbers[1] or numbers[2]) if numbers else None


def read(folder: Path) -> Checkpoint:
    """The checkpoint in a folder; raise Damaged if a file of its manifest is missing or has another size."""
    manifest = read_manifest(folder)
    for name, size in manifest["files"].items():
        try:
            found = (folder / name).stat().st_size
        except OSError as error:
            raise Damaged(f"{name} is missing", was_complete=True) from error
        if found != size or not (folder / name).is_file():
            raise Damaged(f"{name} has {found} bytes, it was saved with {size}", was_complete=True)
    return Checkpoint(folder, int(manifest["step"]), int(manifest["world_size"]), int(manifest["zero_stage"]))


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a checkpoint; raise Damaged if it is missing or invalid."""
    try:
        return parse_manifest((folder / MANIFEST).read_bytes())
    except FileNotFoundError as error:
        raise Damaged(f"it has no {MANIFEST}: its save did not come to an end", was_complete=False) from error
    except OSError as error:
        raise Damaged(f"its {MANIFEST} cannot be read: {error.strerror}", was_complete=True) from error


def parse_manifest(content: bytes) -> dict[str, Any]:
    """The manifest; raise Damaged if it is invalid."""
    try:
        manifest: dict[str, Any] = json.loads(content)
        for key in ("step", "world_size", "zero_stage"):
            int(manifest[key])
        if not all(isinstance(size, int) for size in manifest["files"].values()):
            raise ValueError("sizes")
        dict(manifest.get("checksums", {}))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Damaged(f"its {MANIFEST} is cut off or is not one", was_complete=True) from error
    return manifest


def read_complete(folder: Path) -> Checkpoint | None:
    """The checkpoint in a folder; None if it is not complete."""
    try:
        return read(folder)
    except Damaged:
        return None


def verify(folder: Path, share: tuple[int, int] = (0, 1), most_bytes: int | None = None) -> None:
    """Compare files with the checksums of the manifest (older ones have none); raise Damaged if one differs.

    share: (rank, size), for ranks that check a checkpoint together; most_bytes: skip larger files.
    """
    manifest = read_manifest(folder)
    sizes, sums = manifest["files"], manifest.get("checksums", {})
    names = [name for name in sums if most_bytes is None or sizes.get(name, 0) <= most_bytes]
    try:
        found = checksums(folder, share_of(names, *share))
    except OSError as error:
        raise Damaged(f"{error.filename} cannot be read: {error.strerror}", was_complete=True) from error
    for name, checksum in found.items():
        if checksum != sums[name]:
            raise Damaged(f"the content of {name} has changed since it was saved", was_complete=True)


def folders(run_dir: Path) -> list[Path]:
    """Every `checkpoint-N` folder, complete or not, in the order of steps."""
    found = (path for path in run_dir.glob("checkpoint-*") if is_name(path.name) and path.is_dir())
    return sorted(found, key=step_of)


def step_of(folder: Path) -> int:
    return int(folder.name.rpartition("-")[2])


def find_all(run_dir: Path) -> list[Checkpoint]:
    """The complete checkpoints of a run, oldest first."""
    found = (read_complete(path) for path in folders(run_dir))
    return sorted((saved for saved in found if saved), key=lambda saved: saved.step)


def newest(run_dir: Path) -> Checkpoint | None:
    found = find_all(run_dir)
    return found[-1] if found else None


def discard(folder: Path) -> None:
    """Delete a checkpoint; the manifest goes first, so that a partly deleted one is not complete."""
    (folder / MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def is_name(name: str) -> bool:
    return _NAME.fullmatch(name) is not None


def is_weights(name: str) -> bool:
    """Whether the file may hold weights or optimizer states, by its name."""
    return Path(name).suffix in _WEIGHTS


def _holds_weights(path: Path) -> bool:
    """Whether a file, or a file in a folder, may hold weights; a link to a folder counts as weights."""
    if path.is_dir():
        return path.is_symlink() or any(is_weights(each.name) for each in path.rglob("*"))
    return is_weights(path.name)


def set_aside(path: Path, why: str) -> Path | None:
    """Move a file or folder that may hold weights to `set_aside/`, log that, and return the new path; delete others."""
    if not os.path.lexists(path):
        return None
    if not _holds_weights(path):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
        return None
    parent = path.parent / SET_ASIDE
    try:
        parent.mkdir(exist_ok=True)
        names = (f"{path.name}-{number}" if number else path.name for number in range(1 << 20))
        target = next(parent / name for name in names if not os.path.lexists(parent / name))
        path.rename(target)
    except OSError as error:
        raise UserError(f"{path} is in the way and cannot be moved to {parent}: {error.strerror}") from error
    logger.info("%s is set aside as %s/%s: %s; delete it if you do not need it", path, SET_ASIDE, target.name, why)
    return target


def clear_way(run_dir: Path, step: int | None, damaged: Mapping[Path, Damaged]) -> None:
    """Set aside every checkpoint after `step`, which the run continues: it will save new ones there.

    step: None sets all aside.
    """
    for folder in folders(run_dir):
        if step is None or step_of(folder) > step:
            set_aside(folder, str(damaged.get(folder, "it is newer than the one that is continued")))


def retain(run_dir: Path, limit: int | None, best_step: int | None) -> None:
    """Delete all checkpoints but the newest `limit` and the best."""
    if limit is None:
        return
    for saved in find_all(run_dir)[:-limit]:
        if saved.step != best_step:
            discard(saved.path)


def model_folder(name: str | Path) -> Path:
    """The folder itself if it holds a model, or the result of a run folder; raise UserError if there is no model."""
    if is_url(str(name)):
        raise UserError(
            f"{name} is a URL; copy the model (of a run: its newest checkpoint-N) to a folder, and name that"
        )
    path = Path(name)
    if not path.is_dir():
        raise UserError(f"no folder {path}; give a run folder, a checkpoint or a model folder")
    if any((path / name).exists() for name in ("config.json", "adapter_config.json")):
        return path
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # none yet, or another program's
        chosen = path / Path(json.loads((path / "result.json").read_text(encoding="utf-8"))["model"]).name
        if read_complete(chosen):
            return chosen
    saved = newest(path)
    if saved is None:
        raise UserError(f"{path} holds no complete checkpoint and no config.json")
    return saved.path
