"""The interface that the pool needs of an engine: vLLM in an actor, or a simulated engine for load tests."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from rayswift.engines.samples import Completion, PolicyVersion, SampleRequest
from rayswift.engines.serialization import Columns, columns_of, completions_of
from rayswift.log import UserError


@dataclass(frozen=True)
class SamplingSettings:
    """Settings of sampling, the same for every completion of a run; names as in section `rollout`."""

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
        """Whether a lost request can be continued by appending its tokens to the prompt of a new request.

        Not with a grammar, which would begin again, nor with a stop string, which may lie across the border.
        """
        return not self.stop and self.structured_outputs_regex is None


@dataclass(frozen=True)
class Collected:
    """finished: whole completions (without `begun`); parts: new tokens of unfinished ones since the last call;
    num_made: tokens that the engine has made in total; num_unfinished: how many of those are of unfinished requests.

    The spans of a completion or part are counted from its first token.
    """

    finished: tuple[Completion, ...]
    parts: tuple[Completion, ...]
    num_made: int
    num_unfinished: int

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled as columns, see `serialization`."""
        return _collected, (columns_of(self.finished), columns_of(self.parts), self.num_made, self.num_unfinished)


def _collected(finished: Columns, parts: Columns, num_made: int, num_unfinished: int) -> Collected:
    return Collected(completions_of(finished), completions_of(parts), num_made, num_unfinished)


class Engine(Protocol):
    """An engine as an asyncio object; the pool reaches it through a Ray actor handle with the same methods.

    Every call returns in bounded time, except while the engine loads weights. Calls may overlap. `load` runs between
    two decoding steps, while requests are in flight; their later tokens are sampled with the new version.
    """

    async def start(self) -> None:
        """Build the engine. It has no usable weights yet."""

    async def submit(self, requests: Sequence[SampleRequest]) -> None:
        """Accept requests; `collect` returns their completions.

        Raises:
            RequestRefused: no engine of the run can serve one of them; then none is accepted.
            NoWeights: there was no `load` yet, or the last one failed.
        """

    async def collect(self, timeout_s: float, part_tokens: int | None) -> Collected:
        """Return what has finished since the last call; wait up to `timeout_s` for the first completion.

        Args:
            timeout_s: See above.
            part_tokens: Number of new tokens from which on a part of an unfinished request is returned; None: never.
        """

    async def abort(self, keys: Sequence[str]) -> tuple[Completion, ...]:
        """Abort requests and return all tokens of each, collected or not; some may have finished."""

    async def load(self, version: PolicyVersion, weights: Any) -> float:
        """Load published weights (a `weights.Published`) after a check, and return the seconds that sampling paused.

        Raises:
            LoadFailed: the previous weights are lost too.
            Exception: any other: the weights cannot be fetched, and the engine keeps the previous ones.
        """

    async def score(self, token_ids: NDArray[np.int32], timeout_s: float) -> NDArray[np.float32]:
        """Return log-probabilities [T - 1] of tokens 1 to T - 1 of a text; for the canary, ahead of waiting requests.

        Raises:
            TimeoutError: it took too long and was aborted.
        """


class EngineLost(Exception):
    """An engine is lost; the message says why."""


class RequestRefused(UserError):
    """A request that no engine of the run can serve."""

    def __reduce__(self) -> tuple[type[UserError], tuple[str, int]]:
        return RequestRefused, (str(self), self.exit_code)


class NoWeights(Exception):
    """An engine holds no usable weights; the request can be sent to another engine."""


class LoadFailed(Exception):
    """A load failed half-way, so the engine has no usable weights and has aborted its requests.

    Args:
        message: Why.
        parts: All tokens of each aborted request.
    """

    def __init__(self, message: str, parts: tuple[Completion, ...]):
        super().__init__(message)
        self.parts = parts

    def __reduce__(self) -> tuple[Any, ...]:
        return _load_failed, (str(self), columns_of(self.parts))


def _load_failed(message: str, parts: Columns) -> LoadFailed:
    return LoadFailed(message, completions_of(parts))


class EngineHandle(Engine, Protocol):
    """An engine in a process of its own, which may wait for room in the cluster and may die.

    Every call raises `EngineLost` once the process is gone.
    """

    async def placed(self) -> None:
        """Wait, without a limit, until its process runs."""

    async def last_lines(self) -> str:
        """Return the last log lines of its process, also after its death; empty if they cannot be read."""

    def kill(self) -> None:
        """End its process; more than once is fine."""


Factory = Callable[[str], EngineHandle]
"""Makes an engine with this name; returns at once."""
