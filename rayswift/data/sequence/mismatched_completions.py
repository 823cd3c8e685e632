"""The mismatched completions for KTO's KL term; pure.

KTO estimates the KL divergence with completions of other prompts: the completions of a batch, each after another prompt
(Ethayarajh et al., "KTO: Model Alignment as Prospect Theoretic Optimization", 2024, section 4.1). The batch is the
global one, so the pairs depend only on the sequence of rows, not on workers, micro-batches or resumes.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from rayswift.data.sequence.windows import PackedRow


def with_mismatched_completions(rows: Sequence[PackedRow], max_length: int) -> tuple[PackedRow, ...]:
    """Each row with a second sequence: its prompt, and the completion of the row before it (for the first: the last).

    If rows are pairs from one raw row, the completion comes from a row further before, so that it is of another pair. A
    row's prompt ends before its first trained token; a second sequence longer than `max_length` is cut at its end.
    """
    begins = [int(row.trained.argmax()) for row in rows]
    shift = _shift([row.ids[:1] for row in rows])
    paired = []
    for i, row in enumerate(rows):
        other, begin, other_begin = rows[i - shift], begins[i], begins[i - shift]
        ids = np.concatenate([row.input_ids[:begin], other.input_ids[other_begin:]])[:max_length]
        trained = np.concatenate([row.trained[:begin], other.trained[other_begin:]])[:max_length]
        paired.append(
            replace(
                row,
                input_ids=np.concatenate([row.input_ids, ids]),
                trained=np.concatenate([row.trained, trained]),
                lengths=(*row.lengths, len(ids)),
                num_continued=row.num_continued + 1,
                ids=(*row.ids, *other.ids),
            )
        )
    return tuple(paired)


def _shift(ids: Sequence[tuple[str, ...]]) -> int:
    """The least distance at which all, or else most, rows are from another raw row."""
    if len(set(ids)) == len(ids):
        return 1
    shifts = range(1, len(ids))
    same = [sum(bool(mine) and mine == ids[i - shift] for i, mine in enumerate(ids)) for shift in shifts]
    return 1 + same.index(min(same))
