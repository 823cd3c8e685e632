"""Writes the prompts, completions and rewards of a run as Parquet, `completions/part-ROUND.parquet`.

Those of evaluations are in `completions/eval/round-ROUND.parquet`.

The newest part is rewritten as a whole when rounds come and before each checkpoint; once it is large, a new part
begins. So files can be read at any time, memory holds one part, and a kill loses only rounds that no checkpoint holds;
a resumed run writes these again. A shortened prompt is written as it was sampled from.
"""

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rayswift.engines.samples import Group
from rayswift.run.folder import COMPLETIONS

EVALUATIONS = "eval"
"""Subfolder with a file for each evaluation."""
_WRITE_EVERY_S = 5.0
_PART_ROWS = 8192
_PART_CHARS = 32 << 20
_MOST_SAMPLES_READ = 4096


class CompletionsFile:
    """Appends rounds; for one writer.

    Args:
        run_dir: The run folder.
        reward_names: Of each reward, which become columns.
        decode: Tokens to text, for prompts that were cut.
    """

    def __init__(self, run_dir: Path, reward_names: Sequence[str], decode: Callable[[Sequence[int]], str]):
        self._folder, self._names, self._decode = run_dir / COMPLETIONS, tuple(reward_names), decode
        self._rows: list[dict[str, Any]] = []
        self._num_chars = 0
        self._part: Path | None = None
        self._written_s = 0.0

    def begin(self, number: int) -> None:
        """Delete round `number` and later ones, because they are sampled again."""
        self._rows = [row for row in self._rows if row["round"] < number]
        self.close()
        for later in (self._folder / EVALUATIONS).glob("round-*.parquet"):
            if int(later.stem.rpartition("-")[2]) > number:
                later.unlink()
        for part in sorted(self._folder.glob("part-*.parquet")):
            table = pq.read_table(part)
            kept = table.filter(pc.less(table["round"], number))
            if not kept.num_rows:
                part.unlink()
            elif kept.num_rows < table.num_rows:
                _replace(kept, part)

    def add(self, number: int, groups: Sequence[Group], outcome: str) -> None:
        """Append groups of a round with their outcome; rounds come in their order."""
        if self._part is None:
            self._part = self._new_part(number)
        for row in self._rows_of(number, groups, outcome):
            self._rows.append(row)
            self._num_chars += len(row["prompt"]) + len(row["completion"])
        if len(self._rows) >= _PART_ROWS or self._num_chars >= _PART_CHARS:
            self.close()
        elif time.monotonic() - self._written_s >= _WRITE_EVERY_S:
            self.flush()

    def _rows_of(self, number: int, groups: Sequence[Group], outcome: str) -> Iterator[dict[str, Any]]:
        for group in groups:
            prompt = group.prompt
            for scored in group.scored:
                played = scored.completion.trajectory
                messages = prompt.messages if played is None or played.asked is None else played.asked
                asked = "\n".join(str(message["content"]) for message in messages)
                if prompt.cut:
                    asked = self._decode(prompt.input_ids.tolist())
                row = {
                    "round": number,
                    "id": prompt.id,
                    "epoch": prompt.epoch,
                    "ordinal": prompt.ordinal,
                    "outcome": outcome,
                    "prompt": asked,
                    "completion": scored.text,
                    "reward": scored.reward,
                    **dict(zip(map("reward_{}".format, self._names), scored.rewards, strict=True)),
                    "num_tokens": scored.completion.num_written,
                    "finish": scored.completion.finish,
                    "oldest_version": min((span.version.step for span in scored.completion.spans), default=number),
                    "newest_version": max((span.version.step for span in scored.completion.spans), default=number),
                }
                if played is not None:
                    row |= {"num_turns": played.num_turns, "num_calls": played.num_calls, "end": played.end}
                yield row

    def add_evaluation(self, number: int, evaluations: Mapping[str, Sequence[Group]]) -> None:
        """Write the completions of evaluations of the weights after `number` rounds; column `outcome` is the name."""
        rows = [
            row for name, groups in evaluations.items() for row in self._rows_of(number, groups, name or "evaluation")
        ]
        folder = self._folder / EVALUATIONS
        folder.mkdir(parents=True, exist_ok=True)
        _replace(_table(rows), folder / f"round-{number:08d}.parquet")

    def close(self) -> None:
        """Write the part in memory; later rounds begin a new part."""
        self.flush()
        self._rows, self._num_chars, self._part = [], 0, None

    def _new_part(self, number: int) -> Path:
        """Return a name that is not in use, because a round may have several parts."""
        part, again = self._folder / f"part-{number:08d}.parquet", 0
        while part.exists():
            again += 1
            part = self._folder / f"part-{number:08d}_{again:04d}.parquet"
        return part

    def flush(self) -> None:
        """Write the part in memory."""
        if self._part is None or not self._rows:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        _replace(_table(self._rows), self._part)
        self._written_s = time.monotonic()


def newest(run_dir: Path, number: int) -> list[dict[str, Any]]:
    """Return up to `number` completions of the newest written round, spread over its rewards, the best first."""
    parts = sorted((run_dir / COMPLETIONS).glob("part-*.parquet"))
    return _spread(parts[-1], number) if parts else []


def newest_evaluated(run_dir: Path, number: int) -> list[dict[str, Any]]:
    """Return the same of the newest evaluation."""
    parts = sorted((run_dir / COMPLETIONS / EVALUATIONS).glob("round-*.parquet"))
    return _spread(parts[-1], number) if parts else []


def _spread(part: Path, number: int) -> list[dict[str, Any]]:
    table = pq.read_table(part)
    table = table.slice(max(0, table.num_rows - _MOST_SAMPLES_READ))
    table = table.filter(pc.equal(table["round"], pc.max(table["round"])))
    rows = sorted(table.to_pylist(), key=lambda row: -row["reward"])
    if len(rows) <= number:
        return rows
    return [rows[i * (len(rows) - 1) // max(1, number - 1)] for i in range(number)]


def _table(rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """Return rows as a table with the columns of all of them: completions of several turns have more."""
    names = dict.fromkeys(name for row in rows for name in row)
    return pa.table({name: [row.get(name) for row in rows] for name in names})


def _replace(table: pa.Table, path: Path) -> None:
    partial = path.with_suffix(".partial")
    pq.write_table(table, partial)
    os.replace(partial, path)
