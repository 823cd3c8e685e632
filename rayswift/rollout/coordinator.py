"""The coordinator: serves the trainer's ranks, in one event loop; runs as an actor that the driver owns.

It outlives worker groups. Each group has an attempt number, later groups higher ones, and every call has this number:
calls of an older group are refused, and completions for it are discarded. `attempt.Attempt` makes the rounds. The
coordinator hands them out, gives weights to the pool and runs evaluations. A call that must wait answers within seconds
and says what it waits for. A wait ends with an error only if there is no progress, however long it takes.
"""

import asyncio
import time
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rayswift.data.feed.feed import DRIVERS_ATTEMPT, StaleAttempt
from rayswift.engines.pool.autoscale import Rule
from rayswift.engines.pool.pool import Pool
from rayswift.engines.pool.probing import Probed
from rayswift.engines.pool.scaler import Scaler
from rayswift.engines.samples import Group, PolicyVersion
from rayswift.engines.weights import Published, Weights
from rayswift.log import UserError, logger
from rayswift.rollout.admission import RolloutPlan
from rayswift.rollout.attempt import Attempt
from rayswift.rollout.completions import CompletionsFile
from rayswift.rollout.evaluation import evaluated
from rayswift.rollout.groups import Rewards, Sampler, Scorer
from rayswift.rollout.ledger import LedgerSnapshot
from rayswift.rollout.prompts import PromptFeed
from rayswift.rollout.rounds import NO_TOKENS, Dealt, Finished, Round, Serving, Waiting, lines_of, make_table

_POLL_S = 0.1
_KEPT = 8
"""Number of results kept, because some ranks may still have to fetch them."""


class Coordinator:
    """Serves rounds to ranks.

    Args:
        plan: Sizes, limits, deadlines.
        prompts: The sequence of prompts.
        pool: Engines.
        rewards: Scores completions.
        weights: Keeps the newest weights.
        completions: Keeps completions.
        engines: The least and the most.
        scorer: Of completions to train, if a teacher scores them too; None: `rewards`.
        sampler: Makes completions of several turns; None: a completion is one turn.
    """

    def __init__(
        self,
        plan: RolloutPlan,
        prompts: PromptFeed,
        pool: Pool,
        rewards: Rewards,
        weights: Weights,
        completions: CompletionsFile,
        engines: Rule,
        scorer: Scorer | None = None,
        sampler: Sampler | None = None,
    ):
        self._plan, self._prompts, self._pool = plan, prompts, pool
        self._rewards, self._weights, self._completions = rewards, weights, completions
        self._scorer, self._sampler = scorer or rewards, sampler or pool
        self._named_attempt = 0
        self._life: Attempt | None = None
        self._begins = asyncio.Lock()
        self._serving = Serving(-1)
        self._syncs: set[asyncio.Task[None]] = set()
        self._sync_s = 0.0
        self._clock = asyncio.get_running_loop().time
        self._moved_at = self._clock()
        # Results that are made once for all ranks, by name, and the time of the first request.
        self._once: dict[str, tuple[asyncio.Task[Any], float]] = {}
        self._kept, self._round_metrics, self._shown = -1, dict[str, float](), (0, 0.0)
        self._writer = ThreadPoolExecutor(1, "completions")
        self._tokens_at = (self._clock(), 0)
        self._waiting_ranks: set[int] = set()
        self._scaler = Scaler(engines, pool, plan.max_outstanding)
        pool.scale_to(engines.least)
        self._scaling = asyncio.create_task(self._scaler.run())

    async def new_attempt(self) -> int:
        """Return a number for a worker group that starts, higher than all before."""
        self._named_attempt = max(self._named_attempt + 1, time.time_ns())
        return self._named_attempt

    async def begin(self, attempt: int, start: LedgerSnapshot) -> None:
        """Begin to make rounds, starting from a ledger; every rank of a group calls it with the same values.

        Raises:
            StaleAttempt: a newer attempt has begun.
        """
        async with self._begins:
            self._refuse_older(attempt)
            if self._life is not None:
                if self._life.number == attempt:
                    return
                if self._life.number == DRIVERS_ATTEMPT and self._life.start == start:
                    self._life.number = attempt  # its prompts are already being read
                    return
                await self._life.stop()
            self._pool.abandon()
            for task in (*self._syncs, *(task for task, _ in self._once.values())):
                task.cancel()
            self._once.clear()
            await asyncio.to_thread(self._prompts.begin, start.position)
            self._kept = start.rounds - 1
            self._write(self._completions.begin, start.rounds)
            self._serving = Serving(start.rounds - 1)
            self._life = Attempt(attempt, start, self._plan, self._prompts, self._sampler, self._scorer, self._note)
            self._life.begin()

    async def published(self, attempt: int, published: Published) -> None:
        """Have the engines load published weights, and draw the prompts that may now be sampled.

        Raises:
            StaleAttempt: a newer attempt has begun.
        """
        life = self._current(attempt)
        task = asyncio.create_task(self._take_over(life, published))
        self._syncs.add(task)
        task.add_done_callback(self._syncs.discard)
        # The pool aborts requests for the weights of an older group: it must know the new weights before the first
        # request for them. Engines load while the requests are made: they are asked to within three turns of the loop.
        for _ in range(3):
            await asyncio.sleep(0)
        life.published(published.version.step)

    async def next(self, attempt: int, number: int, rank: int, size: int, wait_s: float) -> Round | Waiting:
        """Return a rank's share of a round, or `Waiting` after `wait_s`.

        Raises:
            StaleAttempt: a newer attempt has begun.
            UserError: the round cannot be made.
            TimeoutError: there is no progress; the text says what it waits for.
        """
        life, serving = self._current(attempt), self._serving
        if (oldest := serving.ask(rank, number, size, self._clock())) is not None:
            life.forget_before(oldest)
        self._waiting_ranks.add(rank)
        self._scaler.trainer_waits(True)
        try:
            finished = await life.round(number, wait_s)
        except TimeoutError:
            self._refuse_older(attempt)
            return self._still_waiting(life, f"round {number} is not ready", serving.since[rank])
        finally:
            self._waiting_ranks.discard(rank)
            self._scaler.trainer_waits(bool(self._waiting_ranks))
        self._refuse_older(attempt)
        serving.newest_served = max(serving.newest_served, number)
        self._shown = number * self._plan.steps_per_round, finished.ledger.epochs
        if number > self._kept:
            self._kept = number
            self._round_metrics = self._metrics(life, finished)
        if number not in serving.dealt:
            serving.dealt[number] = self._deal(life, finished, size)
        return serving.dealt[number].share(rank, number == serving.save_at)

    def _deal(self, life: Attempt, finished: Finished, size: int) -> Dealt:
        ledger = finished.ledger
        version = PolicyVersion(life.number, finished.number)
        common = Round(
            number=finished.number,
            rank=-1,
            size=size,
            num_steps=self._plan.num_steps,
            table=make_table(finished.groups, tuple(self._rewards.names), version),
            tokens=NO_TOKENS,
            epochs=ledger.epochs,
            position=replace(ledger.position, counts=ledger.rows),
            last=finished.last,
            save=False,
            ledger=ledger.to_json(),
            metrics=self._round_metrics,
            ended=finished.ended,
        )
        return Dealt(common, lines_of(finished.groups))

    def _metrics(self, life: Attempt, finished: Finished) -> dict[str, float]:
        counts = self._pool.statistics()
        began, before = self._tokens_at
        now = self._clock()
        if now - began > 1.0:
            self._tokens_at = now, counts.tokens
        return finished.metrics() | {
            "engines": float(counts.serving),
            "engines_idle": 1 - (life.engines_busy.read(now) or 0.0),
            "rollout_tokens_per_s": (counts.tokens - before) / max(1e-3, now - began),
            "sync_s": self._sync_s,
            "engines_lost": float(counts.lost),
            "tokens_salvaged": float(counts.resumed_tokens),
            "tokens_regenerated": float(counts.regenerated_tokens),
        }

    def _still_waiting(self, life: Attempt, what: str, since: float) -> Waiting:
        """Return the answer to a rank that has waited since then.

        Raises:
            TimeoutError: there was no progress for too long.
        """
        still_s = self._clock() - max(since, life.moved_at, self._moved_at, self._pool.moved_at)
        if still_s >= self._plan.max_still_s:
            raise TimeoutError(
                f"{what}, without any progress for {still_s:.0f} s: {life.describe()}; engines: {self._pool.describe()}"
            )
        return Waiting(f"{life.describe()}; {self._pool.summary()}; the last sign of progress {still_s:.0f} s ago")

    async def _only_once(
        self, attempt: int, what: str, make: Callable[[], Coroutine[Any, Any, Any]], wait_s: float
    ) -> Any | Waiting:
        """Return the result of work that is done once for all ranks."""
        life = self._current(attempt)
        if what not in self._once:
            for done in [name for name, (task, _) in self._once.items() if task.done()][:-_KEPT]:
                del self._once[done]
            self._once[what] = asyncio.create_task(make()), self._clock()
        task, since = self._once[what]
        await asyncio.wait({task}, timeout=wait_s)
        self._refuse_older(attempt)
        if task.cancelled():
            return Waiting("a newer worker group begins")
        return task.result() if task.done() else self._still_waiting(life, f"{what} is not ready", since)

    async def evaluate(self, attempt: int, number: int, wait_s: float) -> dict[str, float] | Waiting:
        """Return mean rewards of the evaluation prompts with weights of `number` rounds; made once for all ranks.

        Raises:
            StaleAttempt: a newer attempt has begun.
            UserError: no evaluation prompt could be scored.
            TimeoutError: there is no progress; the text says what it waits for.
        """
        what = f"the evaluation of round {number}"
        return await self._only_once(attempt, what, lambda: self._evaluate(number), wait_s)

    async def _evaluate(self, number: int) -> dict[str, float]:
        prompts = await asyncio.to_thread(self._prompts.evaluation)
        found = await evaluated(prompts, number, self._plan, self._sampler, self._rewards, self._came_forward)
        self._write(self._completions.add_evaluation, number, found.groups)
        return found.metrics

    async def probe(self, attempt: int, number: int, token_ids: NDArray[np.int32], wait_s: float) -> Probed | Waiting:
        """Have every engine score a text [T] with the weights after `number` rounds; once for all ranks.

        Raises:
            StaleAttempt: a newer attempt has begun.
            UserError: no engine can hold them.
            TimeoutError: there is no progress; the text says what it waits for.
        """
        life = self._current(attempt)
        what = f"a text's scoring by version {number}"
        return await self._only_once(attempt, what, lambda: self._probe(life, number, token_ids), wait_s)

    async def _probe(self, life: Attempt, number: int, token_ids: NDArray[np.int32]) -> Probed:
        while True:
            if life.published_step == number:  # otherwise the rank that publishes has not come yet
                self._pool.check()
                probed = await self._pool.score(token_ids)
                if probed.logprobs:
                    return probed
            await asyncio.sleep(_POLL_S)

    async def keep(self, attempt: int) -> None:
        """Write the completions of all rounds so far, before the checkpoint with these rounds is complete.

        Raises:
            StaleAttempt: a newer attempt has begun.
        """
        self._refuse_older(attempt)
        await asyncio.wait([asyncio.wrap_future(self._write(self._completions.flush))])

    async def ask_for_save(self, request: int) -> None:
        """Have a checkpoint saved after the first round that no rank has fetched yet; once for each request."""
        serving = self._serving
        if request != serving.save_request:
            serving.save_request, serving.save_at = request, serving.newest_served + 1

    async def progress(self) -> tuple[int, float]:
        """Return the current step, and the passes over the prompts; for display."""
        return self._shown

    async def close(self) -> None:
        """End engines, rewards and threads."""
        self._scaling.cancel()
        if self._life is not None:
            await self._life.stop()
        await self._pool.close()
        await self._rewards.close()
        await asyncio.to_thread(self._prompts.close)
        self._write(self._completions.close)
        await asyncio.to_thread(self._writer.shutdown)

    def _note(self, number: int, groups: Sequence[Group], outcome: str) -> None:
        self._write(self._completions.add, number, groups, outcome)

    def _write(self, work: Callable[..., None], *arguments: Any) -> Future[None]:
        """Write in the background, because no rank waits for completions files."""

        def done(writing: Future[None]) -> None:
            if (error := writing.exception()) is not None:
                logger.warning("completions are not written: %s", error)

        writing = self._writer.submit(work, *arguments)
        writing.add_done_callback(done)
        return writing

    async def _take_over(self, life: Attempt, published: Published) -> None:
        """Have the engines load weights, then the store keep them while engines sample."""
        try:
            pauses_s = await self._pool.set_weights(published.version, published)
        except UserError as error:
            life.fail(error)
        else:
            self._sync_s = max(pauses_s.values(), default=0.0)
            await self._keep(life, published)

    async def _keep(self, life: Attempt, published: Published) -> None:
        try:
            kept = await self._weights.keep(published)
            if self._life is life and life.published_step == published.version.step:
                await self._pool.set_weights(published.version, kept)
        except StaleAttempt:
            return  # newer weights came meanwhile
        except Exception as error:
            # Present engines have the weights already, or the pool reports why not.
            logger.warning("weights %s are not kept for engines that start later: %s", published.version, error)

    def _came_forward(self, where: str, change: int) -> None:
        """Note progress of an evaluation prompt; these prompts do not count as load."""
        self._moved_at = self._clock()

    def _current(self, attempt: int) -> Attempt:
        self._refuse_older(attempt)
        if self._life is None or attempt > self._life.number:
            raise RuntimeError(f"attempt {attempt} asks before its `begin`")
        return self._life

    def _refuse_older(self, attempt: int) -> None:
        if self._life is not None and attempt < self._life.number:
            raise StaleAttempt(f"attempt {attempt} is over, attempt {self._life.number} has begun")
