"""Small data sets whose rows differ from each other once packed, and their windows in this process."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from rayswift.data.encode.config import EncodeConfig
from rayswift.data.sequence.global_batches import FeedPlan, GlobalBatch, Position, global_batches
from rayswift.data.sequence.windows import PackedRow, RowSet, Window, WindowPlan
from rayswift.data.sources import open_sources

TINY = Path(__file__).resolve().parents[2] / "examples" / "tiny"
MAX_LENGTH = 24
_TOKENIZER = Tokenizer.from_file(str(TINY / "tokenizer.json"))


def line(number: int, kind: str) -> str:
    """Row `number`: g is good, b is no JSON, u fits no format, l is too long."""
    text = f"{number} {'xyz '[number % 4] * (number % 7)}"
    return {
        "g": json.dumps({"text": text}),
        "b": '{"text": ',
        "u": json.dumps({"n": number}),
        "l": json.dumps({"text": f"{number} {'q z ' * MAX_LENGTH}"}),
    }[kind]


def window_plan(folder: Path, kinds: str, window_rows: int, packing: bool = True, **row_set: Any) -> WindowPlan:
    """A plan over a jsonl file with one row for each letter of `kinds`."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "rows.jsonl"
    path.write_text("".join(line(i, kind) + "\n" for i, kind in enumerate(kinds)), encoding="utf-8")
    rows = RowSet(open_sources([str(path)], folder / "work"), **({"seed": 5} | row_set))
    return WindowPlan(rows, EncodeConfig(str(TINY), "hash", MAX_LENGTH), packing, window_rows)


def feed_plan(windows: WindowPlan, global_batch: int, **options: Any) -> FeedPlan:
    """The plan of its sequence; by default one epoch, and any row may be bad."""
    return FeedPlan(
        global_batch=global_batch,
        num_rows=windows.num_rows,
        window_rows=windows.window_rows,
        **({"num_epochs": 1, "max_steps": -1, "max_bad_fraction": 1.0} | options),
    )


def in_process(plan: WindowPlan, epoch: int, first: int) -> Iterator[Window]:
    """The stream that Ray Data would make."""
    return (plan.make(epoch, number) for number in range(first, plan.num_windows))


def batches(windows: WindowPlan, plan: FeedPlan, start: Position | None = None) -> list[GlobalBatch]:
    """All global batches from a position on."""
    return list(_iterate(windows, plan, start or Position()))


def _iterate(windows: WindowPlan, plan: FeedPlan, start: Position) -> Iterator[GlobalBatch]:
    return global_batches(plan, lambda e, f: in_process(windows, e, f), start, lambda *_: None)


def numbers(rows: tuple[PackedRow, ...] | list[PackedRow]) -> list[int]:
    """The row numbers of all documents, in their order."""
    found = []
    for row in rows:
        begin = 0
        for length in row.lengths:
            text = _TOKENIZER.decode(row.input_ids[begin : begin + length].tolist())
            found.append(int(text.split()[0]))
            begin += length
        assert begin == len(row.input_ids) == len(row.trained)
    return found


def all_numbers(sequence: list[GlobalBatch]) -> list[int]:
    """The row numbers of a sequence of batches."""
    return [number for batch in sequence for number in numbers(batch.rows)]


def good(kinds: str) -> list[int]:
    """The numbers of the rows that can be trained."""
    return [i for i, kind in enumerate(kinds) if kind == "g"]


def shape(batch: GlobalBatch) -> tuple[Any, ...]:
    """A batch as comparable values."""
    rows = tuple(
        (row.input_ids.tobytes(), row.trained.tobytes(), row.lengths, row.num_source_rows) for row in batch.rows
    )
    return batch.step, rows, batch.epochs, batch.position, batch.last
