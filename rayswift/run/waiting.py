"""What each rank does, in notes; the driver reports them when there is no progress for a while.

A note is a small file, `logs/rank-0.note`, which the rank rewrites every few seconds while its process lives. The
driver only looks for changes, so clocks of different machines are not compared.
"""

import contextlib
import json
import re
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from rayswift.files import write_whole

_SIGN_S = 5.0
"""Longest time between two writes of a note."""
_WRITE_S = 1.0
NO_SIGN_S = 20.0
"""A rank whose note does not change for this long counts as lost."""
SAY_S = 30.0
"""After this long without progress the driver reports, and again after each such period."""
_STEP = re.compile(r"\bstep \d")
_RECORD = re.compile(r"\d\d:\d\d:\d\d \S+ (?P<level>[A-Z]+) (?P<message>.*)")


@dataclass(frozen=True)
class Note:
    """What a rank does. size: number of ranks; address: of its node; number: increases with every write."""

    rank: int
    size: int
    address: str
    what: str
    number: int

    @property
    def who(self) -> str:
        """`rank 2 on 10.0.0.3`."""
        return f"rank {self.rank} on {self.address}"


class Notes:
    """Writes a rank's note in a thread: a rank that hangs still gives signs, and no step waits for a write."""

    def __init__(self, log_dir: Path, rank: int, size: int, address: str):
        self._file = log_dir / f"rank-{rank}.note"
        self._note = Note(rank, size, address, "starts", time.time_ns())
        self._changed, self._ended = threading.Event(), threading.Event()
        if rank == 0:  # remove notes of an earlier, larger group
            for number, file in _files(log_dir).items():
                if number >= size:
                    file.unlink(missing_ok=True)
        self._write()
        self._thread = threading.Thread(target=self._run, name="notes", daemon=True)
        self._thread.start()

    def __call__(self, what: str) -> None:
        """Note what the rank does from now on."""
        self._note = Note(self._note.rank, self._note.size, self._note.address, what, self._note.number)
        self._changed.set()

    def __enter__(self) -> "Notes":
        return self

    def __exit__(self, *ended: object) -> None:
        self.close()

    def close(self) -> None:
        """End the thread and remove the note."""
        self._ended.set()
        self._changed.set()
        self._thread.join(timeout=_SIGN_S)
        self._file.unlink(missing_ok=True)

    def _run(self) -> None:
        while not self._ended.wait(_WRITE_S):
            self._changed.wait(_SIGN_S - _WRITE_S)
            self._changed.clear()
            self._write()

    def _write(self) -> None:
        self._note = Note(**{**asdict(self._note), "number": self._note.number + 1})
        with contextlib.suppress(OSError):  # a full disk fails the run elsewhere
            write_whole(self._file, json.dumps(asdict(self._note)))


def unnoted(what: str) -> None:
    """In place of `Notes`, for ranks that are not watched."""


def clear(log_dir: Path) -> None:
    """Remove the notes of earlier launches."""
    for file in _files(log_dir).values():
        file.unlink(missing_ok=True)


def read(log_dir: Path) -> dict[int, Note]:
    """The note of each rank."""
    found = {}
    for rank, file in _files(log_dir).items():
        with contextlib.suppress(OSError, ValueError, TypeError):  # a note may be replaced during the read
            found[rank] = Note(**json.loads(file.read_text(encoding="utf-8")))
    return found


def _files(log_dir: Path) -> dict[int, Path]:
    return {int(file.stem.partition("-")[2]): file for file in sorted(log_dir.glob("rank-*.note"))}


@dataclass
class Waiting:
    """What the driver knows about the progress of a run; pure.

    size: smallest number of ranks of the group; now_s: the time of any clock.
    """

    size: int
    now_s: float
    _notes: Mapping[int, Note] = field(default_factory=dict)
    _signs_s: dict[int, float] = field(default_factory=dict)
    _moved: object = None
    _moved_s: float = 0.0
    _shown: object = None
    _said_s: float = 0.0
    _alive_s: float = 0.0
    _quiet: frozenset[int] = frozenset()
    _has_lost: bool = False

    def __post_init__(self) -> None:
        self._moved_s = self._said_s = self._alive_s = self.now_s

    def look(self, now_s: float, notes: Mapping[int, Note], moved: object, shown: object = None) -> None:
        """Update the state.

        During steps, any progress delays the next report, because the user chose how often steps are shown. At other
        times only a line on the screen does.

        moved: any value that changes when the data service makes progress; shown: one that changes with the screen.
        """
        for rank, note in notes.items():
            before = self._notes.get(rank)
            if before is None or before.number != note.number:
                self._signs_s[rank] = now_s
                self._alive_s = now_s
        moved = moved, shown, sorted((rank, note.what) for rank, note in notes.items())
        has_moved, is_new = moved != self._moved, shown != self._shown
        if has_moved:
            self._moved, self._moved_s = moved, now_s
        if is_new or (has_moved and notes and all(_STEP.search(note.what) for note in notes.values())):
            self._shown, self._said_s = shown, now_s
        self._notes, self.now_s = notes, now_s
        quiet = frozenset(rank for rank in notes if self._is_quiet(rank))
        self._has_lost = self._has_lost or bool(quiet - self._quiet)
        self._quiet = quiet

    @property
    def without_ranks_s(self) -> float:
        """Seconds since any rank gave a sign, or since the start."""
        return self.now_s - self._alive_s

    def begin_anew(self, now_s: float) -> None:
        """Count `without_ranks_s` from now on."""
        self._alive_s = self.now_s = now_s

    def due(self) -> bool:
        """Whether a report is due: a rank was lost, or there was no progress for `SAY_S`."""
        if self.now_s - self._said_s < SAY_S and not self._has_lost:
            return False
        self._said_s, self._has_lost = self.now_s, False
        return True

    def describe(self, supply: str, lost_nodes: Sequence[str] = ()) -> str:
        """One line: what each rank does, and which ranks are missing or lost.

        supply: the state of the data service; lost_nodes: addresses of nodes that accept no connection.
        """
        quiet = [note for rank, note in sorted(self._notes.items()) if self._is_quiet(rank)]
        living = [note for rank, note in sorted(self._notes.items()) if not self._is_quiet(rank)]
        size = max([self.size, *(note.size for note in living)])
        missing = sorted(set(range(size)) - self._notes.keys())
        waited_for = [
            f"{note.who}, which has given no sign for {self.now_s - self._signs_s[note.rank]:.0f} s" for note in quiet
        ]
        if missing:
            waited_for.append(f"{_ranks(missing)} to start")
        parts = []
        if not living:
            parts.append(f"waiting for {'; '.join(waited_for) or 'workers'}")
        for what in dict.fromkeys(note.what for note in living):
            parts.append(f"{_ranks([note.rank for note in living if note.what == what])}: {what}")
        if living and waited_for:
            parts[-1] += f", waiting for {'; '.join(waited_for)}"
        if lost_nodes:
            parts.append(f"no connection to node(s) {', '.join(lost_nodes)}")
        if supply:
            parts.append(supply)
        return f"nothing has moved for {self.now_s - self._moved_s:.0f} s: {'; '.join(parts)}"

    def _is_quiet(self, rank: int) -> bool:
        return self.now_s - self._signs_s[rank] > NO_SIGN_S


def _ranks(ranks: Sequence[int], most: int = 8) -> str:
    if len(ranks) == 1:
        return f"rank {ranks[0]}"
    shown = ", ".join(map(str, ranks[:most]))
    return f"ranks {shown}" + (f" and {len(ranks) - most} more" if len(ranks) > most else "")


def size_of(file: Path) -> int:
    """Bytes of a file; 0 if it does not exist."""
    return file.stat().st_size if file.exists() else 0


class Lines:
    """Follows a growing file from its current end."""

    def __init__(self, file: Path):
        self._file = file
        self._offset = size_of(file)

    def new(self) -> list[str]:
        """The complete lines that were appended since the last call."""
        if not self._file.exists():
            return []
        with open(self._file, "rb") as file:
            file.seek(self._offset)
            complete, newline, _ = file.read().rpartition(b"\n")
        self._offset += len(complete + newline)
        # Decoded only now: a character may be half written, and user code may print bytes that are no text.
        return complete.decode(errors="replace").split("\n") if newline else []


def warnings(lines: Sequence[str], most: int = 3, most_below: int = 16) -> list[str]:
    """The first `most` warnings and errors in lines of a log, each with up to `most_below` lines below it."""
    found: list[list[str]] = []
    belongs = False
    for line in lines:
        head = _RECORD.match(line)
        if head:
            belongs = head["level"] in ("WARNING", "ERROR")
            if belongs:
                found.append([head["message"]])
        elif belongs:
            found[-1].append(line)
    shown = ["\n".join(each[: 1 + most_below]) for each in found[:most]]
    return shown + ([f"and {len(found) - most} more warnings"] if len(found) > most else [])
