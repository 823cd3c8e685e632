"""`data/accounting.json`: where every raw row went so far, by outcome; under `evaluation` those of the evaluation."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rayswift.data.feed.feed import EVALUATED, EVALUATION_COUNTS
from rayswift.data.sequence.global_batches import REMAINDER, FeedPlan, Position
from rayswift.data.sequence.windows import TRAINED

ACCOUNTING = Path("data") / "accounting.json"
_SEEN = "rows seen"
_EVALUATION = "evaluation"
_SAID_FROM = 0.05


def write_accounting(run_dir: Path, counts: Mapping[str, int]) -> None:
    """Replace the file: the rows of each outcome, and their sum first."""
    path = run_dir / ACCOUNTING
    path.parent.mkdir(exist_ok=True)
    partial = path.with_suffix(".partial")
    written: dict[str, Any] = _with_sum(counts)
    evaluation = read_evaluation(run_dir)
    if evaluation:
        written[_EVALUATION] = _with_sum(evaluation)
    partial.write_text(json.dumps(written, indent=1), encoding="utf-8")
    partial.replace(path)


def read_accounting(run_dir: Path) -> dict[str, int]:
    """Rows of each outcome; empty before the first were counted."""
    path = run_dir / ACCOUNTING
    counts: dict[str, int] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    for name in (_SEEN, _EVALUATION):
        counts.pop(name, None)
    return counts


def read_evaluation(run_dir: Path) -> dict[str, int]:
    """Evaluation rows of each outcome; empty before the first evaluation."""
    path = run_dir / ACCOUNTING.parent / EVALUATION_COUNTS
    counts: dict[str, int] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return counts


def left_out(counts: Mapping[str, int]) -> str:
    """One line for the screen of the evaluation rows that are not used as they are; empty if there is none."""
    lost = {name: number for name, number in counts.items() if name != EVALUATED}
    if not lost:
        return ""
    named = ", ".join(f"{number:,} {name}" for name, number in sorted(lost.items(), key=lambda item: -item[1]))
    return f"evaluation rows: {counts.get(EVALUATED, 0):,} of {sum(counts.values()):,} are used as they are; {named}"


class Vanishing:
    """Tells when many rows are not trained, as soon as the windows that hold them are read: once, and when it doubles.

    Args:
        plan: How many rows a window and an epoch have.
    """

    def __init__(self, plan: FeedPlan):
        self._plan, self._said = plan, _SAID_FROM / 2

    def line(self, position: Position) -> str:
        """What to say at a position; empty if there is nothing new."""
        windows = position.window + (position.row > 0)
        seen = position.epoch * self._plan.num_rows + min(windows * self._plan.window_rows, self._plan.num_rows)
        lost = {k: v for k, v in position.counts.items() if not k.startswith(TRAINED) and k != REMAINDER}
        share = sum(lost.values()) / max(1, seen)
        if share < 2 * self._said:
            return ""
        self._said = share
        named = "; ".join(f"{number:,} {name}" for name, number in sorted(lost.items(), key=lambda item: -item[1]))
        advice = "; data.max_length and data.truncation decide about length" if "longer than" in named else ""
        return f"{sum(lost.values()):,} of the first {seen:,} rows are not trained: {named}{advice}"


def _with_sum(counts: Mapping[str, int]) -> dict[str, Any]:
    return {_SEEN: sum(counts.values()), **counts}
