"""How a rank reaches the data feed: a plain object in its process, or an actor that is asked one step ahead."""

import math
import time
from collections.abc import Callable
from typing import Any

from rayswift.data.feed.feed import Feed, Slice, StaleAttempt
from rayswift.data.feed.pipeline import user_error_in
from rayswift.data.sequence.global_batches import Position
from rayswift.data.sequence.windows import PackedRow
from rayswift.log import UserError, logger

_LOG_EVERY_S = 30.0
_GRACE_S = 5.0


class FeedClient:
    """The feed as a plain object, for `cluster.num_workers: 0`."""

    def __init__(self, feed: Feed, timeout_s: float):
        self._feed, self._timeout_s, self._attempt = feed, timeout_s, 0

    def new_attempt(self) -> int:
        """A number for this worker group, higher than those of all earlier groups."""
        return self._feed.new_attempt()

    def begin(self, attempt: int, position: Position) -> None:
        """Serve from this position on."""
        self._attempt = attempt
        self._feed.begin(attempt, position)

    def next(self, step: int) -> Slice:
        """This rank's slice of a step."""
        return self._feed.next(self._attempt, step, 0, 1, self._timeout_s)

    def evaluation(self) -> tuple[tuple[PackedRow, ...], int]:
        """This rank's evaluation rows, and the largest number of rows that any rank has."""
        return self._feed.evaluation(0, 1)

    def first_rows(self, number: int) -> tuple[PackedRow, ...]:
        """The first packed rows of the training, the same on every rank; the feed does not advance."""
        return self._feed.first_rows(number)


class ActorFeed(FeedClient):
    """The feed as an actor; it prepares the next slice while the rank trains on the current one.

    Ray restarts a feed that died. It is rebuilt from this rank's position; the earliest position of all ranks counts.
    """

    def __init__(self, name: str, rank: int, size: int, timeout_s: float):
        import ray

        self._ray = ray
        self._rank, self._size, self._timeout_s = rank, size, timeout_s
        self._actor = ray.get_actor(name)
        self._ahead: tuple[int, Any] | None = None
        self._attempt, self._position = 0, Position()

    def new_attempt(self) -> int:
        return self._get(lambda: self._actor.new_attempt.remote())

    def begin(self, attempt: int, position: Position) -> None:
        self._attempt, self._position, self._ahead = attempt, position, None
        self._get(lambda: self._actor.begin.remote(attempt, position))

    def next(self, step: int) -> Slice:
        ahead = self._ahead[1] if self._ahead and self._ahead[0] == step else None
        received: Slice = self._get(lambda: self._ask(step), ahead)
        self._position = received.position
        self._ahead = None if received.last else (step + 1, self._ask(step + 1))
        return received

    def evaluation(self) -> tuple[tuple[PackedRow, ...], int]:
        return self._get(lambda: self._actor.evaluation.remote(self._rank, self._size))

    def first_rows(self, number: int) -> tuple[PackedRow, ...]:
        return self._get(lambda: self._actor.first_rows.remote(number))

    def _ask(self, step: int) -> Any:
        return self._actor.next.remote(self._attempt, step, self._rank, self._size, self._timeout_s)

    def _get(self, ask: Callable[[], Any], under_way: Any = None) -> Any:
        deadline = time.monotonic() + self._timeout_s
        while True:
            try:
                return self._wait(under_way if under_way is not None else ask())
            except self._ray.exceptions.RayActorError as error:
                if time.monotonic() > deadline:
                    raise UserError(f"the data feed died and did not restart: {error}", exit_code=1) from error
                logger.warning("the data feed died; rebuilding it from step %d", self._position.step)
                under_way, self._ahead = None, None
                time.sleep(1)
                self._rebuild()
            except self._ray.exceptions.RayTaskError as error:
                if isinstance(error.cause, StaleAttempt):
                    raise error.cause from error
                raise (user_error_in(error) or error) from error

    def _wait(self, asked: Any) -> Any:
        """The feed's answer. A long wait is logged, and a feed that makes no progress for `timeout_s` is an error."""
        began = time.monotonic()
        while True:
            try:
                return self._ray.get(asked, timeout=min(_LOG_EVERY_S, self._timeout_s + _GRACE_S))
            except self._ray.exceptions.GetTimeoutError as error:
                waited_s = time.monotonic() - began
                still_s = min(waited_s, self._still_s())
                if still_s >= self._timeout_s + _GRACE_S:
                    raise UserError(
                        f"the data feed did not answer, and made no rows for {still_s:.0f} s (cluster.timeout_s)",
                        exit_code=1,
                    ) from error
                logger.info(
                    "rank %d has waited %.0f s for the data feed; the last window of rows was made %.0f s ago",
                    self._rank,
                    waited_s,
                    still_s,
                )

    def _still_s(self) -> float:
        try:
            return self._ray.get(self._actor.still_s.remote(), timeout=_GRACE_S)
        except self._ray.exceptions.GetTimeoutError:
            return math.inf

    def _rebuild(self) -> None:
        if not self._attempt:
            return  # this rank has received nothing yet
        try:
            self._ray.get(self._actor.begin.remote(self._attempt, self._position), timeout=self._timeout_s)
        except self._ray.exceptions.RayActorError:
            return  # still restarting; `_get` tries again until its deadline
        except self._ray.exceptions.RayTaskError as error:
            if not isinstance(error.cause, StaleAttempt):
                raise
            raise error.cause from error
