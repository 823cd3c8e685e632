"""Preference rows: what is trained of a pair, which pairs are refused and why, how they are counted and batched."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from rayswift.data.encode.config import EncodeConfig
from rayswift.data.encode.encoder import EncodedRow, TooLong
from rayswift.data.encode.encoders import encoder_of
from rayswift.data.rows import BadRow
from rayswift.data.sequence.global_batches import REMAINDER
from rayswift.data.sequence.windows import PackedRow, RowSet, WindowPlan
from rayswift.data.sources import open_sources
from rayswift.log import UserError
from tests.support.chat_templates import FAMILIES, write_tokenizer
from tests.support.streams import TINY, batches, feed_plan

TOKENIZER = Tokenizer.from_file(str(TINY / "tokenizer.json"))
PAIR = {"prompt": "2+2", "chosen": "4, sure", "rejected": "5"}


def encode(row: Any, max_length: int = 64, folder: Path = TINY, **options: Any) -> list[EncodedRow] | BadRow:
    config = EncodeConfig(str(folder), "hash", max_length, family="preference", **options)
    (result,) = encoder_of(config).encode([row])
    return result


def sequences(row: Any, **options: Any) -> list[EncodedRow]:
    result = encode(row, **options)
    assert isinstance(result, list), result
    return result


def text(ids: Any) -> str:
    return TOKENIZER.decode(list(map(int, ids)), skip_special_tokens=False)


def test_both_answers_are_trained_behind_the_same_prompt() -> None:
    chosen, rejected = sequences(PAIR | {"margin": 0.5})
    assert text(chosen.input_ids) == "<|user|>2+2<|im_end|><|assistant|>4, sure<|im_end|>"
    assert text(chosen.input_ids[chosen.trained]) == "4, sure<|im_end|>"
    assert text(rejected.input_ids[rejected.trained]) == "5<|im_end|>"
    assert (chosen.numbers, rejected.numbers) == ((("margin", 0.5),), ())


def test_what_both_conversations_begin_with_is_prompt() -> None:
    def turns(*answers: str) -> list[dict[str, str]]:
        return [
            message
            for n, answer in enumerate(answers)
            for message in ({"role": "user", "content": f"q{n}"}, {"role": "assistant", "content": answer})
        ]

    chosen, rejected = sequences({"messages": turns("a", "b", "c"), "rejected_messages": turns("a", "x", "y")})
    assert text(chosen.input_ids[chosen.trained]) == "b<|im_end|>c<|im_end|>"
    assert text(rejected.input_ids[rejected.trained]) == "x<|im_end|>y<|im_end|>"


def test_several_rejected_answers_are_several_pairs_of_one_row() -> None:
    row = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "good"}]}
    found = sequences(row | {"rejected_response": ["bad", "worse"]})
    assert [text(sequence.input_ids[sequence.trained]) for sequence in found] == [
        "good<|im_end|>",
        "bad<|im_end|>",
        "good<|im_end|>",
        "worse<|im_end|>",
    ]


@pytest.mark.parametrize("name", FAMILIES)
def test_pairs_of_every_template(tmp_path: Path, name: str) -> None:
    write_tokenizer(tmp_path, FAMILIES[name])
    chosen, rejected = sequences(PAIR, folder=tmp_path, max_length=4096)
    own = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert "4, sure" in own.decode(chosen.input_ids[chosen.trained].tolist())
    assert "2+2" not in own.decode(rejected.input_ids[rejected.trained].tolist())


@pytest.mark.parametrize(
    ("change", "options", "reason"),
    [
        ({"rejected": "4, sure"}, {}, "no preference"),
        ({"rejected": None}, {}, "no known columns"),
        ({"margin": "wide"}, {}, "wrong type"),
        ({"rejected": "5 " * 99}, {}, "longer than data.max_length"),
        ({"chosen": "5 " * 99}, {}, "longer than data.max_length"),
        ({"prompt": "5 " * 99}, {"truncation": "right"}, "no trainable token"),
        ({"chosen": "5 " * 99 + "a", "rejected": "5 " * 99 + "b"}, {"truncation": "right"}, "no preference"),
    ],
)
def test_bad_pairs_are_left_out_with_a_reason(change: dict[str, Any], options: dict[str, Any], reason: str) -> None:
    bad = encode(PAIR | change, **options)
    assert isinstance(bad, BadRow), bad
    assert bad.reason == reason
    assert isinstance(bad, TooLong) == (reason == "longer than data.max_length")


def plan(folder: Path, kinds: str, window_rows: int) -> WindowPlan:
    """Row i is g: a pair, m: two pairs, b: bad, l: too long."""
    made = {
        "g": {"prompt": "q", "chosen": "a", "rejected": "b"},
        "m": {"query": "q", "response": "a", "rejected_response": ["b", "c"]},
        "b": {"prompt": "q", "chosen": "a", "rejected": "a"},
        "l": {"prompt": "q", "chosen": "a", "rejected": "x " * 99},
    }
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(made[kind]) + "\n" for kind in kinds), encoding="utf-8")
    rows = RowSet(open_sources([str(path)], folder / "work"), seed=5)
    config = EncodeConfig(str(TINY), "hash", 48, family="preference")
    return WindowPlan(rows, config, packing=False, window_rows=window_rows)


@settings(max_examples=60, deadline=None)
@given(st.text("gggmbl", min_size=1, max_size=30), st.integers(1, 9), st.integers(1, 6), st.integers(1, 3))
def test_every_row_is_trained_left_out_or_tail(
    tmp_path_factory: pytest.TempPathFactory, kinds: str, window_rows: int, global_batch: int, num_epochs: int
) -> None:
    """Epochs follow each other without a gap; only what the last leaves is tail, fewer pairs than a batch."""
    windows = plan(tmp_path_factory.mktemp("m"), kinds, window_rows)
    feed = feed_plan(windows, global_batch, num_epochs=num_epochs, drops_remainder=True)
    num_pairs = num_epochs * (kinds.count("g") + 2 * kinds.count("m"))
    if num_pairs < global_batch:
        with pytest.raises(UserError, match="fewer than one global batch" if num_pairs else "no row is left"):
            batches(windows, feed)
        return
    sequence = batches(windows, feed)
    assert {len(batch.rows) for batch in sequence} == {global_batch}
    assert len(sequence) == num_pairs // global_batch
    assert [batch.last for batch in sequence] == [False] * (len(sequence) - 1) + [True]
    assert all(len(row.lengths) == 2 for batch in sequence for row in batch.rows)
    last = sequence[-1]
    assert last.epochs == num_epochs
    counts = Counter(last.position.counts)
    assert counts.total() == num_epochs * len(kinds)
    assert counts[REMAINDER] <= num_pairs % global_batch
    assert counts["trained"] + counts[REMAINDER] == num_epochs * (kinds.count("g") + kinds.count("m"))


def test_a_batch_holds_all_chosen_then_all_rejected() -> None:
    from rayswift.data.collate.padded import preference_batch

    def row(*sizes: int) -> PackedRow:
        ids = np.arange(sum(sizes), dtype=np.int32) + 10
        trained = np.concatenate([np.arange(size) >= size - 1 for size in sizes])
        return PackedRow(ids, trained, sizes, 1)

    batch = {k: v.tolist() for k, v in preference_batch([row(2, 3), row(1, 1)], 0, "rows").items()}
    assert batch == {
        "input_ids": [[10, 11, 0], [10, 0, 0], [12, 13, 14], [11, 0, 0]],
        "attention_mask": [[1, 1, 0], [1, 0, 0], [1, 1, 1], [1, 0, 0]],
        "completion_mask": [[0, 1, 0], [1, 0, 0], [0, 0, 1], [1, 0, 0]],
    }
    empty = preference_batch([], 7, "rows")
    assert empty["input_ids"].tolist() == [[7, 7], [7, 7]]


def test_of_several_turns_the_last_alone_may_be_trained() -> None:
    turns = [{"role": role, "content": f"{role[0]}{n}"} for n in range(2) for role in ("user", "assistant")]
    other = [*turns[:1], {"role": "assistant", "content": "x"}, *turns[2:]]
    chosen, _ = sequences({"messages": turns, "rejected_messages": other}, loss_on="last_turn")
    assert text(chosen.input_ids[chosen.trained]) == "a1<|im_end|>"


def test_a_batch_of_pairs_side_by_side() -> None:
    from rayswift.data.collate.padded import pair_batch

    ids = np.arange(5, dtype=np.int32) + 10
    row = PackedRow(ids, np.array([False, True, False, False, True]), (2, 3), 1)
    assert {k: v.tolist() for k, v in pair_batch([row], 0, "rows").items()} == {
        "chosen_input_ids": [[10, 11]],
        "chosen_attention_mask": [[1, 1]],
        "chosen_labels": [[-100, 11]],
        "rejected_input_ids": [[12, 13, 14]],
        "rejected_attention_mask": [[1, 1, 1]],
        "rejected_labels": [[-100, -100, 14]],
    }


def test_what_stands_behind_an_answer_is_no_part_of_a_pair() -> None:
    """A line break that the template writes behind the end token, for instance: ORPO would train it."""
    from rayswift.data.collate.padded import pair_batch

    ids = np.arange(6, dtype=np.int32) + 10
    row = PackedRow(ids, np.array([False, True, False, False, True, False]), (3, 3), 1)
    batch = pair_batch([row], 0, "rows")
    assert batch["chosen_input_ids"].tolist() == [[10, 11]]
    assert batch["rejected_input_ids"].tolist() == [[13, 14]]
    assert batch["chosen_attention_mask"].tolist() == batch["rejected_attention_mask"].tolist() == [[1, 1]]


def label_of(label: Any, num_labels: int, problem_type: str) -> Any:
    options = {"family": "classification", "num_labels": num_labels, "problem_type": problem_type}
    (result,) = encoder_of(EncodeConfig(str(TINY), "hash", 64, **options)).encode([{"text": "abc", "label": label}])
    return result


def test_a_classified_text_needs_no_template() -> None:
    config = EncodeConfig(str(TINY), "hash", 64, family="classification", num_labels=2, use_chat_template=False)
    ((row,),) = encoder_of(config).encode([{"text": "abc", "label": 1}])
    assert text(row.input_ids) == "abc"


def test_a_classified_text_is_rendered_whole() -> None:
    (row,) = label_of(2, 3, "single_label_classification")
    assert text(row.input_ids) == "<|user|>abc<|im_end|>"
    assert row.numbers == (("class", 2.0),)


@pytest.mark.parametrize(
    ("label", "num_labels", "problem_type", "numbers"),
    [
        (True, 2, "single_label_classification", [1]),
        ([0, 2], 3, "multi_label_classification", [1, 0, 1]),
        (1, 3, "multi_label_classification", [0, 1, 0]),
        (0.5, 1, "regression", [0.5]),
        (3, 1, "regression", [3]),
        ([1, 0.5], 2, "regression", [1, 0.5]),
        (3, 3, "single_label_classification", None),
        (-1, 3, "single_label_classification", None),
        (0.5, 3, "single_label_classification", None),
        ([0, 1], 3, "single_label_classification", None),
        ([0, 3], 3, "multi_label_classification", None),
        ([1, 2], 1, "regression", None),
    ],
)
def test_labels_are_what_the_loss_takes_or_refused(
    label: Any, num_labels: int, problem_type: str, numbers: list[float] | None
) -> None:
    result = label_of(label, num_labels, problem_type)
    if numbers is None:
        assert isinstance(result, BadRow)
        assert result.reason == "bad label"
    else:
        assert [value for _, value in result[0].numbers] == numbers


def test_batches_of_rewards_and_of_classes() -> None:
    from rayswift.data.collate.padded import class_batch, reward_batch

    def row(sizes: tuple[int, ...], numbers: Any = ()) -> PackedRow:
        ids = np.arange(sum(sizes), dtype=np.int32) + 10
        return PackedRow(ids, ids > 10, sizes, 1, numbers=numbers)

    plain = reward_batch([row((2, 1))], 0, "rows")
    assert {k: v.tolist() for k, v in plain.items()} == {
        "input_ids": [[10, 11], [12, 0]],
        "attention_mask": [[1, 1], [1, 0]],
    }
    margins = reward_batch([row((1, 1), (("margin", 2.0),)), row((1, 1))], 0, "rows")
    assert margins["margin"].tolist() == [2.0, 0.0]
    classes = class_batch([row((2,), (("class", 1.0),)), row((1,), (("class", 0.0),))], 0, "rows")
    assert classes["labels"].tolist() == [1, 0]
    assert classes["input_ids"].tolist() == [[10, 11], [10, 0]]
    values = class_batch([row((2,), (("value", 1.0), ("value", 0.5)))], 0, "rows")
    assert values["labels"].tolist() == [[1.0, 0.5]]
    assert "labels" not in class_batch([], 0, "rows")
