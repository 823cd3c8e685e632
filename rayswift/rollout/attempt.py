"""Makes the rounds of one worker group: draws prompts, samples, scores and assembles, until a later group begins.

It runs in the coordinator's event loop. `admission` decides which prompts may be drawn. The `ledger` records the
outcome of each prompt in the order of rounds, and rounds are handed out in that order too.
"""

import asyncio
from collections import Counter, deque
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from typing import Any

from rayswift.data.sequence.windows import TRAINED
from rayswift.engines.pool.autoscale import Meter
from rayswift.engines.samples import Completion, Group, PolicyVersion, Prompt, SampleRequest
from rayswift.log import UserError, logger
from rayswift.rollout import ledger as books
from rayswift.rollout.admission import Admission, RolloutPlan
from rayswift.rollout.groups import Sampler, Scorer, answer_of, is_sampled, outcome_of, requests_for, scored_group
from rayswift.rollout.ledger import ALL_EQUAL, CUT, FAILED, REMAINDER, Ledger, LedgerSnapshot
from rayswift.rollout.prompts import Prompts, draw_in_thread
from rayswift.rollout.rounds import Finished

_MOST_REASONS = 100


Keep = Callable[[int, Sequence[Group], str], None]
"""(round, groups, outcome): keeps the completions of a closed round, for people to read."""


def keep_nothing(number: int, groups: Sequence[Group], outcome: str) -> None:
    """A `Keep` that keeps nothing."""


class Attempt:
    """Makes the rounds of a worker group, starting from the ledger of its checkpoint.

    Args:
        number: Of the worker group.
        start: The ledger of its checkpoint.
        plan: Sizes and limits.
        prompts: The sequence of prompts, at the position of the ledger.
        sampler: Samples.
        scorer: Scores.
        keep: Gets all groups, round after round.
    """

    def __init__(
        self,
        number: int,
        start: LedgerSnapshot,
        plan: RolloutPlan,
        prompts: Prompts,
        sampler: Sampler,
        scorer: Scorer,
        keep: Keep = keep_nothing,
    ):
        self.number, self.start = number, start
        self._clock = asyncio.get_running_loop().time
        self.engines_busy = Meter(self._clock())
        self.moved_at = self._clock()
        """When a prompt, a completion's group, a reward or weights came last."""
        self._waiting: Counter[str] = Counter()
        self._plan, self._prompts, self._sampler, self._scorer = plan, prompts, sampler, scorer
        self._ledger = Ledger(start, plan.max_failed_fraction)
        self._admission = Admission(plan.rounds, start.rounds)
        self._next_to_close = start.rounds
        self._ready: deque[Prompt] = deque()
        self._under_way, self._surplus = dict[int, Prompt](), Counter[int]()
        self._ended = self._over = False
        self._groups: dict[int, list[Group]] = {}
        self._opened_at: dict[int, float] = {}
        self._finished: dict[int, Finished] = {}
        self._keep = keep
        self._left_out: dict[int, dict[str, list[Group]]] = {}
        # Outcomes of the earlier prompts of the round that is closed next, if it drew again.
        self._fruitless: Counter[str] = Counter()
        self._equal_rewards: Counter[str] = Counter()
        self._trained_epochs = start.epochs
        self._reasons: list[str] = []
        self._error: BaseException | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._reading = False
        self._changed = asyncio.Event()

    def begin(self) -> None:
        """Begin to read prompts; they are sampled once weights are published."""
        if not self._plan.has_engines:
            self._admission.publish(self.start.rounds)
        self._advance()

    def published(self, step: int) -> None:
        """Note that the engines are about to load weights after `step` rounds."""
        self.moved_at = self._clock()
        self._admission.publish(step)
        self._advance()

    @property
    def published_step(self) -> int | None:
        """Return the number of rounds of the newest weights."""
        return self._admission.published

    def fail(self, error: BaseException) -> None:
        """Raise this error in all callers that wait for a round."""
        self._error = self._error or error
        self._wake()

    async def stop(self) -> None:
        """Cancel all work; a thread that reads prompts ends within about a second."""
        self._over = True
        self._wake()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def round(self, number: int, timeout_s: float) -> Finished:
        """Wait for a round until it can be trained, and return it.

        Raises:
            UserError: it cannot be made.
            TimeoutError: it was not complete in time, or a later worker group has begun.
        """
        deadline = self._clock() + timeout_s
        while number not in self._finished:
            if self._error is not None:
                raise self._error
            left_s = deadline - self._clock()
            if left_s <= 0 or self._over:
                raise TimeoutError(f"round {number} was not ready within {timeout_s:g} s: {self.describe()}")
            changed = self._changed
            try:
                await asyncio.wait_for(changed.wait(), left_s)
            except TimeoutError:
                continue
        return self._finished[number]

    def forget_before(self, number: int) -> None:
        """Forget the rounds before this one, because all ranks have them."""
        for each in [n for n in self._finished if n < number]:
            del self._finished[each]
        if not self._plan.has_engines:  # rounds do not wait for weights, and are made on request
            self._admission.publish(number)
            self._advance()

    def describe(self) -> str:
        """Describe the work in progress, for errors and the live line."""
        if self._admission.published is None:
            return "no weights are published yet"
        parts = [f"{count} prompts with {where}" for where, count in sorted(self._waiting.items()) if count]
        if self._reading and not self._ready:
            parts.append("the data has no prompt ready")
        return ", ".join(parts) or "no prompt is in progress"

    def _stage(self, where: str, change: int) -> None:
        self._waiting[where] += change
        self.moved_at = self._clock()
        if where == "engines":
            self.engines_busy.set(float(self._waiting[where] > 0), self._clock())

    def _advance(self) -> None:
        """Draw the prompts that may be drawn, close complete rounds, and read further prompts."""
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
            self._under_way[prompt.ordinal] = prompt
            self._admission.draw(prompt.ordinal, number)
            self._opened_at.setdefault(number, self._clock())
            drawn.setdefault(number, []).append(prompt)
        for number, prompts in drawn.items():
            if not is_sampled(self._plan.seed, number, self._plan.sampled):
                for prompt in prompts:
                    asked, answer = answer_of(prompt, PolicyVersion(self.number, number))
                    self._spawn(self._complete(asked, number, [answer], rewarded=False))
                continue
            each = self._plan.num_generations
            requests = [one for prompt in prompts for one in self._requests(prompt)]
            futures = self._sampler.sample(requests, self._admission.min_step(number))
            for index, prompt in enumerate(prompts):
                self._spawn(self._complete(prompt, number, futures[index * each : (index + 1) * each]))
        return bool(drawn)

    def _requests(self, prompt: Prompt) -> list[SampleRequest]:
        plan = self._plan
        most, window = plan.max_completion_length, plan.max_sequence_length
        return requests_for(prompt, "train", plan.num_generations, most, window, plan.seed)

    async def _complete(
        self, prompt: Prompt, number: int, futures: Sequence[asyncio.Future[Completion]], rewarded: bool = True
    ) -> None:
        group, reasons = await scored_group(self._scorer, prompt, futures, self._stage, rewarded)
        outcome = outcome_of(group, reasons, self._plan)
        if outcome.startswith(TRAINED):
            self._groups.setdefault(number, []).append(group)
        else:
            self._left_out.setdefault(number, {}).setdefault(outcome, []).append(group)
        self._reasons += reasons[: max(0, _MOST_REASONS - len(self._reasons))]
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
        self._give_back(number, self._admission.surplus(number))
        if (last := self._admission.is_last(number, len(self._ready), self._ended)) is None:
            return False
        outcomes = self._admission.close(number)
        for ordinal in outcomes:
            del self._under_way[ordinal]
        groups = sorted(self._groups.pop(number, []), key=_ordinal)
        self._hand_over(number, groups)
        if not groups:
            return self._goes_on(number, outcomes)
        ledger = self._ledger.close(outcomes)
        self._trained_epochs = ledger.epochs
        if last and self._plan.rounds.num_rounds is None:  # otherwise the ready prompts were only read ahead
            ledger = self._ledger.close({prompt.ordinal: REMAINDER for prompt in self._ready}, trains=False)
        self._finish(number, groups, ledger, last, outcomes.values())
        return True

    def _give_back(self, number: int, surplus: Sequence[int]) -> None:
        """Make prompts that a round does not need the next to be drawn, and discard their completions."""
        self._surplus[number] += len(surplus)
        self._ready.extendleft(self._under_way.pop(ordinal) for ordinal in reversed(surplus))
        for groups in (self._groups.get(number, []), *self._left_out.get(number, {}).values()):
            groups[:] = [group for group in groups if group.prompt.ordinal not in surplus]

    def _finish(
        self,
        number: int,
        groups: Sequence[Group],
        ledger: LedgerSnapshot,
        last: bool,
        outcomes: Iterable[str],
        ended: str = "",
    ) -> None:
        counts = self._fruitless + Counter(outcomes)
        self._finished[number] = Finished(
            number,
            tuple(groups),
            ledger,
            last,
            drawn=counts.total(),
            filtered=counts[ALL_EQUAL],
            failed=sum(count for outcome, count in counts.items() if outcome.startswith(FAILED)),
            surplus=self._surplus.pop(number, 0),
            seconds=self._clock() - self._opened_at.pop(number),
            ended=ended,
        )
        self._next_to_close += 1
        self._fruitless.clear()
        self._equal_rewards.clear()
        self._wake()

    def _hand_over(self, number: int, groups: Sequence[Group]) -> None:
        """Have a round's completions kept, with their outcomes."""
        for outcome, left_out in sorted(self._left_out.pop(number, {}).items()):
            self._keep(number, sorted(left_out, key=_ordinal), outcome)
            if outcome == ALL_EQUAL:
                texts = ([f"{each.reward:g}" for each in group.scored] for group in left_out)
                self._equal_rewards.update(" and ".join(dict.fromkeys(each)) for each in texts)
        for is_cut, outcome in ((False, TRAINED), (True, CUT)):
            if part := [group for group in groups if group.prompt.cut == is_cut]:
                self._keep(number, part, outcome)

    def _goes_on(self, number: int, outcomes: Mapping[int, str]) -> bool:
        """Let a round without a trainable prompt draw again, or end the run.

        Raises:
            UserError: the prompts failed, or nothing was ever trained.
        """
        counts = self._fruitless + Counter(outcomes.values())
        num_failed = sum(count for outcome, count in counts.items() if outcome.startswith(FAILED))
        what = f"none of the {counts.total()} prompts drawn for round {number} can be trained: {books.counted(counts)}"
        if num_failed > self._plan.max_failed_fraction * counts.total():
            raise UserError(f"{what}{books.examples_of(self._reasons)}", exit_code=1)
        if self._equal_rewards:
            rewards = (f"{reward} in {count}" for reward, count in self._equal_rewards.most_common(5))
            what += f" (reward {', '.join(rewards)})"
        ledger = self._ledger.close(outcomes, trains=False)
        # The weights have not changed: another pass would give about the same rewards.
        ends = (self._ended and not self._ready) or ledger.epochs >= self._trained_epochs + 1
        if not ends:
            logger.info("%s; drawing more prompts", what)
            self._fruitless = counts
            self._admission.reopen(number)
            return True
        if not ledger.rounds:
            raise UserError(
                f"{what}{books.examples_of(self._reasons)}\n  rewards that tell completions apart, harder or easier "
                "prompts or a higher rollout.temperature give something to learn from",
                exit_code=1,
            )
        self._finish(number, (), ledger, True, outcomes.values(), ended=what)
        return True

    async def _read(self) -> None:
        try:
            drawn, ended = await draw_in_thread(self._prompts, self._plan.rounds.num_prompts)
        finally:
            self._reading = False
        if drawn:
            self.moved_at = self._clock()
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


def _ordinal(group: Group) -> int:
    return group.prompt.ordinal
