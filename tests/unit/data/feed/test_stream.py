"""A rank's batches, their counters, and windows that need no data task."""

import time
from typing import Any

import numpy as np
import ray

from rayswift.data.feed.feed import Slice
from rayswift.data.feed.pipeline import make_in_order
from rayswift.data.sequence.global_batches import Position
from rayswift.data.sequence.windows import PackedRow
from rayswift.train.stream import Stream


class TwoSteps:
    """A feed of two steps: three rows of 3 tokens, 2 of them trained; then one."""

    def next(self, step: int) -> Slice:
        row = PackedRow(np.arange(3, dtype=np.int32), np.array([False, True, True]), (3,), 1)
        return Slice(step, (row,) * (3 - 2 * step), (step + 1) / 2, Position(step + 1), step == 1)


def make_stream() -> Stream:
    options: dict[str, Any] = {"micro_batch": 2, "accumulation": 2, "max_length": 4}
    return Stream(TwoSteps(), Position(), collate=lambda rows: {"rows": rows}, **options)


def test_steps_are_counted_and_counting_starts_again() -> None:
    stream = make_stream()
    batches = list(stream)
    assert len(batches) == 4
    assert (stream.epochs, stream.last, stream.position.step) == (1.0, True, 2)
    counter = stream.restart_counter()
    assert (counter.steps, counter.tokens, counter.trained_tokens, counter.capacity) == (2, 12, 8, 4 * 4)
    assert stream.restart_counter().steps == 0


def test_evaluations_and_saves_are_left_out_of_the_time() -> None:
    began = time.monotonic()
    stream = make_stream()
    with stream.pause():
        time.sleep(0.05)
    counter = stream.restart_counter()
    assert 0 <= counter.elapsed_s <= time.monotonic() - began - 0.05


def test_what_is_alone_is_made_without_ray() -> None:
    assert list(make_in_order(str, range(3, 4))) == ["3"]
    assert list(make_in_order(str, range(3, 3))) == []
    assert not ray.is_initialized()
