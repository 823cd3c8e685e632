"""Who waits for whom: each rank notes what it does, and the driver says so when nothing has moved for a while.

Notes are small files beside the logs, `logs/rank-0.note`, refreshed for as long as the rank's process lives. They need
no clock that machines share: the driver only sees that they change.
"""

import contextlib
import json
import re
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

_SIGN_S = 5.0
"""A living rank gives a sign as often."""
_WRITE_S = 1.0
NO_SIGN_S = 20.0
"""Behind so long without a sign a rank is spoken of as lost."""
SAY_S = 30.0
"""What lasts so long without any movement is said, and again as often."""
_STEP = re.compile(r"\bstep \d")
_RECORD = re.compile(r"\d\d:\d\d:\d\d \S+ (?P<level>[A-Z]+) (?P<message>.*)")


@dataclass(frozen=True)
class Note:
    """What a rank was doing last. address: of its node; number: higher with every sign."""

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
    """A rank's notes; a thread writes them, so that a rank that hangs still gives signs, and no step waits.

    Args:
        log_dir: `logs` of the run folder.
        rank, size: Whose.
        address: Of its node.
    """

    def __init__(self, log_dir: Path, rank: int, size: int, address: str):
        self._file = log_dir / f"rank-{rank}.note"
        self._note = Note(rank, size, address, "starts", time.time_ns())
        self._changed, self._ended = threading.Event(), threading.Event()
        if rank == 0:  # of a group before that had more ranks
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
        """Give no more signs, and take back the last."""
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
        partial = self._file.with_suffix(".note-partial")
        with contextlib.suppress(OSError):  # a full disk ends the run elsewhere
            partial.write_text(json.dumps(asdict(self._note)), encoding="utf-8")
            partial.replace(self._file)


def unnoted(what: str) -> None:
    """For ranks whose waiting nobody watches."""


def clear(log_dir: Path) -> None:
    """Remove the notes of launches before."""
    for file in _files(log_dir).values():
        file.unlink(missing_ok=True)


def read(log_dir: Path) -> dict[int, Note]:
    """The last note of each rank."""
    found = {}
    for rank, file in _files(log_dir).items():
        with contextlib.suppress(OSError, ValueError, TypeError):  # it may be replaced while it is read
            found[rank] = Note(**json.loads(file.read_text(encoding="utf-8")))
    return found


def _files(log_dir: Path) -> dict[int, Path]:
    return {int(file.stem.partition("-")[2]): file for file in sorted(log_dir.glob("rank-*.note"))}


@dataclass
class Waiting:
    """What the driver has seen; pure.

    now_s: when it begins to look, by any clock; size: ranks that the group is to have, at least.
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
        """Take in how things stand.

        While ranks are at a step, work that goes on is no reason for a line: steps are shown as often as the user
        asked. Before, and between two groups of workers, only what is shown is a sign to whoever looks on.

        Args:
            now_s: By the same clock.
            notes: Of the ranks.
            moved: Anything that differs when something has moved.
            shown: Anything that differs when the screen has shown something.
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
        """Seconds since any rank gave a sign, or since the look-out began."""
        return self.now_s - self._alive_s

    def begin_anew(self, now_s: float) -> None:
        """Count from now on: what was waited for has come."""
        self._alive_s = self.now_s = now_s

    def due(self) -> bool:
        """Whether something must be said: a rank was lost, or all was silent for so long, or again."""
        if self.now_s - self._said_s < SAY_S and not self._has_lost:
            return False
        self._said_s, self._has_lost = self.now_s, False
        return True

    def describe(self, supply: str, lost_nodes: Sequence[str] = ()) -> str:
        """Who waits for whom, in a line.

        Args:
            supply: What supplies the batches says of itself.
            lost_nodes: Addresses of nodes that take no connection.
        """
        quiet = [note for rank, note in sorted(self._notes.items()) if self._is_quiet(rank)]
        living = [note for rank, note in sorted(self._notes.items()) if not self._is_quiet(rank)]
        size = max([self.size, *(note.size for note in living)])
        missing = sorted(set(range(size)) - self._notes.keys())
        waited_for = [f"{note.who}, which has given no sign for {self._quiet_s(note):.0f} s" for note in quiet]
        if missing:
            waited_for.append(f"{_ranks(missing)} to start")
        parts = []
        if not living:
            parts.append(f"waiting for {'; '.join(waited_for) or 'workers'}")
        for what, ranks in _by_what(living).items():
            parts.append(f"{_ranks(ranks)}: {what}")
        if living and waited_for:
            parts[-1] += f", waiting for {'; '.join(waited_for)}"
        if lost_nodes:
            parts.append(f"no connection to node(s) {', '.join(lost_nodes)}")
        if supply:
            parts.append(supply)
        return f"nothing has moved for {self.now_s - self._moved_s:.0f} s: {'; '.join(parts)}"

    def _is_quiet(self, rank: int) -> bool:
        return self.now_s - self._signs_s[rank] > NO_SIGN_S

    def _quiet_s(self, note: Note) -> float:
        return self.now_s - self._signs_s[note.rank]


def _by_what(notes: Sequence[Note]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for note in notes:
        found.setdefault(note.what, []).append(note.rank)
    return found


def _ranks(ranks: Sequence[int], most: int = 8) -> str:
    if len(ranks) == 1:
        return f"rank {ranks[0]}"
    shown = ", ".join(map(str, ranks[:most]))
    return f"ranks {shown}" + (f" and {len(ranks) - most} more" if len(ranks) > most else "")


def size_of(file: Path) -> int:
    """Bytes of a file; 0 if it is not there."""
    return file.stat().st_size if file.exists() else 0


class Lines:
    """The complete lines that are new in a file, from its end on."""

    def __init__(self, file: Path):
        self._file = file
        self._offset = size_of(file)

    def new(self) -> list[str]:
        """Those since the last call."""
        if not self._file.exists():
            return []
        with open(self._file, "rb") as file:
            file.seek(self._offset)
            complete, newline, _ = file.read().rpartition(b"\n")
        self._offset += len(complete + newline)
        # Bytes until here: a letter may be half written, and what user code prints into the file need be no text.
        return complete.decode(errors="replace").split("\n") if newline else []


def warnings(lines: Sequence[str], most: int = 3, most_below: int = 16) -> list[str]:
    """Warnings and errors of a log's new lines, each with what stands below it; of many the first."""
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
