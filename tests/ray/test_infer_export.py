"""`infer` and `export` on the real engines: vLLM, transformers, peft and the export give equal answers."""

import errno
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants as hub_constants
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, set_seed

from rayswift.config.load import load
from rayswift.log import UserError
from rayswift.model.find import FoundModel, find_model, load_tokenizer, stop_token_ids
from rayswift.run import checkpoint
from rayswift.verbs import export, infer

TINY = Path(__file__).parents[2] / "examples/tiny"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
PROMPTS = ["23+58=", "1+1=", "Who are you, and how many apples are left?"]
NUM_TOKENS = 24
STD = 0.1


def spread_out(model: torch.nn.Module, part: str) -> None:
    """Weights large enough that no two tokens are close to a tie, and adapters do something."""
    with torch.no_grad():
        for name, weights in model.named_parameters():
            if part in name and weights.dim() > 1:
                weights.normal_(0, STD)


def save_base(folder: Path, seed: int) -> PreTrainedModel:
    set_seed(seed)
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(TINY))
    spread_out(model, "")
    model.save_pretrained(folder)
    return AutoModelForCausalLM.from_pretrained(folder)


def save_adapter(base: PreTrainedModel, folder: Path, modules_to_save: list[str] | None = None) -> None:
    config = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear", modules_to_save=modules_to_save)
    model = get_peft_model(base, config)
    spread_out(model, "lora_B")
    spread_out(model, "modules_to_save")
    model.save_pretrained(folder)
    copy_tokenizer(folder)


def copy_tokenizer(folder: Path) -> None:
    for name in TOKENIZER_FILES:
        shutil.copy(TINY / name, folder)


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """A full model folder."""
    folder = tmp_path_factory.mktemp("base") / "model"
    save_base(folder, seed=1)
    copy_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory) -> Path:
    """A LoRA run with `model.random_init`, moved since: its base weights are in its own `init`."""
    was = tmp_path_factory.mktemp("run") / "was"
    save_adapter(save_base(was / "init", seed=2), was / "checkpoint-3")
    checkpoint.write_manifest(was / "checkpoint-3", step=3, world_size=1, zero_stage=0)
    return was.rename(was.with_name("moved"))


@pytest.fixture(scope="module")
def merged(run_dir) -> Path:
    """The run's model as `rayswift export` writes it by default."""
    export.run(load("export", ["--model", str(run_dir), "--merge_lora"]))
    return run_dir / "merged-checkpoint-3"


def ask(model: Path, backend: str, *flags: str) -> list[list[int]]:
    """Answers as token ids, as `infer.run` gets them."""
    section = infer_section(model, *flags)
    found = find_model(str(model), "infer.model")
    return infer.ask(backend, found, infer.encode(section, found, load_tokenizer(found)))


def infer_section(model: Path, *flags: str):
    words = ["--model", str(model), "--prompt", *PROMPTS, "--max_new_tokens", str(NUM_TOKENS), *flags]
    return load("infer", words).config.infer


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.inference_mode():
        return model.eval()(torch.arange(40)[None]).logits


def with_adapter(found: FoundModel) -> PeftModel:
    return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(found.weights), found.folder)


def test_greedy_answers_of_both_backends_agree(base):
    answers = ask(base, "transformers")
    assert ask(base, "vllm") == answers
    assert len({tuple(answer) for answer in answers}) == len(PROMPTS)


def test_both_backends_end_an_answer_with_the_stop_token(base):
    found = find_model(str(base), "infer.model")
    request = infer.encode(infer_section(base), found, load_tokenizer(found))
    free = infer.ask("transformers", found, request)
    stop = free[0][5]
    request = replace(request, stop_token_ids=[*request.stop_token_ids, stop])
    stopped = infer.ask("transformers", found, request)
    assert stopped[0] == free[0][: free[0].index(stop) + 1]
    assert infer.ask("vllm", found, request) == stopped


def test_lora_answers_agree_in_all_forms(run_dir, merged, base):
    answers = ask(run_dir, "transformers")
    assert ask(run_dir, "vllm") == answers
    assert ask(merged, "transformers") == answers
    assert answers != ask(base, "transformers")


def test_merged_model_has_the_adapters_logits(run_dir, merged):
    found = find_model(str(run_dir), "infer.model")
    adapted = logits(with_adapter(found))
    plain = logits(AutoModelForCausalLM.from_pretrained(found.weights))
    exported = logits(AutoModelForCausalLM.from_pretrained(merged))
    torch.testing.assert_close(exported, adapted, atol=1e-5, rtol=1e-5)
    assert (plain - adapted).abs().max() > 0.1
    assert not list(merged.parent.glob(".*partial"))
    template = (TINY / "chat_template.jinja").read_text()
    assert load_tokenizer(find_model(str(merged), "")).chat_template == template


def test_export_leaves_the_run_as_it_was(run_dir, merged):
    assert checkpoint.model_folder(run_dir) == run_dir / "checkpoint-3"
    checkpoint.clear_way(run_dir, 3, {})
    assert (merged / "model.safetensors").exists()


def test_own_head_survives_the_merge(tmp_path):
    """The tiny model's head is tied to its embeddings; an adapter with its own head unties it."""
    save_adapter(save_base(tmp_path / "base", seed=3), tmp_path / "adapter", modules_to_save=["lm_head"])
    found = find_model(str(tmp_path / "adapter"), "infer.model")
    assert infer.choose_backend("auto", found.adapter) == "transformers"
    with pytest.raises(UserError, match="modules_to_save"):
        infer.choose_backend("vllm", found.adapter)
    adapted = logits(with_adapter(found))
    out = tmp_path / "out"
    export.run(load("export", ["--model", str(found.folder), "--merge_lora", "--output_dir", str(out)]))
    torch.testing.assert_close(logits(AutoModelForCausalLM.from_pretrained(out)), adapted, atol=1e-5, rtol=1e-5)


def test_end_of_turn_stops_an_answer_though_only_the_template_knows_it(base, tmp_path):
    tokenizer = load_tokenizer(find_model(str(base), ""))
    turn_end = tokenizer.eos_token_id
    tokenizer.eos_token = tokenizer.pad_token
    tokenizer.save_pretrained(tmp_path)
    shutil.copy(base / "model.safetensors", tmp_path)
    shutil.copy(base / "config.json", tmp_path)
    found = find_model(str(tmp_path), "")
    assert stop_token_ids(found, load_tokenizer(found)) == sorted([tokenizer.pad_token_id, turn_end])


def test_prompt_is_a_chat_where_there_is_a_template(base, tmp_path):
    found = find_model(str(base), "")
    tokenizer = load_tokenizer(found)
    section = infer_section(base, "--system", "Be brief.")
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": PROMPTS[0]}]
    rendered = tokenizer.apply_chat_template(chat, add_generation_prompt=True)["input_ids"]
    assert infer.encode(section, found, tokenizer).prompts[0] == rendered
    tokenizer.chat_template = None
    assert tokenizer.decode(infer.encode(infer_section(base), found, tokenizer).prompts[0]) == PROMPTS[0]
    with pytest.raises(UserError, match="no chat template"):
        infer.encode(section, found, tokenizer)
    with pytest.raises(UserError, match="the model takes"):
        infer.encode(infer_section(base, "--prompt", "1+" * 5000), found, tokenizer)


def test_sampling_follows_the_seed(base):
    first, again, other = (ask(base, "transformers", "--temperature", "5", "--seed", seed) for seed in ("1", "1", "2"))
    assert first == again != other


def test_command_line_prints_answers_alone(run_dir, base):
    found = find_model(str(run_dir), "infer.model")
    answers = load_tokenizer(found).batch_decode(ask(run_dir, "transformers"), skip_special_tokens=True)
    command = [sys.executable, "-m", "rayswift", "infer", "--model", str(run_dir), "--backend", "vllm"]
    command += ["--max_new_tokens", str(NUM_TOKENS), "--prompt", *PROMPTS]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "".join(f"> {q}\n{a}\n" for q, a in zip(PROMPTS, answers, strict=True))


def test_dry_run_says_what_would_run(run_dir, tmp_path, capsys):
    flags = ["--model", str(run_dir), "--prompt", "1+1=", "--backend", "transformers", "--dry_run"]
    infer.run(load("infer", flags))
    printed = capsys.readouterr().out
    assert "backend: transformers" in printed
    assert f"LoRA on {run_dir / 'init'}" in printed
    flags = ["--model", str(run_dir), "--merge_lora", "--output_dir", str(tmp_path / "out"), "--dry_run"]
    export.run(load("export", flags))
    assert str(tmp_path / "out") in capsys.readouterr().out
    assert not (tmp_path / "out").exists()
    infer.run(load("infer", ["--model", "no-such/model", "--prompt", "1+1=", "--dry_run"]))
    assert "no-such/model would answer 1 prompt" in capsys.readouterr().out


def test_backend_that_is_not_installed(monkeypatch):
    monkeypatch.setattr(infer, "find_spec", lambda name: None if name == "vllm" else name)
    assert infer.choose_backend("auto", {}) == "transformers"
    with pytest.raises(UserError, match="pip install"):
        infer.choose_backend("vllm", {})


def test_what_infer_refuses(base, run_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(hub_constants, "HF_HUB_OFFLINE", True)
    (tmp_path / "empty").mkdir()
    for name, why in [
        (str(tmp_path / "gone"), "no folder"),
        (str(tmp_path / "empty"), "no complete checkpoint"),
        (str(TINY), "holds no weights"),
        ("no-such/model", "cannot be downloaded from the hub"),
    ]:
        with pytest.raises(UserError, match=why) as refused:
            infer.run(load("infer", ["--model", name, "--prompt", "1+1="]))
        assert refused.value.exit_code == 2


def test_what_export_refuses(base, run_dir, tmp_path):
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "notes.txt").touch()
    for flags, why in [
        (["--model", str(run_dir)], "nothing to do"),
        (["--model", str(base), "--merge_lora"], "no adapter"),
        (["--model", str(run_dir), "--merge_lora", "--output_dir", str(taken)], "not empty"),
        (["--model", str(adapter_on_nothing(run_dir, tmp_path)), "--merge_lora"], "base model"),
    ]:
        with pytest.raises(UserError, match=why) as refused:
            export.run(load("export", flags))
        assert refused.value.exit_code == 2


def adapter_on_nothing(run_dir: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "adapter"
    shutil.copytree(run_dir / "checkpoint-3", folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = str(tmp_path / "gone" / "model")
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def test_failed_export_leaves_nothing(run_dir, tmp_path, monkeypatch):
    shutil.copytree(run_dir / "init", tmp_path / "init")
    adapter = shutil.copytree(run_dir / "checkpoint-3", tmp_path / "checkpoint-3")
    flags = ["--model", str(adapter), "--merge_lora", "--output_dir", str(tmp_path / "out")]

    def full_disk(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(UserError, match="No space left"):
        patch.setattr(PreTrainedModel, "save_pretrained", full_disk)
        export.run(load("export", flags))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-3", "init"]
    weights = adapter / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(UserError, match="is not a complete safetensors file"):
        export.run(load("export", flags))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-3", "init"]
