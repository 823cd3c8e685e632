"""Admission: which prompt is drawn for which round, and when; pure. Sync and async sampling differ only here.

Round s may draw prompts once the weights after round s - `max_staleness` are published. Nothing is ever dropped for
being old: sampling is paced, so that the tokens of a round are at most `max_staleness` versions old. Prompts go to
rounds strictly in order. The next prompt of the sequence replaces a filtered or failed one in the same round. With
over-sampling, more prompts are in progress than a round lacks; the round takes the first that can be trained, and all
prompts after these go back to the head of the sequence.

With `max_staleness` 0 only one round is open, and its prompts are the next ones of the sequence: the trained prompts
are a function of (data, seed, weights); the order in which completions finish does not matter.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from rayswift.data.sequence.windows import TRAINED
from rayswift.engines.samples import RequestSampling
from rayswift.rollout.advantages import AdvantageSettings


@dataclass(frozen=True)
class RoundPlan:
    """The sizes of rounds.

    num_prompts: groups of a round; max_resamples: limit of prompts that replace filtered and failed ones, as a multiple
    of that number; num_rounds: of the run, None: until the prompts end; oversampling: share of a round's prompts that
    are in progress beyond those that it still lacks.
    """

    num_prompts: int
    max_staleness: int
    max_resamples: int
    num_rounds: int | None = None
    oversampling: float = 0.0


@dataclass(frozen=True)
class EvalPlan:
    """An evaluation: its name, "" for the only one; num_generations: completions of each prompt; sources: of its
    prompts, () for all; sampling: of its own, None: as in training; right_from: reward of a right completion."""

    name: str
    num_generations: int
    sources: tuple[str, ...] = ()
    sampling: RequestSampling | None = None
    right_from: float = math.inf


@dataclass(frozen=True)
class RolloutPlan:
    """The settings of the coordinator, as plain values.

    rounds: sizes of rounds; num_steps: optimizer steps of one pass over a round; steps_per_round: of all passes;
    num_generations, num_generations_eval: completions of a prompt; max_completion_length, max_sequence_length: tokens
    of a completion, and of it with its prompt; min_group: least number of scored completions of a trained group;
    drops_even: how rewards are combined, if groups are filtered where they are all equal; max_failed_fraction: see
    `rollout.max_failed_fraction`; max_outstanding: requests that an engine holds at once; max_still_s: longest wait
    without any progress; sampled: share of rounds that are sampled, the others train the rows' own answers;
    has_engines: whether anything is sampled; evaluations: named ones, (): one as in training.
    """

    rounds: RoundPlan
    num_steps: int
    steps_per_round: int
    num_generations: int
    num_generations_eval: int
    min_group: int
    max_completion_length: int
    max_sequence_length: int
    drops_even: AdvantageSettings | None
    max_failed_fraction: float
    seed: int
    max_outstanding: int
    max_still_s: float
    sampled: float = 1.0
    has_engines: bool = True
    evaluations: tuple[EvalPlan, ...] = ()


@dataclass
class _Open:
    """An open round: the outcome of each prompt by ordinal, None while it is in progress."""

    outcomes: dict[int, str | None] = field(default_factory=dict)
    num_under_way: int = 0
    num_trained: int = 0


class Admission:
    """The open rounds of an attempt.

    Args:
        plan: Sizes and limits.
        first_round: The round that is trained next.
    """

    def __init__(self, plan: RoundPlan, first_round: int):
        self._plan = plan
        self._newest = first_round
        self._published: int | None = None
        self._open: dict[int, _Open] = {}
        self._round_of: dict[int, int] = {}

    @property
    def published(self) -> int | None:
        """Return the number of rounds of the newest published weights."""
        return self._published

    def publish(self, step: int) -> None:
        """Note that weights after `step` rounds are published."""
        self._published = step

    def min_step(self, number: int) -> int:
        """Return the least number of rounds of weights that may sample for a round."""
        return max(0, number - self._plan.max_staleness)

    def next_round(self, num_ready: int, ended: bool) -> int | None:
        """Return the round that draws next; None: nothing may be drawn now.

        Args:
            num_ready: Number of prompts that are read and can be drawn.
            ended: Whether these are the last.
        """
        if not num_ready:
            return None
        for number, each in self._open.items():
            if self._has_room(each):
                return number
        return self._newest if self._may_open(num_ready) else None

    def _has_room(self, each: _Open) -> bool:
        num_prompts, at_once = self._plan.num_prompts, 1 + self._plan.oversampling
        most = num_prompts * (1 + self._plan.max_resamples)
        lacks = each.num_trained < num_prompts and len(each.outcomes) < most
        return lacks and each.num_under_way + each.num_trained < math.ceil(num_prompts * at_once)

    def _may_open(self, num_ready: int) -> bool:
        allowed = self._published is not None and self._newest <= self._published + self._plan.max_staleness
        wanted = self._plan.num_rounds is None or self._newest < self._plan.num_rounds
        # Only whole rounds: prompts at the end of the data that cannot fill a round are never sampled.
        return allowed and wanted and num_ready >= self._plan.num_prompts

    def lacks_prompts(self, number: int, num_ready: int, ended: bool) -> bool:
        """Whether too few prompts are left for a round, so that it is never opened."""
        return number == self._newest and ended and num_ready < self._plan.num_prompts

    def draw(self, ordinal: int, number: int) -> None:
        """Assign the next prompt of the sequence to the round that `next_round` returned."""
        if number == self._newest:
            self._newest += 1
        each = self._open.setdefault(number, _Open())
        each.outcomes[ordinal] = None
        each.num_under_way += 1
        self._round_of[ordinal] = number

    def finish(self, ordinal: int, outcome: str) -> int:
        """Note the outcome of a prompt: `TRAINED...`, or why it is not trained; return its round."""
        number = self._round_of.pop(ordinal)
        each = self._open[number]
        each.outcomes[ordinal] = outcome
        each.num_under_way -= 1
        each.num_trained += outcome.startswith(TRAINED)
        return number

    def is_complete(self, number: int, num_ready: int, ended: bool) -> bool:
        """Whether no prompt of a round is in progress, and none can be added."""
        each = self._open.get(number)
        if each is None or each.num_under_way:
            return False
        return not self._has_room(each) or (ended and not num_ready)

    def surplus(self, number: int) -> list[int]:
        """Remove the prompts after those that fill a complete round, whatever their outcome, and return them.

        The rest is the sequence up to the last trained prompt, so it does not depend on what finished first.
        """
        outcomes = self._open[number].outcomes
        trained = sorted(ordinal for ordinal, outcome in outcomes.items() if (outcome or "").startswith(TRAINED))
        if len(trained) < self._plan.num_prompts:
            return []
        behind = sorted(ordinal for ordinal in outcomes if ordinal > trained[self._plan.num_prompts - 1])
        for ordinal in behind:
            del outcomes[ordinal]
        return behind

    def close(self, number: int) -> Mapping[int, str]:
        """Remove a complete round and return the outcomes of its prompts, by ordinal."""
        each = self._open.pop(number)
        return {ordinal: outcome for ordinal, outcome in sorted(each.outcomes.items()) if outcome is not None}

    def reopen(self, number: int) -> None:
        """Let a round draw again from the start, because none of its prompts can be trained."""
        self._open = {number: _Open(), **self._open}

    def is_last(self, number: int, num_ready: int, ended: bool) -> bool | None:
        """Whether a round is the last; None: this depends on prompts that are not read yet."""
        if self._plan.num_rounds is not None:
            return number + 1 >= self._plan.num_rounds
        if self._newest > number + 1 or num_ready >= self._plan.num_prompts:
            return False
        return True if ended else None
