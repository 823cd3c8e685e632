"""The feed of rows as a run's supply."""

from functools import partial
from typing import Any

from rayswift.data.feed.client import ActorFeed, FeedClient
from rayswift.data.feed.feed import DRIVERS_ATTEMPT, Feed
from rayswift.data.feed.pipeline import stream_windows
from rayswift.data.sequence.global_batches import Position
from rayswift.data.sequence.windows import Windows
from rayswift.launch.supply import beside_the_driver
from rayswift.train.spec import Connect, RunSpec, SupplyClient


class FeedSupply:
    """See `supply.Supply`.

    Args:
        spec: The run.
        windows: How to make a window of training rows.
        eval_windows: The same for evaluation rows, or None.
        position: Where training begins.
    """

    def __init__(self, spec: RunSpec, windows: Windows, eval_windows: Windows | None, position: Position):
        self._feed_of = (windows, eval_windows, spec.feed_plan, str(spec.run_dir / "data"), stream_windows)
        self._position = position
        self._num_workers, self._timeout_s = spec.layout.num_workers, spec.config.cluster.timeout_s
        self._actor: Any = None
        self._feed: Feed | None = None

    def start(self, name: str) -> Connect:
        """See Supply."""
        import ray

        # A place for all that ranks may wait for at once (a step, the one behind it, evaluation rows), and for others.
        num_threads = 3 * self._num_workers + 4
        self._actor = (
            ray.remote(Feed)
            .options(
                name=name,
                num_cpus=0,
                max_restarts=3,
                max_concurrency=num_threads,
                scheduling_strategy=beside_the_driver(),
            )
            .remote(*self._feed_of)
        )
        self._actor.begin.remote(DRIVERS_ATTEMPT, self._position)  # the first window is encoded meanwhile
        return partial(_connect, name, self._timeout_s)

    def start_here(self) -> SupplyClient:
        """See Supply."""
        self._feed = Feed(*self._feed_of)
        self._feed.begin(DRIVERS_ATTEMPT, self._position)
        return FeedClient(self._feed, self._timeout_s)

    def progress(self) -> tuple[int, float]:
        """See Supply."""
        if self._feed is not None:
            return self._feed.progress()
        import ray

        progress: tuple[int, float] = ray.get(self._actor.progress.remote(), timeout=5)
        return progress

    def standing(self) -> tuple[object, str]:
        """See Supply."""
        if self._feed is not None:
            return self._feed.standing()
        import ray

        standing: tuple[object, str] = ray.get(self._actor.standing.remote(), timeout=5)
        return standing

    def close(self) -> None:
        """See Supply; an actor ends with its driver."""
        if self._feed is not None:
            self._feed.close()


def _connect(name: str, timeout_s: float, rank: int, size: int) -> SupplyClient:
    return ActorFeed(name, rank, size, timeout_s)
