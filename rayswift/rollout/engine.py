"""What the pool asks of an engine, whichever it is: vLLM in an actor, or a simulated one for load tests."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from rayswift.rollout.samples import Completion, PolicyVersion, SampleRequest
from rayswift.rollout.wire import Columns, columns_of, completions_of


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


@dataclass(frozen=True)
class EngineStatus:
    """version: of the weights it holds, None before the first; running, waiting: requests; tokens: made in all."""

    version: PolicyVersion | None
    running: int
    waiting: int
    tokens: int


@dataclass(frozen=True)
class Collected:
    """finished: whole completions (behind `begun`); progress: what the unfinished ones have that is new.

    Spans are counted from the first token of what they come with.
    """

    finished: tuple[Completion, ...]
    progress: tuple[Completion, ...]

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled as columns, see `wire`."""
        return _collected, (columns_of(self.finished), columns_of(self.progress))


def _collected(finished: Columns, progress: Columns) -> Collected:
    return Collected(completions_of(finished), completions_of(progress))


class Engine(Protocol):
    """An engine as an asyncio object; the pool reaches it through a Ray actor handle with the same methods.

    Every call answers in bounded time. Calls may overlap; `load` goes between two decoding steps, with requests in
    flight, and what they sample from then on is of the new version.
    """

    async def start(self) -> None:
        """Build the engine, without weights that could be sampled from."""

    async def submit(self, requests: Sequence[SampleRequest]) -> None:
        """Take requests; their completions come out of `collect`. Refused before the first `load`.

        Raises:
            ValueError, UserError: one of them cannot be served; then none is taken.
        """

    async def collect(self, timeout_s: float) -> Collected:
        """What has finished since the last call; waits for the first one up to `timeout_s`."""

    async def abort(self, keys: Sequence[str]) -> tuple[Completion, ...]:
        """Give requests up; the parts made and not yet collected."""

    async def load(self, version: PolicyVersion, weights: Any) -> float:
        """Take over published weights (a `weights.Published`), check them, and return the seconds sampling paused."""

    async def score(self, token_ids: NDArray[np.int32]) -> NDArray[np.float32]:
        """Log-probabilities [T - 1] of tokens 1 to T - 1 of a text, for the canary."""

    async def status(self) -> EngineStatus:
        """How it stands; also its sign of life."""


class EngineLost(Exception):
    """An engine is of no use any more; says why."""


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
