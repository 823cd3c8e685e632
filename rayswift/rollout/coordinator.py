"""The coordinator: between the trainer's ranks and the rollout plane, in one event loop; an actor that the driver owns.

It outlives worker groups. Each has an attempt number, a later group a higher one, and every call carries it: what an
older group still asks for is refused, and what was sampled for it is thrown away. `attempt.Attempt` makes the rounds;
here they are handed out, weights go to the pool, evaluations are made, and every wait has a deadline.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from rayswift.data.feed import DRIVERS_ATTEMPT, StaleAttempt
from rayswift.log import UserError, logger
from rayswift.rollout.attempt import Attempt, Finished, RolloutPlan, requests_for, scored_group
from rayswift.rollout.autoscale import Rule
from rayswift.rollout.ledger import LedgerSnapshot
from rayswift.rollout.pool import Pool
from rayswift.rollout.prompts import PromptFeed
from rayswift.rollout.rounds import Round, make_table, make_tokens, share_of
from rayswift.rollout.samples import Completion, Group, PolicyVersion, Prompt, Scored
from rayswift.rollout.scaler import Scaler
from rayswift.rollout.weights import Published

_POLL_S = 0.1


class Rewards(Protocol):
    """The reward functions and models, see `rewards.runner`."""

    @property
    def names(self) -> Sequence[str]:
        """Of the rewards, in the order of `Scored.rewards`."""

    async def score(self, prompt: Prompt, completions: Sequence[Completion]) -> Sequence[Scored | str]:
        """Each completion with its rewards, or why it has none."""

    async def close(self) -> None:
        """End what runs them."""


class Weights(Protocol):
    """Keeps published weights for engines that come when their trainer is gone, see `weights.WeightStore`."""

    async def keep(self, published: Published) -> Published:
        """The same weights in objects that do not die with the trainer."""


class Completions(Protocol):
    """Keeps completions for people to read, see `completions.CompletionsFile`."""

    def begin(self, number: int) -> None:
        """Forget those of this round and later ones."""

    def add(self, number: int, groups: Sequence[Group]) -> None:
        """Those of a round."""

    def close(self) -> None:
        """Write what is held."""


@dataclass
class _Serving:
    """Who of the ranks has asked for which round, and what each of them gets."""

    wanted: dict[int, int]
    newest_served: int
    save_request: int | None = None
    save_at: int | None = None


class Coordinator:
    """Serves rounds to ranks.

    Args:
        plan: Sizes, limits, deadlines.
        prompts: The sequence of prompts.
        pool: Engines.
        rewards: Scores completions.
        weights: Keeps the newest weights.
        completions: Keeps completions.
        engines: How many.
    """

    def __init__(
        self,
        plan: RolloutPlan,
        prompts: PromptFeed,
        pool: Pool,
        rewards: Rewards,
        weights: Weights,
        completions: Completions,
        engines: Rule,
    ):
        self._plan, self._prompts, self._pool = plan, prompts, pool
        self._rewards, self._weights, self._completions = rewards, weights, completions
        self._named_attempt = 0
        self._life: Attempt | None = None
        self._begins = asyncio.Lock()
        self._serving = _Serving({}, -1)
        self._syncs: set[asyncio.Task[None]] = set()
        self._sync_s = 0.0
        self._evaluations: dict[int, asyncio.Task[dict[str, float]]] = {}
        self._kept, self._told = -1, dict[str, float]()
        self._writer = ThreadPoolExecutor(1, "completions")
        self._tokens_at = (time.monotonic(), 0)
        self._waiting_ranks: set[int] = set()
        self._shown = (0, 0.0)
        self._scaler = Scaler(engines, pool, plan.max_outstanding)
        pool.scale_to(engines.least)
        self._scaling = asyncio.create_task(self._scaler.run())

    async def new_attempt(self) -> int:
        """A number for a worker group that starts: higher than any before."""
        self._named_attempt = max(self._named_attempt + 1, time.time_ns())
        return self._named_attempt

    async def begin(self, attempt: int, start: LedgerSnapshot) -> None:
        """Make rounds from a ledger on; every rank of a group calls it alike.

        Raises:
            StaleAttempt: a newer attempt has begun.
        """
        async with self._begins:
            self._refuse_older(attempt)
            if self._life is not None:
                if self._life.number == attempt:
                    return
                if self._life.number == DRIVERS_ATTEMPT and self._life.start == start:
                    self._life.number = attempt  # its prompts are being read already
                    return
                await self._life.stop()
            self._pool.abandon()
            for task in (*self._syncs, *self._evaluations.values()):
                task.cancel()
            self._evaluations.clear()
            await asyncio.to_thread(self._prompts.begin, start.position)
            self._kept = start.rounds - 1
            self._write(self._completions.begin, start.rounds)
            self._serving = _Serving({}, start.rounds - 1)
            self._life = Attempt(attempt, start, self._plan, self._prompts, self._pool, self._rewards)
            self._life.begin()

    async def published(self, attempt: int, published: Published) -> None:
        """Weights are there: engines load them, and what may be sampled from them is.

        Raises:
            StaleAttempt: a newer attempt has begun.
        """
        life = self._current(attempt)
        task = asyncio.create_task(self._take_over(life, published))
        self._syncs.add(task)
        task.add_done_callback(self._syncs.discard)
        # The pool gives up what was asked of an older group's weights: it must have heard of these before the first
        # request that wants them. And engines load while the requests are made: they are asked to within three turns.
        for _ in range(3):
            await asyncio.sleep(0)
        life.published(published.version.step)

    async def next(self, attempt: int, number: int, rank: int, size: int, timeout_s: float) -> Round:
        """A rank's share of a round.

        Raises:
            StaleAttempt: a newer attempt has begun.
            UserError: the round cannot be made.
            TimeoutError: it was not there in time; the text says what it waits for.
        """
        life, serving = self._current(attempt), self._serving
        serving.wanted[rank] = number
        if len(serving.wanted) >= size:
            life.forget_before(min(serving.wanted.values()))
        self._waiting_ranks.add(rank)
        self._scaler.trainer_waits(True)
        try:
            finished = await life.round(number, timeout_s)
        except TimeoutError as error:
            raise TimeoutError(f"{error}; engines: {self._pool.describe()}") from error
        finally:
            self._waiting_ranks.discard(rank)
            self._scaler.trainer_waits(bool(self._waiting_ranks))
        self._refuse_older(attempt)
        serving.newest_served = max(serving.newest_served, number)
        self._shown = number * self._plan.steps_per_round, finished.ledger.epochs
        if number > self._kept:
            self._kept = number
            self._told = self._metrics(life, finished)
            self._write(self._completions.add, number, finished.groups)
        return self._share(life, finished, rank, size)

    def _share(self, life: Attempt, finished: Finished, rank: int, size: int) -> Round:
        version = PolicyVersion(life.number, finished.number)
        table = make_table(finished.groups, tuple(self._rewards.names), version)
        ledger = finished.ledger
        return Round(
            number=finished.number,
            rank=rank,
            size=size,
            num_steps=self._plan.num_steps,
            table=table,
            tokens=make_tokens(finished.groups, share_of(table, self._plan.num_steps, rank, size)),
            epochs=ledger.epochs,
            position=replace(ledger.position, counts=ledger.rows),
            last=finished.last,
            save=finished.number == self._serving.save_at,
            ledger=ledger.to_json(),
            metrics=self._told,
        )

    def _metrics(self, life: Attempt, finished: Finished) -> dict[str, float]:
        counts = self._pool.statistics()
        began, before = self._tokens_at
        now = time.monotonic()
        if now - began > 1.0:
            self._tokens_at = now, counts.tokens
        return {
            "engines": float(counts.serving),
            "engines_idle": 1 - (life.engines_busy.read(now) or 0.0),
            "rollout_tokens_per_s": (counts.tokens - before) / max(1e-3, now - began),
            "round_s": finished.seconds,
            "drawn": float(finished.drawn),
            "filtered": float(finished.filtered),
            "failed": float(finished.failed),
            "sync_s": self._sync_s,
            "engines_lost": float(counts.lost),
            "tokens_salvaged": float(counts.salvaged_tokens),
            "tokens_regenerated": float(counts.regenerated_tokens),
        }

    async def evaluate(self, attempt: int, number: int, timeout_s: float) -> dict[str, float]:
        """Mean rewards of the evaluation prompts under the weights behind `number` rounds; made once for all ranks.

        Raises:
            StaleAttempt: a newer attempt has begun.
            UserError: no evaluation prompt could be scored.
            TimeoutError: it took too long.
        """
        self._current(attempt)
        if number not in self._evaluations:
            self._evaluations[number] = asyncio.create_task(self._evaluate(number))
        try:
            return await asyncio.wait_for(asyncio.shield(self._evaluations[number]), timeout_s)
        except TimeoutError as error:
            raise TimeoutError(
                f"the evaluation of round {number} took longer than {timeout_s:g} s; engines: {self._pool.describe()}"
            ) from error

    async def _evaluate(self, number: int) -> dict[str, float]:
        prompts = await asyncio.to_thread(self._prompts.evaluation)
        each = self._plan.num_generations_eval
        requests = [one for prompt in prompts for one in requests_for(self._plan, prompt, "eval", each)]
        futures = self._pool.sample(requests, number)
        results = await asyncio.gather(
            *(
                scored_group(self._rewards, prompt, futures[i * each : (i + 1) * each], _unnoticed)
                for i, prompt in enumerate(prompts)
            )
        )
        scored = [one for group, _ in results for one in group.scored]
        if not scored:
            reasons = sorted({reason for _, found in results for reason in found})[:3]
            raise UserError(f"no evaluation prompt could be scored: {'; '.join(reasons)}", exit_code=1)
        rewards = np.array([one.rewards for one in scored], np.float64)
        known = ~np.isnan(rewards)
        means = np.where(known, rewards, 0.0).sum(axis=0) / np.maximum(known.sum(axis=0), 1)
        return {
            "reward": float(np.mean([one.reward for one in scored])),
            **{f"rewards/{name}/mean": float(mean) for name, mean in zip(self._rewards.names, means, strict=True)},
            "completion_length": float(np.mean([len(one.completion.token_ids) for one in scored])),
            "completions": float(len(requests)),
            "unscored": float(sum(len(found) for _, found in results)),
        }

    async def probe(
        self, attempt: int, number: int, token_ids: NDArray[np.int32], timeout_s: float
    ) -> dict[str, NDArray[np.float32]]:
        """Log-probabilities [T - 1] of a text [T] by every engine, once it holds the weights behind `number` rounds.

        Raises:
            StaleAttempt: a newer attempt has begun.
            UserError: no engine can hold them.
            TimeoutError: none did in time.
        """
        self._current(attempt)
        try:
            async with asyncio.timeout(timeout_s):
                while not (found := await self._pool.score(token_ids)):
                    await asyncio.sleep(_POLL_S)
                return found
        except TimeoutError as error:
            raise TimeoutError(
                f"no engine scored a text by version {number} within {timeout_s:g} s; engines: {self._pool.describe()}"
            ) from error

    async def ask_for_save(self, request: int) -> None:
        """Have a checkpoint saved behind the first round of which no rank has its share yet; once for each request."""
        serving = self._serving
        if request != serving.save_request:
            serving.save_request, serving.save_at = request, serving.newest_served + 1

    async def progress(self) -> tuple[int, float]:
        """The step that is being trained, and the passes over the prompts; for display."""
        return self._shown

    async def status(self) -> dict[str, Any]:
        """How everything stands, for the live line and for people."""
        return {
            "engines": self._pool.describe(),
            "pool": self._pool.statistics(),
            "under_way": self._life.describe() if self._life else "no worker group yet",
            "rounds_ready": self._life.num_waiting_rounds if self._life else 0,
            "ranks_waiting": sorted(self._waiting_ranks),
        }

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

    def _write(self, work: Callable[..., None], *arguments: Any) -> None:
        """Behind the rounds' back: nobody waits for what only people read."""

        def done(writing: Future[None]) -> None:
            if (error := writing.exception()) is not None:
                logger.warning("completions are not written: %s", error)

        self._writer.submit(work, *arguments).add_done_callback(done)

    async def _take_over(self, life: Attempt, published: Published) -> None:
        """Have the engines load, then, while they sample, the weights kept."""
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
            return  # newer ones came meanwhile
        except Exception as error:
            # Engines that are there have the weights by now, or the pool says why not.
            logger.warning("weights %s are not kept for engines to come: %s", published.version, error)

    def _current(self, attempt: int) -> Attempt:
        self._refuse_older(attempt)
        if self._life is None or attempt > self._life.number:
            raise RuntimeError(f"attempt {attempt} asks before its `begin`")
        return self._life

    def _refuse_older(self, attempt: int) -> None:
        if self._life is not None and attempt < self._life.number:
            raise StaleAttempt(f"attempt {attempt} is over, attempt {self._life.number} has begun")


def _unnoticed(where: str, change: int) -> None:
    """Evaluations do not count as load."""
