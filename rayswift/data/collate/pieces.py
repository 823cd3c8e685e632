"""Cuts sequences of several lengths into padded pieces, and counts out their tokens."""

import numpy as np
from numpy.typing import NDArray


def padded_pieces(lengths: NDArray[np.int64], piece_tokens: int, budget: int | None = None) -> list[slice]:
    """Return the cut of decreasing lengths with the least cost: padded tokens, and a fixed cost for each piece.

    costs[j] is the least cost up to the j-th border: the minimum over the border i < j where the last piece begins.
    """
    # Equal lengths are parted by a budget alone.
    ends = np.arange(len(lengths)) if budget else np.flatnonzero(np.diff(lengths, append=-1))
    borders = np.concatenate([[0], ends + 1])
    costs, begins = np.zeros(len(borders)), np.zeros(len(borders), np.int64)
    for end in range(1, len(borders)):
        padded = (borders[end] - borders[:end]) * lengths[borders[:end]]
        fits = padded <= (budget or np.inf)
        fits[end - 1] = True  # one that is longer than the budget is a piece of its own
        each = np.where(fits, costs[:end] + padded + piece_tokens, np.inf)
        begins[end] = np.argmin(each)
        costs[end] = each[begins[end]]
    pieces, end = [], len(borders) - 1
    while end:
        pieces.append(slice(int(borders[begins[end]]), int(borders[end])))
        end = int(begins[end])
    return pieces[::-1]


def ranges(begins: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the ranges that start at `begins` and have `lengths` numbers, concatenated."""
    offsets = np.arange(int(lengths.sum())) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    found: NDArray[np.int64] = np.repeat(begins, lengths) + offsets
    return found
