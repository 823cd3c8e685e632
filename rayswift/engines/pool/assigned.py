"""The requests that are assigned to one engine, and what must still be sent to it."""

import asyncio
from dataclasses import replace

import numpy as np

from rayswift.engines.pool.work import Work
from rayswift.engines.samples import SampleRequest


class Assigned:
    """Requests by their key in the engine, those not sent yet, and those that the engine must abort."""

    def __init__(self) -> None:
        self.works: dict[str, Work] = {}
        self.num_tokens = 0
        """Prompt and completion tokens of them all, at most."""
        self._outbox: list[SampleRequest] = []
        self._unwanted: list[str] = []
        self._has_news = asyncio.Event()

    def add(self, work: Work, try_key: str) -> None:
        """Queue a request for sending; the engine continues after the tokens that exist."""
        parts = [part.token_ids for part in work.carried if len(part.token_ids)]
        request = replace(work.request, key=try_key)
        if parts:
            request = replace(request, begun=np.concatenate([work.request.begun, *parts]))
        self.works[try_key] = work
        work.try_key = try_key
        self.num_tokens += len(request.prompt_ids) + work.room
        self._outbox.append(request)
        self._has_news.set()

    def give_up(self, work: Work) -> None:
        """Have the engine abort a request."""
        if self.take(work.try_key) is not None:
            kept = [request for request in self._outbox if request.key != work.try_key]
            if len(kept) == len(self._outbox):
                self._unwanted.append(work.try_key)
                self._has_news.set()
            self._outbox = kept

    def take(self, try_key: str) -> Work | None:
        """Remove a request that the engine is done with and return it; None if it was aborted meanwhile."""
        work = self.works.pop(try_key, None)
        if work is not None:
            self.num_tokens -= len(work.request.prompt_ids) + work.room
            work.replica = None
        return work

    def take_unsent(self) -> list[Work]:
        """Remove and return the requests that were not sent yet."""
        unsent, self._outbox = [request.key for request in self._outbox], []
        return [work for key in unsent if (work := self.take(key)) is not None]

    def take_all(self) -> list[Work]:
        """Remove and return all requests, because the engine is lost."""
        works, self.works = list(self.works.values()), {}
        return works

    async def news(self) -> tuple[list[str], list[SampleRequest]]:
        """Wait for news for the engine, and return keys to abort and requests to accept."""
        await self._has_news.wait()
        self._has_news.clear()
        unwanted, self._unwanted = self._unwanted, []
        batch, self._outbox = self._outbox, []
        return unwanted, batch
