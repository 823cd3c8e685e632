"""The services that supply batches, as the driver sees them: `RowService` here, rollouts in `rollout_supply`."""

from functools import partial
from typing import Any, Protocol

from rayswift.data.feed.client import ActorFeed, FeedClient
from rayswift.data.feed.feed import DRIVERS_ATTEMPT, Feed
from rayswift.data.feed.pipeline import stream_windows
from rayswift.data.sequence.global_batches import Position
from rayswift.data.sequence.windows import Windows
from rayswift.train.spec import Connect, DataServiceClient, RunSpec


class DataService(Protocol):
    """Supplies batches. The driver owns it, so it outlives worker groups."""

    def start(self, name: str) -> Connect:
        """Start an actor of this name; it prepares the first batch while the workers start."""

    def start_here(self) -> DataServiceClient:
        """Start it for the worker of this process."""

    def progress(self) -> tuple[int, float]:
        """The current step, and the passes over the data before it; for display."""

    def standing(self) -> tuple[object, str]:
        """A value that changes with progress, and what the service waits for; for display."""

    def close(self) -> None: ...


class RowService:
    """The feed of rows. eval_windows: of evaluation rows, if there are any; position: where training begins."""

    def __init__(self, spec: RunSpec, windows: Windows, eval_windows: Windows | None, position: Position):
        self._feed_of = (windows, eval_windows, spec.feed_plan, str(spec.run_dir / "data"), stream_windows)
        self._position = position
        self._num_workers, self._timeout_s = spec.layout.num_workers, spec.config.cluster.timeout_s
        self._actor: Any = None
        self._feed: Feed | None = None

    def start(self, name: str) -> Connect:
        import ray

        # Each rank may wait for three things at once: a step, the next one, evaluation rows; others ask too.
        num_threads = 3 * self._num_workers + 4
        actor = ray.remote(Feed).options(
            name=name,
            num_cpus=0,
            max_restarts=3,
            max_concurrency=num_threads,
            scheduling_strategy=beside_the_driver(),
        )
        self._actor = actor.remote(*self._feed_of)
        self._actor.begin.remote(DRIVERS_ATTEMPT, self._position)  # encodes the first window
        return partial(ActorFeed, name, timeout_s=self._timeout_s)

    def start_here(self) -> DataServiceClient:
        self._feed = Feed(*self._feed_of)
        self._feed.begin(DRIVERS_ATTEMPT, self._position)
        return FeedClient(self._feed, self._timeout_s)

    def progress(self) -> tuple[int, float]:
        if self._feed is not None:
            return self._feed.progress()
        import ray

        progress: tuple[int, float] = ray.get(self._actor.progress.remote(), timeout=5)
        return progress

    def standing(self) -> tuple[object, str]:
        if self._feed is not None:
            return self._feed.standing()
        import ray

        standing: tuple[object, str] = ray.get(self._actor.standing.remote(), timeout=5)
        return standing

    def close(self) -> None:
        if self._feed is not None:  # an actor ends with its driver
            self._feed.close()


def beside_the_driver() -> Any:
    """The driver's node, for actors that must end with the run."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
