"""A step with a NaN or infinite loss: its documents, by loss, and the error."""

import json
import math
from pathlib import Path

import numpy as np

from rayswift.data.sequence.windows import PackedRow
from rayswift.train import nan_guard as guard


def packed(*documents: tuple[str, int]) -> PackedRow:
    lengths = tuple(length for _, length in documents)
    trained = np.concatenate([np.arange(n) >= 1 for n in lengths])
    ids = np.arange(sum(lengths), dtype=np.int32)
    return PackedRow(ids, trained, lengths, len(lengths), ids=tuple(name for name, _ in documents))


ROWS = [packed(("r:1", 3), ("r:2", 2)), packed(("r:3", 4), ("r:4", 1))]
LOSSES = [np.array([0, 1.0, 2.0, 0, math.nan]), np.array([0, 3.0, 3.0, 3.0, 0])]


def text(ids: list[int]) -> str:
    return f"{ids[0]}-{ids[-1]}"


def test_documents_of_packed_rows_with_their_own_losses_worst_first() -> None:
    found = guard.row_losses(ROWS, LOSSES, text)
    assert [(each.id, each.num_trained_tokens, each.text) for each in found] == [
        ("r:2", 1, "3-4"),
        ("r:3", 3, "0-3"),
        ("r:1", 2, "0-2"),
        ("r:4", 0, "4-4"),
    ]
    assert math.isnan(found[0].loss)
    assert [each.loss for each in found[1:]] == [3.0, 1.5, 0.0]


def test_the_file_and_the_error(tmp_path: Path) -> None:
    rows = guard.row_losses(ROWS * 2, LOSSES * 2, text)
    error = guard.stop(tmp_path, 3, 12, "the loss is nan", rows)
    file = tmp_path / "nan_rows" / "rank-3.jsonl"
    lines = str(error).splitlines()
    assert error.exit_code == 1
    assert lines[0].startswith("step 12: the loss is nan on rank 3; the run stops")
    assert lines[1] == "  r:2: loss nan over 1 tokens"
    assert "  and 3 more" in lines
    assert any(str(file) in line for line in lines)
    assert all(line.startswith("  ") for line in lines[1:])
    entries = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(entries) == 8
    assert entries[0] == {
        "step": 12, "what": "the loss is nan", "id": "r:2", "loss": "nan", "num_trained_tokens": 1, "text": "3-4",
    }  # fmt: skip


def test_token_losses_are_those_of_the_rows_in_either_layout() -> None:
    import torch

    from rayswift.train.trainers.sft import TokenOutputs

    def outputs(log_probs: list[list[float]]) -> TokenOutputs:
        values = torch.tensor(log_probs)
        each = dict.fromkeys(("log_probs", "entropy", "is_top1"), values)
        return TokenOutputs({**each, "label_mask": values != 0})

    # Two rows of 3 and 2 tokens: padded to 3, or one behind the other; the first token has no loss.
    rows = [packed(("r:1", 3)), packed(("r:2", 2))]
    expected = [[0, 1, 2], [0, 3]]
    padded, flat = outputs([[-1, -2], [-3, 0]]), outputs([[-1, -2, 0, -3]])
    assert [loss.tolist() for loss in padded.losses_of(rows)] == expected
    assert [loss.tolist() for loss in flat.losses_of(rows)] == expected
    assert padded.losses_of([]) == []
    assert padded.sums()["entropy"] == (-6, 3)
