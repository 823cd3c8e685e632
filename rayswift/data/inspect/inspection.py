"""Statistics of a sample of rows: formats, outcomes, lengths, trained tokens, fill, and some rows as text; pure.

The code that encodes and packs for training makes the sample too, so the statistics are those of the training.
"""

from collections import Counter
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from rayswift.data.raw_rows import readable
from rayswift.data.rows import format_of
from rayswift.data.sequence.windows import PackedRow, Quarantined, WindowPlan

_BARS = 12
Run = tuple[str, bool]
"""The text of neighbouring tokens, and whether they are trained."""


@dataclass(frozen=True)
class Document:
    """An encoded row as text."""

    id: str
    num_tokens: int
    runs: tuple[Run, ...]


@dataclass(frozen=True)
class Inspection:
    """Statistics of a sample of rows.

    formats: rows by format; counts: rows by outcome; lengths: tokens of each document; bins: histogram of the lengths
    as (from, to, documents), without the end; fill: share of the positions of packed rows that hold a token; left_out:
    a bad row for each reason; shown: some documents.
    """

    num_rows: int
    num_sampled: int
    max_length: int
    formats: Counter[str]
    counts: Counter[str]
    lengths: NDArray[np.int64]
    bins: tuple[tuple[int, int, int], ...]
    num_trained_tokens: int
    num_packed_rows: int
    fill: float
    left_out: tuple[Quarantined, ...]
    shown: tuple[Document, ...]


def inspect(plan: WindowPlan, num_sampled: int, num_shown: int) -> Inspection:
    """Inspect the first rows of the first epoch, with `data.shuffle` a random sample; decode `num_shown` documents."""
    num_sampled = min(num_sampled, plan.num_rows)
    plan = replace(plan, window_rows=min(plan.window_rows, num_sampled))
    num_windows = num_sampled // plan.window_rows
    num_sampled = num_windows * plan.window_rows
    raw = plan.row_set.read(plan.row_set.rows_at(0, num_sampled, 0))
    formats = Counter(format_of(row, columns) for row, columns in readable(plan.encode, raw))
    formats = +(formats + Counter(unreadable=sum(row.error is not None for row in raw)))
    windows = [plan.make(0, number) for number in range(num_windows)]
    rows = [row for window in windows for row in window.rows]
    lengths = np.array([length for row in rows for length in row.lengths], np.int64)
    positions = plan.encode.max_length * sum(1 if plan.packing else len(row.lengths) for row in rows)
    left_out = {bad.reason: bad for window in windows for bad in reversed(window.quarantined)}
    return Inspection(
        num_rows=plan.num_rows,
        num_sampled=num_sampled,
        max_length=plan.encode.max_length,
        formats=formats,
        counts=sum((window.counts for window in windows), Counter()),
        lengths=lengths,
        bins=_histogram(lengths),
        num_trained_tokens=sum(int(row.trained.sum()) for row in rows),
        num_packed_rows=len(rows),
        fill=int(lengths.sum()) / positions if positions else 0.0,
        left_out=tuple(left_out.values()),
        shown=_documents(plan, rows, num_shown),
    )


def _histogram(lengths: NDArray[np.int64]) -> tuple[tuple[int, int, int], ...]:
    if not len(lengths):
        return ()
    step = -(-int(lengths.max() + 1) // _BARS)
    counts = np.bincount(lengths // step)
    return tuple((i * step, (i + 1) * step, int(count)) for i, count in enumerate(counts))


def _documents(plan: WindowPlan, rows: list[PackedRow], number: int) -> tuple[Document, ...]:
    tokenizer = Tokenizer.from_file(str(Path(plan.encode.tokenizer_dir) / "tokenizer.json"))
    documents: list[Document] = []
    for row in rows:
        begin = 0
        for row_id, length in zip(row.ids, row.lengths, strict=True):
            if len(documents) == number:
                return tuple(documents)
            ids, trained = row.input_ids[begin : begin + length], row.trained[begin : begin + length]
            borders = [0, *(np.flatnonzero(np.diff(trained)) + 1).tolist(), length]
            texts = [tokenizer.decode(ids[a:b].tolist(), skip_special_tokens=False) for a, b in pairwise(borders)]
            runs = tuple((text, bool(trained[a])) for text, a in zip(texts, borders, strict=False))
            documents.append(Document(row_id, length, runs))
            begin += length
    return tuple(documents)
