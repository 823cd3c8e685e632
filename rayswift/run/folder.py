"""The run folder: names of its files, what a launch continues or clears, and the record that it writes."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from rayswift.config.load import to_yaml
from rayswift.config.schema import TrainingConfig
from rayswift.config.train import TrainConfig
from rayswift.data.sequence.global_batches import Position
from rayswift.files import write_whole
from rayswift.log import UserError, logger
from rayswift.run import checkpoint
from rayswift.run.accounting import write_accounting
from rayswift.run.best import best_of, evaluations, num_without_improvement
from rayswift.run.checkpoint import Damaged
from rayswift.run.events import EVENTS
from rayswift.run.fingerprint import SOURCES, initial_recipe

CONFIG = "config.yaml"
METRICS = "metrics.jsonl"
REPORT = "report.html"
NAN_ROWS = "nan_rows"
COMPLETIONS = "completions"
FINGERPRINT = "fingerprint.json"
RESULT = "result.json"
TRAINER_STATE = "trainer_state.json"
INITIAL = "init"
RECIPE = "recipe.txt"  # in the folder of initial weights: a hash of what they were made from
_MOST_BYTES_CHECKED = 16 << 20
# Files of a launch besides checkpoints; a new run clears them in a folder that has a fingerprint.
_OWN = (
    CONFIG,
    METRICS,
    FINGERPRINT,
    SOURCES,
    RESULT,
    REPORT,
    EVENTS,
    "logs",
    "data",
    "tokenizer",
    INITIAL,
    f"{INITIAL}.partial",
    "ray",
    "runs",
    NAN_ROWS,
    COMPLETIONS,
)


@dataclass(frozen=True)
class Resume:
    """The checkpoint that a launch continues, its log history, and the ledger of prompts as it was written."""

    saved: checkpoint.Checkpoint
    position: Position
    epochs: float
    config: dict[str, Any]
    history: list[dict[str, Any]] = field(default_factory=list)
    ledger: dict[str, Any] | None = None

    def is_end_of(self, train: TrainConfig) -> bool:
        """Whether nothing is left to train, also by early stopping."""
        if train.early_stopping_patience:
            values = evaluations(self.history, train.metric_for_best_model)
            if num_without_improvement(values, bool(train.greater_is_better)) >= train.early_stopping_patience:
                return True
        if train.max_steps > 0:
            return self.saved.step >= train.max_steps
        return self.epochs >= train.num_train_epochs - 1e-9


def open_run(config: TrainingConfig, run_dir: Path) -> Resume | None:
    """Prepare the run folder (`train.output_dir`, or its scratch folder), and return what to continue.

    Raise UserError if it cannot be written, or holds a run that must not or cannot be continued.
    """
    resume = config.train.resume
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        probe = run_dir / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"train.output_dir = {str(run_dir)!r} cannot be written: {error.strerror}") from error
    check_ownership({p.name for p in run_dir.iterdir()}, (run_dir / FINGERPRINT).exists(), str(run_dir))
    saved = checkpoint.newest(run_dir)
    if resume == "never" and saved:
        raise earlier_run(str(run_dir), saved.path.name)
    found, damaged = _find(run_dir, config.train)
    if resume not in ("never", "auto"):
        found = _named(Path(resume), found)
    is_here = found is not None and found.saved.path.parent.resolve() == run_dir.resolve()
    if (run_dir / FINGERPRINT).exists():
        checkpoint.clear_way(run_dir, found.saved.step if found and is_here else None, damaged)
        if not is_here:
            _clear(run_dir, config)
    if not is_here:
        write_whole(run_dir / FINGERPRINT, "{}")
    return found


def _find(run_dir: Path, train: TrainConfig) -> tuple[Resume | None, dict[Path, Damaged]]:
    """The newest checkpoint that can be continued, and the damaged ones that are newer; raises as `refuse_damaged`."""
    damaged: dict[Path, Damaged] = {}
    for folder in reversed(checkpoint.folders(run_dir)):
        try:
            resume = load_resume(checkpoint.read(folder))
            # Workers check the large files, but there are none if the run has ended.
            ended = resume.is_end_of(train)
            checkpoint.verify(folder, most_bytes=None if ended else _MOST_BYTES_CHECKED)
            return resume, damaged
        except Damaged as damage:
            damaged[folder] = damage
    refuse_damaged({folder.name: damage for folder, damage in damaged.items()}, str(run_dir))
    return None, damaged


def earlier_run(where: str, newest: str) -> UserError:
    return UserError(
        f"train.output_dir = {where!r} holds {newest} of an earlier run; continue it with --resume auto, or choose "
        "another --train.output_dir"
    )


def refuse_damaged(damaged: Mapping[str, Damaged], where: str) -> None:
    """Raise UserError if a checkpoint was complete once and is now damaged: its weights may still be useful."""
    lines = [f"  {name}: {damage}" for name, damage in damaged.items() if damage.was_complete]
    if lines:
        raise UserError(
            f"train.output_dir = {where!r} holds checkpoints of an earlier run, none of which can be continued:\n"
            + "\n".join(lines)
            + "\n  nothing was changed; give one's folder as --model to train its weights anew, and choose another "
            "--train.output_dir, or move them away"
        )


def check_ownership(names: set[str], owned: bool, where: str) -> None:
    """Raise UserError if a folder that no run wrote has files with names of a run folder."""
    foreign = sorted(name for name in names if name in _OWN or name.startswith("checkpoint-"))
    if foreign and not owned:
        raise UserError(
            f"train.output_dir = {where!r} holds {', '.join(foreign)} that RaySwift did not write; choose another "
            "--train.output_dir"
        )


def _named(path: Path, found: Resume | None) -> Resume:
    """The checkpoint that `train.resume` names; `found` is the one of the run folder."""
    if not path.is_dir():
        what = f"train.resume = {str(path)!r} is not a complete checkpoint: there is no such folder"
        raise UserError(f"{what}; give auto, never, or the checkpoint-N of a run")
    if newest := checkpoint.newest(path):
        raise UserError(f"train.resume = {str(path)!r} is a run folder; name one of its checkpoints: {newest.path}")
    try:
        resume = load_resume(checkpoint.read(path))
        checkpoint.verify(path, most_bytes=_MOST_BYTES_CHECKED)
    except Damaged as damage:
        raise UserError(f"train.resume = {str(path)!r} is not a complete checkpoint: {damage}") from damage
    if found and found.saved.path.resolve() != path.resolve():
        raise UserError(
            f"train.resume = {str(path)!r}, but the run folder holds {found.saved.path}; continue that with --resume "
            "auto, or begin a new folder with another --train.output_dir"
        )
    return resume


def load_resume(saved: checkpoint.Checkpoint) -> Resume:
    """The state of the run in a checkpoint; raise UserError without optimizer state, Damaged if a file is cut off."""
    if not list(saved.path.glob("global_step*")) and not (saved.path / "optimizer.pt").exists():
        raise UserError(f"{saved.path} was saved with train.save_only_model and cannot be continued")
    try:
        state = json.loads((saved.path / checkpoint.DATA_STATE).read_text(encoding="utf-8"))
        config = yaml.safe_load((saved.path / CONFIG).read_text(encoding="utf-8"))
        trainer_state = json.loads((saved.path / TRAINER_STATE).read_text(encoding="utf-8"))
        return Resume(
            saved,
            Position(**state["position"]),
            float(state["epochs"]),
            dict(config),
            list(trainer_state.get("log_history", [])),
            state.get("ledger"),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError) as error:
        names = f"{checkpoint.DATA_STATE}, {CONFIG} or {TRAINER_STATE}"
        raise Damaged(f"{names} is missing or cut off ({type(error).__name__})", was_complete=True) from error


def _clear(run_dir: Path, config: TrainingConfig) -> None:
    """Clear the files of an earlier run, except initial weights that the new run would write again."""
    recipe = run_dir / INITIAL / RECIPE
    keeps_initial = recipe.is_file() and recipe.read_text(encoding="utf-8") == initial_recipe(config)
    for name in _OWN:
        # The fingerprint stays, so that the folder is a run folder even if this is killed.
        if name != FINGERPRINT and not (name == INITIAL and keeps_initial):
            checkpoint.set_aside(run_dir / name, "a new run begins")


def write_record(run_dir: Path, config: TrainingConfig, found: dict[str, Any]) -> None:
    write_whole(run_dir / CONFIG, to_yaml(config))
    write_whole(run_dir / FINGERPRINT, json.dumps(found, indent=1))


def say_what_is_left_behind(run_dir: Path, train: TrainConfig, history: list[dict[str, Any]]) -> None:
    """Warn if `load_best_model_at_end` is set and the best checkpoint of the history is not in this folder."""
    best = best_of(evaluations(history, train.metric_for_best_model), bool(train.greater_is_better))
    if not train.load_best_model_at_end or best is None:
        return
    step, value = best
    if not (run_dir / f"checkpoint-{step}").is_dir():
        logger.warning(
            "the best evaluation so far, %s = %g at step %d, is of a checkpoint that is not in %s: the best model is "
            "chosen among those saved here",
            train.metric_for_best_model,
            value,
            step,
            run_dir,
        )


def result_of(run_dir: Path, train: TrainConfig, best: int | None) -> Path | None:
    """The checkpoint that is a run's result: the best one if `load_best_model_at_end` is set, else the newest."""
    path = run_dir / f"checkpoint-{best}"
    if train.load_best_model_at_end and checkpoint.read_complete(path):
        return path
    saved = checkpoint.newest(run_dir)
    return saved.path if saved else None


def best_step(folder: Path) -> int | None:
    """The step of the best evaluation that a checkpoint knows."""
    state = json.loads((folder / TRAINER_STATE).read_text(encoding="utf-8"))
    best: int | None = state.get("best_global_step")
    return best


def write_result(run_dir: Path, config: TrainingConfig) -> tuple[Path, dict[str, int]]:
    """Write `result.json` and the row accounting; return the best (or last) checkpoint and the row counts."""
    saved = checkpoint.newest(run_dir)
    if saved is None:
        raise UserError(f"{run_dir} holds no complete checkpoint", exit_code=1)
    model = result_of(run_dir, config.train, best_step(saved.path)) or saved.path
    state = json.loads((saved.path / TRAINER_STATE).read_text(encoding="utf-8"))
    say_what_is_left_behind(run_dir, config.train, state.get("log_history", []))
    counts = json.loads((saved.path / checkpoint.DATA_STATE).read_text(encoding="utf-8"))["position"]["counts"]
    result = {"model": model.name, "last": saved.path.name, "best_metric": state.get("best_metric")}
    write_whole(run_dir / RESULT, json.dumps(result, indent=1))
    write_accounting(run_dir, counts)
    return model, counts
