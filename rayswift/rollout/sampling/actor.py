"""The actor of `rayswift sample`: engines with the model's own weights, rewards, and the sequence of prompts.

Prompts are drawn, sampled and scored concurrently, and written in their order, so that a restarted command continues
after the last one written.
"""

import asyncio
import os
from collections import deque
from pathlib import Path

from rayswift.config.schema import SampleConfig
from rayswift.data.feed.pipeline import stream_windows
from rayswift.data.sequence.windows import TRAINED
from rayswift.engines.pool.actors import ray_engines
from rayswift.engines.pool.patience import limits_of
from rayswift.engines.pool.pool import Pool
from rayswift.engines.samples import Group
from rayswift.engines.vllm.engine import VllmEngine
from rayswift.engines.vllm.setup import engine_options
from rayswift.log import logger, setup_worker
from rayswift.rollout.actors import RolloutSpec, setup_of
from rayswift.rollout.episodes.supply import episodes_of, hosts_of
from rayswift.rollout.groups import Sampler, requests_for, scored_group
from rayswift.rollout.prompts import Drawn, PromptFeed, draw_in_thread, prompt_plan
from rayswift.rollout.rewards.runner import RewardRunner
from rayswift.rollout.sampling.adapter import with_own_weights
from rayswift.rollout.sampling.file import FAILED, SampledFile
from rayswift.rollout.sampling.rows import RowSettings, rows_of
from rayswift.rollout.teachers.pool import OWN_WEIGHTS

_FLUSH_EVERY = 50
_MOST_UNDER_WAY = 512


class SampleActor:
    """Samples all prompts of a run into a file.

    Args:
        spec: The setup; its config is a `SampleConfig`.
    """

    def __init__(self, spec: RolloutSpec):
        self._spec = spec
        self._standing = (0, 0)

    async def sample(self) -> dict[str, int]:
        """Sample and write all prompts; return the number of rows by outcome, rows that gave no prompt included.

        Raises:
            UserError: engines or rewards cannot start, or too many prompts failed.
        """
        spec = self._spec
        config = spec.config
        assert isinstance(config, SampleConfig)
        setup_worker(spec.run_dir / "logs", "sample")
        if spec.work_dir.is_dir():
            os.chdir(spec.work_dir)
        written = SampledFile(Path(config.sample.output_file), config.train.resume == "auto", spec.made_from)
        prompts = PromptFeed(
            spec.windows, None, prompt_plan(config, spec.windows), str(spec.run_dir / "data"), stream_windows
        )
        rewards = RewardRunner(config, spec.tokenizer_dir, spec.run_dir, spec.work_dir, spec.layout.reward_workers)
        setup = with_own_weights(setup_of(spec), config.model)
        engines = ray_engines(VllmEngine, (setup,), engine_options(spec.layout.engine))
        pool = Pool(
            engines, limits_of(config.rollout, spec.plan.max_outstanding), resume_partial=setup.sampling.can_resume
        )
        pool.scale_to(spec.layout.min_engines)
        hosts = hosts_of(config, spec.layout.tool_workers, spec.work_dir, spec.run_dir / "logs")
        sampler = episodes_of(config, spec.plan, pool, hosts, spec.tokenizer_dir) if hosts else pool
        try:
            await asyncio.gather(rewards.start(), *([hosts.start()] if hosts else []))
            await pool.set_weights(OWN_WEIGHTS, None)
            await asyncio.to_thread(prompts.begin, written.position)
            await self._all(prompts, sampler, rewards, written)
        finally:
            written.close()
            await pool.close()
            await rewards.close()
            if hosts:
                await hosts.close()
            await asyncio.to_thread(prompts.close)
        rows = {what: count for what, count in written.position.counts.items() if what != TRAINED}
        return {**written.outcomes, **rows}

    async def standing(self) -> tuple[int, int]:
        """Return the numbers of written prompts and rows."""
        return self._standing

    async def _all(self, prompts: PromptFeed, sampler: Sampler, rewards: RewardRunner, written: SampledFile) -> None:
        config, plan = self._spec.config, self._spec.plan
        assert isinstance(config, SampleConfig)
        section = config.sample
        settings = RowSettings(
            section.n_best_to_keep, section.min_reward, section.easy_query_threshold, section.right_from
        )
        most, window, each = plan.max_completion_length, plan.max_sequence_length, plan.num_generations
        under_way: deque[tuple[Drawn, asyncio.Task[tuple[Group, list[str]]]]] = deque()
        at_once = max(2, min(_MOST_UNDER_WAY, 2 * plan.max_outstanding * self._spec.layout.min_engines // each))
        ended = False
        while under_way or not ended:
            while not ended and len(under_way) < at_once:
                drawn, ended = await draw_in_thread(prompts, at_once - len(under_way))
                for one in drawn:
                    requests = requests_for(one.prompt, "sample", each, most, window, plan.seed)
                    futures = sampler.sample(requests, 0)
                    work = scored_group(rewards, one.prompt, futures, _unnoted)
                    under_way.append((one, asyncio.create_task(work)))
                if not drawn:
                    break
            if not under_way:
                continue
            one, task = under_way.popleft()
            group, reasons = await task
            rows, outcome = rows_of(group, settings, rewards.names) if group.scored else ([], FAILED)
            if outcome == FAILED:
                logger.warning("prompt %s failed: %s", one.prompt.id, "; ".join(sorted(set(reasons)))[:500])
            written.add(rows, outcome, one.position)
            done = written.outcomes.total()
            self._standing = done, self._standing[1] + len(rows)
            written.judge(config.rollout.max_failed_fraction)
            if done % _FLUSH_EVERY == 0:
                written.flush()
        written.judge(config.rollout.max_failed_fraction, ended=True)


def _unnoted(where: str, change: int) -> None:
    """A `Stage` that notes nothing."""
