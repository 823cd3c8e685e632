"""Sizes from files alone, against the real models, and what they mean for each ZeRO stage."""

import dataclasses
import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayswift.config.model import ModelConfig
from rayswift.log import UserError
from rayswift.train import shapes
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


def size_of(folder: Path, tuner: str = "full", **more: Any) -> ModelSize:
    model = ModelConfig(path=str(folder), tuner=tuner, **more)  # type: ignore[arg-type]
    found = shapes.find(model, "causal_lm")
    return model_size(found.config, found.shapes, model, found.num_trainable)


def test_parameters_from_safetensors(tiny_model_dir: Path, tiny: Any) -> None:
    size = size_of(tiny_model_dir)
    assert size.num_parameters == size.num_trainable == parameters(tiny)
    assert (size.hidden_size, size.num_layers, size.vocab_size) == (128, 3, 512)


def test_parameters_from_the_config(tokenizer_dir: Path, tiny: Any) -> None:
    assert size_of(tokenizer_dir).num_parameters == parameters(tiny)


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_key_value_heads": 2},
        {"tie_word_embeddings": True},
        {"head_dim": 64, "num_key_value_heads": 1},
        {"num_hidden_layers": 5, "intermediate_size": 100},
        {"attention_bias": True, "mlp_bias": True},
    ],
)
def test_plain_decoders_are_written_out_as_transformers_builds_them(
    family: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {"hidden_size": 64, "intermediate_size": 176, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = AutoConfig.for_model(
        family, **{**sizes, "vocab_size": 300, "num_key_value_heads": 4, "tie_word_embeddings": False} | changes
    )
    config.save_pretrained(tmp_path)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    expected = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    assert shapes.written_out(json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))) == expected


SMALL = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "moe_intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "n_group": 2,
    "topk_group": 1,
    "num_experts_per_tok": 2,
    "vocab_size": 300,
    "pad_token_id": 0,
}
EXPERTS = ["qwen2_moe", "qwen3_moe", "mixtral", "deepseek_v2", "deepseek_v3", "gpt_oss", "granitemoe", "olmoe"]
OTHERS = ["gemma3_text", "phi3", "olmo2", "gpt2"]


@pytest.mark.parametrize("family", EXPERTS + OTHERS)
def test_what_is_built_without_storage_is_what_is_trained(family: str, tmp_path: Path) -> None:
    """From `config.json`, from the weights' headers and by counting: one number; a LoRA's as PEFT puts it there."""
    import torch
    from peft import get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM

    from rayswift.train import built_on_meta, tuners

    known = AutoConfig.for_model(family)
    config = AutoConfig.for_model(family, **{name: value for name, value in SMALL.items() if hasattr(known, name)})
    network = AutoModelForCausalLM.from_config(config)
    network.save_pretrained(tmp_path)
    lora = ModelConfig(path=str(tmp_path), tuner="lora", lora_rank=4, lora_dropout=0)
    made = built_on_meta.build(str(tmp_path), "causal_lm", lora)
    assert sum(math.prod(shape) for shape in made["shapes"].values()) == parameters(network)
    stored = shapes.stored(tmp_path)
    assert stored
    size = model_size(config.to_dict(), stored, lora)
    assert size.num_parameters == size.num_frozen == parameters(network)
    with torch.device("meta"):
        tuned = get_peft_model(network, tuners.new_adapter(lora))
    expected = sum(parameter.numel() for parameter in tuned.parameters() if parameter.requires_grad)
    assert made["num_trainable"] == expected
    if family in OTHERS:
        assert size.num_trainable == expected


def test_a_family_that_is_not_written_out_is_built_by_another_process(tmp_path: Path) -> None:
    from transformers import MixtralConfig, MixtralForCausalLM

    config = MixtralConfig(**{name: value for name, value in SMALL.items() if hasattr(MixtralConfig(), name)})
    config.save_pretrained(tmp_path)
    assert size_of(tmp_path).num_parameters == parameters(MixtralForCausalLM(config))


def test_sharded_weights_are_summed(tmp_path: Path, tiny: Any) -> None:
    tiny.save_pretrained(tmp_path, max_shard_size="500KB")
    files = sorted(tmp_path.glob("*.safetensors"))
    assert len(files) > 1
    (tmp_path / "consolidated.safetensors").write_bytes(files[0].read_bytes())  # the same once more, never loaded
    assert size_of(tmp_path).num_parameters == parameters(tiny)
    files[0].unlink()
    with pytest.raises(UserError, match=rf"names {files[0].name}, which is not there"):
        size_of(tmp_path)


@pytest.mark.parametrize("rank", [1, 8])
def test_lora_trains_two_matrices_for_every_linear_layer(tiny_model_dir: Path, tiny: Any, rank: int) -> None:
    import torch

    linear = [m for n, m in tiny.named_modules() if isinstance(m, torch.nn.Linear) and n != "lm_head"]
    size = size_of(tiny_model_dir, "lora", lora_rank=rank)
    assert size.num_trainable == sum(rank * (m.in_features + m.out_features) for m in linear)
    assert size.num_parameters == size.num_frozen == parameters(tiny)


def test_an_adapter_on_some_modules(tiny_model_dir: Path, tiny: Any) -> None:
    some = [m for n, m in tiny.named_modules() if n.endswith(("q_proj", "v_proj"))]
    trained = sum(8 * (m.in_features + m.out_features) for m in some)
    assert size_of(tiny_model_dir, "lora", target_modules=["q_proj", "v_proj"]).num_trainable == trained
    assert size_of(tiny_model_dir, "lora", target_regex=r".*\.[qv]_proj").num_trainable == trained
    whole = size_of(
        tiny_model_dir, "lora", target_modules=["q_proj", "v_proj"], modules_to_save=["embed_tokens"]
    ).num_trainable
    assert whole == trained + tiny.get_input_embeddings().weight.numel()


def test_what_full_training_freezes(tiny_model_dir: Path, tiny: Any) -> None:
    total = parameters(tiny)
    half = size_of(tiny_model_dir, freeze_ratio=0.5)
    assert (half.num_trainable, half.num_frozen) == (total - total // 2, total // 2)
    embedding = tiny.get_input_embeddings().weight.numel()
    assert size_of(tiny_model_dir, freeze=r"model\.embed").num_frozen == embedding


def test_a_nested_text_config(tmp_path: Path, tokenizer_dir: Path) -> None:
    text_config = json.loads((tokenizer_dir / "config.json").read_text(encoding="utf-8"))
    found = shapes.Found({"model_type": "x_vl", "text_config": text_config}, {"model.layers.0.w.weight": (2, 3)})
    size = model_size(found.config, found.shapes, ModelConfig(path="x"))
    assert (size.hidden_size, size.num_layers, size.vocab_size, size.num_parameters) == (128, 3, 512, 6)


def test_no_config(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"config\.json"):
        size_of(tmp_path)


# ---- estimates ----

SIZES = st.builds(
    ModelSize,
    st.integers(10**4, 10**11),
    st.integers(10**3, 10**11),
    st.integers(0, 10**11),
    st.just(0),
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
    options["world_size"] = max(2, options["world_size"])  # one worker has nothing to share
    lowest = 0 if options["offload"] == "none" else 1  # DeepSpeed offloads, and it begins at stage 1
    totals = [estimate(size, zero_stage=stage, **options).total for stage in range(lowest, 4)]
    assert all(more >= less - 3 for more, less in pairwise(totals))  # three terms are rounded down


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
        *((0, True, (4, 4, 8)), (1, True, (2, 2.5, 3)), (2, True, (2, 1.5, 3)), (3, True, (0.5, 1.5, 3))),
        *((0, False, (4, 4, 8)), (1, False, (4, 5, 3)), (3, False, (1, 2, 3))),
    ],
)
def test_bytes_per_parameter_trained(stage: int, half: bool, bytes_each: tuple[float, ...]) -> None:
    size = ModelSize(10**6, 10**6, 0, 0, 64, 2, 100)
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
