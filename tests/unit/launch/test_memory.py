"""Sizes from files alone, compared with the real models, and the memory of each ZeRO stage."""

import dataclasses
import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayswift.cluster.layout import Layout
from rayswift.config.load import load
from rayswift.config.model import ModelConfig
from rayswift.config.schema import ClusterConfig
from rayswift.launch import plan
from rayswift.launch.memory import MemoryEstimate, estimate, smallest_stage
from rayswift.log import UserError
from rayswift.model.size import shapes
from rayswift.model.size.parameters import SIZES, ModelSize, model_size, read_header
from rayswift.train.parallel.deepspeed import REDUCE_BUCKET, deepspeed_config, fit_reduce_bucket


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
    with pytest.raises(UserError, match=r"model\.safetensors is not a complete safetensors file"):
        read_header(file)


def test_a_page_of_text_is_no_weights_file(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n")
    with pytest.raises(UserError, match="is not a complete safetensors file"):
        read_header(file)


def size_of(folder: Path, tuner: str = "full", **more: Any) -> ModelSize:
    model = ModelConfig(path=str(folder), tuner=tuner, **more)  # type: ignore[arg-type]
    found = shapes.find(model, "causal_lm")
    return model_size(found.config, found.shapes, model, found.num_trainable, found.num_quantizable)


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
    found = shapes.written_out(json.loads((tmp_path / "config.json").read_text(encoding="utf-8")))
    assert found and list(found.items()) == list(expected.items())  # the order decides what `freeze_ratio` freezes


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
OTHERS = ["gpt2", "qwen2_moe", "mixtral", "deepseek_v3", "gpt_oss"]
BY_NAME = [family for family in shapes.BY_NAME if family not in shapes.PLAIN]


def small(family: str) -> Any:
    from transformers import AutoConfig

    known = AutoConfig.for_model(family)
    return AutoConfig.for_model(family, **{name: value for name, value in SMALL.items() if hasattr(known, name)})


@pytest.mark.parametrize("family", [*BY_NAME, *OTHERS])
def test_what_is_built_without_storage_is_what_is_trained(family: str, tmp_path: Path) -> None:
    """Parameters as they are loaded, a LoRA's as PEFT puts it there, matrices as bitsandbytes takes them; of families
    that are counted by name, the names in the weights' headers tell the same."""
    import torch
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM

    from rayswift.model import tuners
    from rayswift.model.adapters import target_problem
    from rayswift.model.size import built_on_meta

    config = small(family)
    network = AutoModelForCausalLM.from_config(config)
    network.save_pretrained(tmp_path)
    whole = parameters(network)
    lora = ModelConfig(path=str(tmp_path), tuner="lora", lora_rank=4, lora_dropout=0, quantization="nf4")
    made = built_on_meta.build(str(tmp_path), "causal_lm", lora)
    assert sum(math.prod(shape) for shape in made["shapes"].values()) == whole
    text = network.config.get_text_config()
    assert made["config"] == {name: getattr(text, name) for name in SIZES}
    with torch.device("meta"):
        tuned = get_peft_model(network, tuners.new_adapter(lora))
    expected = sum(parameter.numel() for parameter in tuned.parameters() if parameter.requires_grad)
    assert made["num_trainable"] == expected and not made["adapter_problem"]
    named = lora.model_copy(update={"target_modules": ["lm_head", "q_prj"]})
    problem = target_problem(named, made["modules"], made["matrices"])
    assert problem.startswith("model.target_modules: the model has no module q_prj; it has ") and "lm_head" in problem
    if family in BY_NAME:
        stored = shapes.stored(tmp_path)
        assert stored
        size = model_size(made["config"], stored, lora)
        assert size.num_parameters == size.num_frozen == whole
        assert (size.num_trainable, size.num_quantizable) == (expected, made["num_quantizable"])


def test_a_head_that_a_family_does_not_share_is_counted(tmp_path: Path) -> None:
    """`config.json` says that it does, which some families do not heed."""
    from transformers import AutoModelForCausalLM

    from rayswift.model.size import built_on_meta

    config = small("bigbird_pegasus")
    assert config.tie_word_embeddings
    network = AutoModelForCausalLM.from_config(config)
    config.save_pretrained(tmp_path)
    made = built_on_meta.build(str(tmp_path), "causal_lm", ModelConfig(path=str(tmp_path)))
    assert sum(math.prod(shape) for shape in made["shapes"].values()) == parameters(network)
    assert made["config"]["num_hidden_layers"] == 2  # by another name in its config


def test_a_config_without_sizes_is_not_estimated() -> None:
    found = shapes.Found({"model_type": "x", "vocab_size": 300}, {"w.weight": (2, 3)})
    with pytest.raises(OSError, match="cannot be estimated: its config has no hidden_size, num_hidden_layers"):
        model_size(found.config, found.shapes, ModelConfig(path="x"))


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


@pytest.mark.parametrize(
    "fields",
    [
        {"freeze_ratio": 0.5},
        {"freeze": r"model\.embed"},
        {"freeze_ratio": 0.7, "freeze": r".*mlp", "unfreeze": r".*layers\.0\.self_attn"},
    ],
)
def test_what_full_training_freezes(fields: dict[str, Any], tiny_model_dir: Path) -> None:
    from transformers import AutoModelForCausalLM

    from rayswift.model import tuners

    network = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    tuners.freeze(network, ModelConfig(path=str(tiny_model_dir), **fields))
    trained = sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)
    size = size_of(tiny_model_dir, **fields)
    assert (size.num_trainable, size.num_frozen) == (trained, parameters(network) - trained)


def test_a_nested_text_config(tmp_path: Path, tokenizer_dir: Path) -> None:
    text_config = json.loads((tokenizer_dir / "config.json").read_text(encoding="utf-8"))
    found = shapes.Found({"model_type": "x_vl", "text_config": text_config}, {"model.layers.0.w.weight": (2, 3)})
    size = model_size(found.config, found.shapes, ModelConfig(path="x"))
    assert (size.hidden_size, size.num_layers, size.vocab_size, size.num_parameters) == (128, 3, 512, 6)


@pytest.mark.parametrize(("head", "num_labels"), [("reward", 1), ("classes", 5)])
def test_a_head_of_scores_is_counted(head: Any, num_labels: int, tiny_model_dir: Path, tiny: Any) -> None:
    model = ModelConfig(path=str(tiny_model_dir), num_labels=5 if head == "classes" else None)
    found = shapes.find(model, head)
    size = model_size(found.config, found.shapes, model)
    assert size.num_parameters == parameters(tiny.model) + num_labels * 128


def test_no_config(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"config\.json"):
        size_of(tmp_path)


# ---- estimates ----

MODELS = st.builds(
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


@given(MODELS, OPTIONS)
def test_a_higher_stage_keeps_no_more(size: ModelSize, options: dict[str, Any]) -> None:
    """Weights and optimizer, that is: what stage 3 gathers of a small model can be more than it shares out."""
    lowest = 0 if options["offload"] == "none" else 1  # DeepSpeed offloads, and it begins at stage 1
    options["world_size"] = max(3, options["world_size"])  # two workers' float32 masters outweigh what they share out
    needed = [estimate(size, zero_stage=stage, **options) for stage in range(lowest, 4)]
    kept = [each.weights + each.optimizer for each in needed]
    assert all(more >= less - 3 for more, less in pairwise(kept))  # terms are rounded down


@given(MODELS, OPTIONS, st.integers(0, 3))
def test_offload_and_checkpointing_never_take_more(size: ModelSize, options: dict[str, Any], stage: int) -> None:
    def total(**changes: Any) -> int:
        return estimate(size, zero_stage=stage, **(options | changes)).total

    assert total(offload="all") <= total(offload="optimizer") <= total(offload="none")
    assert total(world_size=2) >= total(world_size=4)
    assert total(tokens_per_micro_batch=10) <= total(tokens_per_micro_batch=1000)


FULL = ModelSize(10**6, 10**6, 0, 0, 64, 2, 100, num_largest=10**4)


@pytest.mark.parametrize(
    ("stage", "half", "bytes_each"),
    [
        # Weights, gradients, Adam's states with DeepSpeed's masters, buffers: of four workers, at the worst moment.
        *((0, True, (4, 4, 8, 2)), (1, True, (2, 2, 3, 2)), (2, True, (2, 0, 3, 4)), (3, True, (0.5, 0.5, 3, 6))),
        *((0, False, (4, 4, 8, 0)), (1, False, (4, 4, 3, 4)), (2, False, (4, 0, 3, 8)), (3, False, (1, 1, 3, 12))),
    ],
)
def test_bytes_per_parameter_trained(stage: int, half: bool, bytes_each: tuple[float, ...]) -> None:
    options = {"tokens_per_micro_batch": 0, "gradient_checkpointing": True, "device": "cpu"}
    needed = estimate(FULL, zero_stage=stage, offload="none", world_size=4, half=half, **options)  # type: ignore[arg-type]
    seen = (needed.weights, needed.gradients, needed.optimizer, needed.buffers)
    assert seen == tuple(int(b * 10**6) for b in bytes_each)
    assert needed.total == sum(dataclasses.astuple(needed))


def test_a_large_model_is_reduced_in_buckets_and_gathered_in_parts() -> None:
    size = ModelSize(10**10, 10**10, 0, 0, 4096, 32, 10**5)
    options = {"offload": "none", "world_size": 64, "half": True, "gradient_checkpointing": True}
    needed = [estimate(size, zero_stage=stage, tokens_per_micro_batch=0, **options) for stage in range(4)]  # type: ignore[arg-type]
    part = 10**10 / 64
    assert needed[1].gradients == 2e10 and needed[1].buffers == 2 * REDUCE_BUCKET
    assert needed[2].gradients == int(2 * part) and needed[2].buffers == 4 * REDUCE_BUCKET
    assert needed[3].buffers == 2 * REDUCE_BUCKET + 2 * (10**9 + 5 * 10**7)
    accumulating = estimate(size, zero_stage=2, tokens_per_micro_batch=0, accumulates=True, **options)  # type: ignore[arg-type]
    assert accumulating.gradients == int(4 * part)


def test_workers_make_their_weights_one_before_they_train() -> None:
    """More than an adapter's training on a small model takes."""
    options = {"zero_stage": 0, "offload": "none", "half": True, "gradient_checkpointing": True}
    size = ModelSize(10**6, 10**4, 10**6, 0, 64, 2, 100)
    several, one = (estimate(size, world_size=n, tokens_per_micro_batch=0, **options) for n in (2, 1))  # type: ignore[arg-type]
    assert several == MemoryEstimate(several.weights, 0, 0, 0, buffers=several.weights)
    assert one.buffers == 0


def test_two_buckets_are_broadcast_at_a_time_and_one_of_them_is_of_the_adapter() -> None:
    """Where frozen weights are two buckets at most; of one number format, or of more weights, two buckets of them."""
    options: dict[str, Any] = {"zero_stage": 0, "offload": "none", "world_size": 2, "gradient_checkpointing": True}
    bucket = 250 << 20

    def buffers(num_frozen: int, half: bool) -> int:
        size = ModelSize(num_frozen, 10**6, num_frozen, 0, 64, 2, 100)
        return estimate(size, half=half, tokens_per_micro_batch=0, **options).buffers

    assert buffers(2 * 10**8, half=True) == bucket + 4 * 10**6
    assert buffers(10**8, half=True) == 2 * 10**8 + 4 * 10**6
    assert buffers(10**9, half=True) == buffers(2 * 10**8, half=False) == 2 * bucket


def test_offload_saves_nothing_on_cpus() -> None:
    options = {"world_size": 2, "half": False, "tokens_per_micro_batch": 64, "gradient_checkpointing": True}
    for_cpu = [
        estimate(FULL, zero_stage=3, offload=offload, device="cpu", **options)  # type: ignore[arg-type]
        for offload in ("none", "optimizer", "all")
    ]
    assert for_cpu[0] == for_cpu[1] == for_cpu[2]


@pytest.mark.parametrize(("quantization", "double", "bytes_each"), [("nf4", True, 0.515625), ("fp4", False, 0.5625)])
def test_bytes_of_quantized_weights(quantization: str, double: bool, bytes_each: float) -> None:
    size = ModelSize(10**6, 0, 10**6, 10**6, 64, 2, 100)
    options = {"offload": "none", "world_size": 1, "half": True, "gradient_checkpointing": True}
    needed = estimate(
        size,
        zero_stage=0,
        tokens_per_micro_batch=0,
        quantization=quantization,
        double_quantization=double,
        **options,  # type: ignore[arg-type]
    )
    assert needed.weights == int(bytes_each * 10**6)


def test_quantizing_the_largest_matrix_on_a_cpu_takes_more_than_training_an_adapter() -> None:
    """In float32, three times: measured in tests/bars/test_memory_estimate.py."""
    size = ModelSize(10**7, 0, 10**7, 10**7, 64, 2, 100, num_largest_matrix=10**6)
    options: dict[str, Any] = {
        "zero_stage": 1,
        "offload": "none",
        "world_size": 2,
        "half": True,
        "gradient_checkpointing": True,
    }
    on_cpu, on_gpu = (
        estimate(size, tokens_per_micro_batch=0, quantization="nf4", device=device, **options)
        for device in ("cpu", "cuda")
    )
    assert (on_cpu.buffers, on_cpu.activations) == (12 * 10**6, 0)
    assert (on_gpu.buffers, on_gpu.activations) == (0, 2 * 10**6)


def test_gloo_gathers_the_next_weights_into_a_buffer_and_its_copy() -> None:
    """Beside the weights of all layers, and the buffer of those that are needed now: 50 M weights each."""
    size = ModelSize(3 * 10**8, 0, 3 * 10**8, 0, 64, 2, 100)
    options: dict[str, Any] = {
        "zero_stage": 3,
        "offload": "none",
        "world_size": 2,
        "half": True,
        "gradient_checkpointing": True,
    }
    on_cpu, on_gpu = (estimate(size, tokens_per_micro_batch=0, device=device, **options) for device in ("cpu", "cuda"))
    assert (on_cpu.buffers, on_gpu.buffers) == (2 * (300 + 50 + 100) * 10**6, 2 * (300 + 50) * 10**6)


@pytest.mark.parametrize(("trained", "bucket"), [(10**6, 10**6), (10**10, REDUCE_BUCKET)])
def test_the_bucket_is_no_larger_than_what_is_trained(trained: int, bucket: int) -> None:
    config = deepspeed_config(ClusterConfig(zero_stage=2), "cpu", "float32", universal=False)
    fit_reduce_bucket(config, trained)
    assert config["zero_optimization"] == {"stage": 2, "reduce_bucket_size": bucket}


def test_smallest_stage() -> None:
    estimates = [MemoryEstimate(total, 0, 0, 0) for total in (1000, 800, 600, 400)]
    fits = {1101: 0, 1100: 0, 1099: 1, 881: 1, 879: 2, 661: 2, 659: 3, 441: 3, 1: 3}
    assert {available: smallest_stage(available, 4, estimates) for available in fits} == fits
    assert smallest_stage(1, 1, estimates) == 0
    # A small model gathered whole takes more than it shares out.
    assert smallest_stage(1, 4, [MemoryEstimate(total, 0, 0, 0) for total in (1000, 800, 600, 700)]) == 2


def test_a_config_that_cannot_be_built_says_so(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "nothing_known"}')
    with pytest.raises(UserError, match=r"model\.path = '.*' cannot be loaded: .*nothing_known"):
        shapes.find(ModelConfig(path=str(tmp_path)), "causal_lm")


def test_a_task_that_samples_is_estimated_by_its_micro_batches(tiny_model_dir: Path) -> None:
    """`data.max_length` is no length of theirs: 8 times 2,048 tokens stood for micro-batches of 1,000."""

    def activations(*flags: str) -> float:
        needed = ("--model", str(tiny_model_dir), "--data.dataset", "rows.jsonl", "--reward_funcs", "accuracy")
        config: Any = load("rlhf", ["--rlhf_type", "grpo", *needed, *flags]).config
        layout = Layout(1, "cpu", 1, local=True, min_engines=1, max_engines=1)
        found = plan.resolve(config, layout, None).estimates
        assert not isinstance(found, str)
        return found[0].activations

    lengths = ("--max_prompt_length", "100", "--max_completion_length", "25")
    asked = activations(*lengths, "--micro_batch_tokens", "1000")
    assert activations(*lengths, "--per_device_train_batch_size", "8") == asked
    assert activations(*lengths, "--micro_batch_tokens", "2000") == pytest.approx(2 * asked)


def test_a_shared_critic_adds_less_than_a_hundredth_and_a_separate_one_a_model(tiny_model_dir: Path) -> None:
    layout = Layout(local=True, device="cpu", num_workers=1, threads_per_worker=1)
    base = ["--model", str(tiny_model_dir), "--data.dataset", "r.jsonl", "--reward_funcs", "format"]

    def needs(*flags: str) -> list[MemoryEstimate]:
        found = plan._estimates(load("rlhf", [*base, *flags]).config, layout)
        assert isinstance(found, list)
        return found

    for tuner in ("full", "lora"):
        grpo = needs("--rlhf_type", "grpo", "--train.beta", "0.1", "--tuner", tuner)
        shared = needs("--rlhf_type", "ppo", "--tuner", tuner)
        separate = needs("--rlhf_type", "ppo", "--tuner", tuner, "--train.critic", "separate")
        size = size_of(tiny_model_dir).num_parameters
        for without, head, model in zip(grpo, shared, separate, strict=True):
            assert without.total < head.total < 1.01 * without.total
            assert model.weights >= head.weights + 4 * size * 0.9  # the head of the language model is left out
