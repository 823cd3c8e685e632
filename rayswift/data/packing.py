"""Best-fit-decreasing bin packing of row lengths; pure and deterministic. O(n log n)."""

from bisect import bisect_left, insort
from collections.abc import Sequence


def pack(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Put rows into bins of `capacity` tokens, longest first, each into the fullest bin that still takes it.

    Returns:
        Bins as lists of row indices in ascending order; the bins themselves ordered by their first row.

    Raises:
        ValueError: a length is below 1 or above the capacity.
    """
    bins: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (tokens left, bin), sorted
    for row in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        length = lengths[row]
        if not 1 <= length <= capacity:
            raise ValueError(f"row {row} has {length} tokens; a bin holds 1 to {capacity}")
        place = bisect_left(room, (length, -1))
        if place == len(room):
            bins.append([row])
            insort(room, (capacity - length, len(bins) - 1))
        else:
            left, index = room.pop(place)
            bins[index].append(row)
            insort(room, (left - length, index))
    return sorted(sorted(rows) for rows in bins)
