"""The requests that one engine of the pool has been given, and what it has still to be told of them."""

import asyncio
from dataclasses import replace

import numpy as np

from rayswift.engines.pool.work import Work
from rayswift.engines.samples import SampleRequest


class Assigned:
    """Requests by the key that the engine knows them by; those not sent yet, and those that it is to forget."""

    def __init__(self) -> None:
        self.works: dict[str, Work] = {}
        self.num_tokens = 0
        """Prompt and completion tokens of them all, at most."""
        self._outbox: list[SampleRequest] = []
        self._unwanted: list[str] = []
        self._has_news = asyncio.Event()

    def add(self, work: Work, wire_key: str) -> None:
        """Have a request sent, behind what is there of it."""
        parts = [part.token_ids for part in work.carried if len(part.token_ids)]
        request = replace(work.request, key=wire_key)
        if parts:
            request = replace(request, begun=np.concatenate([work.request.begun, *parts]))
        self.works[wire_key] = work
        work.wire_key = wire_key
        self.num_tokens += len(request.prompt_ids) + work.room
        self._outbox.append(request)
        self._has_news.set()

    def give_up(self, work: Work) -> None:
        """Have a request forgotten."""
        if self.take(work.wire_key) is not None:
            kept = [request for request in self._outbox if request.key != work.wire_key]
            if len(kept) == len(self._outbox):
                self._unwanted.append(work.wire_key)
                self._has_news.set()
            self._outbox = kept

    def take(self, wire_key: str) -> Work | None:
        """A request that the engine has no longer; None if it was given up meanwhile."""
        work = self.works.pop(wire_key, None)
        if work is not None:
            self.num_tokens -= len(work.request.prompt_ids) + work.room
            work.seat = None
        return work

    def take_unsent(self) -> list[Work]:
        """The requests that the engine has not heard of."""
        unsent, self._outbox = [request.key for request in self._outbox], []
        return [work for key in unsent if (work := self.take(key)) is not None]

    def take_all(self) -> list[Work]:
        """All requests: the engine is gone."""
        works, self.works = list(self.works.values()), {}
        return works

    async def news(self) -> tuple[list[str], list[SampleRequest]]:
        """Keys to forget and requests to take, once there are any."""
        await self._has_news.wait()
        self._has_news.clear()
        unwanted, self._unwanted = self._unwanted, []
        batch, self._outbox = self._outbox, []
        return unwanted, batch
