"""The file of sampled rows, and the progress over the prompts; a restarted command continues it."""

import json
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rayswift.data.filesystem import write_whole
from rayswift.data.sequence.global_batches import Position
from rayswift.log import UserError
from rayswift.rollout.sampling.made_from import MadeFrom, progress_of, refuse_other

FAILED = "failed"
"""Outcome of a prompt without a scored completion."""
_FIRST_JUDGED = 100


class SampledFile:
    """Rows as JSON lines; `<name>.progress` beside them has their size, the position, the outcomes and their origin.

    Args:
        path: The file of rows.
        goes_on: Whether to continue an existing file.
        made_from: What the rows are made from; a file of other rows is not continued.

    Raises:
        UserError: the file exists and is not to be continued, cannot be continued, or cannot be written.
    """

    def __init__(self, path: Path, goes_on: bool, made_from: MadeFrom):
        self._path, self._progress, self._made_from = path, progress_of(path), made_from
        self.position, self.outcomes, num_bytes = Position(), Counter[str](), 0
        if goes_on and self._progress.exists():
            refuse_other(path, made_from)
            saved = json.loads(self._progress.read_text(encoding="utf-8"))
            self.position, num_bytes = Position(**saved["position"]), int(saved["bytes"])
            self.outcomes = Counter(saved["outcomes"])
            size = path.stat().st_size if path.exists() else 0
            if size < num_bytes:
                raise UserError(
                    f"sample.output_file = {str(path)!r} has {size} bytes, but {self._progress.name} beside it counts "
                    f"{num_bytes}: rows are missing; bring them back, or remove both files to begin anew"
                )
        elif path.exists():
            how = (
                f"and cannot be continued: {self._progress.name} is not beside it; name another"
                if goes_on
                else "already; continue it with --resume auto, or name another"
            )
            raise UserError(f"sample.output_file = {str(path)!r} is there {how}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._tell(num_bytes)  # first: a file without its progress cannot be continued
            self._file = open(path, "ab")  # noqa: SIM115 - until `close`
            self._file.truncate(num_bytes)  # rows that no progress counts are sampled again
        except OSError as error:
            raise UserError(f"sample.output_file = {str(path)!r}: {error.strerror}") from error

    def add(self, rows: Sequence[dict[str, Any]], outcome: str, position: Position) -> None:
        """Add the rows of a prompt, its outcome, and the position after it."""
        for row in rows:
            self._file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
        self.outcomes[outcome] += 1
        self.position = position

    def flush(self) -> None:
        """Write everything to disk."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._tell(self._file.tell())

    def judge(self, most_failed: float, ended: bool = False) -> None:
        """Raise an error if too many prompts failed.

        Args:
            most_failed: `rollout.max_failed_fraction`.
            ended: Whether these are all prompts; otherwise fewer than 100 prompts are not judged.

        Raises:
            UserError: a larger share failed.
        """
        done, failed = self.outcomes.total(), self.outcomes[FAILED]
        if (ended or done >= _FIRST_JUDGED) and failed > most_failed * done:
            raise UserError(
                f"{failed} of {done} prompts failed, more than rollout.max_failed_fraction = {most_failed:g} allows; "
                "the log says why",
                exit_code=1,
            )

    def _tell(self, num_bytes: int) -> None:
        state = {"position": self.position.to_json(), "bytes": num_bytes, "outcomes": dict(self.outcomes)}
        state["made_from"] = self._made_from
        write_whole(self._progress, json.dumps(state))

    def close(self) -> None:
        """Write everything, and close the files."""
        self.flush()
        self._file.close()
