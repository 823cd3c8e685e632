"""Weights and adapters are loaded whole or not at all, and merged as they computed."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, PrefixTuningConfig, get_peft_model, peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
)

from rayswift.config.model import ModelConfig
from rayswift.log import UserError
from rayswift.model import whole
from rayswift.model.adapters import adapter_problems, served_config
from rayswift.model.find import find_model, load_tokenizer, stop_token_ids
from rayswift.model.kind import abilities
from rayswift.model.load import load_model, load_with_drawn
from rayswift.verbs import infer
from rayswift.verbs.export import merge
from tests.support.model_folders import built

IDS = torch.arange(1, 30)[None]
# Logits of about ten, from two orders of the same float32 sums over 32 numbers.
CLOSE = 1e-4


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    yield built("decoder", tmp_path_factory.mktemp("base"))


def written(folder: Path, base: Path, network: Any = None, **fields: Any) -> PeftModel:
    """A LoRA with random weights, saved in `folder`."""
    torch.manual_seed(1)
    usual = {"r": 4, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM", "init_lora_weights": False}
    network = network or AutoModelForCausalLM.from_pretrained(base)
    model = get_peft_model(network, LoraConfig(**usual | fields)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "modules_to_save" in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return model


def exported(adapter: Path) -> Path:
    folder = adapter.with_name(f"merged-{adapter.name}")
    folder.mkdir()
    merge(find_model(str(adapter), "export.model"), folder)
    return folder


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(IDS).logits
    return found


@pytest.mark.parametrize("kind", ["decoder", "encoder"])
def test_weights_that_are_in_no_file_are_not_drawn(kind: str, tmp_path: Path) -> None:
    """A config of four layers over weights of two: `transformers` loads it, with two random layers."""
    folder = built(kind, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 4}))
    for head in ("causal_lm",) if kind == "decoder" else ("classes", "none"):
        with pytest.raises(UserError, match=r"has no weights for .*layers?\.2\..*more, so they would be random"):
            load_model(ModelConfig(path=str(folder), num_labels=3), str(folder), "float32", head)  # type: ignore[arg-type]
    # A decoder's files are compared with the adapter before anything is loaded.
    reason = r"has no model\.layers\.2\." if kind == "decoder" else "would be random"
    with pytest.raises(UserError, match=reason):
        merge(find_model(str(_on(folder, tmp_path)), "export.model"), tmp_path / "merged")


def _on(folder: Path, tmp_path: Path) -> Path:
    """An adapter on a model with missing weights."""
    classes = AutoModelForCausalLM if (folder / "config.json").read_text().count("Llama") else None
    network = (classes or AutoModelForTokenClassification).from_pretrained(folder)
    targets = ["q_proj"] if classes else ["query"]
    kind = "CAUSAL_LM" if classes else "FEATURE_EXTRACTION"
    written(tmp_path / "adapter", folder, network, target_modules=targets, task_type=kind)
    return tmp_path / "adapter"


@pytest.mark.parametrize(("kind", "head"), [("encoder", "classes"), ("encoder", "none"), ("decoder", "reward")])
def test_a_new_head_is_drawn(kind: str, head: Any, tmp_path: Path) -> None:
    folder = built(kind, tmp_path / "model")
    drawn = load_with_drawn(ModelConfig(path=str(folder), num_labels=3), str(folder), "float32", head)[1]
    assert drawn and all("pooler" in name or "classifier" in name or name == "score.weight" for name in drawn)


def test_an_adapter_of_other_names_is_not_left_out(base: Path, tmp_path: Path) -> None:
    written(tmp_path / "adapter", base)
    file = tmp_path / "adapter/adapter_model.safetensors"
    state = {name.replace("layers", "language_model.layers"): value for name, value in load_file(file).items()}
    save_file(state, file, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"does not fit the model .*language_model.* has no place in it"):
        whole.put_on(AutoModelForCausalLM.from_pretrained(base), tmp_path / "adapter", trains=True)
    for verb in ("infer", "export"):  # before anything is loaded, so for vLLM too
        with pytest.raises(UserError, match=r"which has no model\.language_model\.layers\.0"):
            find_model(str(tmp_path / "adapter"), f"{verb}.model")
    save_file({}, file, metadata={"format": "pt"})
    with pytest.raises(UserError, match="is not in the adapter"):
        whole.put_on(AutoModelForCausalLM.from_pretrained(base), tmp_path / "adapter")


@pytest.mark.filterwarnings("error:The PEFT config")
def test_an_adapter_is_read_once(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = logits(written(tmp_path / "adapter", base))
    read: list[str] = []
    real = peft_model.load_peft_weights
    monkeypatch.setattr(
        peft_model, "load_peft_weights", lambda name, **options: read.append(name) or real(name, **options)
    )
    for trains in (False, True):
        network = AutoModelForCausalLM.from_pretrained(base)
        tuned = whole.put_on(network, tmp_path / "adapter", trains=trains)
        assert torch.allclose(logits(tuned.eval()), trained, atol=CLOSE)
        assert any(parameter.requires_grad for parameter in tuned.parameters()) is trains
        assert tuned.peft_config["default"].base_model_name_or_path == str(base)
    assert read == [str(tmp_path / "adapter")] * 2


def test_the_merged_weights_have_the_format_that_is_asked_for(base: Path, tmp_path: Path) -> None:
    trained = written(tmp_path / "adapter", base)
    wanted = whole.merged(trained).state_dict()
    (tmp_path / "merged").mkdir()
    merge(find_model(str(tmp_path / "adapter"), "export.model"), tmp_path / "merged", dtype="bfloat16")
    found = load_file(tmp_path / "merged/model.safetensors")
    assert {tensor.dtype for tensor in found.values()} == {torch.bfloat16}
    assert json.loads((tmp_path / "merged/config.json").read_text())["dtype"] == "bfloat16"
    for name, below in load_file(base / "model.safetensors").items():
        # Base weight, change and sum are rounded once each, to 8 bits: by 2**-9 of each at most.
        change = float((wanted[name] - below).abs().max())
        assert torch.allclose(found[name].float(), wanted[name], rtol=2**-8, atol=2**-8 * change)


def test_an_adapter_of_a_deeper_model_is_not_cut(base: Path, tmp_path: Path) -> None:
    shallow = built("decoder", tmp_path / "shallow", num_hidden_layers=1)
    written(tmp_path / "adapter", base)
    with pytest.raises(UserError, match=r"layers\.1\.self_attn.* has no place in it"):
        whole.put_on(AutoModelForCausalLM.from_pretrained(shallow), tmp_path / "adapter")


@pytest.mark.parametrize(
    "fields",
    [
        {"target_modules": ["q_proj", "lm_head"]},
        {"target_modules": ["q_proj", "embed_tokens"]},
        {"target_modules": ["q_proj", "embed_tokens", "lm_head"]},
        {"modules_to_save": ["lm_head"]},
        {"modules_to_save": ["embed_tokens"]},
        {"trainable_token_indices": [3, 4, 5]},
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore")
def test_an_adapter_on_one_of_two_tied_matrices_is_merged_into_that_one(fields: dict[str, Any], tmp_path: Path) -> None:
    tied = built("decoder", tmp_path / "tied", tie_word_embeddings=True)
    trained = logits(written(tmp_path / "adapter", tied, **fields))
    merged = AutoModelForCausalLM.from_pretrained(exported(tmp_path / "adapter"))
    assert torch.allclose(logits(merged), trained, atol=CLOSE)


@pytest.mark.parametrize(("fields", "is_tied"), [({}, True), ({"modules_to_save": ["embed_tokens", "lm_head"]}, False)])
@pytest.mark.filterwarnings("ignore")
def test_tokens_that_an_adapter_brings(fields: dict[str, Any], is_tied: bool, tmp_path: Path) -> None:
    """An adapter that was trained after `resize_token_embeddings` holds both matrices; its tokenizer lies beside it."""
    base = built("decoder", tmp_path / "base", tie_word_embeddings=is_tied)
    network = AutoModelForCausalLM.from_pretrained(base)
    network.resize_token_embeddings(520)
    trained = logits(written(tmp_path / "adapter", base, network, **fields))
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.add_tokens([f"<new{number}>" for number in range(8)])
    tokenizer.save_pretrained(tmp_path / "adapter")

    assert infer.choose_backend("auto", served_config(tmp_path / "adapter")) == "transformers"
    merged = exported(tmp_path / "adapter")
    network = AutoModelForCausalLM.from_pretrained(merged)
    assert network.get_input_embeddings().num_embeddings == len(AutoTokenizer.from_pretrained(merged)) == 520
    assert torch.allclose(logits(network), trained, atol=CLOSE)
    further = ModelConfig(path=str(base), tuner="lora", adapters=[str(tmp_path / "adapter")])
    assert "holds 520 rows of " in (problem := adapter_problems(further)[0]) and "has 512; merge it with" in problem


def test_new_rows_without_an_output_matrix_are_not_drawn(base: Path, tmp_path: Path) -> None:
    network = AutoModelForCausalLM.from_pretrained(base)
    network.resize_token_embeddings(520)
    written(tmp_path / "adapter", base, network, modules_to_save=["embed_tokens"])
    file = tmp_path / "adapter/adapter_model.safetensors"
    state = {name: value for name, value in load_file(file).items() if "lm_head" not in name}
    save_file(state, file, metadata={"format": "pt"})
    with pytest.raises(UserError, match="an embedding of 520 rows, the model has 512, and no output matrix"):
        whole.put_on(AutoModelForCausalLM.from_pretrained(base), tmp_path / "adapter")


def test_adapters_of_heads(tmp_path: Path) -> None:
    """The number of classes of a `.bin`; a head that is not known; no task, where PEFT noted the class."""
    base = built("encoder", tmp_path / "base")
    head = AutoModelForSequenceClassification.from_pretrained(base, num_labels=3)
    written(tmp_path / "classes", base, head, target_modules=["query"], task_type="SEQ_CLS")
    file = tmp_path / "classes/adapter_model.safetensors"
    torch.save(load_file(file), file.with_suffix(".bin"))
    file.unlink()
    merged = json.loads((exported(tmp_path / "classes") / "config.json").read_text())
    assert merged["architectures"] == ["BertForSequenceClassification"] and len(merged["id2label"]) == 3

    tokens = AutoModelForTokenClassification.from_pretrained(base)
    written(tmp_path / "tokens", base, tokens, target_modules=["query"], task_type="TOKEN_CLS")
    with pytest.raises(UserError, match="is an adapter of TOKEN_CLS; those of CAUSAL_LM, SEQ_CLS, FEATURE_EXTRACTION"):
        exported(tmp_path / "tokens")

    network = AutoModelForSequenceClassification.from_pretrained(base, num_labels=3)
    written(tmp_path / "none", base, network, target_modules=["query"], task_type=None, modules_to_save=["classifier"])
    merged = json.loads((exported(tmp_path / "none") / "config.json").read_text())
    assert merged["architectures"] == ["BertForSequenceClassification"] and len(merged["id2label"]) == 3


def test_an_adapter_that_is_no_change_of_weights_is_not_merged(base: Path, tmp_path: Path) -> None:
    config = PrefixTuningConfig(num_virtual_tokens=4, task_type="CAUSAL_LM")
    get_peft_model(AutoModelForCausalLM.from_pretrained(base), config).save_pretrained(tmp_path / "prefix")
    with pytest.raises(UserError, match="PREFIX_TUNING is no change of weights"):
        exported(tmp_path / "prefix")


def test_damaged_files_are_named(base: Path, tmp_path: Path) -> None:
    written(tmp_path / "adapter", base)
    (tmp_path / "adapter/adapter_config.json").write_text("{")
    with pytest.raises(UserError, match=r"adapter_config\.json is no JSON object"):
        find_model(str(tmp_path / "adapter"), "export.model")
    (tmp_path / "adapter/adapter_model.safetensors").unlink()
    with pytest.raises(UserError, match="holds no weights of an adapter"):
        find_model(str(tmp_path / "adapter"), "export.model")
    model = find_model(str(shutil.copytree(base, tmp_path / "model")), "infer.model")
    (tmp_path / "model/generation_config.json").write_text("{")
    with pytest.raises(UserError, match=r"generation_config\.json is no JSON"):
        stop_token_ids(model, load_tokenizer(model))


def test_a_merged_model_beside_its_adapter_is_neither(base: Path, tmp_path: Path) -> None:
    """`transformers` would put the adapter onto the merged weights, a second time."""
    written(tmp_path / "both", base)
    shutil.copytree(base, tmp_path / "both", dirs_exist_ok=True)
    for task in ("causal_lm", "dpo", "infer", "seq_cls"):
        (problem,) = abilities.problems("model.path", str(tmp_path / "both"), task)
        assert "both a model's weights and an adapter" in problem and "move adapter_config.json" in problem
