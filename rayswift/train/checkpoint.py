"""Checkpoint folders: complete means that the manifest, written last, verifies; pure file work.

checkpoint-20/  model.safetensors, tokenizer, ...   loads in transformers and vLLM as it is
                global_step20/, scheduler.pt, ...   optimizer, schedule, random states, of every rank
                trainer_state.json, data_state.json what HF's Trainer and the data feed continue from
                manifest.json                       every file above and its size
"""

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rayswift.log import UserError

MANIFEST = "manifest.json"
DATA_STATE = "data_state.json"


@dataclass(frozen=True)
class Saved:
    """A complete checkpoint."""

    path: Path
    step: int
    world_size: int
    zero_stage: int


def seal(folder: Path, step: int, world_size: int, zero_stage: int) -> None:
    """Write the manifest of a folder whose other files are all in place."""
    files = {
        str(path.relative_to(folder)): path.stat().st_size
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != MANIFEST
    }
    manifest = {"step": step, "world_size": world_size, "zero_stage": zero_stage, "files": files}
    partial = folder / f"{MANIFEST}.partial"
    with open(partial, "w", encoding="utf-8") as file:
        json.dump(manifest, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(folder / MANIFEST)


def read_complete(folder: Path) -> Saved | None:
    """The checkpoint in a folder, if every file of its manifest is there with its size."""
    try:
        manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        for name, size in manifest["files"].items():
            if (folder / name).stat().st_size != size:
                return None
        return Saved(folder, int(manifest["step"]), int(manifest["world_size"]), int(manifest["zero_stage"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def find_all(run_dir: Path) -> list[Saved]:
    """Complete checkpoints of a run, oldest first."""
    found = (read_complete(path) for path in run_dir.glob("checkpoint-*"))
    return sorted((saved for saved in found if saved), key=lambda saved: saved.step)


def newest(run_dir: Path) -> Saved | None:
    """The newest complete checkpoint of a run."""
    found = find_all(run_dir)
    return found[-1] if found else None


def discard(folder: Path) -> None:
    """Remove a checkpoint; its manifest goes first, so that no half of it ever counts as complete."""
    (folder / MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def sweep(run_dir: Path) -> None:
    """Remove what a killed save left behind."""
    for folder in run_dir.glob("checkpoint-*"):
        if folder.is_dir() and read_complete(folder) is None:
            discard(folder)


def retain(run_dir: Path, limit: int | None, best_step: int | None) -> None:
    """Keep the newest `limit` checkpoints, and the best beside them."""
    if limit is None:
        return
    for saved in find_all(run_dir)[:-limit]:
        if saved.step != best_step:
            discard(saved.path)


def model_folder(path: Path) -> Path:
    """The model that a path names: a run folder's result, or the folder itself.

    Raises:
        UserError: a run folder without a complete checkpoint, or no model at all.
    """
    if not path.is_dir():
        raise UserError(f"no folder {path}; give a run folder, a checkpoint or a model folder")
    if any((path / name).exists() for name in ("config.json", "adapter_config.json")):
        return path
    result = path / "result.json"
    if result.exists():
        chosen = Path(json.loads(result.read_text(encoding="utf-8"))["model"])
        chosen = path / chosen.name
        if read_complete(chosen):
            return chosen
    saved = newest(path)
    if saved is None:
        raise UserError(f"{path} holds no complete checkpoint and no config.json")
    return saved.path
