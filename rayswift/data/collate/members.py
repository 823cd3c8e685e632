"""Rows of members (see `members`) -> the padded tensors that TRL's losses take; pure."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rayswift.data.collate.packed import IGNORED, Layout, padded
from rayswift.data.sequence.windows import PackedRow

REFERENCE_LOGPS = ("ref_chosen_logps", "ref_rejected_logps")
"""Numbers of a preference row: what the reference gives its two answers, under the names that TRL's loss reads."""


def preference_batch(rows: Sequence[PackedRow], pad_token_id: int, layout: Layout) -> dict[str, Any]:
    """B pairs as TRL's DPO takes them.

    Args:
        rows: Chosen and rejected end to end; none make a batch of one pair of padding tokens.
        pad_token_id: Fills the ends of shorter members.
        layout: Not used: members are padded, whatever the attention kernel.

    Returns:
        input_ids, attention_mask and completion_mask, int64 [2 B, T]: all chosen ones, then all rejected ones. Where
        rows bring the reference's log-probabilities also ref_chosen_logps and ref_rejected_logps, float32 [B].
    """
    ids, trained = _members(rows, 2, pad_token_id)
    batch = {
        "input_ids": padded(ids, pad_token_id),
        "attention_mask": padded([np.ones(len(member)) for member in ids], 0),
        "completion_mask": padded(trained, 0),
    }
    for name in REFERENCE_LOGPS:
        if any(name in dict(row.numbers) for row in rows):
            batch[name] = torch.tensor([dict(row.numbers)[name] for row in rows])
    return batch


def reward_batch(rows: Sequence[PackedRow], pad_token_id: int, layout: Layout) -> dict[str, Any]:
    """B pairs as TRL's reward trainer takes them; see `preference_batch`.

    Returns:
        input_ids and attention_mask, int64 [2 B, T]; where a pair has a margin also margin, float32 [B], 0 for those
        without.
    """
    batch = preference_batch(rows, pad_token_id, layout)
    del batch["completion_mask"]
    if any(row.numbers for row in rows):
        batch["margin"] = torch.tensor([dict(row.numbers).get("margin", 0.0) for row in rows])
    return batch


def pair_batch(rows: Sequence[PackedRow], pad_token_id: int, layout: Layout) -> dict[str, Any]:
    """B pairs as TRL's CPO and ORPO take them; see `preference_batch`.

    A member ends with its last trained token: ORPO's likelihood term is over all that attention sees, and would train
    what the chat template writes behind the end token.

    Returns:
        chosen_input_ids, chosen_attention_mask and chosen_labels (-100 where not trained), int64 [B, T], and the same
        for rejected ones.
    """
    ids, trained = _members(rows, 2, pad_token_id)
    lengths = [int(np.flatnonzero(mask)[-1]) + 1 for mask in trained]  # no member is without a trained token
    ids = [member[:length] for member, length in zip(ids, lengths, strict=True)]
    trained = [mask[:length] for mask, length in zip(trained, lengths, strict=True)]
    batch: dict[str, Any] = {}
    for name, members in (("chosen", slice(0, len(ids) // 2)), ("rejected", slice(len(ids) // 2, None))):
        labels = [np.where(mask, one, IGNORED) for one, mask in zip(ids[members], trained[members], strict=True)]
        batch[f"{name}_input_ids"] = padded(ids[members], pad_token_id)
        batch[f"{name}_attention_mask"] = padded([np.ones(len(one)) for one in ids[members]], 0)
        batch[f"{name}_labels"] = padded(labels, IGNORED)
    return batch


def kto_batch(rows: Sequence[PackedRow], pad_token_id: int, layout: Layout) -> dict[str, Any]:
    """B conversations as TRL's KTO takes them; see `preference_batch`.

    Returns:
        input_ids, attention_mask and completion_mask, int64 [B, T]; where rows have a second member also KL_input_ids,
        KL_attention_mask and KL_completion_mask of it; label, bool [B]: whether the answer is wanted.
    """
    number = len(rows[0].lengths) if rows else 2
    ids, trained = _members(rows, number, pad_token_id)
    batch: dict[str, Any] = {}
    for position, prefix in enumerate(("", "KL_")[:number]):
        part = slice(position * len(ids) // number, (position + 1) * len(ids) // number)
        batch[f"{prefix}input_ids"] = padded(ids[part], pad_token_id)
        batch[f"{prefix}attention_mask"] = padded([np.ones(len(member)) for member in ids[part]], 0)
        batch[f"{prefix}completion_mask"] = padded(trained[part], 0)
    batch["label"] = torch.tensor([bool(dict(row.numbers)["label"]) for row in rows] or [True])
    return batch


def class_batch(rows: Sequence[PackedRow], pad_token_id: int, layout: Layout) -> dict[str, Any]:
    """B texts with their labels as a sequence-classification head takes them; see `preference_batch`.

    Returns:
        input_ids and attention_mask, int64 [B, T]; labels, the class of each, int64 [B], or values, float32
        [B, outputs]; without rows no labels.
    """
    ids, _ = _members(rows, 1, pad_token_id)
    batch = {"input_ids": padded(ids, pad_token_id), "attention_mask": padded([np.ones(len(one)) for one in ids], 0)}
    if rows:
        values = torch.tensor([[value for _, value in row.numbers] for row in rows])
        is_class = rows[0].numbers[0][0] == "class"
        batch["labels"] = values[:, 0].long() if is_class else values
    return batch


def text_batch(rows: Sequence[PackedRow], pad_token_id: int, layout: Layout) -> dict[str, Any]:
    """All M members of all rows, row after row; see `preference_batch`.

    Returns:
        input_ids and attention_mask, int64 [M, T]; where members are pairs whose second text has a token type, also
        token_type_ids; without rows those of one text.
    """
    ids = _texts(rows, pad_token_id)
    batch = {"input_ids": padded(ids, pad_token_id), "attention_mask": padded([np.ones(len(one)) for one in ids], 0)}
    seconds = [int(value) for row in rows for name, value in row.numbers if name == "second"]
    if seconds:
        types = [np.arange(len(one)) >= second for one, second in zip(ids, seconds, strict=True)]
        batch["token_type_ids"] = padded(types, 0)
    return batch


def left_padded_batch(rows: Sequence[PackedRow], pad_token_id: int, layout: Layout) -> dict[str, Any]:
    """As `text_batch`, but padded at the beginning, so that the last token of each text is in the last place.

    Returns:
        input_ids, attention_mask and position_ids (0 where a text begins), int64 [M, T].
    """
    ids = _texts(rows, pad_token_id)
    flipped = {
        "input_ids": padded([one[::-1] for one in ids], pad_token_id),
        "attention_mask": padded([np.ones(len(one)) for one in ids], 0),
        "position_ids": padded([np.arange(len(one))[::-1] for one in ids], 0),
    }
    return {name: tensor.flip(1) for name, tensor in flipped.items()}


def _texts(rows: Sequence[PackedRow], pad_token_id: int) -> list[NDArray[np.int32]]:
    """The tokens of every member, row after row; without rows a text of padding."""
    if not rows:
        return [np.full(2, pad_token_id, np.int32)]
    return [text for row in rows for text in np.split(row.input_ids, np.cumsum(row.lengths)[:-1])]


def _members(
    rows: Sequence[PackedRow], number: int, pad_token_id: int
) -> tuple[list[NDArray[np.int32]], list[NDArray[np.bool_]]]:
    """The first member of every row, then the second of every row, ...: their tokens, and which are trained."""
    if not rows:
        ids, trained = np.full(2 * number, pad_token_id, np.int32), np.tile([False, True], number)
        rows = [PackedRow(ids, trained, (2,) * number, 0)]
    borders = [np.cumsum(row.lengths)[:-1] for row in rows]
    ids_of = [np.split(row.input_ids, border) for row, border in zip(rows, borders, strict=True)]
    trained_of = [np.split(row.trained, border) for row, border in zip(rows, borders, strict=True)]
    return (
        [members[i] for i in range(number) for members in ids_of],
        [members[i] for i in range(number) for members in trained_of],
    )
