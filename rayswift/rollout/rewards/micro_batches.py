"""Conversations -> the batches in which a reward model reads them; pure."""

from collections.abc import Sequence


def micro_batches(lengths: Sequence[int], most_tokens: int) -> list[list[int]]:
    """Return the indices of sequences in batches of at most so many tokens with padding, or of one longer sequence.

    Neighbours in a batch are of like length, so that little is padded.
    """
    found: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        if found and (len(found[-1]) + 1) * lengths[index] <= most_tokens:
            found[-1].append(index)
        else:
            found.append([index])
    return found
