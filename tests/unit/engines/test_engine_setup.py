"""The setup of an engine, and settings that are refused before it is built."""

import logging
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rayswift.cluster.layout import Layout
from rayswift.config.model import ModelConfig
from rayswift.config.rollout import RolloutConfig
from rayswift.config.schema import RlhfConfig
from rayswift.engines.pool.patience import Limits, limits_of
from rayswift.engines.vllm import setup as engine_setup
from rayswift.engines.vllm.log_tail import LogTail
from rayswift.launch.rollout_supply import rollout_plan
from rayswift.log import UserError
from rayswift.rollout import actors
from rayswift.rollout.actors import RolloutSpec
from rayswift.rollout.ledger import LedgerSnapshot
from tests.conftest import TINY

CPU, GPU = Layout(1, "cpu", 1, True), Layout(1, "cuda", 1, False)


def setup(
    rollout: RolloutConfig, layout: Layout = CPU, dtype: str = "auto", **more: object
) -> engine_setup.EngineSetup:
    return engine_setup.engine_setup(rollout, layout, "model", "tokenizer", dtype, 700, **more)


def test_the_section_becomes_an_engine() -> None:
    rollout = RolloutConfig(temperature=0.7, top_k=5, max_num_seqs=9, engine_kwargs={"seed": 3})
    made = setup(rollout, replace(CPU, engine_threads=2), stop_token_ids=(1, 7))
    assert (made.sampling.temperature, made.sampling.top_k, made.sampling.stop_token_ids) == (0.7, 5, (1, 7))
    assert (made.max_model_len, made.dtype, made.load_format) == (700, "float32", "dummy")
    assert (made.num_threads, made.max_num_seqs, made.engine_kwargs) == (2, 9, {"seed": 3})
    assert setup(rollout, GPU).dtype == "bfloat16"
    assert setup(rollout, GPU, "float16").dtype == "float16"


def test_what_needs_more_gets_it() -> None:
    assert setup(RolloutConfig(max_model_len=300)).max_model_len == 300
    assert setup(RolloutConfig(stop=["END"])).tokenizer == "tokenizer"
    assert setup(RolloutConfig(structured_outputs_regex=r"\d+")).tokenizer == "tokenizer"
    # An adapter is served over weights that the engine reads itself.
    assert setup(RolloutConfig(), lora_rank=8).load_format == "auto"


def test_rays_options() -> None:
    options = engine_setup.engine_options({"GPU": 2.0, "CPU": 1.0, "rollout": 1.0})
    assert options == {
        "num_cpus": 1.0, "num_gpus": 2.0, "resources": {"rollout": 1.0}, "max_restarts": 0, "max_task_retries": 0,
    }  # fmt: skip
    assert engine_setup.engine_options({"rayswift_engine": 1.0})["num_cpus"] == 0


def test_a_missing_vllm_is_named_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_setup, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'rayswift\[gpu\]'"):
        engine_setup.require_vllm("train.task = grpo")


def test_a_model_that_is_not_on_the_engines_node_is_named_with_the_node(tmp_path: Path) -> None:
    made = setup(RolloutConfig())
    engine_setup.require_model(made)  # a hub id
    engine_setup.require_model(replace(made, model=str(tmp_path)))
    with pytest.raises(UserError, match=f"model.path = {tmp_path}/gone is no folder on {socket.gethostname()}"):
        engine_setup.require_model(replace(made, model=f"{tmp_path}/gone"))


def test_adapters_that_vllm_cannot_serve() -> None:
    assert engine_setup.adapter_obstacles({"peft_type": "LORA", "r": 8, "use_dora": False, "bias": "none"}) == []
    assert engine_setup.adapter_obstacles({"peft_type": "VERA"}) == ["peft_type VERA"]
    found = engine_setup.adapter_obstacles({"r": 1000, "use_dora": True, "init_lora_weights": "pissa_niter_4"})
    assert found == ["use_dora", "init_lora_weights pissa_niter_4", "r above 512"]
    assert [engine_setup.lora_capacity(rank) for rank in (1, 8, 9, 512)] == [8, 8, 16, 512]


def test_arguments_that_are_not_the_users() -> None:
    rollout = RolloutConfig(engine_kwargs={"load_format": "auto", "block_size": 16})
    [problem] = engine_setup.engine_kwargs_problems(rollout)
    assert "rollout.engine_kwargs.load_format" in problem


def test_policies_that_engines_cannot_follow() -> None:
    def problems(lora_sync: str, **model: object) -> list[str]:
        found = engine_setup.policy_problems(ModelConfig(path="m", **model), RolloutConfig(lora_sync=lora_sync))
        return found

    assert problems("merged") == problems("merged", tuner="lora") == problems("adapter", tuner="lora") == []
    assert "nf4 weights" in problems("merged", tuner="lora", quantization="nf4")[0]
    assert "needs an adapter" in problems("adapter")[0]
    assert "use_dora" in problems("adapter", tuner="lora", tuner_kwargs={"use_dora": True})[0]
    assert "random_init" in problems("adapter", tuner="lora", random_init=True)[0]
    assert "new_special_tokens" in problems("merged", new_special_tokens=["<a>"])[0]
    assert "modules_to_save" in problems("adapter", tuner="lora", modules_to_save=["embed_tokens"])[0]


def test_the_last_log_lines_are_kept() -> None:
    log = logging.getLogger("rayswift-test-tail")
    tail = LogTail(log.name)
    for number in range(100):
        log.info("line %d\nand more", number)
    assert tail.indented().endswith("\n  INFO line 99\n  and more")
    assert tail.indented().count("INFO") == 15
    tail.close()
    log.info("after")
    assert "after" not in tail.indented()


def spec(**rollout: object) -> RolloutSpec:
    config = RlhfConfig.model_validate(
        {
            "model": {"path": "org/model", "revision": "v2"},
            "data": {"dataset": ["d"]},
            "train": {"task": "grpo", "global_batch_size": 8},
            "rollout": {"reward_funcs": ["accuracy"], **rollout},
        }
    )
    here = Path()
    windows: Any = None  # a pool needs none
    return RolloutSpec(config, rollout_plan(config), CPU, here, TINY, here, windows, None, LedgerSnapshot())


def test_engines_are_built_from_the_revision_that_is_trained() -> None:
    made = actors.setup_of(spec())
    assert (made.model, made.revision) == ("org/model", "v2")


def test_what_cannot_go_on_behind_its_tokens_starts_anew() -> None:
    """A grammar would begin again in the midst of an answer, and a stop string across the seam would not be seen."""
    assert actors.resumes_partial(spec(max_staleness=1))
    assert not actors.resumes_partial(spec(max_staleness=0))
    assert not actors.resumes_partial(spec(max_staleness=1, stop=["END"]))
    assert not actors.resumes_partial(spec(max_staleness=1, structured_outputs_regex=r"\d+"))


def test_limits_are_the_configs() -> None:
    limits = limits_of(RolloutConfig(), 10)
    assert limits == Limits(max_outstanding=10)
    changed = RolloutConfig(
        load_timeout_s=1800,
        engine_start_timeout_s=1200,
        engine_silence_timeout_s=12,
        engine_stall_timeout_s=700,
        engine_place_timeout_s=100,
    )
    limits = limits_of(changed, 10)
    assert (limits.load_s, limits.start_s, limits.dead_s, limits.answer_s) == (1800, 1200, 12, 12)
    assert (limits.stall_s, limits.unserved_s, limits.suspect_s) == (700, 100, 6)
    assert setup(changed).load_timeout_s == 1800
