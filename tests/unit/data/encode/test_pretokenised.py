"""Rows that contain token ids."""

from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from rayswift.data.encode.config import EncodeConfig
from rayswift.data.encode.encoder import EncodedRow, TooLong
from rayswift.data.encode.encoders import encoder_of
from rayswift.data.inspect.inspection import format_of
from rayswift.data.rows import BadRow
from tests.support.streams import TINY

IDS = [5, 6, 7, 8, 9]


def encode(row: Any, **options: Any) -> list[EncodedRow] | BadRow:
    config = EncodeConfig(str(TINY), "", **{"max_length": 64, **options})
    (result,) = encoder_of(config).encode([row])
    return result


@pytest.mark.parametrize(
    ("columns", "ids", "trained"),
    [
        ({}, IDS, [0, 1, 1, 1, 1]),
        ({"labels": [-100, -100, 7, 8, 9]}, IDS, [0, 0, 1, 1, 1]),
        ({"labels": IDS}, IDS, [0, 1, 1, 1, 1]),
        ({"completion_mask": [0, 0, 1, 1, 1], "assistant_masks": [0, 1, 1, 0, 1]}, IDS, [0, 0, 1, 0, 1]),
        ({"attention_mask": [0, 1, 1, 1, 0]}, [6, 7, 8], [0, 1, 1]),
        ({"labels": np.array([-100, -100, -100, -100, 9])}, IDS, [0, 0, 0, 0, 1]),
    ],
)
def test_tokens_are_taken_as_they_are(columns: dict[str, Any], ids: list[int], trained: list[int]) -> None:
    for verb in ({}, {"loss_on": "all", "use_chat_template": False, "truncation": "split"}):
        result = encode({"input_ids": IDS, **columns}, **verb)
        assert isinstance(result, list)
        (document,) = result
        assert (document.input_ids.tolist(), document.trained.astype(int).tolist()) == (ids, trained)
        assert document.input_ids.dtype == np.int32


def test_the_users_names() -> None:
    result = encode({"tokens": IDS}, columns={"tokens": "input_ids"})
    assert isinstance(result, list)
    assert format_of({"tokens": IDS}, {"tokens": "input_ids"}) == "tokens"


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"input_ids": [5, 10**6]}, "unknown token"),
        ({"input_ids": [5, -1]}, "unknown token"),
        ({"input_ids": [5, 10**12]}, "bad tokens"),
        ({"input_ids": [5, 1.5]}, "bad tokens"),
        ({"input_ids": "text"}, "bad tokens"),
        ({"input_ids": [[5, 6]]}, "bad tokens"),
        ({"input_ids": IDS, "labels": [-100, 7]}, "bad tokens"),
        ({"input_ids": IDS, "labels": [6, 7, 8, 9, -100]}, "labels of other tokens"),
        ({"input_ids": IDS, "labels": [-100] * 5}, "no trainable token"),
        ({"input_ids": [5]}, "no trainable token"),
        ({"input_ids": []}, "no trainable token"),
    ],
)
def test_bad_tokens_are_left_out_with_a_reason(row: Any, reason: str) -> None:
    result = encode(row)
    assert isinstance(result, BadRow)
    assert result.reason == reason


def test_long_rows_are_dropped_cut_or_split() -> None:
    row = {"input_ids": [5 + i % 9 for i in range(100)]}
    assert isinstance(encode(row), TooLong)
    (cut,) = encode(row, truncation="left")
    assert (len(cut.input_ids), cut.cut) == (64, True)
    assert [len(part.input_ids) for part in encode(row, truncation="split")] == [64, 37]
    labelled = {**row, "labels": [-100] * 50 + row["input_ids"][50:]}
    assert isinstance(encode(labelled, truncation="split"), TooLong)


def test_tokens_among_texts_keep_their_place() -> None:
    config = EncodeConfig(str(TINY), "", 64)
    texts = encoder_of(config).encode([{"text": "abc"}, {"input_ids": IDS}, {"text": "def"}])
    assert [len(result[0].input_ids) == 5 if isinstance(result, list) else None for result in texts][1]
    alone = encoder_of(config).encode([{"text": "def"}])
    assert texts[2][0].input_ids.tolist() == alone[0][0].input_ids.tolist()


def test_segments_are_tokenised_each_by_itself() -> None:
    tokenizer = Tokenizer.from_file(str(TINY / "tokenizer.json"))
    parts = [("12 + ", False), ("30", True), (" = ", False), ("42<|im_end|>", True)]
    rows = encode({"segments": [{"text": text, "label": label} for text, label in parts]})
    assert isinstance(rows, list)
    pieces = [tokenizer.encode(text, add_special_tokens=False).ids for text, _ in parts]
    assert rows[0].input_ids.tolist() == [token for piece in pieces for token in piece]
    trained = [token for piece, (_, label) in zip(pieces, parts, strict=True) if label for token in piece]
    assert rows[0].input_ids[rows[0].trained].tolist() == trained
    for label in (False, True):
        bad = encode({"segments": [{"text": "" if label else "12", "label": label}]})
        assert isinstance(bad, BadRow)
        assert bad.reason == "no trainable token"
