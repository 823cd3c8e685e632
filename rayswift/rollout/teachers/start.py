"""Makes the teacher of a run from its config, if it is not in the workers: engines or servers."""

import asyncio
from dataclasses import replace
from pathlib import Path

from rayswift.cluster.layout import Layout
from rayswift.config.checks.distillation import has_teacher_outside, teacher_writes, top_of
from rayswift.config.derived import max_sequence_length
from rayswift.config.schema import RlhfConfig
from rayswift.engines.pool.actors import ray_engines
from rayswift.engines.pool.patience import limits_of
from rayswift.engines.pool.pool import Pool
from rayswift.engines.vllm.end_tokens import end_tokens
from rayswift.engines.vllm.engine import VllmEngine
from rayswift.engines.vllm.setup import EngineSetup, engine_options, engine_setup
from rayswift.rollout.groups import Scorer, requests_for
from rayswift.rollout.teachers.pool import PoolTeacher
from rayswift.rollout.teachers.scoring import TeacherScorer
from rayswift.rollout.teachers.server import Encode, ServerTeacher
from rayswift.rollout.teachers.several import TaggedTeachers


async def start_teacher(
    config: RlhfConfig, layout: Layout, dtype: str, max_outstanding: int, tokenizer_dir: Path, encode: Encode
) -> PoolTeacher | TaggedTeachers | None:
    """Return the teacher and begin to start its engines; None: it is in the workers, or there is none.

    Args:
        config: The run's.
        layout: Devices of the engines.
        dtype: The number format in which the engines compute.
        max_outstanding: Requests that an engine holds at once.
        tokenizer_dir: Of the policy's tokenizer.
        encode: Text -> token ids.

    Raises:
        UserError: a server does not answer, or has another vocabulary.
    """
    rollout, top = config.rollout, top_of(config)
    if rollout.teacher_engines:
        setup = teacher_setup(config, layout, dtype, tokenizer_dir)
        engines = ray_engines(VllmEngine, (setup,), engine_options(layout.engine))
        pool = Pool(engines, limits_of(rollout, max_outstanding), resume_partial=False, prefix="teacher")
        most, window = rollout.max_completion_length, max_sequence_length(config)
        teacher = PoolTeacher(
            pool,
            rollout.teacher_engines,
            top,
            lambda prompt: requests_for(prompt, "seq_kd", 1, most, window, config.train.seed)[0],
        )
        await teacher.start()
        return teacher
    if not rollout.teacher_server:
        return None
    servers = [ServerTeacher(each.url, top, rollout.reward_timeout_s) for each in rollout.teacher_server]
    await asyncio.gather(*(server.start(encode) for server in servers))
    tagged = [(tuple(each.tags), server) for each, server in zip(rollout.teacher_server, servers, strict=True)]
    return TaggedTeachers(tagged, rollout.teacher_tag_key)


def with_teacher(config: RlhfConfig, rewards: Scorer, teacher: PoolTeacher | TaggedTeachers | None) -> Scorer:
    """Return the scorer of completions to train: the rewards, and the teacher if it scores or writes."""
    scores = teacher if has_teacher_outside(config) else None
    writer = teacher if teacher_writes(config) and isinstance(teacher, PoolTeacher) else None
    return TeacherScorer(rewards, scores, writer) if scores or writer else rewards


def teacher_setup(config: RlhfConfig, layout: Layout, dtype: str, tokenizer_dir: Path) -> EngineSetup:
    """Return the setup of a teacher's engines: they sample as those of the policy do, and score at its temperature."""
    assert config.model.teacher is not None, "`rollout.teacher_engines` needs one"
    setup = engine_setup(
        config.rollout,
        layout,
        model=config.model.teacher,
        tokenizer=str(tokenizer_dir),
        dtype=dtype,
        max_model_len=0,
        stop_token_ids=end_tokens(tokenizer_dir),
        trust_remote_code=config.model.trust_remote_code,
        seed=config.train.seed,
    )
    return replace(
        setup,
        max_model_len=max_sequence_length(config) + 1,  # vLLM samples a token after the scored text
        load_format="auto",
        engine_kwargs={**setup.engine_kwargs, "max_logprobs": max(1, top_of(config))},
    )
