"""Counts of the pool since its start, and its present state in numbers."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from rayswift.engines.pool.membership import State
from rayswift.engines.pool.replica import Seat

_COUNTED = ("requests", "tokens", "salvaged_tokens", "regenerated_tokens", "moved", "lost", "failed")


@dataclass(frozen=True)
class PoolStatistics:
    """Counts since the start, then the present state.

    requests, tokens: answered, and their tokens; salvaged_tokens: how many of those are of engines that were lost or
    left; regenerated_tokens: tokens lost with their engine; moved: requests that went to another engine; lost: engines;
    failed: requests; serving: engines with weights, the current ones or older ones that still serve; joining: engines
    without weights; suspect: that do not answer; draining: that leave; queued, running: requests without and with an
    engine.
    """

    requests: int
    tokens: int
    salvaged_tokens: int
    regenerated_tokens: int
    moved: int
    lost: int
    failed: int
    serving: int
    joining: int
    suspect: int
    draining: int
    queued: int
    running: int


def statistics(counts: Mapping[str, int], seats: Collection[Seat], num_unfinished: int) -> PoolStatistics:
    """Make the statistics from counts since the start, the engines, and the number of unanswered requests."""
    members = [seat.member for seat in seats if seat.member.alive]
    staying = [member for member in members if not member.draining]
    suspect = sum(member.state is State.SUSPECT for member in staying)
    joining = sum(member.version is None and member.state is not State.SUSPECT for member in staying)
    running = sum(len(seat.works) for seat in seats)
    return PoolStatistics(
        **{name: counts[name] for name in _COUNTED},
        serving=len(staying) - joining - suspect,
        joining=joining,
        suspect=suspect,
        draining=len(members) - len(staying),
        queued=max(0, num_unfinished - running),
        running=running,
    )
