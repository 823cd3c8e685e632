"""ZeRO checkpoints for another number of workers: converts them to DeepSpeed's universal format.

A ZeRO checkpoint holds one file per rank, each with that rank's shard of every optimizer state; the universal format
holds them by parameter, for any number of ranks. It is in the checkpoint's folder, beside the original, until the next
checkpoint is saved.
"""

import io
import shutil
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from rayswift.log import logger
from rayswift.run.checkpoint import Checkpoint, read_complete

_LATEST = "latest_universal"
_SUFFIX = "_universal"


def is_needed(saved: Checkpoint, size: int) -> bool:
    """Whether a checkpoint is sharded for another number of ranks; without ZeRO nothing is sharded."""
    return saved.world_size != size and any(saved.path.glob("global_step*/*zero_pp_rank_*_optim_states.pt"))


def convert(saved: Checkpoint) -> None:
    """Write the universal format into the checkpoint's folder, unless it exists; one process at a time."""
    if (saved.path / _LATEST).exists():
        return
    from deepspeed.checkpoint import ds_to_universal

    source = saved.path / (saved.path / "latest").read_text(encoding="utf-8").strip()
    target = saved.path / f"{source.name}{_SUFFIX}"
    shutil.rmtree(target, ignore_errors=True)  # a partial one of a killed process
    logger.info("%s was saved by %d workers: converting it", saved.path, saved.world_size)
    settings = SimpleNamespace(
        input_folder=str(source),
        output_folder=str(target),
        num_extract_workers=1,
        num_merge_workers=1,
        keep_temp_folder=False,
        strict=True,
        inject_missing_state=True,
    )
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        ds_to_universal.main(settings)  # names the folder in `latest_universal` at its end


def discard(run_dir: Path) -> None:
    """Remove the converted files, because a newer checkpoint replaces them."""
    for latest in run_dir.glob(f"checkpoint-*/{_LATEST}"):
        if read_complete(latest.parent) is None:
            continue  # the converted form may be the only complete one
        latest.unlink(missing_ok=True)
        for folder in latest.parent.glob(f"global_step*{_SUFFIX}"):
            if folder.with_name(folder.name.removesuffix(_SUFFIX)).is_dir():
                shutil.rmtree(folder, ignore_errors=True)


def complete_load(engine: Any, group_settings: list[dict[str, Any]]) -> None:
    """Correct what stage 3 of DeepSpeed 0.19.8 leaves wrong when it loads the universal format.

    Args:
        engine: May have loaded one.
        group_settings: The settings of the parameter groups with which the optimizer was made.
    """
    if not engine.load_universal_checkpoint() or engine.zero_optimization_stage() < 3:
        return
    zero = engine.optimizer
    # All states were given one step counter, so that every sub-group's step would advance all of them.
    for state in zero.optimizer.state.values():
        if isinstance(state.get("step"), torch.Tensor):
            state["step"] = state["step"].clone()
    # All groups were given the settings of the first, its weight decay too.
    for group, settings in zip(zero.optimizer.param_groups, group_settings, strict=True):
        group.update(settings)
    # Small parameters stay whole on every rank, and were left as they were before loading.
    whole = zero.persistent_parameters
    if whole:
        whole[0].partition(whole)
        whole[0].all_gather(whole)
