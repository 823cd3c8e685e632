"""Ends the run at a NaN or infinite loss or gradient, before a save, and names the rows that caused it."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rayswift.data.sequence.windows import PackedRow
from rayswift.log import UserError
from rayswift.run.folder import NAN_ROWS

_NUM_SHOWN = 5
_TEXT_LENGTH = 2000

TokenLosses = NDArray[np.floating]
"""The loss of each token of a packed row, [T]; 0 if not trained."""


@dataclass(frozen=True)
class RowLoss:
    """A document of the step: its mean loss over its trained tokens, and the beginning of its text."""

    id: str
    loss: float
    num_trained_tokens: int
    text: str


def row_losses(
    rows: Sequence[PackedRow], losses: Sequence[TokenLosses], decode: Callable[[list[int]], str]
) -> list[RowLoss]:
    """Return every document of some packed rows, those without a finite loss first, then by decreasing loss."""
    found = []
    for row, token_losses in zip(rows, losses, strict=True):
        ends = np.cumsum(row.lengths)
        for name, begin, end in zip(row.ids, ends - row.lengths, ends, strict=True):
            trained = row.trained[begin:end]
            loss = float(token_losses[begin:end][trained].mean()) if trained.any() else 0.0
            text = decode(row.input_ids[begin:end].tolist())[:_TEXT_LENGTH]
            found.append(RowLoss(name, loss, int(trained.sum()), text))
    return sorted(found, key=lambda each: (math.isfinite(each.loss), -each.loss if math.isfinite(each.loss) else 0))


def stop(run_dir: Path, rank: int, step: int, what: str, rows: Sequence[RowLoss]) -> UserError:
    """Write a rank's rows of the step to `nan_rows/rank-N.jsonl`, and return the error that ends the run.

    Args:
        run_dir: The run folder.
        rank: The rank of the rows.
        step: The optimizer step, counted from 1.
        what: Names the NaN or infinite number, with its value.
        rows: See `row_losses`.
    """
    file = run_dir / NAN_ROWS / f"rank-{rank}.jsonl"
    file.parent.mkdir(exist_ok=True)
    with open(file, "w", encoding="utf-8") as out:
        for row in rows:
            loss = row.loss if math.isfinite(row.loss) else str(row.loss)  # JSON has no word for them
            out.write(json.dumps({"step": step, "what": what, **asdict(row), "loss": loss}, ensure_ascii=False) + "\n")
    shown = [f"  {row.id}: loss {row.loss:.4g} over {row.num_trained_tokens} tokens" for row in rows[:_NUM_SHOWN]]
    more = [f"  and {len(rows) - _NUM_SHOWN} more"] if len(rows) > _NUM_SHOWN else []
    return UserError(
        "\n".join(
            [
                f"step {step}: {what} on rank {rank}; the run stops, and its checkpoints stay as they were; its rows:",
                *shown,
                *more,
                f"  all of them, with their text: {file}",
                "  look at these rows, at train.learning_rate and at model.dtype",
            ]
        ),
        exit_code=1,
    )
