"""A request on its way through the pool, and what the pool hears of it from an engine's seat."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from rayswift.engines.pool.merge_parts import num_tokens
from rayswift.engines.samples import Completion, SampleRequest

if TYPE_CHECKING:
    from rayswift.engines.pool.replica import Seat


@dataclass(eq=False)
class Work:
    """A request on its way.

    order: its place among all; future: what the caller waits for; carried: parts of engines that are gone; current:
    what has arrived of its present try; tries: why earlier ones failed; seat, wire_key: where it is, under what key.
    """

    request: SampleRequest
    min_step: int
    order: int
    future: asyncio.Future[Completion]
    carried: list[Completion] = field(default_factory=list)
    current: list[Completion] = field(default_factory=list)
    tries: list[str] = field(default_factory=list)
    seat: "Seat | None" = None
    wire_key: str = ""

    @property
    def room(self) -> int:
        """Tokens that the engine it goes to may still make."""
        return self.request.max_tokens - len(self.request.begun) - num_tokens(self.carried)


class Owner(Protocol):
    """What a seat tells the pool."""

    def changed(self, seat: "Seat") -> None:
        """It may take more requests, or fewer."""

    def joined(self, seat: "Seat") -> None:
        """It has loaded the current weights."""

    def finished(self, work: Work, completion: Completion) -> None:
        """A request is done; `completion` is what the last engine made."""

    def refused(self, work: Work, why: str) -> None:
        """The engine will not do this request, nor would another."""

    def returned(self, seat: "Seat", works: Sequence[Work], num_made: int, why: str | None) -> None:
        """Requests that the engine will not finish, of which it has made so many tokens; why: it is lost, None: it is
        not, but hands them back."""

    def gone(self, seat: "Seat") -> None:
        """It has ended; nothing follows."""

    def moved(self) -> None:
        """It has made tokens, or has taken a step towards it."""

    def pace_s(self) -> float:
        """How long to let completions gather between two calls of `collect`."""
