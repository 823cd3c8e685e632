"""The run folder: what is in it before a launch, whether it may be continued, and its record of a run."""

import ast
import contextlib
import hashlib
import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from rayswift.config import trl_fields
from rayswift.config.load import to_yaml
from rayswift.config.schema import TrainConfig, TrainingConfig
from rayswift.config.section import Section
from rayswift.data.global_batches import Position
from rayswift.log import UserError, logger
from rayswift.rollout import completions
from rayswift.rollout.ledger import LedgerSnapshot
from rayswift.train import checkpoint, guard, user_code
from rayswift.train.accounting import write_accounting
from rayswift.train.best import evaluations, num_without_improvement
from rayswift.train.events import EVENTS
from rayswift.train.report.curves import METRICS
from rayswift.train.report.live import REPORT

CONFIG = "config.yaml"
FINGERPRINT = "fingerprint.json"
RESULT = "result.json"
# What a launch writes beside checkpoints; a new run clears it where the fingerprint says that a run wrote it.
_OWN = (
    CONFIG,
    METRICS,
    FINGERPRINT,
    RESULT,
    REPORT,
    EVENTS,
    "logs",
    "data",
    "tokenizer",
    "init",
    "init.partial",
    "ray",
    "runs",
    guard.FOLDER,
    completions.FOLDER,
)

# What may differ when a run is continued, because it changes no step; all else, new fields too, must be as it was.
# Callbacks are the user's own affair.
_FREE = frozenset(
    (
        "cluster.address",
        "cluster.device",
        "cluster.max_failures",
        "cluster.num_data_cpus",
        "cluster.num_workers",
        "cluster.scratch_dir",
        "cluster.threads_per_worker",
        "cluster.timeout_s",
        "cluster.wait_for_nodes_s",
        "data.eval",
        "data.max_bad_fraction",
        "rollout.canary_steps",
        "rollout.engine_resources",
        "rollout.engine_threads",
        "rollout.gpu_memory_utilization",
        "rollout.max_failed_fraction",
        "rollout.max_logprob_drift",
        "rollout.max_num_seqs",
        "rollout.num_engines",
        "rollout.num_generations_eval",
        "rollout.reward_timeout_s",
        "rollout.reward_workers",
        "train.early_stopping_patience",
        "train.eval_on_start",
        "train.eval_steps",
        "train.eval_strategy",
        "train.gradient_accumulation_steps",
        "train.greater_is_better",
        "train.load_best_model_at_end",
        "train.logging_steps",
        "train.metric_for_best_model",
        "train.output_dir",
        "train.per_device_eval_batch_size",
        "train.per_device_train_batch_size",
        "train.callbacks",
        "train.debug",
        "train.eval_delay",
        "train.eval_do_concat_batches",
        "train.eval_use_gather_object",
        "train.hub_always_push",
        "train.hub_model_id",
        "train.hub_private_repo",
        "train.hub_revision",
        "train.hub_strategy",
        "train.hub_token",
        "train.include_num_input_tokens_seen",
        "train.log_level",
        "train.log_level_replica",
        "train.log_on_each_node",
        "train.logging_first_step",
        "train.metrics",
        "train.project",
        "train.push_to_hub",
        "train.report_to",
        "train.resume",
        "train.run_name",
        "train.save_only_model",
        "train.save_steps",
        "train.save_strategy",
        "train.save_total_limit",
        "train.skip_memory_metrics",
        "train.torch_empty_cache_steps",
        "train.trackio_bucket_id",
        "train.trackio_space_id",
        "train.trackio_static_space_id",
    )
)


@dataclass(frozen=True)
class Resume:
    """The checkpoint a launch continues; `history`: the log entries up to it; `ledger`: of a run that samples."""

    saved: checkpoint.Saved
    position: Position
    epochs: float
    config: dict[str, Any]
    history: list[dict[str, Any]] = field(default_factory=list)
    ledger: LedgerSnapshot = field(default_factory=LedgerSnapshot)

    def is_end_of(self, train: TrainConfig) -> bool:
        """Whether nothing is left to train, early stopping included."""
        if train.early_stopping_patience:
            values = evaluations(self.history, train.metric_for_best_model)
            if num_without_improvement(values, bool(train.greater_is_better)) >= train.early_stopping_patience:
                return True
        if train.max_steps > 0:
            return self.saved.step >= train.max_steps
        return self.epochs >= train.num_train_epochs - 1e-9

    @property
    def window_rows(self) -> int:
        """The rows of a window that its first launch decided on."""
        return int(self.config["data"]["window_rows"])

    @property
    def zero_stage(self) -> int:
        """The stage its optimizer states were cut for."""
        return self.saved.zero_stage


def open_run(config: TrainingConfig, run_dir: Path) -> Resume | None:
    """Make the run folder usable, and find what to continue.

    Args:
        config: As loaded.
        run_dir: `train.output_dir`, or the scratch folder if that is a URL.

    Raises:
        UserError: it cannot be written, holds a run that was not to be continued, or the checkpoint is not complete.
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
        raise UserError(
            f"train.output_dir = {str(run_dir)!r} holds {saved.path.name} of an earlier run; continue it with "
            "--resume auto, or choose another --train.output_dir"
        )
    if resume not in ("never", "auto"):
        saved = _named(Path(resume), saved)
    if (run_dir / FINGERPRINT).exists():
        checkpoint.sweep(run_dir)
        if saved is None or saved.path.parent.resolve() != run_dir.resolve():
            _clear(run_dir)
    if not (run_dir / FINGERPRINT).exists():
        (run_dir / FINGERPRINT).write_text("{}", encoding="utf-8")
    return load_resume(saved) if saved else None


def check_ownership(names: set[str], owned: bool, where: str) -> None:
    """Refuse a folder in which another's files have names of ours.

    Raises:
        UserError: with those names.
    """
    foreign = sorted(name for name in names if name in _OWN or name.startswith("checkpoint-"))
    if foreign and not owned:
        raise UserError(
            f"train.output_dir = {where!r} holds {', '.join(foreign)} that no run of ours wrote; choose another "
            "--train.output_dir"
        )


def _named(path: Path, newest: checkpoint.Saved | None) -> checkpoint.Saved:
    saved = checkpoint.read_complete(path)
    if saved is None:
        raise UserError(f"train.resume = {str(path)!r} is no complete checkpoint (its manifest must verify)")
    if newest and newest.path.resolve() != path.resolve():
        raise UserError(
            f"train.resume = {str(path)!r}, but the run folder holds {newest.path}; continue that with --resume auto, "
            "or begin a new folder with another --train.output_dir"
        )
    return saved


def load_resume(saved: checkpoint.Saved) -> Resume:
    """Read what a checkpoint says of its run.

    Raises:
        UserError: it was saved without what continuing needs.
    """
    data_state = saved.path / checkpoint.DATA_STATE
    if not list(saved.path.glob("global_step*")) and not (saved.path / "optimizer.pt").exists():
        raise UserError(f"{saved.path} was saved with train.save_only_model and cannot be continued")
    state = json.loads(data_state.read_text(encoding="utf-8"))
    config = yaml.safe_load((saved.path / CONFIG).read_text(encoding="utf-8"))
    trainer_state = json.loads((saved.path / "trainer_state.json").read_text(encoding="utf-8"))
    return Resume(
        saved,
        Position(**state["position"]),
        state["epochs"],
        config,
        trainer_state.get("log_history", []),
        LedgerSnapshot.from_json(state["ledger"]) if "ledger" in state else LedgerSnapshot(),
    )


def _clear(run_dir: Path) -> None:
    for name in _OWN:
        path = run_dir / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def fingerprint(config: TrainingConfig, tokenizer_hash: str, num_rows: int) -> dict[str, Any]:
    """What a continued run must find unchanged beside its config: model, tokenizer, data."""
    folder = Path(config.model.path)
    files = sorted(folder.glob("*.safetensors")) if folder.is_dir() else []
    described = "".join(f"{path.name} {path.stat().st_size}\n" for path in files)
    model_config = folder / "config.json"
    if model_config.exists():
        described += model_config.read_text(encoding="utf-8")
    model_hash = hashlib.sha256(described.encode()).hexdigest()[:16]
    found = {"model": model_hash, "tokenizer": tokenizer_hash, "rows": num_rows}
    own_code = user_code.content_hash(config)
    return found | ({"loss, plugins and rewards": own_code} if own_code else {})


def check_unchanged(resume: Resume, config: TrainingConfig, found: dict[str, Any]) -> None:
    """Refuse to continue with anything that would change a step; other differences are logged.

    Raises:
        UserError: a line for each difference: field, saved value, value now.
    """
    lines = []
    for path, line in differences(config, resume.config).items():
        if path in _FREE:
            logger.info("changed since %s: %s", resume.saved.path.name, line)
        else:
            lines.append(f"  {line}")
    file = resume.saved.path.parent / FINGERPRINT
    saved = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    for name, was in saved.items():
        if found.get(name) != was:
            lines.append(f"  content of the {name}: was {was}, is {found.get(name)}")
    if lines:
        raise UserError(
            f"{resume.saved.path} cannot be continued with what changes its steps:\n"
            + "\n".join(lines)
            + "\n  set these back, or begin a new run with another --train.output_dir"
        )


def differences(config: TrainingConfig, saved: dict[str, Any]) -> dict[str, str]:
    """Every field that differs from a saved config, with both values; what a config leaves out has its default."""
    now, found = config.model_dump(mode="json"), {}
    for section, fields in now.items():
        was_fields = saved.get(section, {})
        defaults = _defaults(type(getattr(config, section)), config.train.task)
        for name in sorted({*fields, *was_fields}):
            was, is_now = (tree.get(name, defaults.get(name)) for tree in (was_fields, fields))
            if was != is_now:
                found[f"{section}.{name}"] = f"{section}.{name}: was {was!r}, is {is_now!r}"
    return found


def _defaults(section: type[Section], task: str) -> dict[str, Any]:
    """Defaults of a section's fields, TRL's included where they are plain values."""
    found: dict[str, Any] = {}
    for name, trl_field in trl_fields.read_fields(task).items() if issubclass(section, TrainConfig) else ():
        with contextlib.suppress(ValueError, SyntaxError):
            found[name] = ast.literal_eval(trl_field.default)
    return found | {name: info.default for name, info in section.model_fields.items() if not info.is_required()}


def write_record(run_dir: Path, config: TrainingConfig, found: dict[str, Any]) -> None:
    """Write the resolved config and the fingerprint."""
    (run_dir / CONFIG).write_text(to_yaml(config), encoding="utf-8")
    (run_dir / FINGERPRINT).write_text(json.dumps(found, indent=1), encoding="utf-8")


def write_result(run_dir: Path, config: TrainingConfig) -> tuple[Path, dict[str, int]]:
    """Name the run's model (the best checkpoint or the last), write the row accounting, and return both.

    Raises:
        UserError: no checkpoint is there.
    """
    saved = checkpoint.newest(run_dir)
    if saved is None:
        raise UserError(f"{run_dir} holds no complete checkpoint", exit_code=1)
    model = saved.path
    state = json.loads((saved.path / "trainer_state.json").read_text(encoding="utf-8"))
    best = run_dir / f"checkpoint-{state.get('best_global_step')}"
    if config.train.load_best_model_at_end and checkpoint.read_complete(best):
        model = best
    counts = json.loads((saved.path / checkpoint.DATA_STATE).read_text(encoding="utf-8"))["position"]["counts"]
    result = {"model": model.name, "last": saved.path.name, "best_metric": state.get("best_metric")}
    (run_dir / RESULT).write_text(json.dumps(result, indent=1), encoding="utf-8")
    write_accounting(run_dir, counts)
    return model, counts
