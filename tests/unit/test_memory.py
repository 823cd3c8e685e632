"""Sizes from files alone, against the real models, and what they mean for each ZeRO stage."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayswift.log import UserError
from rayswift.train.memory import MemoryEstimate, ModelSize, estimate, model_size, read_header, smallest_stage


@pytest.fixture(scope="module")
def tiny(tiny_model_dir: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(tiny_model_dir)


def parameters(model: Any) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("kept", [0, 5, 100, 10_000, -1])
def test_a_part_of_a_weights_file_is_refused(kept: int, tiny_model_dir: Path, tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes((tiny_model_dir / "model.safetensors").read_bytes()[:kept])
    with pytest.raises(UserError, match=r"model\.safetensors is no whole safetensors file"):
        read_header(file)


def test_a_page_of_text_is_no_weights_file(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n")
    with pytest.raises(UserError, match="is no whole safetensors file"):
        read_header(file)


def test_parameters_from_safetensors(tiny_model_dir: Path, tiny: Any) -> None:
    size = model_size(tiny_model_dir, "full", 8)
    assert size.num_parameters == size.num_trainable == parameters(tiny)
    assert (size.hidden_size, size.num_layers, size.vocab_size) == (128, 3, 512)


def test_parameters_from_the_config(tokenizer_dir: Path, tiny: Any) -> None:
    assert model_size(tokenizer_dir, "full", 8).num_parameters == parameters(tiny)


def test_parameters_from_the_config_are_close(tokenizer_dir: Path, tiny: Any) -> None:
    assert model_size(tokenizer_dir, "full", 8).num_parameters == pytest.approx(parameters(tiny), rel=1e-3)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_key_value_heads": 2},
        {"tie_word_embeddings": True},
        {"head_dim": 64, "num_key_value_heads": 1},
        {"num_hidden_layers": 5, "intermediate_size": 100},
    ],
)
def test_llama_parameters_from_the_config_are_exact(changes: dict[str, Any], tmp_path: Path) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {
        "hidden_size": 64,
        "intermediate_size": 176,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "vocab_size": 300,
    }
    config = LlamaConfig(**{**sizes, "num_key_value_heads": 4, "tie_word_embeddings": False} | changes)
    config.save_pretrained(tmp_path)
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    assert model_size(tmp_path, "full", 8).num_parameters == parameters(model)


def test_sharded_weights_are_summed(tmp_path: Path, tiny: Any) -> None:
    tiny.save_pretrained(tmp_path, max_shard_size="500KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert model_size(tmp_path, "full", 8).num_parameters == parameters(tiny)


@pytest.mark.parametrize("rank", [1, 8])
def test_lora_trains_two_matrices_for_every_linear_layer(tiny_model_dir: Path, tiny: Any, rank: int) -> None:
    import torch

    linear = [m for n, m in tiny.named_modules() if isinstance(m, torch.nn.Linear) and n != "lm_head"]
    size = model_size(tiny_model_dir, "lora", rank)
    assert size.num_trainable == sum(rank * (m.in_features + m.out_features) for m in linear)
    assert size.num_parameters == parameters(tiny)


def test_a_nested_text_config(tmp_path: Path, tokenizer_dir: Path) -> None:
    text_config = json.loads((tokenizer_dir / "config.json").read_text(encoding="utf-8"))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "x_vl", "text_config": text_config}))
    assert model_size(tmp_path, "full", 8) == model_size(tokenizer_dir, "full", 8)


def test_no_config(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"config\.json"):
        model_size(tmp_path, "full", 8)


# ---- estimates ----

SIZES = st.builds(
    ModelSize,
    st.integers(10**4, 10**11),
    st.integers(10**3, 10**11),
    st.integers(8, 2**14),
    st.integers(1, 120),
    st.integers(2, 10**6),
)
OPTIONS = st.fixed_dictionaries(
    {
        "offload": st.sampled_from(["none", "optimizer", "all"]),
        "world_size": st.integers(1, 512),
        "half": st.booleans(),
        "tokens_per_micro_batch": st.integers(1, 10**6),
        "gradient_checkpointing": st.booleans(),
    }
)


@given(SIZES, OPTIONS)
def test_a_higher_stage_never_takes_more(size: ModelSize, options: dict[str, Any]) -> None:
    totals = [estimate(size, zero_stage=stage, **options).total for stage in range(4)]
    assert totals == sorted(totals, reverse=True)
    if options["world_size"] == 1:
        assert len(set(totals)) == 1


@given(SIZES, OPTIONS, st.integers(0, 3))
def test_offload_and_checkpointing_never_take_more(size: ModelSize, options: dict[str, Any], stage: int) -> None:
    def total(**changes: Any) -> int:
        return estimate(size, zero_stage=stage, **(options | changes)).total

    assert total(offload="all") <= total(offload="optimizer") <= total(offload="none")
    assert total(world_size=2) >= total(world_size=4)
    assert total(tokens_per_micro_batch=10) <= total(tokens_per_micro_batch=1000)


@pytest.mark.parametrize(
    ("stage", "half", "bytes_each"),
    [
        *((0, True, (2, 2, 12)), (1, True, (2, 2, 3)), (2, True, (2, 0.5, 3)), (3, True, (0.5, 0.5, 3))),
        *((0, False, (4, 4, 8)), (3, False, (1, 1, 2))),
    ],
)
def test_bytes_per_parameter_of_the_zero_paper(stage: int, half: bool, bytes_each: tuple[float, ...]) -> None:
    size = ModelSize(10**6, 10**6, 64, 2, 100)
    needed = estimate(
        size,
        zero_stage=stage,
        offload="none",
        world_size=4,
        half=half,
        tokens_per_micro_batch=1,
        gradient_checkpointing=True,
    )
    assert (needed.weights, needed.gradients, needed.optimizer) == tuple(int(b * 10**6) for b in bytes_each)
    assert needed.total == sum(dataclasses.astuple(needed))


def test_smallest_stage() -> None:
    estimates = [MemoryEstimate(total, 0, 0, 0) for total in (1000, 800, 600, 400)]
    fits = {1101: 0, 1100: 0, 1099: 1, 881: 1, 879: 2, 661: 2, 659: 3, 441: 3, 1: 3}
    assert {available: smallest_stage(available, 4, estimates) for available in fits} == fits
    assert smallest_stage(1, 1, estimates) == 0
