"""`quarantine.jsonl` of a run: the bad rows, with their reasons."""

import json
from dataclasses import asdict
from pathlib import Path

from rayswift.data.sequence.windows import Window


class QuarantineFile:
    """The file of bad rows; each is written once, also after a restart."""

    def __init__(self, path: Path):
        self._path = path
        self._seen: set[str] = set()
        self._cut_off = False
        if path.exists():
            text = path.read_text(encoding="utf-8", errors="replace")
            self._cut_off = bool(text) and not text.endswith("\n")
            for line in text.split("\n"):
                try:
                    self._seen.add(json.loads(line)["id"])
                except json.JSONDecodeError:
                    continue  # a line cut off by a kill; its row is written again

    def add(self, window: Window) -> None:
        """Append the bad rows of a window that are not in the file."""
        new = [row for row in window.quarantined if row.id not in self._seen]
        if not new:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        # A lone surrogate is no UTF-8; with a backslash it becomes its JSON escape.
        with open(self._path, "a", encoding="utf-8", errors="backslashreplace") as file:
            if self._cut_off:
                file.write("\n")
                self._cut_off = False
            for row in new:
                file.write(json.dumps(asdict(row), ensure_ascii=False) + "\n")
                self._seen.add(row.id)
