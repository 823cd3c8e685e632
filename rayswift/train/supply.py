"""What supplies the workers with batches, as launching them sees it: the feed of rows, or the rollout plane."""

from collections.abc import Callable
from typing import Any, Protocol


class SupplyClient(Protocol):
    """How a rank reaches it; what it serves is between it and the task's stream."""

    def new_attempt(self) -> int:
        """A number for this worker group, higher than those of all groups before."""

    def begin(self, attempt: int, start: Any) -> None:
        """Serve from here on: a `Position` of rows, or a `LedgerSnapshot` of prompts."""


Connect = Callable[[int, int], SupplyClient]
"""(rank, size) -> the client of a rank, in its process."""


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
