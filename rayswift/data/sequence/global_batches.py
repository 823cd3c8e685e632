"""Windows -> global batches, each with the position of the next one; pure.

Step k takes packed rows [k * G, (k + 1) * G) of the global sequence (G: the global batch size), across the borders of
windows and epochs.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from itertools import accumulate
from math import ceil
from typing import Any

from rayswift.data.sequence.mismatched_completions import with_mismatched_completions
from rayswift.data.sequence.windows import TRAINED, PackedRow, Window
from rayswift.log import UserError

JUDGED_FROM_ROWS = 1000
REMAINDER = "dropped remainder: less than a global batch"
_QUARANTINE = "data/quarantine.jsonl in the run folder"


class UnusableRows(UserError):
    """The rows end the run; `counts`: raw rows by outcome."""

    def __init__(self, message: str, counts: dict[str, int]):
        super().__init__(f"{message}\n{table(counts)}", exit_code=1)
        self._message, self.counts = message, counts

    def __reduce__(self) -> tuple[Any, ...]:
        return UnusableRows, (self._message, self.counts)


@dataclass(frozen=True)
class Position:
    """A point in the global sequence: the next step, and epoch, window and number of the next packed row.

    counts: all raw rows before it, over all epochs, by outcome (`trained...`, `filtered: ...`, `quarantined: ...`,
    `dropped remainder...`).
    """

    step: int = 0
    epoch: int = 0
    window: int = 0
    row: int = 0
    counts: dict[str, int] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """As plain values, for a checkpoint."""
        return asdict(self)


@dataclass(frozen=True)
class GlobalBatch:
    """The rows of one optimizer step: G packed rows, or fewer at the end of the data.

    epochs: passes over the data after this step, from raw rows consumed; position: where the next step begins; last: no
    step follows.
    """

    step: int
    rows: tuple[PackedRow, ...]
    epochs: float
    position: Position
    last: bool


@dataclass(frozen=True)
class FeedPlan:
    """The size of the global batch, and the end of the sequence, after `max_steps` or after `num_epochs` passes.

    drops_remainder: the remainder at the end that fills no global batch is counted but not trained, because a loss that
    is a mean over rows would give its rows another weight. mismatched_length: the most tokens of a row with a
    mismatched completion; None: rows have none.
    """

    global_batch: int
    num_rows: int
    window_rows: int
    num_epochs: float
    max_steps: int
    max_bad_fraction: float
    drops_remainder: bool = False
    mismatched_length: int | None = None

    @property
    def ends_by_steps(self) -> bool:
        """Whether `max_steps` ends the sequence."""
        return self.max_steps > 0

    def related(self, rows: tuple[PackedRow, ...]) -> tuple[PackedRow, ...]:
        """The rows of a batch, for KTO each with its mismatched completion from another row."""
        return rows if self.mismatched_length is None else with_mismatched_completions(rows, self.mismatched_length)


def share(global_batch: int, rank: int, size: int) -> slice:
    """The rows of a global batch for a rank; the shares of `size` ranks differ by one row at most."""
    return slice(rank * global_batch // size, (rank + 1) * global_batch // size)


def micro_batches(global_batch: int, most_rows: int, size: int) -> tuple[int, int]:
    """Rows of a micro-batch (up to `most_rows`), and the number of micro-batches, for each of `size` ranks.

    The number is the same on every rank; if the shares differ, the last micro-batch of some ranks has a row less.
    """
    largest_share = -(-global_batch // size)
    accumulation = -(-largest_share // most_rows)
    return -(-largest_share // accumulation), accumulation


WindowSource = Callable[[int, int], Iterator[Window]]
"""(epoch, first window) -> the windows of the epoch from this one on, in order."""


def global_batches(
    plan: FeedPlan, source: WindowSource, start: Position, on_window: Callable[[int, int, Window], None]
) -> Iterator[GlobalBatch]:
    """Divide windows into global batches, from `start` on.

    `on_window` is called with (epoch, number, window) when a window is opened for the first time.

    Raises:
        UnusableRows: too many rows are bad, an epoch has no row to train, or the data fills no global batch.
    """
    step, held = start.step, None
    if plan.ends_by_steps and step >= plan.max_steps:
        return
    pending: list[PackedRow] = []
    for row, epochs, position in _sequence(plan, source, start, on_window):
        pending.append(row)
        if len(pending) == plan.global_batch:
            if held is not None:
                yield held
            last = plan.ends_by_steps and step + 1 >= plan.max_steps
            held = GlobalBatch(step, tuple(pending), epochs, replace(position, step=step + 1), last)
            pending, step = [], step + 1
            if plan.ends_by_steps:  # the end is known, so no batch is held back
                yield held
                held = None
                if last:
                    return
        end = (epochs, position)
    if pending and plan.drops_remainder:
        held = _with_remainder(held, pending, *end)
    elif pending:
        if held is not None:
            yield held
        held = GlobalBatch(step, tuple(pending), end[0], replace(end[1], step=step + 1), True)
    if held is not None:
        yield GlobalBatch(held.step, held.rows, held.epochs, held.position, True)


def _with_remainder(
    last: GlobalBatch | None, remainder: list[PackedRow], epochs: float, behind: Position
) -> GlobalBatch:
    """The last batch, with the `remainder` after it counted."""
    counts = Counter(behind.counts)
    for row in remainder:
        counts.subtract(row.counts)
        counts[REMAINDER] += row.counts.total()
    if last is None:
        raise UnusableRows(
            f"{len(remainder)} rows are left to train, fewer than one global batch; lower train.global_batch_size:",
            dict(behind.counts),
        )
    return replace(last, epochs=epochs, position=replace(behind, step=last.step + 1, counts=dict(+counts)))


def _sequence(
    plan: FeedPlan, source: WindowSource, start: Position, on_window: Callable[[int, int, Window], None]
) -> Iterator[tuple[PackedRow, float, Position]]:
    """Packed rows from `start` on, each with the epochs after it and the position after it."""
    counts = Counter(start.counts)
    epoch, first, skip = start.epoch, start.window, start.row
    while plan.ends_by_steps or epoch < plan.num_epochs:
        trained_before = _trained(counts) if first == 0 and skip == 0 else -1
        # One row is held back, because rows left out after the last good row of an epoch are counted with it.
        held: tuple[PackedRow, float, Position] | None = None
        for number, window in enumerate(source(epoch, first), first):
            if skip == 0:
                on_window(epoch, number, window)
                counts.update({k: v for k, v in window.counts.items() if not k.startswith(TRAINED)})
                so_far = counts + Counter({k: v for k, v in window.counts.items() if k.startswith(TRAINED)})
                raw_rows = epoch * plan.num_rows + min((number + 1) * plan.window_rows, plan.num_rows)
                expected_rows = -(-so_far.total() * (epoch + 1) * plan.num_rows // raw_rows)
                judge(so_far, plan.max_bad_fraction, expected_rows, _QUARANTINE)
            epochs = [epoch + (number * plan.window_rows + done) / plan.num_rows for done in _raw_rows_done(window)]
            for index, row in enumerate(window.rows[skip:], skip):
                if held:
                    yield held
                if not plan.ends_by_steps and epochs[index] >= plan.num_epochs:
                    return
                counts.update(row.counts)
                behind = (number, index + 1) if index + 1 < len(window.rows) else (number + 1, 0)
                held = row, epochs[index + 1], Position(0, epoch, *behind, dict(counts))
            skip = 0
        if _trained(counts) == trained_before:
            raise UnusableRows("no row is left to train:", dict(counts))
        if held:
            yield held[0], epoch + 1.0, Position(0, epoch + 1, 0, 0, dict(counts))
        judge(counts, plan.max_bad_fraction, 0, _QUARANTINE)
        epoch, first = epoch + 1, 0


def _raw_rows_done(window: Window) -> list[float]:
    """Raw rows that are done before each packed row of a window, and after the last one.

    A raw row that is cut into pieces counts where its first piece is, which may be long before the others: in a window
    with packed rows of later pieces alone, all packed rows are the same share of its raw rows.
    """
    each = [row.num_source_rows for row in window.rows]
    if 0 not in each:
        return [0, *accumulate(each)]
    return [sum(each) * index / len(each) for index in range(len(each) + 1)]


def _trained(counts: Counter[str]) -> int:
    return sum(number for outcome, number in counts.items() if outcome.startswith(TRAINED))


def judge(counts: Counter[str], max_bad_fraction: float, expected_rows: int, quarantine: str) -> None:
    """Raise if too many rows are bad: of those seen, or while these are few, of all rows that are expected.

    Args:
        counts: Rows so far, by outcome.
        max_bad_fraction: Share of rows that may be bad.
        expected_rows: Rows that the whole data will have given; 0: all have been seen.
        quarantine: Place of the bad rows, for the message.

    Raises:
        UnusableRows: too many rows are bad.
    """
    seen, bad = counts.total(), sum(v for k, v in counts.items() if k.startswith("quarantined"))
    judged = seen if seen >= JUDGED_FROM_ROWS else max(seen, expected_rows)
    if bad > max_bad_fraction * judged:
        of_all = f" of {judged} in all" if judged > seen else ""
        enough = ceil(100 * bad / seen) / 100
        raise UnusableRows(
            f"{bad} of {seen} rows are bad, more than data.max_bad_fraction = {max_bad_fraction} allows{of_all}; "
            f"correct them, see {quarantine}, or leave them out: --data.max_bad_fraction {enough}",
            dict(counts),
        )


def table(counts: dict[str, int] | Counter[str]) -> str:
    """The numbers of rows as text, one line per outcome."""
    lines = [("rows seen", sum(counts.values())), *sorted(counts.items(), key=lambda kv: -kv[1])]
    return "\n".join(f"  {name:<48} {count:>10,}" for name, count in lines)
