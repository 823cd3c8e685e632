"""The plan of a run lists its models: trained parts, devices and memory."""

from pathlib import Path
from typing import Any

import pytest

from rayswift.cluster.layout import Layout
from rayswift.config.load import load
from rayswift.launch import models

ENGINES = {"min_engines": 1, "max_engines": 2}


def lines_of(folder: Path, *flags: str, verb: str = "rlhf", **layout: Any) -> list[str]:
    config: Any = load(
        verb, ["--model", str(folder), "--data.dataset", "r.jsonl", "--num_generations", "2", *flags]
    ).config
    found = models.describe(config, Layout(2, "cpu", 1, local=True, **{**ENGINES, **layout}))
    return [line.replace(f"{folder}", "M").removeprefix("  ") for line in found]


def weights(folder: Path, head: Any, what: str) -> str:
    """As the plan says it."""
    size = models.size_of(load("sft", ["--model", str(folder), "--data.dataset", "r"]).config.model, head)
    number = size.num_parameters
    return f"({number / 1e3:.3g} k weights, {what}, {4 * number / 2**20:.1f} MiB)"


PPO = ("--rlhf_type", "ppo", "--reward_funcs", "format")


@pytest.mark.parametrize("stage", ["0", "3"])
def test_the_models_of_ppo(tiny_model_dir: Path, stage: str) -> None:
    where = "each worker" if stage == "0" else "2 workers, spread"
    trained, frozen = (weights(tiny_model_dir, "causal_lm", what) for what in ("all trained", "frozen"))
    flags = ("--zero_stage", stage, "--critic_warmup_rounds", "3")
    found = lines_of(tiny_model_dir, *PPO, *flags, "--reward_models", str(tiny_model_dir))
    size = (tiny_model_dir / "model.safetensors").stat().st_size / 2**20
    assert found == [
        f"policy        M {trained}: {where} and 1 to 2 engine(s)",
        f"critic        a head on the policy's states (trained): {where}, trained alone in the first 3 round(s)",
        f"reference     the policy's weights before training {frozen}: {where}",
        f"reward model  M ({size:.1f} MiB of weights): a process on the CPU",
    ]


def test_a_critic_of_its_own_and_an_adapter(tiny_model_dir: Path) -> None:
    flags = ("--tuner", "lora", "--critic", "separate", "--critic_path", str(tiny_model_dir))
    policy, critic, reference = lines_of(tiny_model_dir, *PPO, *flags)
    assert policy.startswith("policy        M (") and " k trained, " in policy
    assert critic == f"critic        M {weights(tiny_model_dir, 'reward', 'all trained')}: each worker"
    assert reference == "reference     the policy without its adapter (no memory): each worker"
    _, critic = lines_of(tiny_model_dir, *PPO, "--critic", "separate", "--kl_coef", "0")
    assert critic.startswith("critic        a copy of the policy's weights with a head that begins at 0 (")


def test_teachers_where_they_are(tiny_model_dir: Path) -> None:
    gkd, teacher = ("--rlhf_type", "gkd"), ("--model.teacher", str(tiny_model_dir))
    frozen = weights(tiny_model_dir, "causal_lm", "frozen")
    assert lines_of(tiny_model_dir, *gkd, *teacher)[1:] == [f"teacher       M {frozen}: each worker"]
    outside = ("--teacher_engines", "2", "--logits_topk", "4")
    found = lines_of(tiny_model_dir, *gkd, *teacher, *outside, teacher_engines=2)
    assert found[1:] == [f"teacher       M {frozen}: 2 engine(s)"]
    # The model below the adapter, which the workers hold too, but engines give its scores.
    found = lines_of(tiny_model_dir, *gkd, *teacher, *outside, "--tuner", "lora", teacher_engines=2)
    assert found[1:] == [f"teacher       M {frozen}: 2 engine(s)"]
    servers = '[{"url": "http://a", "tags": ["x", "y"]}, "http://b"]'
    found = lines_of(tiny_model_dir, *gkd, "--teacher_server", servers, "--logits_topk", "4")
    assert found[1:] == [
        "teacher       http://a (a server): asked about rows tagged x, y",
        "teacher       http://b (a server): asked about all other rows",
    ]
    assert lines_of(tiny_model_dir, *gkd, "--model.teacher", "self")[1:] == [
        "teacher       the policy itself (no memory): each worker"
    ]


def test_sampling_holds_the_model_in_engines_alone(tiny_model_dir: Path) -> None:
    (found,) = lines_of(tiny_model_dir, "--reward_funcs", "format", verb="sample")
    assert found == f"policy        M {weights(tiny_model_dir, 'causal_lm', 'not trained')}: 1 to 2 engine(s)"
    (found,) = lines_of(tiny_model_dir, "--reward_funcs", "format", "--adapters", "a", verb="sample")
    assert found.startswith("policy        M with a (")


def test_a_model_that_is_not_here_is_named_all_the_same(tiny_model_dir: Path) -> None:
    _, critic = lines_of(tiny_model_dir, *PPO, "--critic", "separate", "--critic_path", "gone", "--kl_coef", "0")
    assert critic.startswith("critic        gone (size not known: ")


def test_another_model_has_no_new_blocks_and_the_reference_is_quantized(tiny_model_dir: Path) -> None:
    """The policy grows by three layers, its teacher does not. Beside a policy in 4 bits, the reference is in 4 bits, a
    teacher is not."""

    def size(*flags: str) -> Any:
        command = ["--model", str(tiny_model_dir), "--data.dataset", "r.jsonl", *flags]
        return models.size_in_worker(load("rlhf", command).config)

    gkd = ("--rlhf_type", "gkd", "--model.teacher", str(tiny_model_dir))
    assert size(*gkd, "--new_blocks", "3").num_reference == size(*gkd).num_parameters

    packed = ("--tuner", "lora", "--quantization", "nf4", "--dtype", "bfloat16")
    alone = size("--rlhf_type", "dpo", *packed)
    beside = size("--rlhf_type", "dpo", *packed, "--reference", str(tiny_model_dir))
    taught = size(*gkd, "--teacher_adapters", "a", *packed)
    assert 0 < alone.num_quantizable == taught.num_quantizable
    assert beside.num_quantizable == 2 * alone.num_quantizable
