"""The batches of a rank: its slices of the global sequence, cut into micro-batches, with throughput counters."""

import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

from rayswift.config.schema import TrainingConfig
from rayswift.config.tasks import TASKS, load
from rayswift.data.collate.packed import Layout, cut
from rayswift.data.feed.client import FeedClient
from rayswift.data.sequence.global_batches import Position
from rayswift.data.sequence.windows import PackedRow
from rayswift.model import document_attention
from rayswift.model.load import layout_of
from rayswift.run.folder import Resume
from rayswift.train.spec import DataServiceClient, RunSpec

Rows = Sequence[PackedRow]
Collate = Callable[[Rows], dict[str, Any]]
"""Packed rows -> the tensors of a micro-batch; without rows, tensors of a micro-batch without a loss."""


@dataclass
class ThroughputCounter:
    """Counts of a rank's steps since the last log line."""

    tokens: int = 0
    trained_tokens: int = 0
    capacity: int = 0
    wait_s: float = 0.0
    steps: int = 0
    since: float = field(default_factory=time.monotonic)
    elapsed_s: float = 0.0


class StepStream(ABC):
    """The interface of a rank's steps for trainers and callbacks.

    position, epochs: where in the data the newest step ends; last: no step follows; save: a checkpoint is requested
    after it.
    """

    def __init__(self, position: Position, epochs: float):
        self.position, self.epochs = position, epochs
        self.last = False
        self.save = False
        self._counter = ThroughputCounter()

    @abstractmethod
    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield the input of the trainer, step after step."""

    @abstractmethod
    def evaluation_batches(self, batch_size: int) -> Iterator[tuple[Rows, dict[str, Any]]]:
        """Yield this rank's evaluation batches with their rows, as many as every other rank has."""

    def state(self) -> dict[str, Any]:
        """Return the data state for a checkpoint after the newest step, as plain values."""
        return {"position": self.position.to_json(), "epochs": self.epochs}

    def before_save(self) -> None:  # noqa: B027 - rows need nothing
        """Write all that a checkpoint counts as done; one rank calls it before the checkpoint is complete."""

    def restart_counter(self) -> ThroughputCounter:
        """Return the counts so far, and start again."""
        counter, self._counter = self._counter, ThroughputCounter()
        counter.elapsed_s = self._counter.since - counter.since
        return counter

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Leave the time of a block, an evaluation or a save, out of the counter."""
        began = time.monotonic()
        try:
            yield
        finally:
            self._counter.since += time.monotonic() - began


class Stream(StepStream):
    """Micro-batches of one rank, step after step, in the order of the global sequence.

    Args:
        client: Of the data service.
        position: Where to begin.
        epochs: Passes over the data before it.
        micro_batch: Rows of a micro-batch.
        accumulation: Micro-batches of a step.
        max_length: Capacity of a packed row, or of each sequence of a row that is not packed, for the fill.
        packs: Whether rows are packed.
        collate: Makes the tensors.
    """

    def __init__(
        self,
        client: FeedClient,
        position: Position,
        epochs: float = 0.0,
        *,
        micro_batch: int,
        accumulation: int,
        max_length: int,
        packs: bool = True,
        collate: Collate,
    ):
        super().__init__(position, epochs)
        self._client, self._micro_batch, self._accumulation = client, micro_batch, accumulation
        self._max_length, self._packs, self._collate = max_length, packs, collate
        self.handed_out: deque[Rows] = deque()
        """The rows of each training micro-batch that was handed out, until its consumer takes them."""

    def __iter__(self) -> Iterator[dict[str, Any]]:
        while not self.last:
            started = time.monotonic()
            received = self._client.next(self.position.step)
            self._counter.wait_s += time.monotonic() - started
            self._count(received.rows)
            self.position, self.epochs, self.last = received.position, received.epochs, received.last
            self.save = received.save
            for rows in cut(received.rows, self._micro_batch, self._accumulation):
                self.handed_out.append(rows)
                yield self._collate(rows)

    def evaluation_batches(self, batch_size: int) -> Iterator[tuple[Rows, dict[str, Any]]]:
        """Yield this rank's evaluation batches with their rows, as many as every other rank has."""
        rows, most = self._client.evaluation()
        for begin in range(0, most, batch_size):
            batch = rows[begin : begin + batch_size]
            yield batch, self._collate(batch)

    def _count(self, rows: tuple[PackedRow, ...]) -> None:
        self._counter.steps += 1
        self._counter.tokens += sum(len(row.input_ids) for row in rows)
        self._counter.trained_tokens += sum(int(row.trained.sum()) for row in rows)
        self._counter.capacity += self._max_length * sum(1 if self._packs else len(row.lengths) for row in rows)


def row_stream(spec: RunSpec, client: DataServiceClient, resume: Resume | None, tokenizer: Any, model: Any) -> Stream:
    """Return micro-batches of rows from the feed, from the checkpoint's position on."""
    config = spec.config
    collate = load(TASKS[config.train.task].collate)
    return Stream(
        cast(FeedClient, client),
        resume.position if resume else Position(),
        resume.epochs if resume else 0.0,
        micro_batch=config.train.per_device_train_batch_size,
        accumulation=config.train.gradient_accumulation_steps,
        max_length=config.data.max_length,
        packs=config.data.packing,
        collate=partial(collate, pad_token_id=tokenizer.pad_token_id, layout=_layout(config, model)),
    )


def _layout(config: TrainingConfig, model: Any) -> Layout:
    """Choose the layout of micro-batches.

    NEFTune's noise depends on the length of padded rows, and `torch.compile` needs shapes that come again.
    """
    needs_rows = any(config.train.trl_extra.get(name) for name in ("neftune_noise_alpha", "torch_compile"))
    if TASKS[config.train.task].packs and not needs_rows:
        return document_attention.choose_layout(model)
    return layout_of(model)
