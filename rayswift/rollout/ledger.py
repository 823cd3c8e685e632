"""The ledger: records the outcome of every prompt, and where a resumed run continues; pure.

Each drawn prompt gets exactly one outcome. The ledger of a round holds the outcomes of all prompts that were drawn for
it and for earlier rounds. It goes with the round to the trainer and into the checkpoint, so a run resumed from there
draws exactly the prompts that are not in it.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from rayswift.data.sequence.global_batches import Position, table
from rayswift.data.sequence.windows import TRAINED
from rayswift.log import UserError

CUT = f"{TRAINED}, prompt cut to rollout.max_prompt_length"
FAILED = "failed: "
FILTERED = "filtered: "
ALL_EQUAL = f"{FILTERED}all rewards equal"
REMAINDER = "dropped remainder: fewer prompts than a round"
_JUDGED_FROM_PROMPTS = 100


@dataclass(frozen=True)
class LedgerSnapshot:
    """The ledger after a round.

    rounds: trained so far; position: every prompt before it is done; done: later ordinals that are done too;
    outcomes: number of prompts by outcome; epochs: passes over the data so far.
    """

    rounds: int = 0
    position: Position = field(default_factory=Position)
    done: tuple[int, ...] = ()
    outcomes: Mapping[str, int] = field(default_factory=dict)
    epochs: float = 0.0

    @property
    def rows(self) -> dict[str, int]:
        """Return the number of raw rows by outcome: of prompts, and of rows that gave no prompt."""
        left_out = {k: v for k, v in self.position.counts.items() if not k.startswith(TRAINED)}
        return dict(Counter(left_out) + Counter(self.outcomes))

    def to_json(self) -> dict[str, Any]:
        """Return plain values for a checkpoint."""
        return asdict(self)

    @staticmethod
    def from_json(values: Mapping[str, Any] | None) -> "LedgerSnapshot":
        """Read the values of `to_json`; of nothing, make an empty ledger."""
        if values is None:
            return LedgerSnapshot()
        return LedgerSnapshot(
            values["rounds"],
            Position(**values["position"]),
            tuple(values["done"]),
            dict(values["outcomes"]),
            values["epochs"],
        )


class Ledger:
    """Records outcomes, round by round.

    Args:
        start: The ledger of a checkpoint; its prompts are never drawn again.
        max_failed_fraction: Share of failed prompts that stops the run.
    """

    def __init__(self, start: LedgerSnapshot, max_failed_fraction: float):
        self._snapshot, self._max_failed_fraction = start, max_failed_fraction
        self._done = set(start.done)
        self._behind: dict[int, tuple[Position, float]] = {}

    @property
    def snapshot(self) -> LedgerSnapshot:
        """Return the ledger after the last closed round."""
        return self._snapshot

    def is_done(self, ordinal: int) -> bool:
        """Whether a prompt has an outcome."""
        return ordinal < self._snapshot.position.step or ordinal in self._done

    def seen(self, ordinal: int, behind: Position, epochs: float) -> None:
        """Note the position after a prompt of the sequence, done or not."""
        self._behind[ordinal] = behind, epochs

    def close(self, outcomes: Mapping[int, str], *, trains: bool = True) -> LedgerSnapshot:
        """Record the outcomes of a round's prompts, in the order of rounds.

        Args:
            outcomes: The outcome of each ordinal.
            trains: Whether this is a round; otherwise these are the prompts left at the end of the data.

        Raises:
            UserError: too many prompts failed.
        """
        twice = [ordinal for ordinal in outcomes if self.is_done(ordinal)]
        assert not twice, f"prompts {twice} have an outcome already"
        self._done |= outcomes.keys()
        epochs = max([self._snapshot.epochs, *(self._behind[ordinal][1] for ordinal in outcomes)])
        position = self._snapshot.position
        while position.step in self._done and position.step in self._behind:
            self._done.remove(position.step)
            position = self._behind.pop(position.step)[0]
        self._snapshot = replace(
            self._snapshot,
            rounds=self._snapshot.rounds + trains,
            position=position,
            done=tuple(sorted(self._done)),
            outcomes=dict(Counter(self._snapshot.outcomes) + Counter(outcomes.values())),
            epochs=epochs,
        )
        self._judge()
        return self._snapshot

    def _judge(self) -> None:
        outcomes = self._snapshot.outcomes
        total, failed = sum(outcomes.values()), sum(n for name, n in outcomes.items() if name.startswith(FAILED))
        if total >= _JUDGED_FROM_PROMPTS and failed > self._max_failed_fraction * total:
            raise UserError(
                f"{failed} of {total} prompts have no usable completions, more than rollout.max_failed_fraction = "
                f"{self._max_failed_fraction:g} allows:\n{table(dict(outcomes))}",
                exit_code=1,
            )


def kind_of(reasons: Sequence[str]) -> str:
    """Return the most frequent reason, shortened so that equal kinds are equal texts."""
    (reason, _), *_ = Counter(reason.partition(":")[0] for reason in reasons).most_common(1) or [("no reason", 0)]
    return reason


def counted(counts: Counter[Any]) -> str:
    """Return the most frequent reasons, each with its count."""
    return ", ".join(f"{count} {what}" for what, count in counts.most_common(5))


def examples_of(reasons: Sequence[str]) -> str:
    """Return the first few different reasons, each on a line."""
    return "".join(f"\n  {reason}" for reason in dict.fromkeys(reasons[:3]))
