"""Unusual folders of the hub: each trains one step, and the saved model loads like the original."""

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, GenerationConfig

from rayswift.config.load import load
from rayswift.config.model import ModelConfig
from rayswift.data.encode.template import default_system
from rayswift.data.tokenizer.folder import read_chat_template
from rayswift.data.tokenizer.loaded import load_with_padding
from rayswift.data.tokenizer.training_copy import prepare_tokenizer
from rayswift.launch.dry_run import dry_run
from rayswift.log import UserError
from rayswift.model.find import find_model
from rayswift.model.load import load_model
from tests.support.model_folders import adapter, built
from tests.support.one_loss import one_loss

Edit = Callable[[Path], None]


def _edited(folder: Path, name: str, **values: Any) -> None:
    path = folder / name
    known = json.loads(path.read_text()) if path.exists() else {}
    merged = {key: value for key, value in (known | values).items() if value is not None}
    path.write_text(json.dumps(merged), encoding="utf-8")


def _bin_only(folder: Path) -> None:
    torch.save(AutoModelForCausalLM.from_pretrained(folder).state_dict(), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def _sharded(folder: Path) -> None:
    AutoModelForCausalLM.from_pretrained(folder).save_pretrained(folder, max_shard_size="20KB")
    (folder / "model.safetensors").unlink(missing_ok=True)
    assert len(list(folder.glob("model-*.safetensors"))) > 2


def _float16(folder: Path) -> None:
    AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float16).save_pretrained(folder)
    assert json.loads((folder / "config.json").read_text())["dtype"] == "float16"


def _wide_embedding(folder: Path) -> None:
    """The embedding padded to a round number, as many models have it."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.resize_token_embeddings(576)
    model.save_pretrained(folder)


TIED = {"tie_word_embeddings": True}
QUIRKS: dict[str, tuple[dict[str, Any], Edit]] = {
    "greedy with a temperature": (
        {},
        lambda folder: _edited(folder, "generation_config.json", do_sample=False, temperature=0.6, top_p=0.9),
    ),
    "sampling without a word": ({}, lambda folder: _edited(folder, "generation_config.json", temperature=0.6)),
    "tied": (TIED, lambda folder: None),
    "tied and sharded": (TIED, _sharded),
    "pad is eos": ({}, lambda folder: _edited(folder, "tokenizer_config.json", pad_token="<|im_end|>")),
    "no pad": ({}, lambda folder: _edited(folder, "tokenizer_config.json", pad_token=None)),
    "embedding wider than the tokenizer": ({}, _wide_embedding),
    "bin only": ({}, _bin_only),
    "sharded": ({}, _sharded),
    "float16": ({}, _float16),
}


@pytest.mark.parametrize("quirk", QUIRKS)
@pytest.mark.parametrize("tuner", ["full", "lora"])
def test_a_quirk_changes_nothing(
    quirk: str, tuner: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss is that of the plain folder; what is saved has the same weights, none missing and none new."""
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    settings, edit = QUIRKS[quirk]
    plain = one_loss("causal_lm", built("decoder", tmp_path / "plain", **settings), tmp_path / "a", "--tuner", tuner)[0]
    folder = built("decoder", tmp_path / "quirk", **settings)
    edit(folder)
    loss, trainer = one_loss("causal_lm", folder, tmp_path / "b", "--tuner", tuner)
    # Weights rounded to float16 move the loss by some 1e-4; a wider embedding adds rows to the softmax.
    rounded = {"float16": 1e-3, "embedding wider than the tokenizer": 0.05}.get(quirk, 1e-6)
    assert loss == pytest.approx(plain, rel=rounded)
    caplog.clear()
    trainer.model.save_pretrained(tmp_path / "saved")
    if tuner == "lora":
        return
    loaded, info = AutoModelForCausalLM.from_pretrained(tmp_path / "saved", output_loading_info=True)
    assert not any(info.values())
    assert loaded.get_input_embeddings().num_embeddings == trainer.model.get_input_embeddings().num_embeddings
    for name, weight in trainer.model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name].float(), weight.float()), name
    GenerationConfig.from_pretrained(tmp_path / "saved").validate(strict=True)
    if settings:
        assert loaded.lm_head.weight.data_ptr() == loaded.model.embed_tokens.weight.data_ptr()


def test_padding_is_what_the_tokenizer_says_or_the_end(tmp_path: Path) -> None:
    folder = built("decoder", tmp_path / "model")
    assert load_with_padding(str(folder), False).pad_token == "<|endoftext|>"
    _edited(folder, "tokenizer_config.json", pad_token=None)
    assert load_with_padding(str(folder), False).pad_token == AutoTokenizer.from_pretrained(folder).eos_token


def _with_more_tokens(folder: Path) -> None:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_tokens([f"<extra_{i}>" for i in range(8)])
    tokenizer.save(str(folder / "tokenizer.json"))


def test_a_tokenizer_larger_than_the_embedding_is_refused_by_name(tmp_path: Path) -> None:
    folder = built("decoder", tmp_path / "model")
    _with_more_tokens(folder)
    with pytest.raises(UserError, match=r"8 token\(s\) that the embedding has no row for, '<extra_0>'") as refused:
        prepare_tokenizer(ModelConfig(path=str(folder)), tmp_path / "tokenizer")
    assert "give --model.new_special_tokens" in str(refused.value)


CODE = """
from transformers import LlamaConfig, LlamaForCausalLM


class MyConfig(LlamaConfig):
    model_type = "my_llama"


class MyForCausalLM(LlamaForCausalLM):
    config_class = MyConfig
"""


def test_code_of_the_folder_is_saved_with_the_model(tmp_path: Path) -> None:
    folder = built("decoder", tmp_path / "model")
    (folder / "my_code.py").write_text(CODE)
    auto_map = {"AutoConfig": "my_code.MyConfig", "AutoModelForCausalLM": "my_code.MyForCausalLM"}
    _edited(folder, "config.json", model_type="my_llama", architectures=["MyForCausalLM"], auto_map=auto_map)
    loss, trainer = one_loss("causal_lm", folder, tmp_path / "run", "--model.trust_remote_code", "true")
    assert loss > 0
    trainer._save(str(tmp_path / "saved"))
    assert (tmp_path / "saved" / "my_code.py").read_text() == CODE
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "saved", trust_remote_code=True)
    assert type(loaded).__name__ == "MyForCausalLM"


TEMPLATE = "{% for message in messages %}[{{ message.role }}] {{ message.content }}{% endfor %}"
OTHER = "other: {{ messages[0].content }}"


@pytest.mark.parametrize(
    "files",
    [
        {"tokenizer_config.json": {"chat_template": TEMPLATE}},
        {"tokenizer_config.json": {"chat_template": OTHER}, "chat_template.jinja": TEMPLATE},
        {"chat_template.json": {"chat_template": TEMPLATE}},
        {
            "tokenizer_config.json": {
                "chat_template": [
                    {"name": "tool_use", "template": OTHER},
                    {"name": "default", "template": TEMPLATE},
                ]
            }
        },
    ],
    ids=["tokenizer_config", "jinja beside it", "chat_template.json", "named"],
)
def test_chat_templates_lie_in_many_places(files: dict[str, Any], tmp_path: Path) -> None:
    folder = built("decoder", tmp_path / "model")
    (folder / "chat_template.jinja").unlink()
    for name, content in files.items():
        if isinstance(content, str):
            (folder / name).write_text(content)
        else:
            _edited(folder, name, **content)
    copied = prepare_tokenizer(ModelConfig(path=str(folder)), tmp_path / "tokenizer")
    assert read_chat_template(copied)[0] == TEMPLATE
    saved = load_with_padding(str(copied), False)
    asked = [{"role": "user", "content": "hi"}]
    assert saved.apply_chat_template(asked, tokenize=False) == "[user] hi"
    saved.save_pretrained(tmp_path / "saved")
    assert AutoTokenizer.from_pretrained(tmp_path / "saved").apply_chat_template(asked, tokenize=False) == "[user] hi"


CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
DEFAULT = "{% if messages[0].role != 'system' %}<|im_start|>system\nYou are Tiny.<|im_end|>\n{% endif %}" + CHATML
FIXED = "{% if messages[0].role == 'system' %}{{ messages[0].content }}{% endif %}Today.[{{ messages[-1].content }}]"
NO_SYSTEM = "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('none') }}{% endif %}{% endfor %}x"


@pytest.mark.parametrize(
    ("template", "wanted"),
    [(DEFAULT, "You are Tiny."), (CHATML, ""), (FIXED, ""), (NO_SYSTEM, ""), ("{{ nothing(", "")],
)
def test_a_default_system_message_is_said_in_the_plan(
    template: str, wanted: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = built("decoder", tmp_path / "model")
    (folder / "chat_template.jinja").write_text(template)
    assert default_system(template, {}) == wanted
    flags = ["--model", str(folder), "--data.dataset", "r.jsonl", "--train.output_dir", str(tmp_path / "run")]
    flags += ["--max_length", "64"]
    dry_run(load("sft", flags).config)
    said = "the chat template adds the system message 'You are Tiny.' to conversations without one; data.system gives"
    assert (said in capsys.readouterr().out) == bool(wanted)
    dry_run(load("sft", [*flags, "--data.system", "Be brief."]).config)
    assert "adds the system message" not in capsys.readouterr().out


def test_the_plan_reads_the_template_that_replaces_the_models(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = built("decoder", tmp_path / "model")
    (folder / "chat_template.jinja").write_text(DEFAULT)
    other = tmp_path / "other.jinja"
    flags = ["--model", str(folder), "--data.dataset", "r.jsonl", "--train.output_dir", str(tmp_path / "run")]
    flags += ["--max_length", "64", "--model.chat_template", str(other)]
    with pytest.raises(UserError, match=r"model\.chat_template = .*: No such file"):
        dry_run(load("sft", flags).config)
    other.write_text(CHATML)
    dry_run(load("sft", flags).config)
    assert "adds the system message" not in capsys.readouterr().out


# ---- adapters ----


def test_an_adapter_whose_base_has_moved_names_it_and_takes_another(tmp_path: Path) -> None:
    gone, base = str(tmp_path / "gone"), built("decoder", tmp_path / "base")
    folder = adapter(tmp_path / "adapter", gone)
    with pytest.raises(UserError) as refused:
        find_model(str(folder), "infer.model")
    assert str(refused.value) == (
        f"the base model of {folder}, {gone!r} by its adapter_config.json, is not a model folder here; name the folder "
        "or hub id of that model with --base"
    )
    found = find_model(str(folder), "infer.model", base=str(base))
    assert (found.folder, found.weights) == (folder, base)
    with pytest.raises(UserError, match=r"infer\.base = 'x/y/z' is not a model folder here"):
        find_model(str(folder), "infer.model", base="x/y/z")
    with pytest.raises(UserError, match=r"infer\.base = .* is not an adapter, so it has no base model; leave it out"):
        find_model(str(base), "infer.model", base=str(base))


def test_an_adapter_is_trained_on_whatever_base_it_named(tmp_path: Path) -> None:
    base = built("decoder", tmp_path / "base")
    _, trainer = one_loss("causal_lm", base, tmp_path / "first", "--tuner", "lora", "--lora_rank", "4")
    trainer.model.save_pretrained(tmp_path / "adapter")
    moved = shutil.move(base, tmp_path / "moved")
    flags = ("--tuner", "lora", "--model.adapters", str(tmp_path / "adapter"))
    loss, again = one_loss("causal_lm", Path(moved), tmp_path / "second", *flags)
    assert loss > 0
    assert again.model.peft_config["default"].base_model_name_or_path == str(moved)


# ---- heads ----


@pytest.mark.parametrize("pads_with_eos", [True, False])
def test_a_reward_is_that_of_the_last_token_that_is_no_padding(pads_with_eos: bool, tmp_path: Path) -> None:
    """What the page on training says: where the end pads, it is the one before the end."""
    folder = built("one output", tmp_path / "model", pad_token_id=1 if pads_with_eos else 0)
    model = load_model(ModelConfig(path=str(folder)), str(folder), "float32", "reward").eval()
    ids = torch.tensor([[7, 8, 9, 10, 1]])  # closed by the end
    with torch.no_grad():
        states = model.score(model.model(ids).last_hidden_state)[0, :, 0]
        reward = model(ids).logits[0, 0]
    assert reward == pytest.approx(float(states[3 if pads_with_eos else 4]), rel=1e-5)
    assert isinstance(AutoModelForSequenceClassification.from_pretrained(folder), type(model))
