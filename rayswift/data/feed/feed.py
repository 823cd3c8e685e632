"""The feed: one ordered stream of global batches, served by (step, data-parallel rank, data-parallel size).

It is an actor that the driver owns, or with `cluster.num_workers: 0` a plain object. A restarted trainer calls `begin`
with the position of its checkpoint. A restarted feed is rebuilt from the positions of the ranks. Each worker group has
an attempt number, higher than those of earlier groups. Every call carries it, so ranks of an older group that are
still alive are refused and change nothing.
"""

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rayswift.data.filesystem import write_whole
from rayswift.data.sequence.global_batches import FeedPlan, GlobalBatch, Position, global_batches, share, table
from rayswift.data.sequence.quarantine import QuarantineFile
from rayswift.data.sequence.windows import TRAINED, PackedRow, Window, Windows
from rayswift.log import UserError

DRIVERS_ATTEMPT = 0
"""The attempt of the driver, which starts the feed before there are workers."""
_CLOSE_S = 30
EVALUATION_COUNTS = "evaluation.json"
"""File in the data folder: the number of raw evaluation rows by outcome, written once they are encoded."""
EVALUATED = "evaluated"
Stream = Callable[[Windows, int, int], Iterator[Window]]


@dataclass(frozen=True)
class Slice(GlobalBatch):
    """The rows of one rank in one step; at the end of the data they may be fewer than its share, or none.

    save: save a checkpoint after this step.
    """

    save: bool = False


class DataEnded(UserError):
    """A rank asked for a step after the end of the data."""

    def __init__(self, step: int):
        super().__init__(f"the data ended before step {step}", exit_code=1)
        self._step = step

    def __reduce__(self) -> tuple[Any, ...]:
        return DataEnded, (self._step,)


class StaleAttempt(Exception):
    """A rank of an older worker group called."""


class Feed:
    """Produces global batches ahead of the ranks and gives each rank its slice.

    Args:
        windows: Windows of training rows.
        eval_windows: Windows of evaluation rows, or None.
        plan: Size of the global batches, and the end of the sequence.
        data_dir: Folder for `quarantine.jsonl` and `evaluation.json`.
        stream: (windows, epoch, number) -> the windows of the epoch from this number on.
        ahead_steps: Batches that are held ready.
    """

    def __init__(
        self,
        windows: Windows,
        eval_windows: Windows | None,
        plan: FeedPlan,
        data_dir: str,
        stream: Stream,
        ahead_steps: int = 8,
    ):
        self._ahead_steps = ahead_steps
        self._windows, self._eval_windows, self._plan, self._stream = windows, eval_windows, plan, stream
        self._data_dir = Path(data_dir)
        self._quarantine = QuarantineFile(self._data_dir / "quarantine.jsonl")
        self._changed = threading.Condition()
        self._generation = 0
        self._attempt = self._named_attempt = DRIVERS_ATTEMPT
        self._newest_served = -1
        self._save_request: int | None = None
        self._save_at: int | None = None
        self._producers: list[threading.Thread] = []
        self._start: Position | None = None
        self._ready: dict[int, GlobalBatch] = {}
        self._wanted: dict[int, int] = {}
        self._ended_at: int | None = None
        self._error: BaseException | None = None
        self._eval_rows: tuple[PackedRow, ...] | None = None
        self._eval_lock = threading.Lock()
        self._moved_at = time.monotonic()

    def new_attempt(self) -> int:
        """A number for a new worker group: higher than all earlier ones, also than those of a feed that died."""
        with self._changed:
            self._named_attempt = max(self._named_attempt + 1, time.time_ns())
            return self._named_attempt

    def begin(self, attempt: int, position: Position) -> None:
        """Serve from `position` on. All ranks of an attempt may call it; the earliest position counts.

        Raises:
            StaleAttempt: a newer attempt has begun.
        """
        with self._changed:
            self._refuse_older(attempt)
            running = self._start is not None and self._error is None
            if running and self._start == position and not self._wanted:
                self._attempt = attempt  # the driver has started it at this position
                self._changed.notify_all()
            same = running and attempt == self._attempt
            if same and self._start is not None and position.step >= self._start.step:
                return
            self._generation += 1
            self._attempt, self._start, self._error, self._ended_at = attempt, position, None, None
            self._newest_served, self._save_request, self._save_at = position.step - 1, None, None
            self._ready.clear()
            self._wanted.clear()
            self._changed.notify_all()
            producer = threading.Thread(target=self._produce, args=(self._generation, position), daemon=True)
            self._producers = [*(each for each in self._producers if each.is_alive()), producer]
            producer.start()

    def next(self, attempt: int, step: int, rank: int, size: int, timeout_s: float) -> Slice:
        """The slice of `rank` among `size` for a step.

        Raises:
            StaleAttempt: a newer attempt has begun.
            TimeoutError: neither the batch nor a window of rows was made within `timeout_s`.
        """
        began = time.monotonic()
        with self._changed:
            while not self._is_ready(attempt, step, rank, size):
                if time.monotonic() - max(began, self._moved_at) >= timeout_s:
                    raise TimeoutError(
                        f"the data feed has no batch for step {step}, and made no window within {timeout_s:.0f} s"
                    )
                self._changed.wait(min(1.0, timeout_s))
            batch = self._ready[step]
            self._newest_served = max(self._newest_served, step)
            rows = batch.rows[share(self._plan.global_batch, rank, size)]
            return Slice(step, rows, batch.epochs, batch.position, batch.last, step == self._save_at)

    def still_s(self) -> float:
        """Seconds since the last window of rows was made, for training or evaluation."""
        return time.monotonic() - self._moved_at

    def ask_for_save(self, request: int) -> None:
        """Request a checkpoint after the first step that no rank has received yet; a request counts once."""
        with self._changed:
            if request != self._save_request:
                self._save_request, self._save_at = request, self._newest_served + 1

    def _is_ready(self, attempt: int, step: int, rank: int, size: int) -> bool:
        """Whether the batch of a step is ready; records that `rank` waits for it, and drops batches all ranks have."""
        self._refuse_older(attempt)
        if attempt > self._attempt:
            return False  # `begin` of this attempt has not arrived yet
        self._wanted[rank] = step
        if len(self._wanted) >= size:
            for done in [s for s in self._ready if s < min(self._wanted.values())]:
                del self._ready[done]
                self._changed.notify_all()
        if step in self._ready:
            return True
        if self._error is not None:
            raise self._error
        if self._ended_at is not None and step >= self._ended_at:
            raise DataEnded(step)
        return False

    def _refuse_older(self, attempt: int) -> None:
        if attempt < self._attempt:
            raise StaleAttempt(f"attempt {attempt} is over, attempt {self._attempt} has begun")

    def close(self) -> None:
        """Stop producing, and end all threads: a thread inside Ray at its shutdown would kill the process."""
        with self._changed:
            self._generation += 1
            self._changed.notify_all()
            producers = list(self._producers)
        deadline = time.monotonic() + _CLOSE_S
        for producer in producers:
            producer.join(max(0.0, deadline - time.monotonic()))

    def progress(self) -> tuple[int, float]:
        """For display: the step in training, and the passes over the data."""
        with self._changed:
            step = min(self._wanted.values(), default=0)
            batch = self._ready.get(step)
            return step, batch.epochs if batch else 0.0

    def standing(self) -> tuple[object, str]:
        """For display: a value that changes with progress, and which step's rows the ranks wait for."""
        with self._changed:
            newest = max(self._ready, default=-1)
            late = sorted({step for step in self._wanted.values() if step not in self._ready})
            text = f"the rows of step {late[0] + 1} are not encoded yet" if late and self._ended_at is None else ""
            return (self._generation, newest, dict(self._wanted)), text

    def evaluation(self, rank: int, size: int) -> tuple[tuple[PackedRow, ...], int]:
        """This rank's evaluation rows, encoded once, and the largest number of rows that any rank has."""
        with self._eval_lock:
            if self._eval_rows is None:
                assert self._eval_windows is not None, "evaluation without evaluation rows"
                encoded: list[PackedRow] = []
                counts: Counter[str] = Counter()
                for window in self._noted(self._stream(self._eval_windows, 0, 0)):
                    encoded += window.rows
                    counts.update({k.replace(TRAINED, EVALUATED): v for k, v in window.counts.items()})
                    self._quarantine.add(window)
                file = self._data_dir / EVALUATION_COUNTS
                file.parent.mkdir(parents=True, exist_ok=True)
                write_whole(file, json.dumps(counts, indent=1))
                if not encoded:
                    raise UserError(
                        f"no evaluation row can be used; see data/quarantine.jsonl\n{table(counts)}", exit_code=1
                    )
                self._eval_rows = self._plan.related(tuple(encoded))
        rows = self._eval_rows
        return rows[rank::size], -(-len(rows) // size)

    def first_rows(self, number: int) -> tuple[PackedRow, ...]:
        """The first packed rows of the first epoch, needed before the training; the feed does not advance."""
        rows: list[PackedRow] = []
        for window in range(self._windows.num_windows):
            rows += self._windows.make(0, window).rows
            if len(rows) >= number:
                break
        return tuple(rows[:number])

    def _noted(self, windows: Iterator[Window]) -> Iterator[Window]:
        for window in windows:
            self._moved_at = time.monotonic()
            yield window

    def _produce(self, generation: int, start: Position) -> None:
        def source(epoch: int, first: int) -> Iterator[Window]:
            return self._noted(self._stream(self._windows, epoch, first))

        def on_window(epoch: int, number: int, window: Window) -> None:
            # In every epoch, because the epochs of a mix take different rows.
            if generation == self._generation:
                self._quarantine.add(window)

        try:
            step = start.step
            for batch in global_batches(self._plan, source, start, on_window):
                related = replace(batch, rows=self._plan.related(batch.rows))
                with self._changed:
                    self._changed.wait_for(
                        lambda: len(self._ready) < self._ahead_steps or generation != self._generation
                    )
                    if generation != self._generation:
                        return
                    self._ready[batch.step] = related
                    step = batch.step + 1
                    self._changed.notify_all()
            with self._changed:
                if generation == self._generation:
                    self._ended_at = step
                    self._changed.notify_all()
        except BaseException as error:  # every waiting rank must receive it
            with self._changed:
                if generation == self._generation:
                    self._error = error
                    self._changed.notify_all()
