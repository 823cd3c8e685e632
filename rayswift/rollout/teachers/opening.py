"""The teacher of a run, where it is not in the workers: engines or servers, from its config."""

import asyncio
from dataclasses import replace

from rayswift.cluster.layout import Layout
from rayswift.config.derived import max_sequence_length
from rayswift.config.schema import RlhfConfig
from rayswift.engines.engine import SamplingSettings
from rayswift.engines.pool.actors import RayEngines
from rayswift.engines.pool.patience import limits_of
from rayswift.engines.pool.pool import Pool
from rayswift.engines.vllm.engine import VllmEngine
from rayswift.engines.vllm.setup import EngineSetup, engine_options, engine_setup
from rayswift.rollout.teachers.pool import PoolTeacher
from rayswift.rollout.teachers.scoring import Teacher
from rayswift.rollout.teachers.server import Encode, ServerTeacher
from rayswift.rollout.teachers.several import TaggedTeachers


async def opened(
    config: RlhfConfig, layout: Layout, dtype: str, max_outstanding: int, encode: Encode
) -> Teacher | None:
    """The teacher, whose engines start from now on.

    Args:
        config: The run's.
        layout: What its engines hold.
        dtype: Number format that they compute in.
        max_outstanding: Requests that an engine holds at once.
        encode: A text as the policy's token ids.

    Raises:
        UserError: a server does not answer, or reads token ids otherwise.
    """
    rollout, top = config.rollout, top_of(config)
    if rollout.teacher_engines:
        engines = RayEngines(VllmEngine, (teacher_setup(config, layout, dtype),), engine_options(layout.engine))
        pool = Pool(engines, limits_of(rollout, max_outstanding), salvage=False, prefix="teacher")
        teacher = PoolTeacher(pool, rollout.teacher_engines, top)
        await teacher.start()
        return teacher
    if not rollout.teacher_server:
        return None
    servers = [ServerTeacher(each.url, top, rollout.reward_timeout_s) for each in rollout.teacher_server]
    await asyncio.gather(*(server.start(encode) for server in servers))
    tagged = [(tuple(each.tags), server) for each, server in zip(rollout.teacher_server, servers, strict=True)]
    return TaggedTeachers(tagged, rollout.teacher_tag_key)


def top_of(config: RlhfConfig) -> int:
    """The likeliest tokens that are asked for beside each token."""
    return int(config.train.trl_extra.get("logits_topk") or 0) if config.train.task == "gkd" else 0


def teacher_setup(config: RlhfConfig, layout: Layout, dtype: str) -> EngineSetup:
    """What a teacher's engines are built from.

    Their log-probabilities are at temperature 1 for task gkd, whose loss divides them by its own; for grpo at that of
    the sampling, as the policy's.
    """
    assert config.model.teacher is not None, "`rollout.teacher_engines` needs one"
    setup = engine_setup(
        config.rollout,
        layout,
        model=config.model.teacher,
        tokenizer="",
        dtype=dtype,
        max_model_len=0,
        trust_remote_code=config.model.trust_remote_code,
        seed=config.train.seed,
    )
    temperature = 1.0 if config.train.task == "gkd" else config.rollout.temperature
    return replace(
        setup,
        sampling=SamplingSettings(temperature),
        max_model_len=max_sequence_length(config) + 1,  # vLLM makes a token behind what it scores
        load_format="auto",
        tokenizer=None,
        engine_kwargs={**setup.engine_kwargs, "max_logprobs": max(1, top_of(config))},
    )
