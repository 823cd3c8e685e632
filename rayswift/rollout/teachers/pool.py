"""A teacher as a pool of engines with weights of its own."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace

from rayswift.engines.pool.pool import Pool, SampleFailed
from rayswift.engines.samples import Completion, PolicyVersion, Prompt, SampleRequest

OWN_WEIGHTS = PolicyVersion(0, 0)
"""The version of the weights from which engines were built."""


class PoolTeacher:
    """See `Teacher` and `Writer`.

    Args:
        pool: Engines that hold the teacher.
        num_engines: Number of engines.
        top: Number of likeliest tokens to return at each token.
        request: Makes the request for an answer to a prompt.
    """

    def __init__(self, pool: Pool, num_engines: int, top: int, request: Callable[[Prompt], SampleRequest]):
        self._pool, self._num_engines, self._top, self._request = pool, num_engines, top, request

    async def start(self) -> None:
        """Begin to start the engines."""
        self._pool.scale_to(self._num_engines)
        await self._pool.set_weights(OWN_WEIGHTS, None)

    async def score(self, prompt: Prompt, completions: Sequence[Completion]) -> list[Completion | str]:
        """See `Teacher`.

        Raises:
            EnginesFailed: no engine is left that could answer.
        """
        requests = [
            SampleRequest(
                f"teacher:{each.key}", prompt.seen_by_teacher, len(each.token_ids) + 1, 0, each.token_ids, self._top
            )
            for each in completions
        ]
        found = await asyncio.gather(*self._pool.sample(requests, 0), return_exceptions=True)
        for each in found:
            if isinstance(each, BaseException) and not isinstance(each, SampleFailed):
                raise each
        return [each if isinstance(each, Completion) else str(each) for each in found]

    async def write(self, prompt: Prompt) -> Completion | str:
        """See `Writer`.

        Raises:
            EnginesFailed: no engine is left that could answer.
        """
        try:
            (future,) = self._pool.sample([replace(self._request(prompt), prompt_ids=prompt.seen_by_teacher)], 0)
            return await future
        except SampleFailed as error:
            return str(error)

    def describe(self) -> str:
        return self._pool.describe()

    async def close(self) -> None:
        await self._pool.close()
