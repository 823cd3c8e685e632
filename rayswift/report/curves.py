"""`metrics.jsonl` -> curves of bounded size, read as the file grows."""

import json
import math
import os
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path

MAX_BUCKETS = 320
_RECENT = 20
_CHUNK_BYTES = 1 << 20


@dataclass(slots=True)
class Bucket:
    """Neighbouring values: step of the last one, minimum, maximum, sum."""

    step: int
    low: float
    high: float
    total: float
    count: int = 1

    @property
    def mean(self) -> float:
        return self.total / self.count


@dataclass
class Curve:
    """A metric over the steps, in at most `MAX_BUCKETS` buckets.

    broken: number of values that were not finite; first_broken: step of the first; recent: the newest finite values.
    """

    buckets: list[Bucket] = field(default_factory=list)
    broken: int = 0
    first_broken: int | None = None
    recent: deque[float] = field(default_factory=lambda: deque(maxlen=_RECENT))
    _width: int = 1

    def add(self, step: int, value: float) -> None:
        if not math.isfinite(value):
            self.first_broken = step if self.first_broken is None else self.first_broken
            self.broken += 1
            return
        self.recent.append(value)
        last = self.buckets[-1] if self.buckets else None
        if last and last.count < self._width:
            _merge(last, Bucket(step, value, value, value))
            return
        if len(self.buckets) == MAX_BUCKETS:
            for even, odd in zip(self.buckets[::2], self.buckets[1::2], strict=True):
                _merge(even, odd)
            del self.buckets[1::2]
            self._width *= 2
        self.buckets.append(Bucket(step, value, value, value))

    @property
    def last(self) -> float | None:
        return self.recent[-1] if self.recent else None

    @property
    def recent_mean(self) -> float | None:
        return sum(self.recent) / len(self.recent) if self.recent else None


def _merge(into: Bucket, other: Bucket) -> None:
    into.step = other.step
    into.low, into.high = min(into.low, other.low), max(into.high, other.high)
    into.total += other.total
    into.count += other.count


class MetricsFile:
    """Follows a `metrics.jsonl`, which need not exist yet."""

    def __init__(self, path: Path):
        self._path = path
        self._inode, self._offset = 0, 0
        self.curves: dict[str, Curve] = {}
        self.step = 0

    def read(self) -> None:
        """Read new lines; all lines if the file was replaced."""
        if not self._path.exists():
            return
        with open(self._path, "rb") as file:
            stat = os.fstat(file.fileno())
            if stat.st_ino != self._inode or stat.st_size < self._offset:
                self._inode, self._offset, self.curves, self.step = stat.st_ino, 0, {}, 0
            file.seek(self._offset)
            while chunk := file.readlines(_CHUNK_BYTES):
                for line in chunk:
                    if not line.endswith(b"\n"):
                        return  # still being written
                    self._offset += len(line)
                    self._add(line)

    def _add(self, line: bytes) -> None:
        try:
            entry = json.loads(line)
            self.step = step = int(entry.pop("step"))
        except (ValueError, KeyError, TypeError, AttributeError):
            return  # cut off by a kill
        for name, value in entry.items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                self.curves.setdefault(name, Curve()).add(step, float(value))
