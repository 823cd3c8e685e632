"""A rank's side of the data feed: slices asked for ahead of time, cut into micro-batches, their cost counted."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

from rayswift.data.batches import Layout, collate, cut
from rayswift.data.feed import Feed, Slice
from rayswift.data.global_batches import Position
from rayswift.data.stream import user_error_in
from rayswift.data.windows import PackedRow
from rayswift.log import UserError, logger


class FeedClient(Protocol):
    """How a rank reaches the feed."""

    def begin(self, attempt: str, position: Position) -> None:
        """Serve from here on."""

    def next(self, step: int) -> Slice:
        """This rank's slice of a step."""

    def evaluation(self) -> tuple[tuple[PackedRow, ...], int]:
        """This rank's evaluation rows, and the most that any rank has."""


@dataclass
class LocalFeed:
    """The feed as a plain object, for `cluster.num_workers: 0`."""

    feed: Feed
    timeout_s: float

    def begin(self, attempt: str, position: Position) -> None:
        """See FeedClient."""
        self.feed.begin(attempt, position)

    def next(self, step: int) -> Slice:
        """See FeedClient."""
        return self.feed.next(step, 0, 1, self.timeout_s)

    def evaluation(self) -> tuple[tuple[PackedRow, ...], int]:
        """See FeedClient."""
        return self.feed.evaluation(0, 1)


class ActorFeed:
    """The feed as an actor; the next slice is under way while the current one is trained.

    A feed that died is restarted by Ray and rebuilt from this rank's position; the ranks agree on the earliest.
    """

    def __init__(self, name: str, rank: int, size: int, timeout_s: float):
        import ray

        self._ray = ray
        self._name, self._rank, self._size, self._timeout_s = name, rank, size, timeout_s
        self._actor = ray.get_actor(name)
        self._ahead: tuple[int, Any] | None = None
        self._attempt, self._position = "", Position()

    def begin(self, attempt: str, position: Position) -> None:
        """See FeedClient."""
        self._attempt, self._position, self._ahead = attempt, position, None
        self._get(lambda: self._actor.begin.remote(attempt, position))

    def next(self, step: int) -> Slice:
        """See FeedClient."""
        ahead = self._ahead[1] if self._ahead and self._ahead[0] == step else None
        received: Slice = self._get(lambda: self._ask(step), ahead)
        self._position = received.position
        self._ahead = None if received.last else (step + 1, self._ask(step + 1))
        return received

    def evaluation(self) -> tuple[tuple[PackedRow, ...], int]:
        """See FeedClient."""
        rows: tuple[tuple[PackedRow, ...], int] = self._get(
            lambda: self._actor.evaluation.remote(self._rank, self._size)
        )
        return rows

    def _ask(self, step: int) -> Any:
        return self._actor.next.remote(step, self._rank, self._size, self._timeout_s)

    def _get(self, ask: Any, under_way: Any = None) -> Any:
        deadline = time.monotonic() + self._timeout_s
        while True:
            try:
                return self._ray.get(under_way if under_way is not None else ask(), timeout=self._timeout_s + 5)
            except self._ray.exceptions.GetTimeoutError as error:
                raise UserError(f"the data feed did not answer within {self._timeout_s} s", exit_code=1) from error
            except self._ray.exceptions.RayActorError as error:
                if time.monotonic() > deadline:
                    raise UserError(f"the data feed died and did not come back: {error}", exit_code=1) from error
                logger.warning("the data feed died; rebuilding it from step %d", self._position.step)
                under_way, self._ahead = None, None
                time.sleep(1)
                self._rebuild()
            except self._ray.exceptions.RayTaskError as error:
                raise (user_error_in(error) or error) from error

    def _rebuild(self) -> None:
        try:
            self._ray.get(self._actor.begin.remote(self._attempt, self._position), timeout=self._timeout_s)
        except self._ray.exceptions.RayActorError:
            return  # still restarting; `_get` comes back here until its deadline


@dataclass
class Tally:
    """What a rank's steps held since the last log line."""

    tokens: int = 0
    trained_tokens: int = 0
    capacity: int = 0
    wait_s: float = 0.0
    steps: int = 0
    since: float = field(default_factory=time.monotonic)
    elapsed_s: float = 0.0


class Stream:
    """Micro-batches of one rank, step after step, in the order of the global sequence.

    Args:
        client: The feed.
        position: Where to begin.
        epochs: Passes over the data before it.
        micro_batch: Rows of a micro-batch.
        accumulation: Micro-batches of a step.
        max_length: Capacity of a row, for the fill.
        pad_token_id: See `collate`.
        layout: See `collate`.
    """

    def __init__(
        self,
        client: FeedClient,
        position: Position,
        epochs: float = 0.0,
        *,
        micro_batch: int,
        accumulation: int,
        max_length: int,
        pad_token_id: int,
        layout: Layout,
    ):
        self._client, self._micro_batch, self._accumulation = client, micro_batch, accumulation
        self._max_length, self._pad_token_id, self._layout = max_length, pad_token_id, layout
        self.position = position
        self.epochs = epochs
        self.last = False
        self._tally = Tally()

    def __iter__(self) -> Iterator[dict[str, Any]]:
        while not self.last:
            started = time.monotonic()
            received = self._client.next(self.position.step)
            self._tally.wait_s += time.monotonic() - started
            self._count(received.rows)
            self.position, self.epochs, self.last = received.position, received.epochs, received.last
            for rows in cut(received.rows, self._micro_batch, self._accumulation):
                yield collate(rows, self._pad_token_id, self._layout)

    def evaluation_batches(self, batch_size: int) -> Iterator[dict[str, Any]]:
        """This rank's evaluation batches, as many as every other rank has."""
        rows, most = self._client.evaluation()
        for begin in range(0, most, batch_size):
            yield collate(rows[begin : begin + batch_size], self._pad_token_id, self._layout)

    def start_tally(self) -> Tally:
        """What was counted so far; counting starts again."""
        tally, self._tally = self._tally, Tally()
        tally.elapsed_s = self._tally.since - tally.since
        return tally

    def _count(self, rows: tuple[PackedRow, ...]) -> None:
        self._tally.steps += 1
        self._tally.tokens += sum(len(row.input_ids) for row in rows)
        self._tally.trained_tokens += sum(int(row.trained.sum()) for row in rows)
        self._tally.capacity += self._micro_batch * self._accumulation * self._max_length
