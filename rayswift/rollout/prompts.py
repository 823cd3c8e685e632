"""The sequence of prompts: rows of any task, with one prompt in each global batch, so prompt n is batch n.

The sequence is a function of (data, seed) alone, as for all rows. The position after a prompt is the cursor that
continues there, with the accounting of the raw rows before it. A drawn prompt counts as trained until the ledger has
its outcome.
"""

import asyncio
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from rayswift.config.schema import RlhfConfig
from rayswift.data.feed.feed import DataEnded, Feed, Stream
from rayswift.data.sequence.global_batches import FeedPlan, Position
from rayswift.data.sequence.windows import PackedRow, Windows
from rayswift.engines.samples import Prompt

_AHEAD_PROMPTS = 256
_READ_S = 1.0


@dataclass(frozen=True)
class Drawn:
    """A drawn prompt.

    position: the cursor after it; epochs: passes over the data once it is done; last: no prompt follows.
    """

    prompt: Prompt
    position: Position
    epochs: float
    last: bool


class Prompts(Protocol):
    """A source of prompts, see `PromptFeed`."""

    def draw(self, timeout_s: float) -> Drawn | None:
        """Return the next prompt; None at the end of the data; TimeoutError: none yet."""


def draw_some(prompts: Prompts, most: int) -> tuple[list[Drawn], bool]:
    """Return up to `most` prompts, fewer if they are not ready, and whether these are the last."""
    drawn: list[Drawn] = []
    try:
        while len(drawn) < most:
            each = prompts.draw(_READ_S)
            if each is None:
                return drawn, True
            drawn.append(each)
            if each.last:
                return drawn, True
    except TimeoutError:
        pass
    return drawn, False


async def draw_in_thread(prompts: Prompts, most: int) -> tuple[list[Drawn], bool]:
    """Call `draw_some` in a thread; a cancelled caller still waits for the thread to end."""
    thread = asyncio.ensure_future(asyncio.to_thread(draw_some, prompts, most))
    try:
        return await asyncio.shield(thread)
    except asyncio.CancelledError:
        await asyncio.wait([thread])
        raise


def prompt_plan(config: RlhfConfig, windows: Windows) -> FeedPlan:
    """Return the feed plan of prompts: one by one, and without end if `train.max_steps` ends the run."""
    return FeedPlan(
        global_batch=1,
        num_rows=windows.num_rows,
        window_rows=windows.window_rows,
        num_epochs=math.inf if config.train.max_steps > 0 else config.train.num_train_epochs,
        max_steps=-1,
        max_bad_fraction=config.data.max_bad_fraction,
    )


class PromptFeed:
    """Draws prompts in order, and reads some ahead in a thread; for one caller at a time.

    Args:
        windows: Windows of family prompt.
        eval_windows: The same for evaluation, or None.
        plan: From `prompt_plan`.
        data_dir: Folder for `quarantine.jsonl`.
        stream: Yields the windows of an epoch from a number on.
    """

    def __init__(self, windows: Windows, eval_windows: Windows | None, plan: FeedPlan, data_dir: str, stream: Stream):
        self._feed = Feed(windows, eval_windows, plan, data_dir, stream, _AHEAD_PROMPTS)
        self._attempt, self._behind, self._ended = 0, Position(), False

    def begin(self, position: Position) -> None:
        """Begin to draw from `position` on."""
        self._attempt = self._feed.new_attempt()
        self._behind, self._ended = position, False
        self._feed.begin(self._attempt, position)

    def draw(self, timeout_s: float) -> Drawn | None:
        """Return the next prompt; None at the end of the data.

        Raises:
            UserError: the data ran out of usable rows, or too many are bad.
            TimeoutError: none came in time.
        """
        if self._ended:
            return None
        ordinal = self._behind.step
        try:
            batch = self._feed.next(self._attempt, ordinal, 0, 1, timeout_s)
        except DataEnded:  # `begin` was at the end
            self._ended = True
            return None
        (row,) = batch.rows
        # The position after the last row of an epoch is in the next epoch.
        prompt = prompt_of(row, ordinal, self._behind.epoch)
        self._behind, self._ended = batch.position, batch.last
        return Drawn(prompt, batch.position, batch.epochs, batch.last)

    def evaluation(self) -> list[Prompt]:
        """Return all evaluation prompts, numbered from 0; encoded once.

        Raises:
            UserError: none of the rows can be used.
        """
        rows, _ = self._feed.evaluation(0, 1)
        return [prompt_of(row, ordinal, 0) for ordinal, row in enumerate(rows)]

    def close(self) -> None:
        """Stop drawing, and end the thread."""
        self._feed.close()


def prompt_of(row: PackedRow, ordinal: int, epoch: int) -> Prompt:
    """Convert a row of family prompt to a prompt."""
    record = json.loads(row.record)
    messages, columns = tuple(record["messages"]), record["columns"]
    before, answer = (_ids(each) for each in record.get("answer_ids", ([], [])))
    teacher_ids = record.get("teacher_ids")
    return Prompt(
        ordinal,
        row.ids[0],
        epoch,
        row.input_ids,
        messages,
        columns,
        cut=row.num_cut > 0,
        answer=(before, answer) if len(answer) else None,
        teacher_ids=None if teacher_ids is None else _ids(teacher_ids),
    )


def _ids(tokens: Sequence[int]) -> NDArray[np.int32]:
    return np.array(tokens, np.int32)
