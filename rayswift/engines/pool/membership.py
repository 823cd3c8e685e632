"""Who is in the pool, in what state, and who joins or leaves when their number changes; pure.

An engine's state follows from what is known of it, so that none can be healthy without the current weights:

    STARTING -> SYNCING <-> LOADING -> HEALTHY     started; a version is published; it takes it over; has it
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
    """STARTING: no weights could be loaded yet; SYNCING: not with the current weights; LOADING: takes over weights, and
    may not answer meanwhile; SUSPECT: silent."""

    STARTING = "starting"
    SYNCING = "syncing"
    LOADING = "loading"
    HEALTHY = "healthy"
    SUSPECT = "suspect"
    DEAD = "dead"


@dataclass(frozen=True)
class Member:
    """What is known of an engine.

    placed: its process runs; started: it can load weights; version: of the weights it holds, None: of none; current:
    published last; loading: those that it takes over; silent: an answer is overdue; draining: it is to leave, and takes
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
        """See the module."""
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
        """Whether all that it lacks to serve is that weights are published."""
        return self.state is State.SYNCING and self.current is None

    @property
    def is_coming(self) -> bool:
        """Whether it is on the way to its weights, with a deadline for what it does."""
        return self.placed and not self.draining and self.state in (State.STARTING, State.LOADING)

    def takes(self, min_step: int) -> bool:
        """Whether a request may go to it that wants weights behind at least `min_step` rounds.

        An engine that has yet to load the current weights serves as long as its own are of the same worker group
        and new enough.
        """
        if self.draining or self.silent or self.state not in (State.SYNCING, State.LOADING, State.HEALTHY):
            return False
        if self.version is None or self.current is None or self.version.attempt != self.current.attempt:
            return False
        return self.version.step >= min_step

    def has_loaded(self, version: PolicyVersion) -> "Member":
        """It holds these weights."""
        assert self.started, "weights before the engine"
        return replace(self, version=version)

    def has_died(self, why: str) -> "Member":
        """It is dead; the first reason stays."""
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
    """`version 3 of attempt 1`."""
    return "no weights" if version is None else f"version {version.step} of attempt {version.attempt}"


@dataclass(frozen=True)
class Change:
    """What brings the pool to its wanted size: `start` new engines, and members by name."""

    start: int = 0
    drain: tuple[str, ...] = ()
    keep: tuple[str, ...] = ()


def change(members: Sequence[tuple[str, Member]], wanted: int) -> Change:
    """What to do for `wanted` engines that do not drain.

    The last to come are the first to leave, those that do not serve yet before all others; an engine that drains is
    kept rather than a new one started.

    Args:
        members: In the order in which they came; dead ones count for nothing.
        wanted: At least 0.
    """
    alive = [(name, member) for name, member in members if member.alive]
    staying = [(name, member) for name, member in alive if not member.draining]
    missing = wanted - len(staying)
    if missing >= 0:
        draining = [name for name, member in alive if member.draining]
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
    """Tells a run whose engines can never serve from a bad node, by the engines that were lost before they did; pure.

    An engine has joined when it has loaded weights. Those that are started when others have failed are of a later
    generation; where these fail as well, and for the same reason, there is nothing left to hope for.

    Args:
        most: Failures in a row that end the hope, whatever their reasons.
        most_alike: The same for one reason.
    """

    def __init__(self, most: int, most_alike: int):
        self._most, self._most_alike = most, most_alike
        self._failures: list[_Failure] = []
        self.generation = 0
        """Of an engine that is started now."""

    @property
    def num_failed(self) -> int:
        """Engines in a row that were lost before they had joined."""
        return len(self._failures)

    @property
    def backoff_s(self) -> float:
        """Until another one is started: longer with each generation."""
        return min(_LONGEST_BACKOFF_S, 2.0 ** (len({failure.generation for failure in self._failures}) - 2))

    def joined(self) -> None:
        """An engine has loaded the current weights."""
        self._failures.clear()

    def failed(self, generation: int, why: str) -> None:
        """An engine was lost before it had."""
        # A process, a node or a time in it tells two engines apart, not two reasons.
        why = why.partition("\n")[0]
        self._failures.append(_Failure(generation, why, re.sub(r"\b(?=\w*\d)\w+", "#", why)))
        self.generation = max(self.generation, generation + 1)

    def __str__(self) -> str:
        """For people; empty where the last engine that came has joined."""
        if not self._failures:
            return ""
        return f"{self.num_failed} in a row were lost before they served, the last: {self._failures[-1].why}"

    def hopeless(self, others: Sequence[tuple[int, Member]]) -> bool:
        """Whether no engine will ever serve.

        Args:
            others: The engines that are there, with their generation.
        """
        alive = [(generation, member) for generation, member in others if member.alive and member.placed]
        if not self._failures or any(member.version or member.awaits_weights for _, member in alive):
            return False
        last = self._failures[-1]
        if any(generation < last.generation and not member.draining for generation, member in alive):
            return False
        alike = [failure for failure in self._failures if failure.alike == last.alike]
        return any(
            len(failures) >= most and len({failure.generation for failure in failures}) >= min(2, most)
            for failures, most in ((self._failures, self._most), (alike, self._most_alike))
        )


class Left(Exception):
    """An engine has drained, and ends without a loss."""


def why_lost(error: BaseException) -> tuple[str | None, bool]:
    """Why an engine is lost, None if it has left; and whether its last lines may tell more.

    error: what ended it; of a group of tasks the first counts, the others were cancelled for it.
    """
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, Left):
        return None, False
    if isinstance(error, UserError):  # which quotes them itself
        return str(error), False
    return str(error) if isinstance(error, EngineLost) else f"{type(error).__name__}: {error}", True
