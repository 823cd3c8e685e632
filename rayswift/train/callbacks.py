"""Callbacks around the steps: seeding, epochs, checkpoints, metrics, the log line of the first step."""

import json
import math
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from rayswift.config.train import TrainConfig
from rayswift.data.filesystem import write_whole
from rayswift.data.sequence.global_batches import FeedPlan
from rayswift.log import logger
from rayswift.run import checkpoint
from rayswift.run.accounting import Vanishing, write_accounting
from rayswift.run.best import best_of, evaluations, num_without_improvement
from rayswift.run.folder import CONFIG, METRICS, result_of
from rayswift.run.hub import HubPushes
from rayswift.run.remote import Uploads
from rayswift.train.clock import Clock
from rayswift.train.parallel import universal
from rayswift.train.parallel.group_work import work_together
from rayswift.train.spec import RunSpec
from rayswift.train.stream import StepStream

_ROUNDING = 1e-9
"""Rounding error of epochs, which are sums of shares."""


class StreamFlow(TrainerCallback):
    """Sets epochs, the end and random states from the stream. Must come after HF's own flow callback."""

    def __init__(self, stream: StepStream, rank: int, clock: Clock, spec: RunSpec):
        self._stream, self._rank, self._clock = stream, rank, clock
        self._train, self._plan = spec.config.train, spec.feed_plan
        self._epochs_before = stream.epochs
        self._saved_step = self._evaluated_step = -1
        self._first, self._ended = True, False

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Let a resumed run log, evaluate and save by its own config: HF would follow the checkpoint's."""
        state.compute_steps(args, state.max_steps)

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Seed from (seed, step, rank), so that a resumed step draws the same random numbers."""
        words = np.random.SeedSequence([args.seed, state.global_step, self._rank]).generate_state(1, np.uint64)
        torch.manual_seed(int(words[0]))

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Set the epoch, and what is due after the step."""
        if self._first:
            self._clock.lap("first step")
            logger.info("%s", self._clock.line())
            self._first = False
        epochs = self._stream.epochs
        state.epoch = epochs
        ends = self._stream.last or state.global_step >= state.max_steps
        before, self._epochs_before, self._ended = self._epochs_before, epochs, ends
        new_epoch = crosses(before, epochs, 1.0)
        train = self._train
        control.should_training_stop |= ends
        control.should_log |= ends or state.global_step == 1 or self._is_due(train.logging_steps, before, epochs)
        control.should_evaluate |= ends and args.eval_strategy != "no"
        if args.eval_strategy == "epoch":
            control.should_evaluate |= new_epoch and epochs >= args.eval_delay - _ROUNDING
        control.should_save |= ends or self._stream.save or (new_epoch and args.save_strategy == "epoch")
        if args.eval_strategy == "steps":
            is_due = self._is_due(train.eval_steps, before, epochs)
            control.should_evaluate |= is_due and state.global_step >= args.eval_delay
        if args.save_strategy == "steps":
            control.should_save |= self._is_due(train.save_steps, before, epochs)

    def _is_due(self, steps: float | None, before: float, now: float) -> bool:
        """Whether a step passed a multiple of a share of the epochs; HF only knows shares of steps."""
        if steps is None or steps >= 1 or self._plan.ends_by_steps:
            return False
        return crosses(before, now, steps * self._plan.num_epochs)

    def on_epoch_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Handle HF's only epoch, which ends with the training. All is done at the step, except after early stopping or
        if the stream ended after it."""
        control.should_log = late = self._stream.last and not self._ended
        is_new = self._evaluated_step != state.global_step
        control.should_evaluate = late and is_new and args.eval_strategy != "no"
        control.should_save = self._saved_step != state.global_step

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Remember the step that was evaluated."""
        self._evaluated_step = state.global_step

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Remember the step that was saved."""
        self._saved_step = state.global_step


class Whereabouts(TrainerCallback):
    """Notes what this rank does, for messages about waiting."""

    def __init__(self, at: Callable[[str], None], supplied: str):
        self._at, self._supplied = at, supplied

    def _waits(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._at(f"waits for the {self._supplied} of step {state.global_step + 1}")

    on_train_begin = on_save = on_evaluate = _waits

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Note that the batches have arrived."""
        self._at(f"trains step {state.global_step + 1}")

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Note what is due after the step, or that the next batch is requested."""
        due = [
            what for what, is_due in (("evaluates", control.should_evaluate), ("saves", control.should_save)) if is_due
        ]
        if due:
            self._at(f"{' and '.join(due)} after step {state.global_step}")
        else:
            self._waits(args, state, control)


def crosses(before: float, now: float, every: float) -> bool:
    """Whether a multiple of `every` lies in (before, now]; floats are read as the rational numbers they print as."""
    return math.floor(now / every + _ROUNDING) > math.floor(before / every + _ROUNDING)


class EarlyStopping(TrainerCallback):
    """Ends the training after `train.early_stopping_patience` evaluations without a better one.

    It counts in the log history, which every checkpoint holds: a resume continues to count, with its own patience.
    """

    def __init__(self, train: TrainConfig):
        self._train = train

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Count evaluations since the best one; the new one is in the history already."""
        train = self._train
        assert train.early_stopping_patience is not None
        values = evaluations(state.log_history, train.metric_for_best_model)
        if num_without_improvement(values, bool(train.greater_is_better)) >= train.early_stopping_patience:
            best = best_of(values, bool(train.greater_is_better))
            logger.info("step %d  stopping early; the best evaluation: step %s", state.global_step, best and best[0])
            control.should_training_stop = True


class Checkpoints(TrainerCallback):
    """Completes what HF saved to a checkpoint: data position, manifest, retention, and the upload to a run's URL."""

    def __init__(self, spec: RunSpec, stream: StepStream):
        self._run_dir, self._stream, self._train = spec.run_dir, stream, spec.config.train
        self._zero_stage = spec.config.cluster.zero_stage or 0
        self._limit = spec.config.train.save_total_limit
        self._storage_timeout_s = spec.config.cluster.storage_timeout_s
        name = Path(spec.config.train.output_dir).name
        self._pushes = HubPushes(spec.config.train, name, self._storage_timeout_s)
        self._uploads = Uploads(spec.config.train.output_dir, self._run_dir, self._limit, self._storage_timeout_s)

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Set the best of the saved checkpoints by the current metric, because a resume may name another metric."""
        if args.should_save:
            self._pushes.open()
        saved = [[each.step for each in checkpoint.find_all(self._run_dir)]]
        if args.world_size > 1:  # all ranks must agree whether a step is saved as the best
            dist.broadcast_object_list(saved)
        values = evaluations(state.log_history, self._train.metric_for_best_model)
        best = best_of([pair for pair in values if pair[0] in saved[0]], bool(self._train.greater_is_better))
        state.best_global_step, state.best_metric = best or (None, None)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Complete the checkpoint; called on every rank, after its last file is written."""
        folder = self._run_dir / f"checkpoint-{state.global_step}"
        rank, size = args.process_index, args.world_size

        def check_own() -> dict[str, str]:
            if args.should_save:
                self._uploads.wait()  # if the storage is slow, the training waits, so that no checkpoint is lost
            return checkpoint.checksums(folder, checkpoint.written_by(folder, rank), write_through=True)

        sums = work_together(rank, size, f"saving {folder.name}", self._storage_timeout_s, check_own)

        def complete() -> None:
            known = {name: checksum for each in sums for name, checksum in each.items()}
            self._stream.before_save()
            (folder / checkpoint.DATA_STATE).write_text(json.dumps(self._stream.state()), encoding="utf-8")
            shutil.copyfile(self._run_dir / CONFIG, folder / CONFIG)
            checkpoint.write_manifest(folder, state.global_step, args.world_size, self._zero_stage, known)
            universal.discard(self._run_dir)
            checkpoint.retain(self._run_dir, self._limit, state.best_global_step)
            logger.info("saved %s", folder)
            self._uploads.start(state.best_global_step)
            self._pushes.start(folder)

        work = complete if args.should_save else lambda: None
        work_together(rank, size, f"completing {folder.name}", self._storage_timeout_s, work)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Wait until the last checkpoint is uploaded, and the result pushed."""

        def finish() -> None:
            self._uploads.wait()
            model = result_of(self._run_dir, self._train, state.best_global_step)
            if model:
                self._pushes.finish(model)

        work = finish if args.should_save else lambda: None
        what = "uploading the last checkpoint"
        work_together(args.process_index, args.world_size, what, self._storage_timeout_s, work)


class Metrics(TrainerCallback):
    """Writes each log entry to `metrics.jsonl` and the log, and the row accounting; on rank 0."""

    def __init__(self, run_dir: Path, stream: StepStream, resumed_step: int, plan: FeedPlan):
        self._run_dir, self._stream, self._vanishing = run_dir, stream, Vanishing(plan)
        self._path = run_dir / METRICS
        self._counted_s = 0.0
        _keep_until(self._path, resumed_step)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Warn if rows are left out."""
        if line := self._vanishing.line(self._stream.position):
            logger.warning("%s", line)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Append one entry."""
        entry = {"step": state.global_step, **(logs or {})}
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
        if time.monotonic() - self._counted_s > _COUNT_EVERY_S:
            self._counted_s = time.monotonic()
            write_accounting(self._run_dir, self._stream.position.counts)
        shown = {k: entry[k] for k in _SHOWN if k in entry}
        if {"loss", "eval_loss", "eval_reward"} & entry.keys():
            logger.info("step %d  %s", state.global_step, "  ".join(f"{k} {_short(v)}" for k, v in shown.items()))


_COUNT_EVERY_S = 2.0
_SHOWN = (
    "epoch",
    "loss",
    "eval_loss",
    "reward",
    "eval_reward",
    "teacher_kl",
    "completions/mean_length",
    "engines",
    "rollout_tokens_per_s",
    "staleness",
    "critic/vf_explained_var",
    "grad_norm",
    "learning_rate",
    "mean_token_accuracy",
    "tokens_per_s",
    "fill",
    "data_wait",
)


def _short(value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def _keep_until(path: Path, step: int) -> None:
    """Delete the entries of steps that are trained again."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except (json.JSONDecodeError, KeyError):
            continue  # cut off by a kill
    write_whole(path, "".join(f"{line}\n" for line in kept))
