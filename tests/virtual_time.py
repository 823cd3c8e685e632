"""An event loop whose clock jumps to the next event: hours of waiting pass at once, and every run is the same.

For code that waits only through asyncio, with engines simulated in the same loop. While a thread of the loop
runs, the clock stands still.
"""

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


_THREAD_S = 1.0


class _Jump(selectors.DefaultSelector):
    now = 0.0
    num_threads = 0

    def select(self, timeout: float | None = None) -> list[Any]:
        if self.num_threads:
            return super().select(0 if timeout == 0 else _THREAD_S)  # its end is an event
        if timeout is None:
            raise RuntimeError("everything waits, and nothing is due")
        self.now += max(0.0, timeout)
        return super().select(0)


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """See the module."""

    def __init__(self) -> None:
        self._jump = _Jump()
        super().__init__(self._jump)

    def run_in_executor(self, executor: Any, func: Any, *args: Any) -> Any:
        """Run in a thread, and note that a thread is at work."""
        self._jump.num_threads += 1
        future = super().run_in_executor(executor, func, *args)
        future.add_done_callback(self._ended)
        return future

    async def shutdown_default_executor(self, timeout: float | None = None) -> None:
        """Shut down; this also waits for a thread."""
        self._jump.num_threads += 1
        try:
            await super().shutdown_default_executor()
        finally:
            self._jump.num_threads -= 1

    def _ended(self, _: Any) -> None:
        self._jump.num_threads -= 1

    def time(self) -> float:
        """Virtual seconds since the loop was created."""
        return self._jump.now


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """As `asyncio.run`, in virtual time."""
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(coroutine)
