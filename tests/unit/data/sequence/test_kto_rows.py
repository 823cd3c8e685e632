"""KTO's rows: what is trained, which are refused, and their mismatched completions."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from rayswift.data.encode.config import EncodeConfig
from rayswift.data.encode.encoder import EncodedRow
from rayswift.data.encode.encoders import encoder_of
from rayswift.data.feed.feed import Feed
from rayswift.data.rows import BadRow, kto_remarks
from rayswift.data.sequence.global_batches import FeedPlan, Position
from rayswift.data.sequence.mismatched_completions import with_mismatched_completions
from rayswift.data.sequence.windows import PackedRow, Window
from tests.support.streams import TINY

TOKENIZER = Tokenizer.from_file(str(TINY / "tokenizer.json"))
ROW = {"prompt": "2+2", "completion": "4, sure", "label": True}


def encode(row: Any, max_length: int = 64, **options: Any) -> list[EncodedRow] | BadRow:
    (result,) = encoder_of(EncodeConfig(str(TINY), "hash", max_length, family="kto", **options)).encode([row])
    return result


def text(ids: Any) -> str:
    return TOKENIZER.decode(list(map(int, ids)), skip_special_tokens=False)


@pytest.mark.parametrize("label", [True, False, 1, 0])
def test_the_last_answer_alone_is_trained(label: Any) -> None:
    turns = [{"role": role, "content": f"{role[0]}{n}"} for n in range(2) for role in ("user", "assistant")]
    result = encode({"messages": turns, "label": label})
    assert isinstance(result, list)
    (row,) = result
    assert text(row.input_ids[row.trained]) == "a1<|im_end|>"
    assert row.numbers == (("label", float(label)),)


@pytest.mark.parametrize(
    "pair",
    [
        {"prompt": "2+2", "chosen": "4", "rejected": "5"},
        {
            "messages": [{"role": "user", "content": "2+2"}, {"role": "assistant", "content": "4"}],
            "rejected_response": "5",
        },
        {"chosen": "\n\nHuman: 2+2\n\nAssistant: 4", "rejected": "\n\nHuman: 2+2\n\nAssistant: 5"},
    ],
)
def test_a_pair_is_two_rows_with_labels(pair: dict[str, Any]) -> None:
    rows = encode(pair)
    assert isinstance(rows, list)
    assert [(text(row.input_ids[row.trained]), row.numbers) for row in rows] == [
        ("4<|im_end|>", (("label", 1.0),)),
        ("5<|im_end|>", (("label", 0.0),)),
    ]


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([ROW, ROW | {"label": False}], []),
        ([ROW, ROW, {"n": 1}], ["all of the first 2 labels are true"]),
        ([ROW | {"label": "False"}], ["all of the first 1 labels are false"]),
        (
            [{"prompt": "2+2", "chosen": "4", "rejected": "5"}, ROW],
            ["1 of the first rows are pairs of a chosen and a rejected answer"],
        ),
    ],
)
def test_what_is_said_of_the_first_rows(rows: list[dict[str, Any]], says: list[str]) -> None:
    said = kto_remarks((row, {}) for row in rows)
    assert len(said) == len(says)
    assert all(part in line for part, line in zip(says, said, strict=True))


@pytest.mark.parametrize(
    ("pairs", "partners"),
    [
        ("aabb", [2, 3, 0, 1]),
        ("abbc", [2, 3, 0, 1]),
        ("abc", [2, 0, 1]),
        ("aab", [2, 0, 1]),
        ("aa", [1, 0]),
        ("a", [0]),
    ],
)
def test_the_answer_of_its_own_pair_is_no_partner(pairs: str, partners: list[int]) -> None:
    rows = [
        PackedRow(np.array([9, i], np.int32), np.array([False, True]), (2,), 1, ids=(f"rows:{pair}",))
        for i, pair in enumerate(pairs)
    ]
    assert [int(row.input_ids[-1]) for row in with_mismatched_completions(rows, 8)] == partners


@pytest.mark.parametrize(
    ("change", "options", "reason"),
    [
        ({"label": 2}, {}, "bad label"),
        ({"label": None}, {}, "bad label"),
        ({"label": "yes"}, {}, "bad label"),
        ({"completion": []}, {}, "no answer"),
        ({"completion": "5 " * 99}, {}, "longer than data.max_length"),
        ({"prompt": "5 " * 99}, {"truncation": "right"}, "no trainable token"),
        ({"completion": [{"role": "assistant", "content": "4", "loss_scale": 2.0}]}, {}, "bad loss"),
        ({"completion": [{"role": "assistant", "content": "4", "loss": False}]}, {}, "no trainable token"),
    ],
)
def test_bad_rows_are_left_out_with_a_reason(change: dict[str, Any], options: dict[str, Any], reason: str) -> None:
    bad = encode(ROW | change, **options)
    assert isinstance(bad, BadRow), bad
    assert bad.reason == reason


def row(number: int, prompt: int, answer: int, label: bool = True) -> PackedRow:
    """A row whose tokens all name it: prompt 10 * number, answer 10 * number + 1."""
    ids = np.repeat(np.array([10 * number, 10 * number + 1], np.int32), [prompt, answer])
    trained = np.repeat([False, True], [prompt, answer])
    return PackedRow(ids, trained, (len(ids),), 1, ids=(f"r:{number}",), numbers=(("label", float(label)),))


ROWS = st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5)), min_size=1, max_size=12)


@settings(max_examples=60)
@given(ROWS, st.integers(6, 20))
def test_a_batch_holds_the_same_answers_behind_other_prompts(sizes: list[tuple[int, int]], max_length: int) -> None:
    rows = [row(number, *size) for number, size in enumerate(sizes, 1)]
    seen = []
    for i, (before, after) in enumerate(zip(rows, with_mismatched_completions(rows, max_length), strict=True)):
        own, length = len(before.input_ids), after.lengths[1]
        assert after.lengths == (own, length)
        assert after.input_ids[:own].tobytes() == before.input_ids.tobytes()
        prompt, answer = sizes[i][0], sizes[i - 1][1]
        other = rows[i - 1].input_ids[-1]
        expected = ([before.input_ids[0]] * prompt + [other] * answer)[:max_length]
        assert after.input_ids[own:].tolist() == expected
        assert after.trained[own:].tolist() == ([False] * prompt + [True] * answer)[:max_length]
        assert (after.counts, after.num_source_rows, after.numbers) == (before.counts, 1, before.numbers)
        seen.append(other)
    assert sorted(seen) == [each.input_ids[-1] for each in rows]


class Given:
    """Windows of rows that are there."""

    tokenizer_hash = "hash"

    def __init__(self, rows: list[PackedRow], window_rows: int):
        self._rows, self.window_rows, self.num_rows = rows, window_rows, len(rows)
        self.num_windows = -(-len(rows) // window_rows)

    def make(self, epoch: int, window: int) -> Window:
        rows = self._rows[window * self.window_rows :][: self.window_rows]
        return Window(tuple(rows), sum((one.counts for one in rows), start=type(rows[0].counts)()), ())


def stream(windows: Any, epoch: int, first: int) -> Any:
    return (windows.make(epoch, number) for number in range(first, windows.num_windows))


def served(feed: Feed, start: Position, size: int, steps: int) -> list[list[bytes]]:
    """The rows of each step, from all ranks."""
    attempt = feed.new_attempt()
    feed.begin(attempt, start)
    return [
        [r.input_ids.tobytes() for rank in range(size) for r in feed.next(attempt, step, rank, size, 20).rows]
        for step in range(start.step, steps)
    ]


def test_partners_are_the_same_for_any_number_of_workers_and_after_a_resume(tmp_path: Path) -> None:
    rows = [row(number, number % 4 + 1, number % 3 + 1) for number in range(1, 24)]
    plan = FeedPlan(5, 23, 6, 3, 12, 1.0, True, mismatched_length=16)
    windows = Given(rows, 6)

    def feed() -> Feed:
        return Feed(windows, windows, plan, str(tmp_path), stream)

    whole = served(feed(), Position(), 1, 12)
    assert len({bytes_ for step in whole for bytes_ in step}) > len(rows)  # another neighbour in another epoch
    for size in (2, 3):
        assert served(feed(), Position(), size, 12) == whole
    one = feed()
    attempt = one.new_attempt()
    one.begin(attempt, Position())
    for step in range(7):
        position = one.next(attempt, step, 0, 1, 20).position
    assert served(feed(), position, 2, 12) == whole[7:]
    alone, _ = feed().evaluation(0, 1)
    shares = [feed().evaluation(rank, 2)[0] for rank in range(2)]
    assert [r.input_ids.tobytes() for r in alone[1::2]] == [r.input_ids.tobytes() for r in shares[1]]
    assert [r.input_ids.tobytes() for r in alone[::2]] == [r.input_ids.tobytes() for r in shares[0]]


def test_a_batch_of_judged_answers() -> None:
    from rayswift.data.collate.padded import kto_batch

    pair = [row(1, 1, 2, label=False), row(2, 1, 1)]
    alone = {k: v.tolist() for k, v in kto_batch(pair, 0, "rows").items()}
    assert alone == {
        "input_ids": [[10, 11, 11], [20, 21, 0]],
        "attention_mask": [[1, 1, 1], [1, 1, 0]],
        "completion_mask": [[0, 1, 1], [0, 1, 0]],
        "label": [False, True],
    }
    paired = {k: v.tolist() for k, v in kto_batch(with_mismatched_completions(pair, 8), 0, "rows").items()}
    assert paired == alone | {
        "KL_input_ids": [[10, 21, 0], [20, 11, 11]],
        "KL_attention_mask": [[1, 1, 0], [1, 1, 1]],
        "KL_completion_mask": [[0, 1, 0], [0, 1, 1]],
    }
    empty = kto_batch([], 7, "rows")
    assert empty["KL_input_ids"].tolist() == [[7, 7]]
    assert empty["label"].tolist() == [True]
