"""The settings of an adapter that training continues are those of its folder, for the plan, engines and checks."""

from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig

from rayswift.config.checks.built import not_built
from rayswift.config.load import load
from rayswift.config.schema import RlhfConfig
from rayswift.engines.vllm import setup as engine_setup
from rayswift.launch import models
from rayswift.model.adapters import settled

RUN = ("--rlhf_type", "grpo", "--data.dataset", "d.jsonl", "--reward_funcs", "format", "--num_generations", "2")


def config_of(base: Path, folder: Path, *flags: str, **saved: Any) -> RlhfConfig:
    """The config of a run that continues a LoRA with these settings of PEFT's."""
    LoraConfig(**{"target_modules": ["q_proj", "up_proj"], **saved}).save_pretrained(folder)
    argv = ["--model", str(base), *RUN, "--tuner", "lora", "--model.adapters", str(folder), *flags]
    found: RlhfConfig = settled(load("rlhf", argv).config)
    return found


def test_the_folder_decides(tiny_model_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="rayswift")
    flags = ("--lora_rank", "64", "--target_modules", "q_proj")
    found = config_of(tiny_model_dir, tmp_path, *flags, r=24, lora_alpha=48, lora_dropout=0.1, use_rslora=True)
    model = found.model
    assert (model.lora_rank, model.lora_alpha, model.lora_dropout) == (24, 48, 0.1)
    assert (model.target_modules, model.target_regex, model.modules_to_save) == (["q_proj", "up_proj"], None, [])
    assert model.tuner_kwargs == {"use_rslora": True}
    assert f"continues the adapter {tmp_path} as it is: model.lora_rank = 24, model.lora_alpha = 48.0" in caplog.text
    assert settled(found) is found
    size = models.size_in_worker(found)
    layers, hidden, queries, inner = 3, 128, 4 * 32, 384
    assert size.num_trainable == layers * 24 * ((hidden + queries) + (hidden + inner))


def test_a_pattern_and_trained_modules(tiny_model_dir: Path, tmp_path: Path) -> None:
    found = config_of(tiny_model_dir, tmp_path, target_modules=r".*\.up_proj", modules_to_save=["norm"], r=8)
    assert (found.model.target_regex, found.model.modules_to_save) == (r".*\.up_proj", ["norm"])
    assert found.model.tuner_kwargs == {}


def test_what_engines_cannot_take_is_refused(tiny_model_dir: Path, tmp_path: Path) -> None:
    sent = ("--lora_sync", "adapter")
    found = config_of(tiny_model_dir, tmp_path / "dora", *sent, use_dora=True, rank_pattern={"up_proj": 4})
    (problem,) = engine_setup.policy_problems(found.model, found.rollout)
    assert "rank_pattern, use_dora" in problem
    assert not_built(found) == []
    found = config_of(tiny_model_dir, tmp_path / "bias", bias="lora_only")
    assert not_built(found) == ["model.tuner_kwargs.bias = lora_only with task grpo"]


def test_the_plan_names_the_reference(tiny_model_dir: Path, tmp_path: Path) -> None:
    from rayswift.cluster.layout import Layout

    def reference(*flags: str) -> tuple[list[str], int]:
        found = config_of(tiny_model_dir, tmp_path, *flags, r=16)
        layout = Layout(1, "cpu", 1, local=True, min_engines=1, max_engines=1)
        lines = [line for line in models.describe(found, layout) if "reference" in line]
        return lines, models.size_in_worker(found).num_reference

    lines, num_copied = reference("--train.beta", "0.1")
    assert num_copied == models.size_of(config_of(tiny_model_dir, tmp_path, r=16).model, "causal_lm").num_trainable
    assert lines == [
        "  reference     the policy with its adapter before training "
        f"(a copy of {num_copied / 1e3:.3g} k weights, frozen, {num_copied * 4 / 2**20:.1f} MiB): each worker"
    ]
    assert reference() == ([], 0)
