"""Packed rows -> the tensors a model takes; pure.

Three layouts keep attention inside each document. `rows` is [B, T] with position ids that restart at each document;
SDPA and eager attention build the block-diagonal mask from them. `flat` and `documents` are [1, sum T] without padding:
`flat` with cumulative lengths, for variable-length flash attention, `documents` with `Documents`, for SDPA.
"""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch

from rayswift.data.collate.documents import Documents
from rayswift.data.sequence.windows import PackedRow

IGNORED = -100
Layout = Literal["rows", "flat", "documents"]


def collate(rows: Sequence[PackedRow], pad_token_id: int, layout: Layout) -> dict[str, Any]:
    """Tensors of one micro-batch of B packed rows; without rows it is one padding token without loss.

    Returns:
        input_ids, labels (-100 where not trained) and position_ids, int64 [B, T] or [1, sum T]; for `flat` also the
        cumulative document lengths for flash attention in `transformers`, for `documents` also documents. If a row has
        weights, also loss_weights, float32 of the same shape, 1 in rows without weights.
    """
    if not rows:
        rows = [PackedRow(np.array([pad_token_id], np.int32), np.array([False]), (1,), 0)]
    ids = [row.input_ids for row in rows]
    labels = [np.where(row.trained, row.input_ids, IGNORED) for row in rows]
    positions = [np.concatenate([np.arange(n) for n in row.lengths]) for row in rows]
    batch: dict[str, Any] = {}
    if any(row.weights is not None for row in rows):
        weights = [np.ones(len(row.input_ids), np.float32) if row.weights is None else row.weights for row in rows]
        pads = layout == "rows"
        batch["loss_weights"] = padded(weights, 1.0) if pads else torch.from_numpy(np.concatenate(weights))[None]
    if layout != "rows":
        lengths = [n for row in rows for n in row.lengths]
        integers = {"input_ids": ids, "labels": labels, "position_ids": positions}
        batch |= {k: torch.from_numpy(np.concatenate(v).astype(np.int64))[None] for k, v in integers.items()}
        return batch | (_for_flash(lengths) if layout == "flat" else {"documents": Documents(np.array(lengths))})
    return batch | {
        "input_ids": padded(ids, pad_token_id),
        "labels": padded(labels, IGNORED),
        # Position 0 throughout the padding: each padding token is a document of its own and attends only to itself.
        "position_ids": padded(positions, 0),
    }


def _for_flash(lengths: Sequence[int]) -> dict[str, Any]:
    borders = torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32)
    longest = max(lengths)
    return {"cu_seq_lens_q": borders, "cu_seq_lens_k": borders, "max_length_q": longest, "max_length_k": longest}


def padded(arrays: Sequence[Any], fill: float) -> torch.Tensor:
    """Arrays as one tensor [B, T] with filled ends: float32 if `fill` is a float, else int64."""
    dtype = np.float32 if isinstance(fill, float) else np.int64
    out = np.full((len(arrays), max(map(len, arrays))), fill, dtype=dtype)
    for row, array in zip(out, arrays, strict=True):
        row[: len(array)] = array
    return torch.from_numpy(out)


def cut(rows: Sequence[PackedRow], micro_batch: int, num_batches: int) -> list[Sequence[PackedRow]]:
    """A rank's rows as exactly `num_batches` micro-batches; the last may be short or empty."""
    return [rows[i * micro_batch : (i + 1) * micro_batch] for i in range(num_batches)]
