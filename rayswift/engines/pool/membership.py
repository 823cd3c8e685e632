"""The engines of the pool, their states, and which of them join or leave when their number changes; pure.

The state of an engine is derived from facts, so no engine can be healthy without the current weights:

    STARTING -> SYNCING <-> LOADING -> HEALTHY     starts; lacks the current weights; loads them; has them
                   |                      |
                   +------- SUSPECT ------+        it has not answered for a while; back when it answers
                               |
    any state -------------> DEAD                  it failed, or was silent for too long; for good
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum

from rayswift.engines.engine import EngineLost
from rayswift.engines.samples import PolicyVersion
from rayswift.log import UserError

_LONGEST_BACKOFF_S = 60.0


class State(Enum):
    """STARTING: cannot load weights yet; SYNCING: lacks the current weights; LOADING: loads weights, and
    may not answer meanwhile; SUSPECT: silent."""

    STARTING = "starting"
    SYNCING = "syncing"
    LOADING = "loading"
    HEALTHY = "healthy"
    SUSPECT = "suspect"
    DEAD = "dead"


@dataclass(frozen=True)
class ReplicaStatus:
    """The facts about an engine.

    placed: its process runs; started: it can load weights; version: of its weights, None: it has none; current: the
    newest version; loading: the version that it loads; silent: an answer is overdue; draining: it will leave, and gets
    no new requests; died: why it is dead.
    """

    placed: bool = False
    started: bool = False
    version: PolicyVersion | None = None
    current: PolicyVersion | None = None
    loading: PolicyVersion | None = None
    silent: bool = False
    draining: bool = False
    died: str | None = None

    @property
    def state(self) -> State:
        """Return the state; see the module."""
        if self.died is not None:
            return State.DEAD
        if not self.started:
            return State.STARTING
        if self.loading is not None:
            return State.LOADING
        if self.silent:
            return State.SUSPECT
        return State.HEALTHY if self.version and self.version == self.current else State.SYNCING

    @property
    def alive(self) -> bool:
        """Whether it is not dead."""
        return self.died is None

    @property
    def awaits_weights(self) -> bool:
        """Whether it could serve if weights were published."""
        return self.state is State.SYNCING and self.current is None

    @property
    def is_coming(self) -> bool:
        """Whether it starts or loads weights, within a deadline."""
        return self.placed and not self.draining and self.state in (State.STARTING, State.LOADING)

    def takes(self, min_step: int) -> bool:
        """Whether it may get a request that needs weights of at least `min_step` rounds.

        An engine without the current weights serves as long as its weights are of the same worker group
        and new enough.
        """
        if self.draining or self.silent or self.state not in (State.SYNCING, State.LOADING, State.HEALTHY):
            return False
        if self.version is None or self.current is None or self.version.attempt != self.current.attempt:
            return False
        return self.version.step >= min_step

    def has_loaded(self, version: PolicyVersion) -> "ReplicaStatus":
        """Note that it has loaded these weights."""
        assert self.started, "weights before the engine"
        return replace(self, version=version)

    def has_died(self, why: str) -> "ReplicaStatus":
        """Note that it is dead; the first reason is kept."""
        return self if self.died is not None else replace(self, died=why)

    def __str__(self) -> str:
        """`syncing (version 1.4, current 1.5), draining`, for people."""
        text = self.state.value
        if self.state is State.DEAD:
            return f"{text}: {self.died}"
        if self.state is State.STARTING and not self.placed:
            text = "waiting for a place in the cluster"
        elif self.state is State.LOADING:
            text += f" {name_of(self.loading)}"
        elif self.state is State.SYNCING:
            text += f" (has {name_of(self.version)}, current {name_of(self.current)})"
        return text + (", draining" if self.draining else "")


def name_of(version: PolicyVersion | None) -> str:
    """Return a version's name: `version 3 of attempt 1`."""
    return "no weights" if version is None else f"version {version.step} of attempt {version.attempt}"


@dataclass(frozen=True)
class Change:
    """The changes that bring the pool to its wanted size: `start` new engines, and statuses by name."""

    start: int = 0
    drain: tuple[str, ...] = ()
    keep: tuple[str, ...] = ()


def change(statuses: Sequence[tuple[str, ReplicaStatus]], wanted: int) -> Change:
    """Return what to start, drain or keep, so that `wanted` engines stay.

    The newest engines leave first, and before them those that do not serve yet. A draining engine is kept before a new
    one is started.

    Args:
        statuses: In the order of their start; dead ones are ignored.
        wanted: At least 0.
    """
    alive = [(name, status) for name, status in statuses if status.alive]
    staying = [(name, status) for name, status in alive if not status.draining]
    missing = wanted - len(staying)
    if missing >= 0:
        draining = [name for name, status in alive if status.draining]
        keep = tuple(draining[:missing])
        return Change(start=missing - len(keep), keep=keep)
    order = sorted(range(len(staying)), key=lambda i: (staying[i][1].version is None, i), reverse=True)
    return Change(drain=tuple(staying[i][0] for i in order[:-missing]))


@dataclass(frozen=True)
class _Failure:
    generation: int
    why: str
    alike: str


class Joins:
    """Decides from engines lost before they served whether the run or only a node is broken; pure.

    An engine has joined when it has loaded weights. Engines that are started after others have failed are of a later
    generation; if these fail too, for the same reason, no engine will ever serve.

    Args:
        most: Failures in a row, for any reasons, after which the run ends.
        most_alike: The same, for failures with one reason.
    """

    def __init__(self, most: int, most_alike: int):
        self._most, self._most_alike = most, most_alike
        self._failures: list[_Failure] = []
        self.generation = 0
        """The generation of an engine that is started now."""

    @property
    def num_failed(self) -> int:
        """Number of engines in a row that were lost before they joined."""
        return len(self._failures)

    @property
    def backoff_s(self) -> float:
        """Return the seconds until another engine is started: more with each generation."""
        return min(_LONGEST_BACKOFF_S, 2.0 ** (len({failure.generation for failure in self._failures}) - 2))

    def joined(self) -> None:
        """Note that an engine has loaded the current weights."""
        self._failures.clear()

    def failed(self, generation: int, why: str) -> None:
        """Note that an engine was lost before it joined."""
        # Two reasons are equal if they differ only in a process, a node or a time.
        why = why.partition("\n")[0]
        self._failures.append(_Failure(generation, why, re.sub(r"\b(?=\w*\d)\w+", "#", why)))
        self.generation = max(self.generation, generation + 1)

    def __str__(self) -> str:
        """Describe the failures; empty if the last engine has joined."""
        if not self._failures:
            return ""
        return f"{self.num_failed} in a row were lost before they served, the last: {self._failures[-1].why}"

    def hopeless(self, others: Sequence[tuple[int, ReplicaStatus]]) -> bool:
        """Whether no engine will ever serve.

        Args:
            others: The present engines, with their generation.
        """
        alive = [(generation, status) for generation, status in others if status.alive and status.placed]
        if not self._failures or any(status.version or status.awaits_weights for _, status in alive):
            return False
        last = self._failures[-1]
        if any(generation < last.generation and not status.draining for generation, status in alive):
            return False
        alike = [failure for failure in self._failures if failure.alike == last.alike]
        return any(
            len(failures) >= most and len({failure.generation for failure in failures}) >= min(2, most)
            for failures, most in ((self._failures, self._most), (alike, self._most_alike))
        )


class Left(Exception):
    """An engine has drained and ends; nothing is lost."""


def why_lost(error: BaseException) -> tuple[str | None, bool]:
    """Return why an engine is lost, None if it has left, and whether its last log lines may explain it.

    error: the exception that ended it; in a group of exceptions the first counts, it cancelled the others.
    """
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, Left):
        return None, False
    if isinstance(error, UserError):  # which quotes them itself
        return str(error), False
    return str(error) if isinstance(error, EngineLost) else f"{type(error).__name__}: {error}", True
