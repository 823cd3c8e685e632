"""The model of a worker before training: number formats, dropout, and files that can be saved."""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, GenerationConfig

from rayswift.config.model import ModelConfig
from rayswift.log import UserError
from rayswift.model import generation_config, heads, tuners
from rayswift.model.load import hold_masters, load_model, share_tied, switch_off_dropout, weights_dtype
from rayswift.model.size.parameters import read_header

HALF = torch.bfloat16


def test_frozen_weights_are_in_the_models_format_and_trained_ones_in_float32(tiny_model_dir: Path) -> None:
    config = ModelConfig(path=str(tiny_model_dir), tuner="lora", modules_to_save=["embed_tokens"])
    model = load_model(config, config.path, weights_dtype(config, uses_deepspeed=False, dtype="bfloat16"))
    tuned = get_peft_model(model, tuners.new_adapter(config))
    hold_masters(tuned, "bfloat16")
    formats = {(parameter.requires_grad, parameter.dtype) for parameter in tuned.parameters()}
    assert formats == {(True, torch.float32), (False, HALF)}


def test_what_full_training_freezes_is_in_the_models_format(tiny_model_dir: Path) -> None:
    config = ModelConfig(path=str(tiny_model_dir), freeze=r"model\.layers\.0")
    model = load_model(config, config.path, weights_dtype(config, uses_deepspeed=False, dtype="bfloat16"))
    hold_masters(model, "bfloat16")
    for name, parameter in model.named_parameters():
        frozen = name.startswith("model.layers.0")
        assert (parameter.requires_grad, parameter.dtype) == ((False, HALF) if frozen else (True, torch.float32))


@pytest.mark.parametrize("tuner", ["full", "lora"])
def test_in_float32_everything_is(tuner: Any, tiny_model_dir: Path) -> None:
    config = ModelConfig(path=str(tiny_model_dir), tuner=tuner)
    assert weights_dtype(config, uses_deepspeed=False, dtype="float32") == "float32"
    assert weights_dtype(config, uses_deepspeed=True, dtype="bfloat16") == "bfloat16"


def test_dropout_around_stacked_experts_is_refused_by_its_field() -> None:
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1, "num_attention_heads": 4}
    config = AutoConfig.for_model("mixtral", **sizes, num_key_value_heads=2, num_local_experts=2, vocab_size=100)
    model = ModelConfig(path="mixtral", tuner="lora")
    with pytest.raises(UserError, match=r"model\.lora_dropout = 0\.05: .* set it to 0"), tuners.named_refusals(model):
        get_peft_model(AutoModelForCausalLM.from_config(config), tuners.new_adapter(model))


@pytest.mark.parametrize("family", ["qwen3", "gpt2", "opt"])
def test_every_dropout_is_off(family: str) -> None:
    """Also those that modules hold as numbers: twice the same input gives twice the same output in training."""
    sizes = {"num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4, "vocab_size": 100}
    sizes |= {"num_key_value_heads": 4} if family == "qwen3" else {}
    rates = {"attention_dropout": 0.3, "resid_pdrop": 0.3, "attn_pdrop": 0.3, "dropout": 0.3}
    known = AutoConfig.for_model(family)
    config = AutoConfig.for_model(family, **sizes, **{k: v for k, v in rates.items() if hasattr(known, k)})
    model = AutoModelForCausalLM.from_config(config).train()
    model = get_peft_model(model, LoraConfig(target_modules="all-linear", lora_dropout=0.3, init_lora_weights=False))
    ids = torch.arange(2, 34)[None]
    assert not torch.equal(model(ids).logits, model(ids).logits)
    switch_off_dropout(model)
    assert torch.equal(model(ids).logits, model(ids).logits)


def test_tied_weights_are_saved_once_from_a_copy_of_the_state(tmp_path: Path) -> None:
    """As ZeRO 1 and 2 hand it over: the same names as the model saves by itself."""
    sizes = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4, "vocab_size": 100}
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model("qwen3", **sizes, num_key_value_heads=4, tie_word_embeddings=True)
    )
    model.save_pretrained(tmp_path / "plain")
    copied = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    share_tied(model, copied)
    model.save_pretrained(tmp_path / "copied", state_dict=copied)
    plain, saved = (read_header(tmp_path / name / "model.safetensors") for name in ("plain", "copied"))
    assert saved.keys() == plain.keys()


def test_an_adapter_on_frozen_bfloat16_learns_in_float32(tiny_model_dir: Path) -> None:
    """Its gradients are float32, and near those on float32 weights: bfloat16 has 8 bits, so sums differ by some 1 %."""
    gradients = []
    for dtype in ("float32", "bfloat16"):
        config = ModelConfig(path=str(tiny_model_dir), tuner="lora", lora_dropout=0)
        model = load_model(config, config.path, weights_dtype(config, uses_deepspeed=False, dtype=dtype))
        torch.manual_seed(0)
        tuned = get_peft_model(model, tuners.new_adapter(config))
        hold_masters(tuned, dtype)
        ids = torch.arange(8, 72).view(2, 32)
        with torch.autocast("cpu", HALF, enabled=dtype == "bfloat16"):
            tuned(ids, labels=ids).loss.backward()
        gradients.append([p.grad for n, p in tuned.named_parameters() if "lora_B" in n])
    exact, rounded = (torch.cat([g.flatten() for g in own if g is not None]) for own in gradients)
    assert exact.dtype == rounded.dtype == torch.float32
    assert float((exact - rounded).norm() / exact.norm()) < 0.1


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ({"do_sample": False, "temperature": 0.6, "top_p": 0.9}, {"do_sample": False, "temperature": 1.0}),
        ({"top_k": 20, "temperature": 0.6}, {"do_sample": True, "top_k": 20, "temperature": 0.6}),
        ({"do_sample": False, "length_penalty": 2.0, "top_p": 0.9}, {"top_p": 1.0, "length_penalty": 1.0}),
        ({"do_sample": True, "temperature": 0.6}, {"do_sample": True, "temperature": 0.6}),
    ],
)
def test_a_base_with_an_invalid_generation_config_can_be_saved(
    given: dict[str, Any], kept: dict[str, Any], tiny_model_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny_model_dir, base)
    (base / "generation_config.json").write_text(json.dumps(given | {"eos_token_id": 1, "pad_token_id": 0}))
    with caplog.at_level(logging.WARNING, "rayswift"):
        model = load_model(ModelConfig(path=str(base)), str(base), "float32")
    assert ("generation_config.json of" in caplog.text) == (not given.get("do_sample"))
    model.save_pretrained(tmp_path / "saved")
    saved = GenerationConfig.from_pretrained(tmp_path / "saved")
    assert (saved.eos_token_id, saved.pad_token_id) == (1, 0)
    assert {name: getattr(saved, name) for name in kept} == kept or all(
        getattr(saved, name) in (value, None) for name, value in kept.items()
    )
    generation_config.mend(model)  # what is mended stays so


@pytest.mark.parametrize("kind", ["regression", "single_label_classification", "multi_label_classification"])
def test_a_merged_classifier_keeps_what_its_outputs_are(kind: str, tiny_model_dir: Path, tmp_path: Path) -> None:
    names = {0: "neg", 1: "pos"}
    network = AutoModelForSequenceClassification.from_pretrained(
        tiny_model_dir, num_labels=2, problem_type=kind, id2label=names, label2id={v: k for k, v in names.items()}
    )
    tuned = get_peft_model(network, LoraConfig(task_type="SEQ_CLS", target_modules="all-linear"))
    tuned.save_pretrained(tmp_path)
    heads.write_settings(tmp_path, tuned.config)
    adapter = json.loads((tmp_path / "adapter_config.json").read_text(encoding="utf-8"))
    network_class, settings = heads.class_of_adapter(adapter, tmp_path)
    loaded = network_class.from_pretrained(tiny_model_dir, **settings).config
    assert (loaded.problem_type, loaded.num_labels, loaded.id2label) == (kind, 2, names)
