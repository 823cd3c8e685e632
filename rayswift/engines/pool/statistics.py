"""Counts of the pool since its start, and its present state in numbers."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from rayswift.engines.pool.membership import State
from rayswift.engines.pool.replica import Replica

_COUNTED = ("requests", "tokens", "resumed_tokens", "regenerated_tokens", "moved", "lost", "failed")


@dataclass(frozen=True)
class PoolStatistics:
    """Counts since the start, then the present state.

    requests, tokens: answered, and their tokens; resumed_tokens: how many of those are of engines that were lost or
    left; regenerated_tokens: tokens lost with their engine; moved: requests that went to another engine; lost: engines;
    failed: requests; serving: engines with weights, the current ones or older ones that still serve; joining: engines
    without weights; suspect: that do not answer; draining: that leave; queued, running: requests without and with an
    engine.
    """

    requests: int
    tokens: int
    resumed_tokens: int
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


def statistics(counts: Mapping[str, int], replicas: Collection[Replica], num_unfinished: int) -> PoolStatistics:
    """Make the statistics from counts since the start, the engines, and the number of unanswered requests."""
    statuses = [replica.status for replica in replicas if replica.status.alive]
    staying = [status for status in statuses if not status.draining]
    suspect = sum(status.state is State.SUSPECT for status in staying)
    joining = sum(status.version is None and status.state is not State.SUSPECT for status in staying)
    running = sum(len(replica.works) for replica in replicas)
    return PoolStatistics(
        **{name: counts[name] for name in _COUNTED},
        serving=len(staying) - joining - suspect,
        joining=joining,
        suspect=suspect,
        draining=len(statuses) - len(staying),
        queued=max(0, num_unfinished - running),
        running=running,
    )
