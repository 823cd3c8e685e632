"""A request on its way through the pool."""

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rayswift.rollout.salvage import num_tokens
from rayswift.rollout.samples import Completion, SampleRequest

if TYPE_CHECKING:
    from rayswift.rollout.seat import Seat


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
