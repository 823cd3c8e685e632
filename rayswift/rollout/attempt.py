"""One worker group's rounds: prompts are drawn, sampled, scored and put together until a later group begins.

All of it happens in the coordinator's event loop. What may be drawn is `admission`'s word; what became of each prompt
is booked in the `ledger` in the order of rounds, in which they leave here too, whatever finishes first.
"""

import asyncio
import time
from collections import Counter, deque
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Protocol

from rayswift.data.windows import TRAINED
from rayswift.log import UserError, logger
from rayswift.rollout.admission import Admission, RoundPlan
from rayswift.rollout.autoscale import Meter
from rayswift.rollout.ledger import ALL_EQUAL, FAILED, TAIL, Ledger, LedgerSnapshot
from rayswift.rollout.pool import SampleFailed
from rayswift.rollout.prompts import Drawn
from rayswift.rollout.samples import Completion, Group, Prompt, SampleRequest, Scored

_READ_S = 1.0


@dataclass(frozen=True)
class RolloutPlan:
    """What the coordinator does, as plain values.

    rounds: see there; num_steps: optimizer steps of one pass over a round; steps_per_round: of all passes;
    num_generations, num_generations_eval: completions of a prompt; min_group: fewest scored ones that it can be
    trained with; drops_equal: filter groups whose rewards are all equal; max_failed_fraction: see
    `rollout.max_failed_fraction`; max_outstanding: requests that an engine holds at once.
    """

    rounds: RoundPlan
    num_steps: int
    steps_per_round: int
    num_generations: int
    num_generations_eval: int
    min_group: int
    max_completion_length: int
    drops_equal: bool
    max_failed_fraction: float
    seed: int
    max_outstanding: int


class Prompts(Protocol):
    """Where prompts come from, see `prompts.PromptFeed`."""

    def draw(self, timeout_s: float) -> Drawn | None:
        """The next; None at the end of the data; TimeoutError: none yet."""


class Sampler(Protocol):
    """Who samples, see `pool.Pool`."""

    def sample(self, requests: Sequence[SampleRequest], min_step: int) -> list[asyncio.Future[Completion]]:
        """A completion for each request, from weights behind at least `min_step` rounds."""


class Scorer(Protocol):
    """Who scores, see `rewards.runner`."""

    async def score(self, prompt: Prompt, completions: Sequence[Completion]) -> Sequence[Scored | str]:
        """Each completion with its rewards, or why it has none."""


@dataclass(frozen=True)
class Finished:
    """A round that can be trained: its groups by ordinal, the ledger once it is trained, whether it is the last."""

    number: int
    groups: tuple[Group, ...]
    ledger: LedgerSnapshot
    last: bool
    drawn: int
    filtered: int
    failed: int
    seconds: float


def sample_seed(run_seed: int, use: str, ordinal: int, sample: int) -> int:
    """The seed of a completion's random numbers, the same however often it is sampled."""
    digest = blake2b(f"{run_seed}:{use}:{ordinal}:{sample}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 2  # vLLM takes signed 64-bit numbers


def requests_for(plan: RolloutPlan, prompt: Prompt, use: str, num_samples: int) -> list[SampleRequest]:
    """One request for each completion of a prompt; `use` tells training from evaluations."""
    return [
        SampleRequest(
            f"{use}:{prompt.ordinal}:{sample}",
            prompt.input_ids,
            plan.max_completion_length,
            sample_seed(plan.seed, use, prompt.ordinal, sample),
        )
        for sample in range(num_samples)
    ]


Stage = Callable[[str, int], None]
"""(who has a prompt, +1 or -1): it comes or goes."""


async def scored_group(
    scorer: Scorer, prompt: Prompt, futures: Sequence[asyncio.Future[Completion]], stage: Stage
) -> tuple[Group, list[str]]:
    """The completions of a prompt that were sampled and scored, and why the others were not."""
    stage("engines", 1)
    try:
        sampled = await asyncio.gather(*futures, return_exceptions=True)
    finally:
        stage("engines", -1)
    for each in sampled:
        if isinstance(each, BaseException) and not isinstance(each, SampleFailed):
            raise each
    reasons = [f"engines: {each}" for each in sampled if isinstance(each, SampleFailed)]
    completions = [each for each in sampled if isinstance(each, Completion)]
    stage("rewards", 1)
    try:
        answers = await scorer.score(prompt, completions) if completions else []
    finally:
        stage("rewards", -1)
    reasons += [each for each in answers if isinstance(each, str)]
    return Group(prompt, tuple(each for each in answers if isinstance(each, Scored))), reasons


class Attempt:
    """The rounds of a worker group, from the ledger of its checkpoint on.

    Args:
        number: Of the worker group.
        start: What its checkpoint holds.
        plan: Sizes and limits.
        prompts: Standing at the ledger's position.
        sampler: Samples.
        scorer: Scores.
    """

    def __init__(
        self,
        number: int,
        start: LedgerSnapshot,
        plan: RolloutPlan,
        prompts: Prompts,
        sampler: Sampler,
        scorer: Scorer,
    ):
        self.number, self.start = number, start
        self.engines_busy = Meter(time.monotonic())
        self._waiting: Counter[str] = Counter()
        self._plan, self._prompts, self._sampler, self._scorer = plan, prompts, sampler, scorer
        self._ledger = Ledger(start, plan.max_failed_fraction)
        self._admission = Admission(plan.rounds, start.rounds)
        self._next_to_close = start.rounds
        self._ready: deque[Prompt] = deque()
        self._ended = self._over = False
        self._groups: dict[int, list[Group]] = {}
        self._opened_at: dict[int, float] = {}
        self._finished: dict[int, Finished] = {}
        self._reasons: Counter[str] = Counter()
        self._error: BaseException | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._reading = False
        self._changed = asyncio.Event()

    def begin(self) -> None:
        """Read prompts; they are sampled once weights are published."""
        self._advance()

    def published(self, step: int) -> None:
        """Weights behind `step` rounds are on their way to the engines."""
        self._admission.publish(step)
        self._advance()

    @property
    def published_step(self) -> int | None:
        """Rounds behind the newest weights."""
        return self._admission.published

    def fail(self, error: BaseException) -> None:
        """Whoever waits for a round hears of it."""
        self._error = self._error or error
        self._wake()

    async def stop(self) -> None:
        """End all that is under way; a thread that reads prompts answers within a second or so."""
        self._over = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def round(self, number: int, timeout_s: float) -> Finished:
        """A round, once it can be trained.

        Raises:
            UserError: it cannot be made.
            TimeoutError: it was not there in time; the text says what it waits for.
        """
        deadline = time.monotonic() + timeout_s
        while number not in self._finished:
            if self._error is not None:
                raise self._error
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise TimeoutError(f"round {number} was not there within {timeout_s:g} s: {self.describe()}")
            changed = self._changed
            try:
                await asyncio.wait_for(changed.wait(), left_s)
            except TimeoutError:
                continue
        return self._finished[number]

    def forget_before(self, number: int) -> None:
        """Rounds before this one are on all ranks."""
        for each in [n for n in self._finished if n < number]:
            del self._finished[each]

    @property
    def num_waiting_rounds(self) -> int:
        """Finished rounds that no rank has taken."""
        return len(self._finished)

    def describe(self) -> str:
        """What is under way, for errors and the live line."""
        if self._admission.published is None:
            return "no weights are published yet"
        parts = [f"{count} prompts with {where}" for where, count in sorted(self._waiting.items()) if count]
        if self._reading and not self._ready:
            parts.append("the data has no prompt ready")
        return ", ".join(parts) or "no prompt is under way"

    def _stage(self, where: str, change: int) -> None:
        self._waiting[where] += change
        if where == "engines":
            self.engines_busy.set(float(self._waiting[where] > 0), time.monotonic())

    def _advance(self) -> None:
        """Draw what may be drawn, close what is complete, read on."""
        if self._over or self._error is not None:
            return
        try:
            while self._draw() or self._close():
                pass
        except UserError as error:
            self.fail(error)
        if not self._reading and not self._ended and len(self._ready) < 2 * self._plan.rounds.num_prompts:
            self._reading = True
            self._spawn(self._read())

    def _draw(self) -> bool:
        drawn: dict[int, list[Prompt]] = {}
        while (number := self._admission.next_round(len(self._ready), self._ended)) is not None:
            prompt = self._ready.popleft()
            self._admission.draw(prompt.ordinal, number)
            self._opened_at.setdefault(number, time.monotonic())
            drawn.setdefault(number, []).append(prompt)
        for number, prompts in drawn.items():
            each = self._plan.num_generations
            requests = [one for prompt in prompts for one in requests_for(self._plan, prompt, "train", each)]
            futures = self._sampler.sample(requests, self._admission.min_step(number))
            for index, prompt in enumerate(prompts):
                self._spawn(self._complete(prompt, number, futures[index * each : (index + 1) * each]))
        return bool(drawn)

    async def _complete(self, prompt: Prompt, number: int, futures: Sequence[asyncio.Future[Completion]]) -> None:
        group, reasons = await scored_group(self._scorer, prompt, futures, self._stage)
        outcome = TRAINED
        if len(group.scored) < self._plan.min_group:
            outcome = f"{FAILED}{_kind(reasons)}"
            logger.warning("prompt %s failed: %s", prompt.id, "; ".join(sorted(set(reasons)))[:500])
        elif self._plan.drops_equal and len({each.reward for each in group.scored}) == 1:
            outcome = ALL_EQUAL
        else:
            self._groups.setdefault(number, []).append(group)
        self._reasons.update(reasons)
        self._admission.finish(prompt.ordinal, outcome)
        self._advance()

    def _close(self) -> bool:
        number, num_ready = self._next_to_close, len(self._ready)
        if self._admission.lacks_prompts(number, num_ready, self._ended):
            if number == self.start.rounds:
                raise UserError(
                    f"{num_ready} prompts are left, fewer than the {self._plan.rounds.num_prompts} of a round; lower "
                    "train.global_batch_size or train.steps_per_generation",
                    exit_code=1,
                )
            return False
        if not self._admission.is_complete(number, num_ready, self._ended):
            return False
        last = self._admission.is_last(number, num_ready, self._ended)
        if last is None:
            return False
        outcomes = self._admission.close(number)
        groups = sorted(self._groups.pop(number, []), key=lambda group: group.prompt.ordinal)
        if not groups:
            raise UserError(
                f"none of the {len(outcomes)} prompts drawn for round {number} can be trained: "
                f"{_counted(outcomes.values())}{_examples(self._reasons)}",
                exit_code=1,
            )
        ledger = self._ledger.close(outcomes)
        if last and self._plan.rounds.num_rounds is None:  # else what is ready was only read ahead
            ledger = self._ledger.close({prompt.ordinal: TAIL for prompt in self._ready}, trains=False)
        self._finished[number] = Finished(
            number,
            tuple(groups),
            ledger,
            last,
            drawn=len(outcomes),
            filtered=sum(outcome == ALL_EQUAL for outcome in outcomes.values()),
            failed=sum(outcome.startswith(FAILED) for outcome in outcomes.values()),
            seconds=time.monotonic() - self._opened_at.pop(number),
        )
        self._next_to_close += 1
        self._wake()
        return True

    async def _read(self) -> None:
        try:
            drawn, ended = await _in_thread(lambda: _draw_some(self._prompts, self._plan.rounds.num_prompts))
        finally:
            self._reading = False
        for each in drawn:
            self._ledger.seen(each.prompt.ordinal, each.position, each.epochs)
            if not self._ledger.is_done(each.prompt.ordinal):
                self._ready.append(each.prompt)
        self._ended = ended
        self._advance()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._reap)

    def _reap(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.fail(error)

    def _wake(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()


async def _in_thread(work: Callable[[], tuple[list[Drawn], bool]]) -> tuple[list[Drawn], bool]:
    """Run in a thread; a cancelled caller still waits for the thread, which must not be left at work."""
    thread = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        return await asyncio.shield(thread)
    except asyncio.CancelledError:
        await asyncio.wait([thread])
        raise


def _draw_some(prompts: Prompts, most: int) -> tuple[list[Drawn], bool]:
    """Up to so many prompts, fewer if they do not come at once; whether these are the last."""
    drawn: list[Drawn] = []
    try:
        while len(drawn) < most:
            each = prompts.draw(_READ_S)
            if each is None:
                return drawn, True
            drawn.append(each)
            if each.last:
                return drawn, True
    except TimeoutError:
        pass
    return drawn, False


def _kind(reasons: Sequence[str]) -> str:
    """The commonest reason, shortened to what counts alike."""
    (reason, _), *_ = Counter(reason.partition(":")[0] for reason in reasons).most_common(1) or [("no reason", 0)]
    return reason


def _counted(outcomes: Any) -> str:
    return ", ".join(f"{count} {name}" for name, count in Counter(outcomes).most_common())


def _examples(reasons: Mapping[str, int]) -> str:
    return "".join(f"\n  {reason}" for reason in list(reasons)[:3])
