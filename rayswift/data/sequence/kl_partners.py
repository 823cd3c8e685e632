"""The mismatched answers that KTO measures its KL term on; pure.

KTO estimates how far the model has moved by answers that belong to other prompts (Ethayarajh et al., "KTO: Model
Alignment as Prospect Theoretic Optimization", 2024, section 4.1): over a batch the same answers, each behind another
prompt. The batch is the global one, so the pairs depend on the sequence of rows alone, never on workers, micro-batches
or where a run was continued.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from rayswift.data.sequence.windows import PackedRow


def with_partners(rows: Sequence[PackedRow], max_length: int) -> tuple[PackedRow, ...]:
    """Each row with a second member: its prompt, and the answer of the row before it (the first: of the last).

    Where two rows are of one raw row, a pair, it is the answer so many rows before it that no row meets its own pair.

    Args:
        rows: Of one member each; a prompt ends where the first trained token stands.
        max_length: Tokens of the second member; a longer one loses its end.
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
    """The least distance at which all rows are of different raw rows, else that at which most are."""
    if len(set(ids)) == len(ids):
        return 1
    shifts = range(1, len(ids))
    same = [sum(bool(mine) and mine == ids[i - shift] for i, mine in enumerate(ids)) for shift in shifts]
    return 1 + same.index(min(same))
