"""What the pool has done, and how it stands, in numbers."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from rayswift.engines.pool.membership import State
from rayswift.engines.pool.replica import Seat

_COUNTED = ("requests", "tokens", "salvaged_tokens", "regenerated_tokens", "moved", "lost", "failed")


@dataclass(frozen=True)
class PoolStatistics:
    """Counts since the start, then how things stand.

    requests, tokens: answered, and their tokens; salvaged_tokens: of those, kept from engines that were lost or left;
    regenerated_tokens: made, and lost with their engine; moved: requests that went to another engine; lost: engines;
    failed: requests; serving: engines that hold weights, the current ones or such as they are about to replace;
    joining: that hold none yet; suspect: that do not answer; draining: that leave; queued, running: requests without
    and with an engine.
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
    """Of a pool's counts since its start, its engines, and the number of requests that are not answered."""
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
