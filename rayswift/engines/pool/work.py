"""A request in the pool, and the events that an engine reports to the pool."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from rayswift.engines.pool.merge_parts import num_tokens
from rayswift.engines.samples import Completion, SampleRequest

if TYPE_CHECKING:
    from rayswift.engines.pool.replica import Replica


@dataclass(eq=False)
class Work:
    """A request in the pool.

    order: its place among all; future: what the caller waits for; carried: parts made by lost engines; current:
    what has arrived of its present try; tries: why earlier ones failed; replica, try_key: where it is, under what key.
    """

    request: SampleRequest
    min_step: int
    order: int
    future: asyncio.Future[Completion]
    carried: list[Completion] = field(default_factory=list)
    current: list[Completion] = field(default_factory=list)
    tries: list[str] = field(default_factory=list)
    replica: "Replica | None" = None
    try_key: str = ""

    @property
    def room(self) -> int:
        """Return the number of tokens that may still be made."""
        return self.request.max_tokens - len(self.request.begun) - num_tokens(self.carried)


class Owner(Protocol):
    """The events that a replica reports to the pool."""

    def changed(self, replica: "Replica") -> None:
        """The replica may take more requests, or fewer."""

    def joined(self, replica: "Replica") -> None:
        """The engine has loaded the current weights."""

    def finished(self, work: Work, completion: Completion) -> None:
        """A request is done; `completion` is what the last engine made."""

    def refused(self, work: Work, why: str) -> None:
        """No engine can do this request."""

    def returned(self, replica: "Replica", works: Sequence[Work], num_made: int, why: str | None) -> None:
        """The engine will not finish these requests; it made `num_made` tokens of them. why: it is lost, None: it is
        not, but hands them back."""

    def gone(self, replica: "Replica") -> None:
        """The engine has ended; this is its last event."""

    def moved(self) -> None:
        """The engine has made tokens, or progress towards them."""

    def pace_s(self) -> float:
        """Return the seconds between two calls of `collect`."""
