"""The steps of the policy trainer: their micro-batches, and the state of a checkpoint after each."""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments

from rayswift.data.sequence.global_batches import Position
from rayswift.rollout.advantages import AdvantageSettings
from rayswift.rollout.rounds import Round, RoundTable, Tokens, rows_of_ranks
from rayswift.train.policy.policy_stream import CutSettings, PolicyStream, RoundFlow
from rayswift.train.policy.round_values import reward_metrics

SETTINGS = CutSettings(num_iterations=2, budget=12, pad_token_id=0)


@dataclass
class TwoRounds:
    """Two rounds of six completions of 1 to 6 tokens behind prompts of 2, for one of two ranks."""

    rank: int = 0

    def next(self, number: int) -> Round:
        lengths = np.arange(1, 7)
        table = RoundTable(
            ("f",),
            np.repeat([0, 1, 2], 2),
            np.ones((6, 1)),
            np.full(6, 2),
            lengths,
            lengths == 6,
            np.zeros(6),
        )
        rows = rows_of_ranks(table, 2, 2)[self.rank]
        total = int(lengths[rows].sum())
        tokens = Tokens(
            rows, np.ones(2 * len(rows), np.int32), np.full(total, 2, np.int32), np.zeros(total, np.float32)
        )
        return Round(
            number=number,
            rank=self.rank,
            size=2,
            num_steps=2,
            table=table,
            tokens=tokens,
            epochs=number + 1.0,
            position=Position(number + 1),
            last=number == 1,
            save=False,
            ledger={"rounds": number + 1},
            metrics={},
        )

    def evaluate(self, number: int) -> dict[str, float]:
        return {"reward": number / 2}


def make_stream(rank: int = 0, settings: CutSettings = SETTINGS) -> PolicyStream:
    return PolicyStream(TwoRounds(rank), Position(), 0.0, 0, {}, settings)


def test_only_the_end_of_a_round_moves_the_position() -> None:
    stream = make_stream()
    assert stream.number == 0
    seen = []
    for item in stream:
        step = item["step"]
        seen.append((step.round.number, step.pass_number, step.index, step.begins_round))
        done = step.round.number + 1 if stream.ends_round else step.round.number
        assert stream.ends_round == (step.pass_number == 1 and step.index == 1)
        assert (stream.number, stream.position.step, stream.epochs) == (done, done, float(done))
        assert stream.ledger.get("rounds", 0) == done
        assert stream.last == (done == 2)
    one_round = [(0, 0, True), (0, 1, False), (1, 0, False), (1, 1, False)]
    assert seen == [(number, *rest) for number in (0, 1) for rest in one_round]
    assert stream.evaluate() == {"reward": 1.0}
    counter = stream.restart_counter()
    assert (counter.steps, counter.capacity >= counter.tokens > counter.trained_tokens) == (8, True)


def test_ranks_have_as_many_micro_batches_and_train_everything() -> None:
    first, second = list(make_stream(0)), list(make_stream(1))
    rows: list[int] = []
    for one, other in zip(first, second, strict=True):
        steps = one["step"], other["step"]
        assert len({len(step.batches) for step in steps}) == 1
        if steps[0].pass_number == 0 and steps[0].round.number == 0:
            rows += [int(row) for step in steps for batch in step.batches for row in batch.rows]
    assert sorted(rows) == list(range(6))


def test_truncated_completions_are_left_out_when_asked() -> None:
    settings = CutSettings(num_iterations=1, budget=100, pad_token_id=0, leave_truncated=True)
    trained = [
        int(row)
        for rank in (0, 1)
        for item in make_stream(rank, settings)
        for b in item["step"].batches
        for row in b.rows
    ]
    assert sorted(trained) == sorted([0, 1, 2, 3, 4] * 2)


@pytest.mark.parametrize(
    ("truncated", "ended"), [((False, True, False, True), (5.0, 3.0, 7.0)), ((True,) * 4, (0.0,) * 3)]
)
def test_lengths_of_completions_that_ended_are_logged_too(
    truncated: tuple[bool, ...], ended: tuple[float, ...]
) -> None:
    lengths = np.array([3, 9, 7, 9])
    table = RoundTable(
        ("a",), np.array([0, 0, 1, 1]), np.ones((4, 1)), lengths, lengths, np.array(truncated), np.zeros(4)
    )
    found = reward_metrics(table, AdvantageSettings((1.0,)), {"failed": 2.0, "engines": 3.0})
    assert found["failed"] == (2.0, 1.0)  # a sum over rounds, with their number
    assert "engines" not in found
    names = [f"completions/{what}" for what in ("mean", "min", "max")]
    assert tuple(found[f"{name}_terminated_length"][0] for name in names) == ended
    assert tuple(found[f"{name}_length"][0] for name in names) == (7.0, 3.0, 9.0)


@pytest.mark.parametrize("what", ["save", "evaluate"])
def test_what_is_due_within_a_round_is_put_off_to_its_end(what: str) -> None:
    """An evaluation too: engines have the weights that the round began with, and a best model is saved at once."""
    stream = SimpleNamespace(ends_round=False)
    flow = RoundFlow(cast(Any, stream))
    control = TrainerControl()

    def step(ends_round: bool, due: bool = False) -> bool:
        stream.ends_round = ends_round
        setattr(control, f"should_{what}", due)
        flow.on_step_end(cast(TrainingArguments, None), TrainerState(), control)
        return bool(getattr(control, f"should_{what}"))

    assert [step(False, due=True), step(False), step(True), step(False), step(True)] == [
        False,
        False,
        True,
        False,
        False,
    ]
    assert step(True, due=True)
