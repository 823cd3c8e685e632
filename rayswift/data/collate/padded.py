"""Rows of one or more sequences each -> the padded tensors that TRL's losses take; pure.

Each function takes B rows, `pad_token_id` for the ends of shorter sequences, and `layout`, which padding does not need.
Without rows it returns a batch of padding tokens. T is the length of the longest sequence.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rayswift.data.collate.packed import IGNORED, Layout, padded
from rayswift.data.sequence.windows import PackedRow

REFERENCE_LOGPS = ("ref_chosen_logps", "ref_rejected_logps")
"""Numbers of a preference row: the reference's log-probabilities of its answers, with the names of TRL's loss."""

_SECOND = "second"  # the number that says where the second text of a pair begins


def preference_batch(rows: Sequence[PackedRow], pad_token_id: int, layout: Layout) -> dict[str, Any]:
    """B pairs for TRL's DPO.

    Returns:
        input_ids, attention_mask and completion_mask, int64 [2 B, T]: all chosen sequences, then all rejected ones. If
        rows have the reference's log-probabilities, also ref_chosen_logps and ref_rejected_logps, float32 [B].
    """
    ids, trained = _sequences(rows, 2, pad_token_id)
    batch = {**_with_mask(ids, pad_token_id), "completion_mask": padded(trained, 0)}
    for name in REFERENCE_LOGPS:
        if any(name in dict(row.numbers) for row in rows):
            batch[name] = torch.tensor([dict(row.numbers)[name] for row in rows])
    return batch


def reward_batch(rows: Sequence[PackedRow], pad_token_id: int, layout: Layout) -> dict[str, Any]:
    """B pairs for TRL's reward trainer.

    Returns:
        input_ids and attention_mask, int64 [2 B, T]; if a pair has a margin, also margin, float32 [B], else 0.
    """
    batch = preference_batch(rows, pad_token_id, layout)
    del batch["completion_mask"]
    if any(row.numbers for row in rows):
        batch["margin"] = torch.tensor([dict(row.numbers).get("margin", 0.0) for row in rows])
    return batch


def pair_batch(rows: Sequence[PackedRow], pad_token_id: int, layout: Layout) -> dict[str, Any]:
    """B pairs for TRL's CPO and ORPO.

    A sequence ends with its last trained token: ORPO's likelihood term covers all tokens of the attention mask, so it
    would train what the chat template writes after the end token.

    Returns:
        chosen_input_ids, chosen_attention_mask and chosen_labels (-100 where not trained), int64 [B, T], and the same
        for rejected.
    """
    ids, trained = _sequences(rows, 2, pad_token_id)
    lengths = [int(np.flatnonzero(mask)[-1]) + 1 for mask in trained]  # each has a trained token
    ids = [one[:length] for one, length in zip(ids, lengths, strict=True)]
    trained = [mask[:length] for mask, length in zip(trained, lengths, strict=True)]
    batch: dict[str, Any] = {}
    for name, part in (("chosen", slice(0, len(ids) // 2)), ("rejected", slice(len(ids) // 2, None))):
        labels = [np.where(mask, one, IGNORED) for one, mask in zip(ids[part], trained[part], strict=True)]
        batch |= _with_mask(ids[part], pad_token_id, f"{name}_")
        batch[f"{name}_labels"] = padded(labels, IGNORED)
    return batch


def kto_batch(rows: Sequence[PackedRow], pad_token_id: int, layout: Layout) -> dict[str, Any]:
    """B conversations for TRL's KTO.

    Returns:
        input_ids, attention_mask and completion_mask, int64 [B, T]; if rows have a mismatched completion, also its
        KL_input_ids, KL_attention_mask and KL_completion_mask; label, bool [B]: whether the answer is desirable.
    """
    number = len(rows[0].lengths) if rows else 2
    ids, trained = _sequences(rows, number, pad_token_id)
    batch: dict[str, Any] = {}
    for position, prefix in enumerate(("", "KL_")[:number]):
        part = slice(position * len(ids) // number, (position + 1) * len(ids) // number)
        batch |= _with_mask(ids[part], pad_token_id, prefix)
        batch[f"{prefix}completion_mask"] = padded(trained[part], 0)
    batch["label"] = torch.tensor([bool(dict(row.numbers)["label"]) for row in rows] or [True])
    return batch


def class_batch(rows: Sequence[PackedRow], pad_token_id: int, layout: Layout) -> dict[str, Any]:
    """B texts with labels for a sequence-classification head.

    Returns:
        input_ids and attention_mask, int64 [B, T]; if a text is a pair with token types, also token_type_ids, int64
        [B, T]; labels: classes, int64 [B], or values, float32 [B, outputs]; without rows no labels.
    """
    batch = _with_types(_texts(rows, pad_token_id), pad_token_id, [dict(row.numbers).get(_SECOND) for row in rows])
    if rows:
        values = torch.tensor([[value for name, value in row.numbers if name != _SECOND] for row in rows])
        is_class = rows[0].numbers[0][0] == "class"
        batch["labels"] = values[:, 0].long() if is_class else values
    return batch


def text_batch(rows: Sequence[PackedRow], pad_token_id: int, layout: Layout) -> dict[str, Any]:
    """All M sequences of all rows, row after row.

    Returns:
        input_ids and attention_mask, int64 [M, T]; if a sequence is a pair of texts with token types, also
        token_type_ids, int64 [M, T].
    """
    seconds = [value for row in rows for name, value in row.numbers if name == _SECOND]
    return _with_types(_texts(rows, pad_token_id), pad_token_id, seconds)


def _with_types(
    ids: Sequence[NDArray[np.int32]], pad_token_id: int, seconds: Sequence[float | None]
) -> dict[str, torch.Tensor]:
    """As `_with_mask`, and token types; seconds: the first token of each second text, None for a single text."""
    batch = _with_mask(ids, pad_token_id)
    if any(second is not None for second in seconds):
        begins = (len(one) if second is None else second for one, second in zip(ids, seconds, strict=True))
        types = [np.arange(len(one)) >= begin for one, begin in zip(ids, begins, strict=True)]
        batch["token_type_ids"] = padded(types, 0)
    return batch


def left_padded_batch(rows: Sequence[PackedRow], pad_token_id: int, layout: Layout) -> dict[str, Any]:
    """As `text_batch`, but padded at the left, so that the last column holds the last token of each text.

    Returns:
        input_ids, attention_mask and position_ids (0 where a text begins), int64 [M, T].
    """
    ids = _texts(rows, pad_token_id)
    flipped = _with_mask([one[::-1] for one in ids], pad_token_id)
    flipped["position_ids"] = padded([np.arange(len(one))[::-1] for one in ids], 0)
    return {name: tensor.flip(1) for name, tensor in flipped.items()}


def _with_mask(ids: Sequence[NDArray[np.int32]], pad_token_id: int, prefix: str = "") -> dict[str, torch.Tensor]:
    """input_ids and attention_mask of these sequences, int64 [len(ids), T] each."""
    return {
        f"{prefix}input_ids": padded(ids, pad_token_id),
        f"{prefix}attention_mask": padded([np.ones(len(one)) for one in ids], 0),
    }


def _texts(rows: Sequence[PackedRow], pad_token_id: int) -> list[NDArray[np.int32]]:
    """The tokens of every sequence, row after row; without rows one sequence of padding."""
    if not rows:
        return [np.full(2, pad_token_id, np.int32)]
    return [text for row in rows for text in np.split(row.input_ids, np.cumsum(row.lengths)[:-1])]


def _sequences(
    rows: Sequence[PackedRow], number: int, pad_token_id: int
) -> tuple[list[NDArray[np.int32]], list[NDArray[np.bool_]]]:
    """Tokens and masks of the first sequence of every row, then of the second of every row, and so on."""
    if not rows:
        ids, trained = np.full(2 * number, pad_token_id, np.int32), np.tile([False, True], number)
        rows = [PackedRow(ids, trained, (2,) * number, 0)]
    borders = [np.cumsum(row.lengths)[:-1] for row in rows]
    ids_of = [np.split(row.input_ids, border) for row, border in zip(rows, borders, strict=True)]
    trained_of = [np.split(row.trained, border) for row, border in zip(rows, borders, strict=True)]
    return (
        [sequences[i] for i in range(number) for sequences in ids_of],
        [sequences[i] for i in range(number) for sequences in trained_of],
    )
