"""Feeds any trainer of TRL or HF from the stream: overrides the few methods that depend on the data."""

import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import psutil
import torch
import torch.distributed as dist
from accelerate.optimizer import AcceleratedOptimizer
from datasets import Dataset
from transformers import PreTrainedModel, PrinterCallback, Trainer, TrainerCallback

from rayswift.config import user_code
from rayswift.config.derived import rollout_of
from rayswift.files import disk_is_full
from rayswift.log import UserError, logger
from rayswift.model.load import share_tied
from rayswift.model.tuners import REFERENCE, lora_plus_groups
from rayswift.run.accounting import left_out, read_evaluation
from rayswift.run.checkpoint import set_aside
from rayswift.run.folder import Resume
from rayswift.train import evaluation
from rayswift.train.callbacks import Checkpoints, EarlyStopping, Metrics, StreamFlow, Whereabouts
from rayswift.train.clock import Clock
from rayswift.train.optimizer import progress_schedule, state_classes
from rayswift.train.parallel.universal import complete_load
from rayswift.train.spec import RunSpec, Worker
from rayswift.train.stream import StepStream
from rayswift.train.tuning import muon
from rayswift.train.tuning.adalora import AdaLoraCallback
from rayswift.train.tuning.lisa import SampledLayers


class _Batches:
    """An iterable without a length, which is how HF's Trainer recognises a stream."""

    def __init__(self, make: Any):
        self._make = make

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self._make())


class Streamed(Trainer):
    """A mixin, before a trainer's class, that adds RaySwift's batches, progress and checkpoints."""

    lr_scheduler: Any
    stream: StepStream
    placeholder_row: ClassVar[dict[str, list[Any]]] = {"input_ids": [[0, 0]]}

    @classmethod
    def placeholder(cls) -> Dataset:
        """Return one row for the trainer's constructor to look at; the rows of the training come from the stream."""
        return Dataset.from_dict(cls.placeholder_row)

    def __init__(self, *, spec: RunSpec, rank: int, stream: StepStream, **kwargs: Any):
        super().__init__(**kwargs)
        self.remove_callback(PrinterCallback)  # `Metrics` writes the log
        self.accelerator.ddp_handler.gradient_as_bucket_view = True  # else DDP holds every gradient twice
        self.stream = stream
        self._run_dir, self._rank, self._train = spec.run_dir, rank, spec.config.train
        self._lora_plus_ratio = spec.config.model.lora_plus_ratio
        self._num_epochs = None if spec.feed_plan.ends_by_steps else spec.feed_plan.num_epochs
        self._group_settings: list[dict[str, Any]] = []
        self._step: list[Any] = []
        self._num_eval_batches, self._has_evaluated = 0, False

    def get_train_dataloader(self) -> Any:
        """Return the stream; the feed decides order, shards and position."""
        return _Batches(self._until_the_end)

    def _until_the_end(self) -> Iterator[dict[str, Any]]:
        yield from self.stream
        self.control.should_training_stop = True  # otherwise HF would ask for more batches until its last step

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        """Return the evaluation rows, encoded once."""
        return _Batches(self._evaluation_batches)

    def _evaluation_batches(self) -> Iterator[Any]:
        self._num_eval_batches = 0
        for batch in self.stream.evaluation_batches(self.args.per_device_eval_batch_size):
            self._num_eval_batches += 1
            yield batch

    def create_optimizer(self, model: Any = None) -> Any:
        """Make HF's optimizer without empty parameter groups: DeepSpeed drops them, and checkpoints count groups."""
        if self._train.optim == "muon":  # an optimizer of torch without a name in HF
            self.optimizer_cls_and_kwargs = muon.recipe(model or self.model, self.args)
        optimizer = super().create_optimizer(model)
        optimizer.param_groups[:] = [group for group in optimizer.param_groups if group["params"]]
        optimizer.param_groups[:] = self._optimizer_groups(optimizer.param_groups)
        kept = ("params", "lr")  # restored from the checkpoint
        self._group_settings = [{k: v for k, v in g.items() if k not in kept} for g in optimizer.param_groups]
        return optimizer

    def _optimizer_groups(self, groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return the optimizer's groups, divided further if parts of the model have their own learning rate."""
        return lora_plus_groups(groups, self.model, self._lora_plus_ratio) if self._lora_plus_ratio else groups

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Make HF's schedule over steps or, for epochs, the same schedule over consumed rows."""
        if self._num_epochs is None:
            return super().create_scheduler(num_training_steps, optimizer)
        scheduler = self.lr_scheduler
        if scheduler is None:
            num_epochs, args = self._num_epochs, self.args
            scheduler = progress_schedule(
                str(getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type)),
                optimizer or self.optimizer,
                args.warmup_steps,
                dict(args.lr_scheduler_kwargs or {}),
                lambda: self.stream.epochs / num_epochs,
            )
            self.lr_scheduler, self._created_lr_scheduler = scheduler, True
        return scheduler

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Load as HF does, but keep number formats: PEFT converts an adapter to float32 that TRL trains in bfloat16."""
        formats = {name: parameter.dtype for name, parameter in self.model.named_parameters()}
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        for name, parameter in self.model.named_parameters():
            if parameter.dtype != formats.get(name, parameter.dtype):
                parameter.data = parameter.data.to(formats[name])

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """Return HF's norm; called before each optimizer step (under DeepSpeed, after it).

        Raises:
            UserError: it is NaN or infinite; not checked under fp16, where loss scaling overflows by design.
        """
        norm = super()._get_grad_norm(model, grad_norm)
        step, self._step = self._step, []
        if norm is not None and not self.args.fp16 and not math.isfinite(float(norm)):
            raise self._not_a_number(f"the gradient norm is {float(norm)}", step)
        return norm

    def _not_a_number(self, what: str, step: list[Any]) -> UserError:
        """Return the error that ends the run, made from the micro-batches that subclasses keep in `_step`."""
        raise NotImplementedError

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint and self.is_deepspeed_enabled:
            complete_load(self.model_wrapped, self._group_settings)
        with torch.serialization.safe_globals(state_classes(self._train.optim)):
            super()._load_optimizer_and_scheduler(checkpoint)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluate as HF does, without counting the time in the throughput."""
        self._use_eval_weights()
        with self.stream.pause():
            metrics: dict[str, float] = super().evaluate(*args, **kwargs)
        if self._rank == 0 and not self._has_evaluated:
            line = left_out(read_evaluation(self._run_dir))
            if line:
                logger.info("%s", line)
        self._has_evaluated = True
        return metrics

    def model_to_evaluate(self) -> Any:
        """Return the wrapped model of the training, under DeepSpeed and DDP, if training continues; without dropout."""
        model = self.model_wrapped if self.is_in_train else self._wrap_model(self.model, training=False)
        model.eval()  # which returns nothing under DeepSpeed
        return model

    def _use_eval_weights(self) -> None:
        """Switch to the weights for evaluations and saves: a schedule-free optimizer trains with others."""
        if isinstance(self.optimizer, AcceleratedOptimizer):
            self.optimizer.eval()  # HF's next step switches back; other optimizers do nothing

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        """Compare evaluations that have a checkpoint, as HF does; the run's new best model is saved at once."""
        name = self._train.metric_for_best_model.removeprefix("eval_")
        if f"eval_{name}" not in metrics:
            known = ", ".join(key.removeprefix("eval_") for key in metrics if key.startswith("eval_"))
            raise UserError(
                f"train.metric_for_best_model = {name!r} is not among the evaluation's metrics: {known}", exit_code=1
            )
        keeps_best, control = self._train.load_best_model_at_end, self.control
        if not (keeps_best or control.should_save or control.should_training_stop):
            return False
        is_best = bool(super()._determine_best_metric(metrics, trial))
        if is_best:  # HF sets it only if something is saved during the run; here something is always saved
            self.state.best_global_step = self.state.global_step
        control.should_save |= is_best and keeps_best
        return is_best

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add throughput, fill, waiting time and memory to the log."""
        if "loss" in logs:
            logs.update(self._throughput())
            logs["workers"] = self.args.world_size
        if "eval_steps_per_second" in logs:
            # HF divides the number of rows by the batch size, but a packed row holds many examples.
            del logs["eval_steps_per_second"]
            if self._num_eval_batches:
                logs["eval_steps_per_second"] = round(self._num_eval_batches / max(1e-9, logs["eval_runtime"]), 3)
        super().log(logs, start_time)

    def sum_over_ranks(self, values: torch.Tensor) -> torch.Tensor:
        """Return the sum over ranks of a float64 CPU tensor."""
        if self.args.world_size > 1:
            values = values.to(self.args.device)
            dist.all_reduce(values)
        return values.cpu()

    def sums_over_ranks(self, totals: evaluation.Sums) -> evaluation.Sums:
        """Return the sums and counts added up over ranks."""
        if self.args.world_size == 1:
            return totals
        gathered: list[evaluation.Sums] = [{} for _ in range(self.args.world_size)]
        dist.all_gather_object(gathered, totals)
        summed: evaluation.Sums = {}
        for each in gathered:
            evaluation.add(summed, each)
        return summed

    def _throughput(self) -> dict[str, float]:
        counter = self.stream.restart_counter()
        sums = torch.tensor(
            [counter.tokens, counter.trained_tokens, counter.capacity, counter.wait_s], dtype=torch.float64
        )
        memory = torch.zeros(self.args.world_size, 2, dtype=torch.float64)
        memory[self.args.process_index] = torch.tensor(_memory_gib(), dtype=torch.float64)
        # One sum for all values: each rank's memory has its own place.
        sums = self.sum_over_ranks(torch.cat([sums, memory.flatten()]))
        tokens, trained, capacity, wait_s = sums[:4].tolist()
        host_gib, gpu_gib = sums[4:].view(-1, 2).max(dim=0).values.tolist()
        elapsed_s = max(1e-9, counter.elapsed_s)
        return {
            "tokens_per_s": tokens / elapsed_s,
            "trained_tokens_per_s": trained / elapsed_s,
            "fill": tokens / max(1.0, capacity),
            "data_wait": wait_s / self.args.world_size / elapsed_s,
            "step_s": elapsed_s / max(1, counter.steps),
            "host_memory_gib": host_gib,
            **({"gpu_memory_gib": gpu_gib} if torch.cuda.is_available() else {}),
        }

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """Save as HF does, without the frozen copy of the adapter to start from.

        ZeRO 1 and 2 give copies, in which tied weights are separate and would be saved twice. Every start makes the
        copy of the adapter again; if HF found a saved one, it would continue with it and not with the trained one.
        """
        if state_dict is not None and isinstance(self.model, PreTrainedModel):
            share_tied(self.model, state_dict)
        super()._save(output_dir, state_dict)
        if output_dir:  # never a folder of the run itself
            shutil.rmtree(Path(output_dir) / REFERENCE, ignore_errors=True)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        if self.args.should_save:
            set_aside(folder, "an earlier launch of the run left it")
        if self.args.world_size > 1:
            dist.barrier()
        try:
            self._use_eval_weights()
            with self.stream.pause():
                super()._save_checkpoint(model, trial)
        except Exception as error:
            if not _disk_is_full(error, folder):
                raise
            raise UserError(
                f"the disk is full: {folder} could not be saved ({error}); older checkpoints stay as they were; "
                "what was written of it is still there, and can be deleted; free some space and "
                "continue with --resume auto",
                exit_code=1,
            ) from error


def _memory_gib() -> tuple[float, float]:
    """Return this process's resident memory, and the peak GPU memory since the last call, in GiB."""
    gpu_bytes = 0
    if torch.cuda.is_available():
        gpu_bytes = torch.cuda.max_memory_allocated()
        torch.cuda.reset_peak_memory_stats()
    return psutil.Process().memory_info().rss / 2**30, gpu_bytes / 2**30


def callbacks_of(
    spec: RunSpec, worker: Worker, stream: StepStream, clock: Clock, resume: Resume | None
) -> list[TrainerCallback]:
    """Return a rank's callbacks, in the order in which they must be called."""
    train = spec.config.train
    callbacks: list[TrainerCallback] = [StreamFlow(stream, worker.rank, clock, spec)]
    if spec.config.model.tuner == "adalora":
        num_epochs = spec.feed_plan.num_epochs
        progress = None if spec.feed_plan.ends_by_steps else lambda: stream.epochs / num_epochs
        callbacks.append(AdaLoraCallback(spec.run_dir, resume.saved.path if resume else None, progress))
    if spec.config.model.lisa_layers:
        callbacks.append(SampledLayers(spec.config.model, train.seed))
    callbacks.append(Checkpoints(spec, stream))
    if worker.rank == 0:
        callbacks.append(Metrics(spec.run_dir, stream, resume.saved.step if resume else 0, spec.feed_plan))
    if train.early_stopping_patience:
        callbacks.append(EarlyStopping(train))
    # After all callbacks that decide what is due.
    callbacks.append(Whereabouts(worker.at, "completions" if rollout_of(spec.config) else "rows"))
    return callbacks + [user_code.make_callback(name) for name in train.callbacks]


def _disk_is_full(error: BaseException, folder: Path) -> bool:
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    return disk_is_full(error) or shutil.disk_usage(existing).free < (1 << 20)  # torch does not always say why
