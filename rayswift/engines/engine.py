"""What the pool asks of an engine, whichever it is: vLLM in an actor, or a simulated one for load tests."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from rayswift.engines.samples import Completion, PolicyVersion, SampleRequest
from rayswift.engines.wire import Columns, columns_of, completions_of
from rayswift.log import UserError


@dataclass(frozen=True)
class SamplingSettings:
    """How tokens are chosen, the same for every completion of a run; names as in section `rollout`."""

    temperature: float
    top_p: float = 1.0
    top_k: int = -1
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    structured_outputs_regex: str | None = None

    @property
    def can_resume(self) -> bool:
        """Whether tokens made may go behind the prompt of a new request, and what follows is as if never interrupted.

        A grammar would begin anew in the midst of the answer, and a stop string that lies across the seam is not seen.
        """
        return not self.stop and self.structured_outputs_regex is None


@dataclass(frozen=True)
class EngineStatus:
    """version: of the weights it holds, None before the first; running, waiting: requests; tokens: made in all."""

    version: PolicyVersion | None
    running: int
    waiting: int
    tokens: int


@dataclass(frozen=True)
class Collected:
    """finished: whole completions (behind `begun`); parts: of unfinished ones, what was not handed over yet;
    num_made: tokens that the engine has made in all; num_unfinished: of those, of requests that are unfinished.

    Spans are counted from the first token of what they come with.
    """

    finished: tuple[Completion, ...]
    parts: tuple[Completion, ...]
    num_made: int
    num_unfinished: int

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled as columns, see `wire`."""
        return _collected, (columns_of(self.finished), columns_of(self.parts), self.num_made, self.num_unfinished)


def _collected(finished: Columns, parts: Columns, num_made: int, num_unfinished: int) -> Collected:
    return Collected(completions_of(finished), completions_of(parts), num_made, num_unfinished)


class Engine(Protocol):
    """An engine as an asyncio object; the pool reaches it through a Ray actor handle with the same methods.

    Every call answers in bounded time, but none while the engine takes over weights. Calls may overlap; `load` goes
    between two decoding steps, with requests in flight, and what they sample from then on is of the new version.
    """

    async def start(self) -> None:
        """Build the engine, without weights that could be sampled from."""

    async def submit(self, requests: Sequence[SampleRequest]) -> None:
        """Take requests; their completions come out of `collect`.

        Raises:
            RequestRefused: one of them cannot be served, by no engine of the run; then none is taken.
            NoWeights: there was no `load` yet, or the last one failed.
        """

    async def collect(self, timeout_s: float, part_tokens: int | None) -> Collected:
        """What has finished since the last call; waits for the first one up to `timeout_s`.

        Args:
            timeout_s: See above.
            part_tokens: New tokens of an unfinished request from which on they are handed over; None: they stay here.
        """

    async def abort(self, keys: Sequence[str]) -> tuple[Completion, ...]:
        """Give requests up; what there is of each, collected before or not; a finished one may be among them."""

    async def load(self, version: PolicyVersion, weights: Any) -> float:
        """Take over published weights (a `weights.Published`), check them, and return the seconds sampling paused.

        Raises:
            LoadFailed: the weights before are gone too.
            Exception: any other: the weights cannot be had, and it goes on with those before.
        """

    async def score(self, token_ids: NDArray[np.int32], timeout_s: float) -> NDArray[np.float32]:
        """Log-probabilities [T - 1] of tokens 1 to T - 1 of a text, for the canary; before whatever waits.

        Raises:
            TimeoutError: not in time; nothing of it goes on.
        """

    async def status(self) -> EngineStatus:
        """How it stands; also its sign of life."""


class EngineLost(Exception):
    """An engine is of no use any more; says why."""


class RequestRefused(UserError):
    """A request that no engine of the run can serve."""

    def __reduce__(self) -> tuple[type[UserError], tuple[str, int]]:
        return RequestRefused, (str(self), self.exit_code)


class NoWeights(Exception):
    """An engine holds no weights that could be sampled from; the request is as good as before."""


class LoadFailed(Exception):
    """Only a part of new weights is in place, so the engine holds none, and has given up all that was in flight.

    Args:
        message: Why.
        parts: What there is of each request that was given up, from its first token on.
    """

    def __init__(self, message: str, parts: tuple[Completion, ...]):
        super().__init__(message)
        self.parts = parts

    def __reduce__(self) -> tuple[Any, ...]:
        return _load_failed, (str(self), columns_of(self.parts))


def _load_failed(message: str, parts: Columns) -> LoadFailed:
    return LoadFailed(message, completions_of(parts))


class EngineHandle(Engine, Protocol):
    """An engine in a process of its own, which may wait for its place in the cluster and may die.

    Every call raises `EngineLost` once the process is gone.
    """

    async def placed(self) -> None:
        """Wait until its process runs; for as long as the cluster takes."""

    async def last_lines(self) -> str:
        """The end of what its process has logged, also after its death; empty where that cannot be had."""

    def kill(self) -> None:
        """End its process; more than once is fine."""


Factory = Callable[[str], EngineHandle]
"""Makes an engine with this name; returns at once."""
