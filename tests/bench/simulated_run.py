"""A run with simulated engines and a trainer that only takes its time; the pool, the admission and the rule for the
number of engines are the real ones. For the event loop of tests.virtual_time, or for a real one.
"""

import asyncio
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from rayswift.data.sequence.windows import TRAINED
from rayswift.engines.engine import Factory
from rayswift.engines.pool.autoscale import Meter, Rule, Scale, Signals, look
from rayswift.engines.pool.patience import Limits
from rayswift.engines.pool.pool import Pool
from rayswift.engines.samples import Completion, PolicyVersion, SampleRequest
from rayswift.rollout.admission import Admission, RoundPlan
from tests.support.fake_engine import FakeEngine, FakeSettings

_PROMPT_TOKENS = 100
_LOOK_S = 1.0


@dataclass(frozen=True)
class Setting:
    """A run.

    num_prompts, num_generations: of a round; max_tokens: of a completion, by round; train_tokens_per_s: what the
    trainer trains of prompts and completions; step_s: what it takes besides, publishing included; node_s: until a new
    engine has a place; rule: for the number of engines, least and most equal where it is fixed.
    """

    engine: FakeSettings
    rule: Rule
    num_rounds: int
    max_staleness: int
    train_tokens_per_s: float
    num_prompts: int = 32
    num_generations: int = 8
    max_tokens: Callable[[int], int] = lambda number: 1024
    step_s: float = 0.0
    node_s: float = 0.0


@dataclass
class Measured:
    """seconds: of the run; waits_s: of these, the trainer without a round; engine_s: that engines were held;
    staleness: versions that a trained token was behind its trainer, in the mean; most_engines, engines_at_the_end:
    held at once; lost: engines.
    """

    seconds: float = 0.0
    waits_s: float = 0.0
    engine_s: float = 0.0
    tokens: int = 0
    staleness: float = 0.0
    most_engines: int = 0
    engines_at_the_end: int = 0
    lost: int = 0
    _lags: list[tuple[int, int]] = field(default_factory=list)


class SimulatedRun:
    """See the module; `go` makes it once.

    Args:
        setting: The run.
        factory: Of engines as `setting.engine` says; None: in this event loop.
    """

    def __init__(self, setting: Setting, factory: Factory | None = None):
        self._setting = setting
        plan = RoundPlan(setting.num_prompts, setting.max_staleness, 3, setting.num_rounds)
        self._admission = Admission(plan, 0)
        self._ordinals = itertools.count()
        self._groups: dict[int, list[list[Completion]]] = {}
        self._ready = [asyncio.Event() for _ in range(setting.num_rounds)]
        self._tasks: set[asyncio.Task[None]] = set()
        self._measured = Measured()
        self._clock = asyncio.get_running_loop().time
        self._waits, self._idle, self._load = (Meter(self._clock()) for _ in range(3))
        limits = Limits(max_outstanding=setting.engine.max_num_seqs * 5 // 4, unserved_s=10_000)
        self._pool = Pool(factory or self._engine, limits, resume_partial=setting.max_staleness > 0)
        self._places = limits.max_outstanding

    async def go(self) -> Measured:
        """Sample and train all rounds."""
        setting, measured = self._setting, self._measured
        began = self._clock()
        self._pool.scale_to(setting.rule.least)
        self._publish(0)
        scaling = asyncio.create_task(self._scale())
        for number in range(setting.num_rounds):
            tokens = await self._train(number)
            await asyncio.sleep(tokens / setting.train_tokens_per_s + setting.step_s)
            self._publish(number + 1)
        measured.seconds = self._clock() - began
        measured.lost = self._pool.statistics().lost
        scaling.cancel()
        await self._pool.close()
        measured.staleness = sum(n * lag for n, lag in measured._lags) / sum(n for n, _ in measured._lags)
        return measured

    async def _train(self, number: int) -> int:
        """Wait for a round; returns its tokens."""
        began = self._clock()
        self._waits.set(1.0, began)
        await self._ready[number].wait()
        self._waits.set(0.0, self._clock())
        self._measured.waits_s += self._clock() - began
        completions = [completion for group in self._groups.pop(number) for completion in group]
        assert len(completions) == self._setting.num_prompts * self._setting.num_generations
        tokens = sum(len(completion.token_ids) for completion in completions)
        for completion in completions:
            self._measured._lags += _lags(completion, number)
        self._measured.tokens += tokens
        return tokens + _PROMPT_TOKENS * len(completions)

    def _publish(self, step: int) -> None:
        self._admission.publish(step)
        self._spawn(self._load_weights(step))
        self._draw()

    async def _load_weights(self, step: int) -> None:
        await self._pool.set_weights(PolicyVersion(1, step), None)

    def _draw(self) -> None:
        while (number := self._admission.next_round(10**9, False)) is not None:
            ordinal = next(self._ordinals)
            self._admission.draw(ordinal, number)
            self._spawn(self._sample(ordinal, number))
        self._note()

    async def _sample(self, ordinal: int, number: int) -> None:
        prompt = np.full(_PROMPT_TOKENS, ordinal, np.int32)
        room = self._setting.max_tokens(number)
        samples = range(self._setting.num_generations)
        requests = [SampleRequest(f"{ordinal}:{n}", prompt, room, seed=ordinal * 64 + n) for n in samples]
        futures = self._pool.sample(requests, self._admission.min_step(number))
        group = await asyncio.gather(*futures)
        self._groups.setdefault(number, []).append(group)
        self._admission.finish(ordinal, TRAINED)
        if self._admission.is_complete(number, 10**9, False):
            self._admission.close(number)
            self._ready[number].set()
        self._note()

    def _note(self) -> None:
        """For the rule: how much there is to do."""
        stands = self._pool.statistics()
        requests = stands.queued + stands.running
        self._idle.set(float(requests == 0), self._clock())
        self._load.set(requests / (max(1, stands.serving) * self._places), self._clock())

    async def _scale(self) -> None:
        rule, scale = self._setting.rule, Scale(self._setting.rule.least)
        looked_at = self._clock()
        while True:
            await asyncio.sleep(_LOOK_S)
            now, stands = self._clock(), self._pool.statistics()
            held = stands.serving + stands.joining + stands.suspect + stands.draining
            self._measured.engine_s += held * (now - looked_at)
            self._measured.most_engines = max(self._measured.most_engines, held)
            self._measured.engines_at_the_end = held
            looked_at = now
            means = [meter.read(now) for meter in (self._waits, self._idle, self._load)]
            scale = look(rule, scale, Signals(*means, joining=stands.joining), now)
            self._pool.scale_to(scale.wanted)

    def _engine(self, name: str) -> FakeEngine:
        engine = FakeEngine(self._setting.engine, placed=False)
        asyncio.get_running_loop().call_later(self._setting.node_s, engine.place)
        return engine

    def _spawn(self, coroutine: object) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)  # type: ignore[arg-type]
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.result()


def _lags(completion: Completion, number: int) -> list[tuple[int, int]]:
    """Tokens and how many versions they are behind the weights that train them."""
    ends = [span.begin for span in completion.spans[1:]] + [len(completion.token_ids)]
    pairs = zip(completion.spans, ends, strict=True)
    return [(end - span.begin, number - span.version.step) for span, end in pairs]
