"""The input of a worker: the run as plain values, its rank, and its client to the data service."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from rayswift.cluster.layout import Layout
from rayswift.config.schema import TrainingConfig
from rayswift.data.sequence.global_batches import FeedPlan, micro_batches
from rayswift.run import waiting
from rayswift.train.clock import Clock


class DataServiceClient(Protocol):
    """The client of a rank to the data service; the stream that reads the payload defines its type."""

    def new_attempt(self) -> int:
        """Return a number for this worker group, higher than those of earlier groups."""

    def begin(self, attempt: int, start: Any) -> None:
        """Serve from here on: a `Position` of rows, or a `LedgerSnapshot` of prompts."""


Connect = Callable[[int, int], DataServiceClient]
"""(rank, size) -> the client of a rank, in its process."""


class NotSeen(OSError):
    """A rank does not see the checkpoint that the group agreed on; Ray Train restarts the group."""


@dataclass(frozen=True)
class RunSpec:
    """The setup of a worker, as plain values.

    clock: the time since the command began, by part. resume_from: the checkpoint to continue, unless the
    run folder holds a newer one. work_dir: base of relative paths in the config.
    """

    config: TrainingConfig
    layout: Layout
    run_dir: Path
    tokenizer_dir: Path
    feed_plan: FeedPlan
    clock: Clock
    resume_from: Path | None
    work_dir: Path

    def for_world_size(self, size: int) -> "RunSpec":
        """Return the run for a group of `size` workers, whose micro-batches share the global batch."""
        train = self.config.train
        rows, accumulation = micro_batches(self.feed_plan.global_batch, train.per_device_train_batch_size, size)
        cut = {"per_device_train_batch_size": rows, "gradient_accumulation_steps": accumulation}
        config = self.config.model_copy(update={"train": train.model_copy(update=cut)})
        num_workers = size if self.layout.num_workers else 0
        return replace(self, config=config, layout=replace(self.layout, num_workers=num_workers, min_workers=None))


@dataclass(frozen=True)
class Worker:
    """A training process: its rank, and its links to others; `at` notes what it does, for messages about waiting."""

    rank: int
    size: int
    supply: DataServiceClient
    at: Callable[[str], None] = waiting.unnoted


TrainLoop = Callable[[RunSpec, Worker], None]
