"""LLaMA-Pro: a model with more layers computes what it did, is a plain model of its kind, and trains the new layers."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from rayswift.config.checks.model import model_problems
from rayswift.config.fields.tuners import tuner_problems
from rayswift.config.load import load
from rayswift.config.model import ModelConfig
from rayswift.log import UserError
from rayswift.model import layers, tuners
from rayswift.model.initial import weights as init_weights
from rayswift.model.initial.blocks import expand
from rayswift.model.size import parameters as model_size

SMALL = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"attention_bias": True, "mlp_bias": True},
    "mistral": {},
    "qwen2": {"tie_word_embeddings": True},
    "qwen3": {
        "use_sliding_window": True,
        "layer_types": ["full_attention", "sliding_attention"] * 2,
        "sliding_window": 4,
    },
    "qwen3_moe": MOE,
    "gemma2": {},
    "gemma3_text": {},
    "phi3": {},
    "olmo2": {},
    "starcoder2": {},
    "gpt2": {"n_layer": 4, "n_head": 4, "n_embd": 32, "n_positions": 64, "vocab_size": 64},
}
TOKENS = torch.arange(1, 33).view(2, 16)


def network(family: str) -> Any:
    given = FAMILIES[family] if family == "gpt2" else SMALL | FAMILIES[family]
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **given))
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)  # biases and norms that are not 0 and 1
    return model.eval()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_larger_model_computes_what_it_did(family: str, tmp_path: Path) -> None:
    small = network(family)
    expand(small, 2).save_pretrained(tmp_path)
    large = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert large.config.num_hidden_layers == 6
    with torch.inference_mode():
        assert torch.equal(large(TOKENS).logits, small(TOKENS).logits)
    tuners.freeze(large, ModelConfig(path="m", new_blocks=2))
    trained = {layers.layer_of(name) for name, p in large.named_parameters() if p.requires_grad}
    assert trained == {2, 5}
    optimizer = torch.optim.AdamW((p for p in large.parameters() if p.requires_grad), lr=1e-2)
    losses = []
    for _ in range(3):
        losses.append(large(TOKENS, labels=TOKENS).loss)
        losses[-1].backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < losses[0]


def test_places_of_the_new_layers() -> None:
    assert layers.sources(4, 2) == [0, 1, 1, 2, 3, 3]
    assert layers.sources(4, 4) == [0, 0, 1, 1, 2, 2, 3, 3]
    for total, num_new in ((4, 2), (4, 4), (28, 4), (6, 1)):
        order = layers.sources(total, num_new)
        copies = {place for place in range(1, len(order)) if order[place] == order[place - 1]}
        assert layers.new_layers(total + num_new, num_new) == copies
        assert len(copies) == num_new


def test_what_cannot_be_expanded() -> None:
    with pytest.raises(UserError, match="4 layers cannot be cut into as many groups; set a divisor of 4"):
        expand(network("llama"), 3)
    given = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    neox = AutoModelForCausalLM.from_config(AutoConfig.for_model("gpt_neox", vocab_size=64, **given))
    with pytest.raises(UserError, match="cannot be switched off"):
        expand(neox, 1)


def test_the_run_begins_with_it_and_its_size_is_known(tmp_path: Path) -> None:
    base, folder = tmp_path / "base", tmp_path / "init"
    small = network("qwen3")
    small.save_pretrained(base)
    config = ModelConfig(path=str(base), new_blocks=4, unfreeze="model.norm")
    init_weights.write(config, tmp_path, folder, seed=0)
    large = AutoModelForCausalLM.from_pretrained(folder)
    tuners.freeze(large, config)
    shapes = {name: tuple(parameter.shape) for name, parameter in small.named_parameters()}
    size = model_size.model_size(small.config.to_dict(), shapes, config)
    assert size.num_parameters == sum(p.numel() for p in large.parameters())
    assert size.num_trainable == sum(p.numel() for p in large.parameters() if p.requires_grad)
    assert size.num_layers == 8


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--new_blocks", "2", "--freeze", "model"], "model.new_blocks and model.freeze say each which weights"),
        (["--new_blocks", "2", "--lisa_layers", "2"], "model.new_blocks and model.lisa_layers say each"),
        (["--lisa_layers", "2", "--unfreeze", "lm_head"], "lisa_layers freezes and unfreezes layers"),
        (["--lisa_layers", "2", "--tuner", "lora"], "model.lisa_layers is of full training"),
        (["--lisa_layers", "2", "--zero_stage", "1"], "ZeRO steps all weights, those that LISA freezes too"),
        (["--optim", "muon", "--zero_stage", "2"], "makes steps of whole matrices, and ZeRO cuts them"),
        (["--optim", "muon", "--optim_args", "beta=3"], "train.optim_args = beta=3: optimizer muon has momentum"),
    ],
)
def test_what_does_not_go_together(flags: list[str], message: str) -> None:
    config = load("sft", ["--model", "m", "--dataset", "d.jsonl", *flags]).config
    found = tuner_problems(config.model) + model_problems(config)
    assert any(message in line for line in found), found
