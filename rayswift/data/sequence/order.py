"""A shuffled order that is computed, not stored: position -> row, in constant memory.

A Feistel network is a permutation of [0, 2^2b). Applying it until the value is below n restricts it to [0, n) (Black
and Rogaway, "Ciphers with Arbitrary Finite Domains", 2002).
"""

import numpy as np
from numpy.typing import NDArray

_ROUNDS = 6


def shuffled(positions: NDArray[np.int64], num_rows: int, key: tuple[int, ...]) -> NDArray[np.int64]:
    """Rows at `positions` of the shuffled order of [0, num_rows) for `key` (seed, epoch, ...)."""
    if num_rows <= 1:
        return positions.copy()
    half_bits = max(1, (int(num_rows - 1).bit_length() + 1) // 2)
    words = np.random.SeedSequence([k & 0xFFFFFFFF for k in key]).generate_state(_ROUNDS, np.uint64)
    round_keys = words.astype(np.uint64)
    values = _permute(positions.astype(np.uint64), half_bits, round_keys)
    while (outside := values >= num_rows).any():
        values[outside] = _permute(values[outside], half_bits, round_keys)
    return values.astype(np.int64)


def _permute(values: NDArray[np.uint64], half_bits: int, round_keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
    mask = np.uint64((1 << half_bits) - 1)
    shift = np.uint64(half_bits)
    left, right = values >> shift, values & mask
    for key in round_keys:
        left, right = right, left ^ (_mix(right ^ key) & mask)
    return (left << shift) | right


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of SplitMix64 (Steele, Lea and Flood, 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def repeated(positions: NDArray[np.int64], num_rows: int, key: tuple[int, ...]) -> NDArray[np.int64]:
    """Rows at `positions` of endless passes over [0, num_rows), each pass in its own shuffled order."""
    passes, within = np.divmod(positions, num_rows)
    rows = np.empty_like(positions)
    for number in np.unique(passes):
        where = passes == number
        rows[where] = shuffled(within[where], num_rows, (*key, int(number)))
    return rows
