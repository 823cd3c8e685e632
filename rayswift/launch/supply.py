"""What supplies the workers with batches, as launching them sees it: the feed of rows, or the rollout plane."""

from typing import Any, Protocol

from rayswift.train.spec import Connect, SupplyClient


class Supply(Protocol):
    """Owned by the driver, it outlives worker groups."""

    def start(self, name: str) -> Connect:
        """Start it as an actor of this name, and have it prepare the first batch while the workers start."""

    def start_here(self) -> SupplyClient:
        """The same for the worker of this process."""

    def progress(self) -> tuple[int, float]:
        """The step that is being trained, and the passes over the data done before it; for display."""

    def standing(self) -> tuple[object, str]:
        """Anything that differs when it has got further, and whom or what it waits for, for display."""

    def close(self) -> None:
        """End it."""


def beside_the_driver() -> Any:
    """Where actors go whose end is the run's: the driver's node; `soft` would let them go anywhere."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
