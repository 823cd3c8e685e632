"""The ledger: what became of every prompt, and where a resumed run goes on; pure.

Each drawn prompt ends in exactly one outcome. The ledger as of a round holds the outcomes of all prompts that were
drawn for it and for the rounds before; it travels with the round to the trainer and into the checkpoint, so that a run
resumed from there draws exactly the prompts that are not in it.
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
    """The ledger as of a round.

    rounds: trained so far; position: every prompt before it is done; done: ordinals beyond it that are done as well;
    outcomes: prompts by outcome; epochs: passes over the data so far.
    """

    rounds: int = 0
    position: Position = field(default_factory=Position)
    done: tuple[int, ...] = ()
    outcomes: Mapping[str, int] = field(default_factory=dict)
    epochs: float = 0.0

    @property
    def rows(self) -> dict[str, int]:
        """Where every raw row went so far: outcomes of prompts, and of rows that gave none."""
        left_out = {k: v for k, v in self.position.counts.items() if not k.startswith(TRAINED)}
        return dict(Counter(left_out) + Counter(self.outcomes))

    def to_json(self) -> dict[str, Any]:
        """As plain values, for a checkpoint."""
        return asdict(self)

    @staticmethod
    def from_json(values: Mapping[str, Any] | None) -> "LedgerSnapshot":
        """What `to_json` made; of nothing, the beginning."""
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
    """Outcomes round by round.

    Args:
        start: What a checkpoint holds; prompts before and in it are never drawn again.
        max_failed_fraction: Share of failed prompts that stops the run.
    """

    def __init__(self, start: LedgerSnapshot, max_failed_fraction: float):
        self._snapshot, self._max_failed_fraction = start, max_failed_fraction
        self._done = set(start.done)
        self._behind: dict[int, tuple[Position, float]] = {}

    @property
    def snapshot(self) -> LedgerSnapshot:
        """As of the last closed round."""
        return self._snapshot

    def is_done(self, ordinal: int) -> bool:
        """Whether a prompt has its outcome."""
        return ordinal < self._snapshot.position.step or ordinal in self._done

    def seen(self, ordinal: int, behind: Position, epochs: float) -> None:
        """Note where the data goes on behind a prompt that the sequence yields, done or not."""
        self._behind[ordinal] = behind, epochs

    def close(self, outcomes: Mapping[int, str], *, trains: bool = True) -> LedgerSnapshot:
        """Book what was drawn for a round, in the order of rounds.

        Args:
            outcomes: Of each ordinal.
            trains: Whether this is a round; else these are the prompts left at the end of the data.

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
    """The commonest reason, shortened to what counts alike."""
    (reason, _), *_ = Counter(reason.partition(":")[0] for reason in reasons).most_common(1) or [("no reason", 0)]
    return reason


def counted(counts: Counter[Any]) -> str:
    """The commonest, each with its number."""
    return ", ".join(f"{count} {what}" for what, count in counts.most_common(5))


def examples_of(reasons: Sequence[str]) -> str:
    """The first few, each once, on lines of their own."""
    return "".join(f"\n  {reason}" for reason in dict.fromkeys(reasons[:3]))
