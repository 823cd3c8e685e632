"""The optimizer steps of a rank: each round of completions is trained in several steps and passes."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from rayswift.data.sequence.global_batches import Position
from rayswift.log import logger
from rayswift.rollout.rounds import Round, RoundTable, shares
from rayswift.train.policy.micro_batch_plan import PolicyLayout, cut, ordered
from rayswift.train.policy.micro_batches import MicroBatch, MicroBatcher, Place
from rayswift.train.stream import Rows, StepStream


class RolloutClient(Protocol):
    """A rank's source of rounds."""

    def next(self, number: int) -> Round:
        """Return this rank's share of a round, whose completions were sampled for the weights after `number` rounds."""

    def keep(self) -> None:
        """Have the completions of the rounds so far written."""

    def evaluate(self, number: int) -> Mapping[str, float]:
        """Mean rewards on the evaluation prompts with the weights after `number` rounds; the same on all ranks."""


@dataclass(frozen=True)
class PolicyStep:
    """One optimizer step.

    index: number of the step in its pass over the round; pass_number: number of the pass, of how many;
    batches_of_steps: this rank's micro-batches of each step of the round, as many as every other rank has.
    """

    round: Round
    index: int
    pass_number: int
    num_passes: int
    batches_of_steps: Sequence[Sequence[MicroBatch]]

    @property
    def batches(self) -> Sequence[MicroBatch]:
        """Return this rank's micro-batches of the step."""
        return self.batches_of_steps[self.index]

    @property
    def batches_of_round(self) -> dict[Place, MicroBatch]:
        """Return this rank's micro-batches of the round, step after step."""
        return {
            (index, number): batch
            for index, batches in enumerate(self.batches_of_steps)
            for number, batch in enumerate(batches)
        }

    @property
    def begins_round(self) -> bool:
        """Whether the weights are still those that the round was sampled for."""
        return self.index == 0 and self.pass_number == 0


@dataclass(frozen=True)
class CutSettings:
    """Settings of the cut: num_iterations passes over a round, micro-batches of at most `budget` tokens.

    leave_truncated: whether completions that reached the length limit are not trained (DAPO's overlong filtering).
    """

    num_iterations: int
    budget: int
    pad_token_id: int
    leave_truncated: bool = False


def trained_rows(table: RoundTable, leave_truncated: bool) -> NDArray[np.bool_]:
    """Return for each line of the table whether its tokens are trained, [N]."""
    return (table.written_lengths > 0) & ~(table.truncated & leave_truncated)


class PolicyStream(StepStream):
    """The optimizer steps of one rank, round after round; what `train.stream.Stream` is for rows.

    Args:
        client: The source of rounds.
        position: Of the prompts, where training begins.
        epochs: Passes over the prompts before it.
        first_round: Rounds trained before it.
        ledger: The outcomes of the prompts before it.
        settings: How rounds are cut.
    """

    def __init__(
        self,
        client: RolloutClient,
        position: Position,
        epochs: float,
        first_round: int,
        ledger: Mapping[str, Any],
        settings: CutSettings,
    ):
        super().__init__(position, epochs)
        self._client, self._settings, self.ledger = client, settings, ledger
        self.layout: PolicyLayout = "rows"
        """The layout of micro-batches for the trainer's models; the trainer sets it."""
        self.number = first_round
        """Rounds trained once the step that was handed out last is done; the version that is published then."""
        self.ends_round = True
        """Whether the step that was handed out last ends its round."""

    def __iter__(self) -> Iterator[dict[str, Any]]:
        while not self.last:
            started = time.monotonic()
            received = self._client.next(self.number)
            self._counter.wait_s += time.monotonic() - started
            if received.ended:
                self.position, self.epochs, self.ledger = received.position, received.epochs, received.ledger
                self.last = True
                logger.info("training is done: %s", received.ended)
                return
            steps = self._cut(received)
            for number, step in enumerate(steps):
                self._count(step)
                self.ends_round = number == len(steps) - 1
                if self.ends_round:
                    self.number += 1
                    self.position, self.epochs, self.ledger = received.position, received.epochs, received.ledger
                    self.last, self.save = received.last, received.save
                yield {"step": step}

    def _cut(self, received: Round) -> list[PolicyStep]:
        settings, table = self._settings, received.table
        is_trained = trained_rows(table, settings.leave_truncated)
        texts = MicroBatcher(table, received.tokens, settings.pad_token_id, self.layout)
        batches = []
        for of_ranks in shares(table, received.num_steps, received.size):
            rows = [ordered(table, each[is_trained[each]], self.layout) for each in of_ranks]
            cuts = cut(table, rows, settings.budget, self.layout)
            mine = rows[received.rank]
            batches.append([texts.batch(mine[piece]) for piece in cuts[received.rank]])
        return [
            PolicyStep(received, index, pass_number, settings.num_iterations, batches)
            for pass_number in range(settings.num_iterations)
            for index in range(received.num_steps)
        ]

    def state(self) -> dict[str, Any]:
        """See StepStream; with the ledger."""
        return super().state() | {"ledger": dict(self.ledger)}

    def before_save(self) -> None:
        self._client.keep()

    def evaluate(self) -> Mapping[str, float]:
        """Return mean rewards on the evaluation prompts, with the newest published weights."""
        return self._client.evaluate(self.number)

    def evaluation_batches(self, batch_size: int) -> Iterator[tuple[Rows, dict[str, Any]]]:
        """Yield nothing: `evaluate` samples new completions."""
        return iter(())

    def _count(self, step: PolicyStep) -> None:
        self._counter.steps += 1
        for batch in step.batches:
            tokens = int(batch.totals.sum())
            self._counter.tokens += tokens
            self._counter.trained_tokens += int(batch.lengths.sum())
            # Shared prompts are computed once: fewer than there are, and none of them is padding.
            self._counter.capacity += max(tokens, batch.num_computed_tokens)


class RoundFlow(TrainerCallback):
    """Postpones saves and evaluations to the end of the round. Must come after `StreamFlow`.

    A checkpoint holds whole rounds. Engines have the weights that a round began with, so that an evaluation within it
    would judge those; and a new best model that it finds is saved at once.
    """

    def __init__(self, stream: PolicyStream):
        self._stream, self._saves, self._evaluates = stream, False, False

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Save and evaluate now, or remember to."""
        now = self._stream.ends_round or control.should_training_stop
        saves, evaluates = self._saves or control.should_save, self._evaluates or control.should_evaluate
        control.should_save, control.should_evaluate = now and saves, now and evaluates
        self._saves, self._evaluates = saves and not now, evaluates and not now
