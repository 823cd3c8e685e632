"""The actors of rollouts: the driver starts them before its workers, and ranks reach them through `RolloutClient`."""

import asyncio
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rayswift.cluster.layout import Layout
from rayswift.config.derived import max_sequence_length
from rayswift.config.schema import RlhfConfig
from rayswift.data.feed.feed import DRIVERS_ATTEMPT, StaleAttempt
from rayswift.data.feed.pipeline import stream_windows, user_error_in
from rayswift.data.sequence.windows import Windows
from rayswift.engines import heap
from rayswift.engines.pool.actors import ray_engines
from rayswift.engines.pool.autoscale import Rule
from rayswift.engines.pool.patience import limits_of
from rayswift.engines.pool.pool import Pool
from rayswift.engines.pool.probing import Probed
from rayswift.engines.vllm.end_tokens import end_tokens
from rayswift.engines.vllm.engine import VllmEngine
from rayswift.engines.vllm.setup import EngineSetup, engine_options, engine_setup
from rayswift.engines.weights import Published, WeightStore
from rayswift.log import UserError, first_line, logger, setup_worker
from rayswift.rollout.admission import RolloutPlan
from rayswift.rollout.completions import CompletionsFile
from rayswift.rollout.coordinator import Coordinator
from rayswift.rollout.episodes.hosts import Hosts
from rayswift.rollout.episodes.supply import episodes_of, hosts_of
from rayswift.rollout.ledger import LedgerSnapshot
from rayswift.rollout.prompts import PromptFeed, prompt_plan
from rayswift.rollout.rewards.runner import RewardRunner
from rayswift.rollout.rounds import Round, Waiting
from rayswift.rollout.teachers.scoring import Teacher
from rayswift.rollout.teachers.start import start_teacher, with_teacher

_CLOSE_S = 20.0
_WAIT_S = 10.0
"""Longest wait of a call in the coordinator; then it answers `Waiting`, and the rank asks again."""
_LOG_EVERY_S = 30.0
_CALLS_AT_ONCE = 1000


@dataclass(frozen=True)
class RolloutSpec:
    """The setup of the coordinator's actor, as plain values.

    work_dir: base of relative paths; start: where prompts begin; made_from: what sampled rows are made from, for
    `rayswift sample`.
    """

    config: RlhfConfig
    plan: RolloutPlan
    layout: Layout
    run_dir: Path
    tokenizer_dir: Path
    work_dir: Path
    windows: Windows
    eval_windows: Windows | None
    start: LedgerSnapshot
    made_from: dict[str, Any] = field(default_factory=dict)


class CoordinatorActor(Coordinator):
    """The coordinator in a process of its own; its parts are made in their event loop."""

    def __init__(self, spec: RolloutSpec, store: Any):
        self._spec, self._store = spec, _Store(store, spec.config.cluster.timeout_s)
        self._opening: asyncio.Task[None] | None = None
        self._teacher: Teacher | None = None
        self._hosts: Hosts | None = None

    async def opened(self) -> None:
        """Start engines and reward workers, and begin to read prompts.

        Raises:
            UserError: a reward function or model cannot be loaded.
        """
        if self._opening is None:
            self._opening = asyncio.create_task(self._open())
        await asyncio.shield(self._opening)

    async def new_attempt(self) -> int:
        """See Coordinator; the first call of every worker group.

        Raises:
            EnginesFailed: no engine can start.
        """
        await self.opened()
        self._pool.check()
        return await super().new_attempt()

    async def standing(self) -> tuple[object, str]:
        if self._opening is None or not self._opening.done():
            return None, "the rollout coordinator starts engines and rewards"
        under_way = self._life.describe() if self._life else "no worker group yet"
        teacher = f"; teacher: {self._teacher.describe()}" if self._teacher else ""
        return (self._pool.statistics(), under_way), f"rollouts: {under_way}; engines: {self._pool.describe()}{teacher}"

    async def close(self) -> None:
        await super().close()
        if self._hosts is not None:
            await self._hosts.close()
        if self._teacher is not None:
            await self._teacher.close()

    async def _open(self) -> None:
        spec = self._spec
        setup_worker(spec.run_dir / "logs", "rollouts")
        if spec.work_dir.is_dir():
            os.chdir(spec.work_dir)
        plan = prompt_plan(spec.config, spec.windows)
        prompts = PromptFeed(spec.windows, spec.eval_windows, plan, str(spec.run_dir / "data"), stream_windows)
        pool = _make_pool(spec)
        num_workers = spec.layout.reward_workers
        rewards = RewardRunner(spec.config, spec.tokenizer_dir, spec.run_dir, spec.work_dir, num_workers)
        self._hosts = hosts_of(spec.config, spec.layout.tool_workers, spec.work_dir, spec.run_dir / "logs")
        await asyncio.gather(rewards.start(), *([self._hosts.start()] if self._hosts else []))
        sampler = episodes_of(spec.config, spec.plan, pool, self._hosts, spec.tokenizer_dir) if self._hosts else None
        engines = Rule(spec.layout.min_engines, spec.layout.max_engines)
        completions = CompletionsFile(spec.run_dir, rewards.names, rewards.decode)
        dtype = engine_dtype(spec.config, spec.layout)
        self._teacher = await start_teacher(
            spec.config, spec.layout, dtype, spec.plan.max_outstanding, spec.tokenizer_dir, rewards.encode
        )
        scorer = with_teacher(spec.config, rewards, self._teacher)
        super().__init__(spec.plan, prompts, pool, rewards, self._store, completions, engines, scorer, sampler)
        heap.freeze()
        await self.begin(DRIVERS_ATTEMPT, spec.start)


class _Store:
    """The weight store's actor; without an answer in `timeout_s` it has failed."""

    def __init__(self, actor: Any, timeout_s: float):
        self._actor, self._timeout_s = actor, timeout_s

    async def keep(self, published: Published) -> Published:
        async with asyncio.timeout(self._timeout_s):
            kept: Published = await self._actor.keep.remote(published)
        return kept


def engine_dtype(config: RlhfConfig, layout: Layout) -> str:
    """Return the number format in which engines compute, by torch's name."""
    if config.model.dtype == "auto":
        return "bfloat16" if layout.device == "cuda" else "float32"
    return config.model.dtype


def _make_pool(spec: RolloutSpec) -> Pool:
    # Resources of an engine are the layout's: preflight has seen that they fit.
    options = engine_options(spec.layout.engine)
    limits = limits_of(spec.config.rollout, spec.plan.max_outstanding)
    return Pool(ray_engines(VllmEngine, (setup_of(spec),), options), limits, resumes_partial(spec))


def resumes_partial(spec: RolloutSpec) -> bool:
    """Whether the tokens of a lost engine are kept."""
    return spec.config.rollout.max_staleness > 0 and setup_of(spec).sampling.can_resume


def setup_of(spec: RolloutSpec) -> EngineSetup:
    """Return the setup of the run's engines."""
    config, layout = spec.config, spec.layout
    lora_rank = config.model.lora_rank if config.rollout.lora_sync == "adapter" else None
    return engine_setup(
        config.rollout,
        layout,
        model=config.model.path,
        tokenizer=str(spec.tokenizer_dir),
        dtype=engine_dtype(config, layout),
        max_model_len=max_sequence_length(config),
        lora_rank=lora_rank if config.model.tuner == "lora" else None,
        revision=config.model.revision,
        trust_remote_code=config.model.trust_remote_code,
        seed=config.train.seed,
        stop_token_ids=end_tokens(spec.tokenizer_dir),
    )


class RolloutClient:
    """The client of a rank to the coordinator, a named actor.

    Args:
        name: Of the coordinator.
        rank, size: Of the caller.
        timeout_s: Longest wait for an answer of any kind.
    """

    def __init__(self, name: str, rank: int, size: int, timeout_s: float):
        import ray

        self._ray, self._rank, self._size, self._timeout_s = ray, rank, size, timeout_s
        self._wait_s = min(_WAIT_S, timeout_s / 2)
        self._attempt = 0
        self._actor = ray.get_actor(name)

    def new_attempt(self) -> int:
        """Return a number for this worker group, higher than those of earlier groups."""
        attempt: int = self._get("name an attempt", self._actor.new_attempt.remote())
        return attempt

    def begin(self, attempt: int, start: LedgerSnapshot) -> None:
        """Have the coordinator make rounds from here on."""
        self._attempt = attempt
        self._get("begin", self._actor.begin.remote(attempt, start))

    @property
    def attempt(self) -> int:
        """Return the number of this worker group."""
        return self._attempt

    def next(self, number: int) -> Round:
        """Return this rank's share of a round."""
        who = self._attempt, number, self._rank, self._size
        received: Round = self._once_there(
            f"hand out round {number}", lambda: self._actor.next.remote(*who, self._wait_s)
        )
        return received

    def evaluate(self, number: int) -> dict[str, float]:
        """Return mean rewards of the evaluation prompts with weights of `number` rounds; the same on all ranks."""
        found: dict[str, float] = self._once_there(
            f"evaluate round {number}", lambda: self._actor.evaluate.remote(self._attempt, number, self._wait_s)
        )
        return found

    def probe(self, number: int, token_ids: NDArray[np.int32]) -> Probed:
        """Have each engine score a text [T] with the weights after `number` rounds; the same on all ranks."""
        found: Probed = self._once_there(
            f"have a text scored by version {number}",
            lambda: self._actor.probe.remote(self._attempt, number, token_ids, self._wait_s),
        )
        return found

    def publish(self, published: Published) -> None:
        """Publish weights; engines load them while the caller continues."""
        self._get("take the weights", self._actor.published.remote(self._attempt, published))

    def keep(self) -> None:
        """Have the completions of the rounds so far written."""
        self._get("write the completions", self._actor.keep.remote(self._attempt))

    def _once_there(self, what: str, ask: Callable[[], Any]) -> Any:
        """Ask until there is an answer; the coordinator decides how long that may take."""
        began = logged_at = time.monotonic()
        while isinstance(answer := self._get(what, ask()), Waiting):
            now = time.monotonic()
            if now - logged_at >= _LOG_EVERY_S:
                logged_at = now
                self._log_wait(what, now - began, answer.text)
        return answer

    def _log_wait(self, what: str, seconds: float, why: str) -> None:
        logger.info("rank %d has waited %.0f s for the rollout coordinator to %s: %s", self._rank, seconds, what, why)

    def _get(self, what: str, asked: Any) -> Any:
        exceptions = self._ray.exceptions
        began = time.monotonic()
        try:
            while True:
                seconds = time.monotonic() - began
                try:
                    return self._ray.get(asked, timeout=max(0.1, min(_LOG_EVERY_S, self._timeout_s - seconds)))
                except exceptions.GetTimeoutError as error:
                    if (seconds := time.monotonic() - began) >= self._timeout_s:
                        raise UserError(
                            f"the rollout coordinator did not {what} within cluster.timeout_s = {self._timeout_s:g} s; "
                            "continue with --resume auto",
                            exit_code=1,
                        ) from error
                    self._log_wait(what, seconds, "it does not answer")
        except exceptions.RayActorError as error:
            raise UserError(
                f"the rollout coordinator died ({first_line(error)}) and could not {what}; continue with --resume auto",
                exit_code=1,
            ) from error
        except exceptions.RayTaskError as error:
            if isinstance(error.cause, StaleAttempt):
                raise error.cause from error
            if isinstance(error.cause, TimeoutError):
                raise UserError(f"{error.cause} (cluster.timeout_s)", exit_code=1) from error
            raise (user_error_in(error) or error) from error


class RolloutActors:
    """The driver's side of the rollout actors.

    Args:
        spec: The setup.
        name: Of the coordinator's actor.
        placement: Of the actors, as Ray takes it.
    """

    def __init__(self, spec: RolloutSpec, name: str, placement: Any):
        import ray

        self._ray = ray
        options: dict[str, Any] = {"num_cpus": 0, "max_restarts": 0, "scheduling_strategy": placement}
        self._store = ray.remote(WeightStore).options(**options).remote()
        # Room for the calls of all ranks, of this worker group and of one that has just died.
        options |= {"name": name, "max_concurrency": _CALLS_AT_ONCE + 4 * spec.layout.num_workers}
        self._coordinator = ray.remote(CoordinatorActor).options(**options).remote(spec, self._store)
        # Engines take the longest to start, so nothing waits for this; the first call that needs them gets the error.
        self._opened = self._coordinator.opened.remote()

    def progress(self) -> tuple[int, float]:
        """Return the current step, and the passes over the prompts; for display."""
        shown: tuple[int, float] = self._ray.get(self._coordinator.progress.remote(), timeout=5)
        return shown

    def standing(self) -> tuple[object, str]:
        """Return a value that changes with progress, and what rounds and engines wait for; for display."""
        standing: tuple[object, str] = self._ray.get(self._coordinator.standing.remote(), timeout=5)
        return standing

    def close(self) -> None:
        """End engines and actors."""
        closed = self._coordinator.close.remote()
        self._ray.wait([closed], timeout=_CLOSE_S)
        for actor in (self._coordinator, self._store):
            self._ray.kill(actor)
