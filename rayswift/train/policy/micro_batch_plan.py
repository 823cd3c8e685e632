"""Micro-batch planning: completions of a rank -> micro-batches under a token budget; pure."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from rayswift.data.collate.pieces import padded_pieces
from rayswift.rollout.rounds import Indices, RoundTable, group_begins

PolicyLayout = Literal["shared", "rows", "flat"]
"""The layout of a micro-batch: see `micro_batches`."""

_MICRO_BATCH_TOKENS = 256
"""The fixed cost of a forward and backward pass, in tokens."""


def ordered(table: RoundTable, rows: Indices, layout: PolicyLayout) -> Indices:
    """Return lines of the table in the order of cutting, similar ones side by side.

    With shared prompts: group by group, by decreasing length of the prompt; otherwise by decreasing total length.
    """
    prompts, lengths = table.prompt_lengths[rows], table.lengths[rows]
    if layout == "shared":
        return rows[np.lexsort((-lengths, table.ordinals[rows], -prompts))]
    return rows[np.argsort(-(prompts + lengths), kind="stable")]


def cut(table: RoundTable, rows_of_ranks: Sequence[Indices], budget: int, layout: PolicyLayout) -> list[list[slice]]:
    """Cut each rank's completions into micro-batches: the same number on all ranks, at least one; some may be empty.

    Args:
        table: The round's.
        rows_of_ranks: Each rank's lines of the table, in the order of `ordered`.
        budget: Most tokens of a micro-batch, padding included; a completion that is longer is a batch of its own.
        layout: Decides what counts as tokens: each prompt once, each prompt with every completion, or also padding.
    """
    cuts = [_pieces(table, rows, budget, layout) for rows in rows_of_ranks]
    number = max(1, *map(len, cuts))
    return [_divided(pieces, number) for pieces in cuts]


def _pieces(table: RoundTable, rows: Indices, budget: int, layout: PolicyLayout) -> list[slice]:
    if layout == "shared":
        return _shared_pieces(table, rows, budget)
    totals = table.prompt_lengths[rows] + table.lengths[rows]
    return padded_pieces(totals, _MICRO_BATCH_TOKENS, budget) if layout == "rows" else _flat_pieces(totals, budget)


def _flat_pieces(totals: NDArray[np.int64], budget: int) -> list[slice]:
    pieces, begin = [], 0
    while begin < len(totals):
        count = int(np.searchsorted(np.cumsum(totals[begin:]), budget, side="right"))
        end = min(len(totals), begin + max(1, count))
        pieces.append(slice(begin, end))
        begin = end
    return pieces


def _shared_pieces(table: RoundTable, rows: Indices, budget: int) -> list[slice]:
    """Fill pieces with groups in order; one that does not fit begins a new piece, and is cut if it is too long."""
    prompts, lengths = table.prompt_lengths[rows].tolist(), table.lengths[rows].tolist()
    firsts = group_begins(table.ordinals[rows])
    sizes = [int(group.sum()) for group in np.split(table.lengths[rows], firsts[1:])] if len(rows) else []
    whole = dict(zip(firsts.tolist(), sizes, strict=True))
    cuts, used = [0], 0
    for row, (prompt, length) in enumerate(zip(prompts, lengths, strict=True)):
        needs = prompt + whole[row] if row in whole else length
        if row > cuts[-1] and used + needs > budget:
            cuts.append(row)
            used = 0
        used += length + (prompt if row in whole or row == cuts[-1] else 0)
    return [slice(begin, end) for begin, end in zip(cuts, [*cuts[1:], len(rows)], strict=True) if end > begin]


def _divided(pieces: list[slice], number: int) -> list[slice]:
    """Return the wanted number of pieces, by halving the one with the most completions, or by adding empty ones."""
    pieces = list(pieces)
    while len(pieces) < number:
        sizes = [piece.stop - piece.start for piece in pieces]
        if not sizes or max(sizes) < 2:
            end = pieces[-1].stop if pieces else 0
            pieces.append(slice(end, end))
            continue
        largest = int(np.argmax(sizes))
        piece = pieces[largest]
        middle = (piece.start + piece.stop + 1) // 2
        pieces[largest : largest + 1] = [slice(piece.start, middle), slice(middle, piece.stop)]
    return pieces
