"""A simulated engine behind the protocol of `EngineHandle`, for load tests and simulations; many fit in one process.

It decodes like an engine with continuous batching: all running sequences get a token in each step, and a step takes
`step_s + sequence_step_s x sequences`. Tokens are a function of (seed, prompt, place, version) and lengths of (seed,
prompt), so a completion that moved must equal one that did not. It computes events, not steps: cost grows with the
number of completions, not with their tokens. Time is the event loop's, which may be virtual.

It is as nasty as `VllmEngine`: one thread steps, loads and answers, so while weights are taken over no token is made
and no call is answered, `collect` included; a load may fail with half of the weights in place, which leaves nothing
that could be sampled from; texts to score queue behind requests.
"""

import asyncio
import heapq
import itertools
import zlib
from collections import deque
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from rayswift.engines.engine import Collected, EngineLost, LoadFailed, NoWeights, RequestRefused
from rayswift.engines.pool.merge_parts import joined
from rayswift.engines.samples import Completion, PolicyVersion, SampleRequest, Span

VOCABULARY = 32_000
_SCORE_PLACES = 8
Load = Literal["take", "fail", "unreachable", "die", "hang"]
"""What becomes of a load: fail: half of the weights are in place, those before are gone; unreachable: the bytes cannot
be had; die, hang: of the engine, in the midst of it."""


@dataclass(frozen=True)
class FakeSettings:
    """Its speed, and the lengths of completions.

    start_s, load_s, pause_s: to start, to take over weights once asked, the last part of that, in which the engine does
    nothing else; step_s, sequence_step_s: of a decoding step, its fixed part and for each sequence; prefill_s: for each
    prompt token; median_length, length_sigma: median and spread of the log-normal lengths; max_num_seqs: sequences
    decoded at once.
    """

    start_s: float = 20.0
    load_s: float = 0.3
    pause_s: float = 0.1
    step_s: float = 0.02
    sequence_step_s: float = 0.0
    prefill_s: float = 0.0
    median_length: float = 200.0
    length_sigma: float = 0.8
    max_num_seqs: int = 256


@dataclass(eq=False)
class _Sequence:
    """begin: steps of the engine at its admission; handed: tokens collected; score: the score that it belongs to."""

    request: SampleRequest
    length: int
    score: "_Score | None" = None
    begin: int = 0
    handed: int = 0
    spans: list[Span] = field(default_factory=list)

    def made(self, steps: int) -> int:
        """Tokens after `begun` at this step of the engine."""
        return min(self.length, steps - self.begin)


@dataclass(eq=False)
class _Score:
    """A text to score: a sequence of one token for each token but the first; `left`: sequences not finished yet."""

    left: int
    done: asyncio.Future[None]


class FakeEngine:
    """See the module; `kill`, `hang`, `go_on`, `slow_down`, `spoil_loads` and `slow_loads` are the events of tests.

    Args:
        settings: Speed and lengths.
        placed: Whether it has a place from the start, or only after `place`.
        start_error: The error of its start.
        loads: The outcomes of its first loads; later loads succeed.
    """

    def __init__(
        self,
        settings: FakeSettings,
        placed: bool = True,
        start_error: str | None = None,
        loads: Iterable[Load] = (),
    ):
        self.version: PolicyVersion | None = None
        self.tokens = 0
        self._settings, self._start_error = settings, start_error
        self._loads = iter(loads)
        self._thread = asyncio.Lock()
        self._num_scores = 0
        self._waiting: deque[_Sequence] = deque()
        self._running: dict[str, _Sequence] = {}
        self._ends: list[tuple[int, int, _Sequence]] = []
        self._finished: list[Completion] = []
        self._steps = 0
        self._serial = itertools.count()
        self._now = 0.0
        self._slowness = 1.0
        self._woken, self._thawed, self._killed, self._placed = (asyncio.Event() for _ in range(4))
        self._thawed.set()
        if placed:
            self._placed.set()

    # ---- events ----

    def place(self) -> None:
        """Give it its place."""
        self._placed.set()

    def kill(self) -> None:
        """End it: present and later calls raise `EngineLost`."""
        self._killed.set()
        self._placed.set()
        self._thawed.set()
        self._woken.set()

    def hang(self) -> None:
        """Do not answer until `go_on`."""
        self._thawed.clear()

    def go_on(self) -> None:
        """Answer again."""
        self._thawed.set()

    def slow_down(self, factor: float) -> None:
        """Make each step this many times slower."""
        self._advance()
        self._slowness = factor

    def spoil_loads(self, loads: Iterable[Load]) -> None:
        """Set the outcomes of its next loads."""
        self._loads = iter(loads)

    def slow_loads(self, seconds: float) -> None:
        """Take this long for each load from now on, and block during it."""
        self._settings = replace(self._settings, load_s=seconds, pause_s=seconds)

    @property
    def dead(self) -> bool:
        """Whether it was killed."""
        return self._killed.is_set()

    # ---- EngineHandle ----

    async def placed(self) -> None:
        """See `EngineHandle`."""
        await self._placed.wait()
        await self._answers()

    async def last_lines(self) -> str:
        """See `EngineHandle`."""
        return "the simulated engine was here"

    async def start(self) -> None:
        """See `Engine`."""
        await self._pass(self._settings.start_s)
        if self._start_error is not None:
            raise RuntimeError(self._start_error)
        self._now = self._clock()

    async def submit(self, requests: Sequence[SampleRequest]) -> None:
        """See `Engine`; refuses a request without room for a token."""
        async with self._turn():
            if self.version is None:
                raise NoWeights("no weights yet")
            for request in requests:
                if request.max_tokens <= len(request.begun):
                    raise RequestRefused(f"{request.key}: no room for a token")
            for request in requests:
                self._waiting.append(_Sequence(request, self._length(request) - len(request.begun)))
            self._admit()
        self._woken.set()

    async def collect(self, timeout_s: float, part_tokens: int | None) -> Collected:
        """See `Engine`."""
        await self._answers()
        deadline = self._clock() + timeout_s
        while True:
            async with self._turn():
                left_s = deadline - self._clock()
                if self._finished or left_s <= 1e-9:
                    return self._collected(part_tokens)
                self._woken.clear()
                wait_s = min(left_s, self._next_end_s())
            try:
                async with asyncio.timeout(wait_s):
                    await self._woken.wait()
            except TimeoutError:
                pass

    def _collected(self, part_tokens: int | None) -> Collected:
        finished, self._finished = tuple(self._finished), []
        made = {each: each.made(self._steps) for each in self._running.values() if each.score is None}
        parts: list[Completion] = []
        if part_tokens is not None:
            due = (sequence for sequence, number in made.items() if number - sequence.handed >= part_tokens)
            parts = [self._new_part(sequence) for sequence in due]
        return Collected(finished, tuple(parts), self.tokens, sum(made.values()))

    async def abort(self, keys: Sequence[str]) -> tuple[Completion, ...]:
        """See `Engine`."""
        async with self._turn():
            parts = self._forget(set(keys))
            self._admit()
        return parts

    def _forget(self, keys: set[str]) -> tuple[Completion, ...]:
        """Remove requests, and return their tokens."""
        parts = tuple(
            self._part(sequence, 0)
            for sequence in self._in_flight()
            if sequence.request.key in keys and sequence.score is None
        )
        finished = tuple(completion for completion in self._finished if completion.key in keys)
        self._finished = [completion for completion in self._finished if completion.key not in keys]
        self._running = {key: sequence for key, sequence in self._running.items() if key not in keys}
        self._waiting = deque(sequence for sequence in self._waiting if sequence.request.key not in keys)
        self._ends = [end for end in self._ends if end[2].request.key not in keys]
        heapq.heapify(self._ends)
        return parts + finished

    def _in_flight(self) -> tuple[_Sequence, ...]:
        return (*self._running.values(), *self._waiting)

    async def load(self, version: PolicyVersion, weights: Any) -> float:
        """See `Engine`; it steps on while the bytes arrive, and does nothing else while it takes them over."""
        what = next(self._loads, "take")
        pause_s = self._settings.pause_s
        await self._pass(self._settings.load_s - pause_s)
        if what == "unreachable":
            raise RuntimeError("the owner of the weights died")
        async with self._turn():
            self._now += pause_s * self._slowness
            await self._pass(pause_s)
            if what == "die":
                self.kill()
            elif what == "hang":
                self.hang()
            await self._answers()
            if what == "fail":
                raise LoadFailed("half of the weights are in place", self._lose_weights())
            self.version = version
            for sequence in self._running.values():
                _switch(sequence, sequence.made(self._steps), version)
            return pause_s

    def _lose_weights(self) -> tuple[Completion, ...]:
        self.version = None
        sequences = self._in_flight()
        for sequence in sequences:
            if sequence.score is not None and not sequence.score.done.done():
                sequence.score.done.set_exception(NoWeights("they are gone"))
        return self._forget({sequence.request.key for sequence in sequences})

    async def score(self, token_ids: NDArray[np.int32], timeout_s: float) -> NDArray[np.float32]:
        """See `Engine`; before what waits, in places of its own."""
        deadline = self._clock() + timeout_s
        async with self._turn():
            self._num_scores += 1
            score = _Score(len(token_ids) - 1, asyncio.get_running_loop().create_future())
            for place in range(1, len(token_ids)):
                request = SampleRequest(f"score:{self._num_scores}:{place}", token_ids[:place], 1, 0)
                self._waiting.appendleft(_Sequence(request, 1, score))
            self._admit()
        while not score.done.done():
            async with self._turn():
                wait_s = min(1.0, self._next_end_s())
                if self._clock() > deadline:
                    self._forget({each.request.key for each in self._in_flight() if each.score is score})
                    raise TimeoutError(f"not scored within {timeout_s:g} s")
            await asyncio.wait({score.done}, timeout=wait_s)
        score.done.result()
        return _logprobs(token_ids[1:])

    @property
    def num_in_flight(self) -> int:
        """Requests that it has, running or waiting."""
        return len(self._in_flight())

    # ---- internals ----

    def _clock(self) -> float:
        return asyncio.get_running_loop().time()

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        """Take the thread between two steps; others wait in order."""
        async with self._thread:
            await self._answers()
            self._advance()
            yield

    async def _answers(self) -> None:
        """Wait while it hangs; raise if it is dead."""
        await self._thawed.wait()
        if self.dead:
            raise EngineLost("its process died")

    async def _pass(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds * self._slowness):
                await self._killed.wait()
        except TimeoutError:
            pass
        await self._answers()

    def _length(self, request: SampleRequest) -> int:
        """Tokens of the whole completion."""
        noise = np.random.default_rng([request.seed & 0xFFFFFFFF, _hash(request)]).standard_normal()
        length = round(self._settings.median_length * float(np.exp(self._settings.length_sigma * noise)))
        # There is at least one token after `begun`, otherwise the engine would not have got the request.
        return max(len(request.begun) + 1, min(length, request.max_tokens))

    def _step_s(self) -> float:
        settings = self._settings
        return self._slowness * (settings.step_s + settings.sequence_step_s * len(self._running))

    def _next_end_s(self) -> float:
        if not self._ends:
            return float("inf")
        return max(0.0, self._now + (self._ends[0][0] - self._steps) * self._step_s() - self._clock()) + 1e-6

    def _advance(self) -> None:
        """Decode until the present time."""
        now = self._clock()
        while self._running:
            step_s = self._step_s()
            to_end = self._ends[0][0] - self._steps
            whole = int((now - self._now + 1e-9) / step_s) if now > self._now else 0
            steps = min(to_end, whole)
            self._steps += steps
            self._now += steps * step_s
            self.tokens += steps * len(self._running)
            if steps < to_end:
                return
            while self._ends and self._ends[0][0] <= self._steps:
                sequence = heapq.heappop(self._ends)[2]
                del self._running[sequence.request.key]
                self._end(sequence)
            self._admit()
        self._now = max(self._now, now)

    def _end(self, sequence: _Sequence) -> None:
        score = sequence.score
        if score is None:
            self._finished.append(self._whole(sequence))
            return
        score.left -= 1
        if not score.left:
            score.done.set_result(None)

    def _admit(self) -> None:
        while self._waiting and len(self._running) < self._places(self._waiting[0]):
            assert self.version is not None
            sequence = self._waiting.popleft()
            sequence.begin = self._steps
            sequence.spans = [Span(0, self.version)]
            self._running[sequence.request.key] = sequence
            heapq.heappush(self._ends, (self._steps + sequence.length, next(self._serial), sequence))
            self._now += self._settings.prefill_s * len(sequence.request.prompt_ids)

    def _places(self, sequence: _Sequence) -> int:
        return self._settings.max_num_seqs + (_SCORE_PLACES if sequence.score is not None else 0)

    def _whole(self, sequence: _Sequence) -> Completion:
        request = sequence.request
        full = len(request.begun) + sequence.length >= request.max_tokens
        tokens = tokens_of(request, sequence.spans, 0, sequence.length)
        return Completion(request.key, tokens, _logprobs(tokens), tuple(sequence.spans), "length" if full else "stop")

    def _new_part(self, sequence: _Sequence) -> Completion:
        """The new tokens of an unfinished sequence."""
        part = self._part(sequence, sequence.handed)
        sequence.handed += len(part.token_ids)
        return part

    def _part(self, sequence: _Sequence, begin: int) -> Completion:
        """The tokens of an unfinished sequence, from a position on."""
        end = sequence.made(self._steps) if sequence.spans else 0
        if end == begin:
            return joined(sequence.request.key, (), None)
        tokens = tokens_of(sequence.request, sequence.spans, begin, end)
        # The last span that begins at or before the part's first token is its first.
        before = [span for span in sequence.spans if span.begin <= begin][-1]
        later = [Span(s.begin - begin, s.version) for s in sequence.spans if begin < s.begin < end]
        spans = [Span(0, before.version), *later]
        return Completion(sequence.request.key, tokens, _logprobs(tokens), tuple(spans), None)


def _switch(sequence: _Sequence, made: int, version: PolicyVersion) -> None:
    if sequence.spans[-1].begin == made:
        sequence.spans.pop()
    sequence.spans.append(Span(made, version))


def _hash(request: SampleRequest) -> int:
    return zlib.crc32(request.prompt_ids.tobytes())


def tokens_of(request: SampleRequest, spans: Sequence[Span], begin: int, end: int) -> NDArray[np.int32]:
    """The sampled tokens `begin` to `end` after `begun`; spans are counted from there."""
    starts = [span.begin for span in spans]
    which = np.searchsorted(starts, np.arange(begin, end), side="right") - 1
    steps = np.array([span.version.step for span in spans], np.uint64)[which]
    place = np.arange(len(request.begun) + begin, len(request.begun) + end, dtype=np.uint64)
    key = np.uint64((request.seed * 1_000_003 + _hash(request)) % 2**63)
    mixed = (place * np.uint64(0x9E3779B97F4A7C15) + key) ^ steps
    mixed = (mixed ^ (mixed >> np.uint64(31))) * np.uint64(0xBF58476D1CE4E5B9)
    return ((mixed >> np.uint64(33)) % np.uint64(VOCABULARY)).astype(np.int32)


def _logprobs(token_ids: NDArray[np.int32]) -> NDArray[np.float32]:
    return (-((token_ids % 97) + 1) / 32).astype(np.float32)
