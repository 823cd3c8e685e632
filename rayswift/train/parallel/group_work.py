"""Work of some ranks while the others wait: it may take longer than a collective, within a limit, and log lines show
it."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist

from rayswift.log import UserError, logger

_EXCHANGE_EVERY_S = 0.5
_SAY_EVERY_S = 20.0
T = TypeVar("T")


class PeerFailed(RuntimeError):
    """Another rank could not do its part; Ray Train restarts the group."""


@dataclass(frozen=True)
class _Status:
    """The status of a rank: `value` once it is done, `error` once it has failed, `of_user` for an error of the user."""

    done: bool = False
    value: Any = None
    error: str = ""
    of_user: bool = False


def work_together(rank: int, size: int, what: str, limit_s: float, work: Callable[[], T]) -> list[T]:
    """Do a part of the work on every rank; once all are done, return the results of all ranks on every rank.

    A thread exchanges the status of ranks in short collectives, so no rank waits in a collective that could time out,
    however long the work takes. The work itself runs in the calling thread.

    Args:
        rank: This rank.
        size: Ranks.
        what: The work, for messages.
        limit_s: Time limit.
        work: This rank's part; its result must be picklable and small.

    Raises:
        UserError: it took too long, or another rank raised one.
        PeerFailed: another rank failed.
    """
    exchange = _Exchange(rank, size, what, limit_s)
    with exchange:
        try:
            value = work()
        except BaseException as error:
            exchange.tell(_Status(error=f"{type(error).__name__}: {error}", of_user=isinstance(error, UserError)))
            raise
        exchange.tell(_Status(done=True, value=value))
    return cast(list[T], exchange.values())


class _Exchange:
    """The thread that exchanges the status of all ranks until all are done, one failed, or the time is up."""

    def __init__(self, rank: int, size: int, what: str, limit_s: float):
        self._rank, self._size, self._what, self._limit_s = rank, size, what, limit_s
        self._own = _Status()
        self._changed = threading.Event()
        self._all = [self._own] * size
        self._broken: Exception | None = None
        self._device = torch.cuda.current_device() if torch.cuda.is_available() else None
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "_Exchange":
        self._started_s = time.monotonic()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.join()

    def tell(self, status: _Status) -> None:
        """Set that this rank is done or has failed."""
        self._own = status
        self._changed.set()

    def values(self) -> list[Any]:
        """Return the results of all ranks."""
        if self._broken:
            raise self._broken
        for rank, status in enumerate(self._all):
            if status.error and status.of_user:
                raise UserError(status.error.partition(": ")[2], exit_code=1)
            if status.error:
                raise PeerFailed(f"{self._what}: worker {rank} failed: {status.error}")
        if not all(status.done for status in self._all):
            raise UserError(
                f"{self._what}: {self._missing()} and took longer than cluster.storage_timeout_s = {self._limit_s:g}; "
                "raise it if the work needs more time, and continue with --resume auto",
                exit_code=1,
            )
        return [status.value for status in self._all]

    def _run(self) -> None:
        if self._device is not None:
            torch.cuda.set_device(self._device)
        said_s = self._started_s
        try:
            while True:
                self._changed.wait(_EXCHANGE_EVERY_S)
                over_time = time.monotonic() - self._started_s > self._limit_s
                self._all, is_late = self._gather(over_time)
                if all(s.done for s in self._all) or any(s.error for s in self._all) or (is_late and self._size > 1):
                    return
                if self._own.done:
                    time.sleep(_EXCHANGE_EVERY_S)
                if self._rank == 0 and time.monotonic() - said_s > _SAY_EVERY_S:
                    said_s = time.monotonic()
                    spent_s = said_s - self._started_s
                    logger.info("%s: %s, %.0f s of at most %g", self._what, self._missing(), spent_s, self._limit_s)
        except Exception as error:  # of the collective: raised in the calling thread
            self._broken = error

    def _gather(self, over_time: bool) -> tuple[list[_Status], bool]:
        """Exchange the status of all ranks; rank 0 decides for all whether the time is up."""
        if self._size == 1:
            return [self._own], over_time
        answers: list[Any] = [None] * self._size
        dist.all_gather_object(answers, (self._own, over_time))
        return [status for status, _ in answers], answers[0][1]

    def _missing(self) -> str:
        ranks = [str(rank) for rank, status in enumerate(self._all) if not status.done]
        shown = ", ".join(ranks[:8]) + (f" and {len(ranks) - 8} more" if len(ranks) > 8 else "")
        return f"worker {shown} is still working"
