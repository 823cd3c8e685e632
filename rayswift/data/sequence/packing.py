"""Bin packing of row lengths: the longest row opens a bin, and a subset of the others fills it; pure, deterministic.

Best-fit decreasing leaves gaps that no single row fits. Here the last few rows of a bin are chosen together: a subset
sum over the available lengths, as a bitset in one integer, finds the set that fills the gap exactly or best (Gupta and
Ho, "A new heuristic algorithm for the one-dimensional bin-packing problem", 1999). The work per bin is bounded.
"""

from bisect import bisect_right
from collections.abc import Sequence

import numpy as np

# A subset sum fills a gap once this number of the longest rows that fit would fill it.
_ROWS_OF_A_GAP = 4
# Lengths that a subset sum tries: the longest that fit, and others spread over all shorter ones.
_LONGEST_TRIED = 12
_SPREAD_TRIED = 12
_COPIES_TRIED = 2


def pack(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Put rows into bins of `capacity` tokens.

    Returns:
        Bins as lists of ascending row indices, sorted by their first row. No row of a bin fits into a bin that was
        filled earlier.

    Raises:
        ValueError: a length is below 1 or above the capacity.
    """
    for row, length in enumerate(lengths):
        if not 1 <= length <= capacity:
            raise ValueError(f"row {row} has {length} tokens; a bin holds 1 to {capacity}")
    stock = _Stock(lengths)
    bins = []
    while stock.lengths:
        rows = [stock.take(stock.lengths[-1])]
        gap = capacity - lengths[rows[0]]
        while (longest := stock.longest(gap)) and gap > _ROWS_OF_A_GAP * longest:
            rows.append(stock.take(longest))
            gap -= longest
        for length in _fill(stock, gap):
            rows.append(stock.take(length))
            gap -= length
        while longest := stock.longest(gap):
            rows.append(stock.take(longest))
            gap -= longest
        bins.append(sorted(rows))
    return sorted(bins)


class _Stock:
    """The rows that are not packed yet, by length; of rows of one length, the first is taken first."""

    def __init__(self, lengths: Sequence[int]):
        order = np.argsort(np.asarray(lengths, np.int64), kind="stable")[::-1]
        self.rows: dict[int, list[int]] = {}
        for row in order.tolist():
            self.rows.setdefault(lengths[row], []).append(row)
        self.lengths = sorted(self.rows)

    def longest(self, gap: int) -> int:
        """The longest length that fits; 0 if none does."""
        place = bisect_right(self.lengths, gap)
        return self.lengths[place - 1] if place else 0

    def take(self, length: int) -> int:
        """The next row of a length."""
        rows = self.rows[length]
        row = rows.pop()
        if not rows:
            del self.rows[length]
            del self.lengths[bisect_right(self.lengths, length) - 1]
        return row


def _fill(stock: _Stock, gap: int) -> list[int]:
    """Lengths of a subset of the stock whose sum is the gap, or the nearest smaller sum among those tried."""
    fitting = bisect_right(stock.lengths, gap)
    if not fitting:
        return []
    tried = stock.lengths[max(0, fitting - _LONGEST_TRIED) : fitting][::-1]
    shorter = fitting - len(tried)
    if shorter > 0:
        tried += stock.lengths[shorter - 1 :: -max(1, shorter // _SPREAD_TRIED)]
    # Bit s of `reach` is set if the sum of some subset so far is s.
    reach, within, exact = 1, (1 << (gap + 1)) - 1, 1 << gap
    steps = [(0, reach)]
    for length in tried:
        for _ in range(min(len(stock.rows[length]), gap // length, _COPIES_TRIED)):
            reach = (reach | (reach << length)) & within
            steps.append((length, reach))
        if reach & exact:
            break
    left = reach.bit_length() - 1
    chosen = []
    for (length, _), (_, before) in zip(steps[:0:-1], steps[-2::-1], strict=True):
        if not (before >> left) & 1:
            chosen.append(length)
            left -= length
    return chosen
