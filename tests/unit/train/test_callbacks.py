"""When a step logs, evaluates and saves, over a stream whose number of steps is not known in advance."""

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments

from rayswift.cluster.layout import lay_out
from rayswift.config.load import load
from rayswift.data.sequence.global_batches import FeedPlan, Position
from rayswift.train.arguments import trainer_arguments
from rayswift.train.callbacks import Metrics, StreamFlow, crosses
from rayswift.train.clock import Clock
from rayswift.train.spec import RunSpec
from rayswift.train.stream import StepStream

ROWS, STEPS, EPOCHS = 6000, 93, 3.0


class Steps(StepStream):
    """A stream of some steps, each the same share of the epochs."""

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for step in range(1, STEPS + 1):
            self.epochs, self.last = EPOCHS * step / STEPS, step == STEPS
            yield {}

    def evaluation_batches(self, batch_size: int) -> Iterator[Any]:
        return iter(())


def spec_of(tmp_path: Path, *flags: str, eval_strategy: str = "steps") -> RunSpec:
    loaded = load(
        "sft",
        ["--model", "examples/tiny", "--data.dataset", "x.jsonl", "--num_workers", "0", "--device", "cpu", *flags],
    )
    config = loaded.config
    plan = FeedPlan(8, ROWS, 2000, config.train.num_train_epochs, config.train.max_steps, 0.01)
    train = config.train.model_copy(
        update={"learning_rate": 1e-3, "eval_strategy": eval_strategy, "greater_is_better": False}
    )
    config = config.model_copy(update={"train": train})
    layout = replace(lay_out(config.cluster), device="cpu")
    return RunSpec(config, layout, tmp_path, tmp_path, plan, Clock(0), None, tmp_path)


def due(spec: RunSpec, args: TrainingArguments, start: int = 0) -> dict[str, list[int]]:
    """The steps at which each is due, by `StreamFlow` and HF's own steps together."""
    stream = Steps(Position(), EPOCHS * start / STEPS)
    flow, state = StreamFlow(stream, 1, Clock(0), spec), TrainerState(max_steps=args.max_steps)
    state.compute_steps(args, args.max_steps)
    found: dict[str, list[int]] = {"log": [], "evaluate": [], "save": []}
    for step, _ in enumerate(stream, 1):
        if step <= start:
            continue
        state.global_step, control = step, TrainerControl()
        flow.on_step_end(args, state, control)
        by_steps = args.eval_strategy == "steps" and step >= args.eval_delay
        theirs = {"log": state.logging_steps, "evaluate": state.eval_steps if by_steps else STEPS + 1}
        for name, every in (theirs | {"save": state.save_steps}).items():
            if getattr(control, f"should_{name}") or step % every == 0:
                found[name].append(step)
    return found


def args_of(spec: RunSpec) -> TrainingArguments:
    args = trainer_arguments(spec, TrainingArguments, "float32", False, False)
    assert isinstance(args, TrainingArguments)
    return args


def test_shares_are_of_the_real_length(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, "--logging_steps", "0.1", "--eval_steps", "0.25", "--save_steps", "0.5")
    assert _most_steps_are_many(args_of(spec))
    tenths = [math.ceil(STEPS * k / 10) for k in range(1, 11)]
    found = due(spec, args_of(spec))
    assert found == {"log": [1, *tenths], "evaluate": [24, 47, 70, 93], "save": [47, 93]}


def _most_steps_are_many(args: TrainingArguments) -> bool:
    return args.max_steps > 10 * STEPS  # which shares were once taken of


def test_rows_may_be_cut_into_more_steps_than_there_are_rows(tmp_path: Path) -> None:
    """Ten books to pre-train on, each of them 800 packed rows, in batches of 8: 1,000 steps an epoch."""
    spec = spec_of(tmp_path, "--num_train_epochs", "3")
    assert args_of(replace(spec, feed_plan=replace(spec.feed_plan, num_rows=10))).max_steps > 3 * 1000


def test_a_delay_puts_off_the_first_evaluation(tmp_path: Path) -> None:
    shares = spec_of(tmp_path, "--logging_steps", "1000", "--eval_steps", "0.25", "--eval_delay", "48")
    assert due(shares, args_of(shares))["evaluate"] == [70, 93]
    epochs = spec_of(tmp_path, "--logging_steps", "1000", "--eval_delay", "2", eval_strategy="epoch")
    assert due(epochs, args_of(epochs))["evaluate"] == [62, 93]


def test_a_resumed_run_saves_as_it_says_itself(tmp_path: Path) -> None:
    """HF goes on with the numbers in the state of the checkpoint."""
    spec = spec_of(tmp_path, "--logging_steps", "3", "--eval_steps", "5", "--save_steps", "7")
    state = TrainerState(max_steps=100, logging_steps=10, eval_steps=500, save_steps=500)
    StreamFlow(Steps(Position(), 0.0), 0, Clock(0), spec).on_train_begin(args_of(spec), state, TrainerControl())
    assert (state.logging_steps, state.eval_steps, state.save_steps) == (3, 5, 7)


@pytest.mark.parametrize("start", [9, 10, 46, 47, 92])
def test_shares_go_on_behind_a_resume(tmp_path: Path, start: int) -> None:
    spec = spec_of(tmp_path, "--logging_steps", "0.1", "--eval_steps", "0.25", "--save_steps", "0.5")
    whole, rest = due(spec, args_of(spec)), due(spec, args_of(spec), start)
    assert rest == {name: [step for step in steps if step > start] for name, steps in whole.items()}


def test_steps_stay_steps(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, "--logging_steps", "20", "--eval_steps", "30", "--save_steps", "40")
    found = due(spec, args_of(spec))
    assert found == {"log": [1, 20, 40, 60, 80, 93], "evaluate": [30, 60, 90, 93], "save": [40, 80, 93]}


def test_shares_of_max_steps_are_hfs(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, "--logging_steps", "0.25", "--save_steps", "0.5", "--max_steps", str(STEPS))
    found = due(spec, args_of(spec))
    assert found["log"] == [1, 24, 48, 72, 93]
    assert found["save"] == [47, 93]


@pytest.mark.parametrize("every", [0.1, 1 / 3, 0.3, 1.0])
def test_a_multiple_is_crossed_once(every: float) -> None:
    places = [every * k / 7 for k in range(1, 71)]
    assert sum(crosses(a, b, every) for a, b in zip([0.0, *places], places, strict=False)) == 10


@pytest.mark.parametrize("tail", [b'{"step": 3, "lo', b"\0" * 9, b"\xff\xfe\n", b"12\n", b"null\n", b'{"step": "3"}\n'])
def test_metrics_behind_a_kill_or_a_power_failure_stay_readable(tmp_path: Path, tail: bytes) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_bytes(b'{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.0}\n' + tail)
    spec = spec_of(tmp_path)
    Metrics(tmp_path, Steps.__new__(Steps), 1, spec.feed_plan)
    assert file.read_bytes() == b'{"step": 1, "loss": 2.0}\n'
