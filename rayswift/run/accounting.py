"""`data/accounting.json`: number of raw rows by outcome (trained, too long, ...), evaluation rows separately."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rayswift.data.feed.feed import EVALUATED, EVALUATION_COUNTS
from rayswift.data.filesystem import write_whole
from rayswift.data.sequence.global_batches import REMAINDER, FeedPlan, Position
from rayswift.data.sequence.windows import TRAINED

ACCOUNTING = Path("data") / "accounting.json"
_SEEN = "rows seen"
_EVALUATION = "evaluation"
_SAID_FROM = 0.05


def write_accounting(run_dir: Path, counts: Mapping[str, int]) -> None:
    path = run_dir / ACCOUNTING
    path.parent.mkdir(exist_ok=True)
    written: dict[str, Any] = {_SEEN: sum(counts.values()), **counts}
    evaluation = read_evaluation(run_dir)
    if evaluation:
        written[_EVALUATION] = {_SEEN: sum(evaluation.values()), **evaluation}
    write_whole(path, json.dumps(written, indent=1))


def read_accounting(run_dir: Path) -> dict[str, int]:
    """Training rows of each outcome; empty before the first count."""
    counts = _read(run_dir / ACCOUNTING)
    return {name: number for name, number in counts.items() if name not in (_SEEN, _EVALUATION)}


def read_evaluation(run_dir: Path) -> dict[str, int]:
    """Evaluation rows of each outcome; empty before the first evaluation."""
    return _read(run_dir / ACCOUNTING.parent / EVALUATION_COUNTS)


def _read(path: Path) -> dict[str, int]:
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}


def left_out(counts: Mapping[str, int]) -> str:
    """A log line about the evaluation rows that are cut or left out; empty if there are none."""
    lost = {name: number for name, number in counts.items() if name != EVALUATED}
    if not lost:
        return ""
    named = ", ".join(_by_count(lost))
    return f"evaluation rows: {counts.get(EVALUATED, 0):,} of {sum(counts.values()):,} are used as they are; {named}"


class Vanishing:
    """A warning when many rows are not trained; repeated when their share doubles."""

    def __init__(self, plan: FeedPlan):
        self._plan, self._said = plan, _SAID_FROM / 2

    def line(self, position: Position) -> str:
        """The warning at a position of the feed; empty if there is nothing new."""
        windows = position.window + (position.row > 0)
        seen = position.epoch * self._plan.num_rows + min(windows * self._plan.window_rows, self._plan.num_rows)
        lost = {k: v for k, v in position.counts.items() if not k.startswith(TRAINED) and k != REMAINDER}
        share = sum(lost.values()) / max(1, seen)
        if share < 2 * self._said:
            return ""
        self._said = share
        named = "; ".join(_by_count(lost))
        advice = "; data.max_length and data.truncation decide about length" if "longer than" in named else ""
        return f"{sum(lost.values()):,} of the first {seen:,} rows are not trained: {named}{advice}"


def _by_count(counts: Mapping[str, int]) -> list[str]:
    return [f"{number:,} {name}" for name, number in sorted(counts.items(), key=lambda item: -item[1])]
