"""Who is in the pool, in what state, and who joins or leaves when their number changes; pure.

An engine's state follows from what is known of it, so that none can be healthy without the current weights:

    STARTING -> SYNCING <-> HEALTHY     started; a version is published, loaded
                   |           |
                   +- SUSPECT -+        it has not answered for a while; back when it answers
                        |
    any state ------> DEAD              it failed, or was silent for too long; for good
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum

from rayswift.rollout.samples import PolicyVersion


class State(Enum):
    """STARTING: no weights could be loaded yet; SYNCING: not with the current weights; SUSPECT: silent."""

    STARTING = "starting"
    SYNCING = "syncing"
    HEALTHY = "healthy"
    SUSPECT = "suspect"
    DEAD = "dead"


@dataclass(frozen=True)
class Member:
    """What is known of an engine.

    placed: its process runs; started: it can load weights; version: of the weights it holds; current: published last;
    silent: an answer is overdue; draining: it is to leave, and takes no new requests; died: why it is dead.
    """

    placed: bool = False
    started: bool = False
    version: PolicyVersion | None = None
    current: PolicyVersion | None = None
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
        if self.silent:
            return State.SUSPECT
        return State.HEALTHY if self.version and self.version == self.current else State.SYNCING

    @property
    def alive(self) -> bool:
        """Whether it is not dead."""
        return self.died is None

    def takes(self, min_step: int) -> bool:
        """Whether a request may go to it that wants weights behind at least `min_step` rounds.

        An engine that has yet to load the current weights serves as long as its own are of the same worker group
        and new enough.
        """
        if self.draining or self.state not in (State.SYNCING, State.HEALTHY):
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
        elif self.state is State.SYNCING:
            text += f" (has {_name(self.version)}, current {_name(self.current)})"
        return text + (", draining" if self.draining else "")


def _name(version: PolicyVersion | None) -> str:
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
