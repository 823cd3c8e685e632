"""Each tuner trains its adapter alone, saves it, loads to the same logits, and merges to the same logits."""

import json
import shutil
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

from rayswift.cluster.layout import lay_out
from rayswift.config.checks.built import refuse_unbuilt
from rayswift.config.fields.tuners import begins_with_other_weights
from rayswift.config.load import load
from rayswift.config.model import ModelConfig
from rayswift.data.sequence.windows import PackedRow
from rayswift.data.tokenizer.training_copy import prepare_tokenizer
from rayswift.launch.plan import resolve
from rayswift.log import UserError
from rayswift.model import parameters, tuners
from rayswift.model.adapters import adapter_problems
from rayswift.model.find import find_model
from rayswift.model.initial import weights as initial_weights
from rayswift.model.load import load_model
from rayswift.model.size import shapes
from rayswift.verbs.infer import choose_backend

TINY = Path(__file__).parents[3] / "examples/tiny"
TOKENS = torch.arange(8, 40).view(2, 16)

TUNERS: dict[str, dict[str, Any]] = {
    "lora": {},
    "lora rslora": {"tuner_kwargs": {"use_rslora": True}},
    "lora dora": {"tuner_kwargs": {"use_dora": True}},
    "lora orthogonal": {"tuner_kwargs": {"init_lora_weights": "orthogonal"}},
    "lora pissa": {"tuner_kwargs": {"init_lora_weights": "pissa"}},
    "lora pissa, quick": {"tuner_kwargs": {"init_lora_weights": "pissa_niter_4"}},
    "lora olora": {"tuner_kwargs": {"init_lora_weights": "olora"}},
    "lora eva": {"tuner_kwargs": {"init_lora_weights": "eva"}},
    "lora corda": {"tuner_kwargs": {"init_lora_weights": "corda"}, "lora_rank": 4},
    "lora lora_ga": {"tuner_kwargs": {"init_lora_weights": "lora_ga"}},
    "lora layers": {"tuner_kwargs": {"layers_to_transform": [0]}, "target_modules": ["q_proj", "down_proj"]},
    "lora pattern": {"target_regex": r".*\.mlp\.(up|down)_proj"},
    "lora embedding": {"modules_to_save": ["embed_tokens"]},
    "lora tied": {"modules_to_save": ["embed_tokens"], "tuner_kwargs": {"ensure_weight_tying": True}},
    "lora bias": {"tuner_kwargs": {"bias": "all"}},
    "lora tokens": {"tuner_kwargs": {"trainable_token_indices": [5, 6]}},
    "lora parameters": {
        "target_modules": ["q_proj"],
        "tuner_kwargs": {"target_parameters": ["down_proj.weight"]},
        "lora_dropout": 0,
    },
    "vera": {"tuner_kwargs": {"r": 16}},
    "boft": {},
    "ia3": {},
    "ia3 inputs": {
        "target_modules": ["k_proj", "v_proj", "down_proj"],
        "tuner_kwargs": {"feedforward_modules": ["down_proj"]},
    },
    "fourierft": {"tuner_kwargs": {"n_frequency": 50}},
    "loha": {},
    "lokr": {},
    "miss": {"tuner_kwargs": {"r": 4}},
}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Models this small are slower on more."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of one narrow layer, with a tokenizer, whose outputs differ clearly from token to token."""
    folder = tmp_path_factory.mktemp("base")
    architecture = AutoConfig.from_pretrained(TINY)
    architecture.num_hidden_layers, architecture.hidden_size, architecture.intermediate_size = 1, 32, 64
    architecture.num_attention_heads = architecture.num_key_value_heads = 2
    architecture.head_dim, architecture.layer_types = 16, architecture.layer_types[:1]
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(architecture)
    with torch.no_grad():
        for weights in model.parameters():
            if weights.dim() > 1:
                weights.normal_(0, 0.2)
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(TINY / name, folder)
    return folder


def row(number: int) -> PackedRow:
    """Two documents of 40 tokens of which the later half is trained."""
    tokens = np.random.default_rng(number).integers(8, 500, 80, dtype=np.int32)
    return PackedRow(tokens, np.arange(80) % 40 >= 20, (40, 40), 2)


def begin(config: ModelConfig, run_dir: Path) -> torch.nn.Module:
    """What a worker of a run in `run_dir` trains."""
    weights = Path(config.path)
    if begins_with_other_weights(config):
        weights = run_dir / "init"
        rows = [row(number) for number in range(4)]
        initial_weights.write(config, prepare_tokenizer(config, run_dir / "tokenizer"), weights, seed=1, rows=rows)
    model = load_model(config, str(weights), "float32")
    torch.manual_seed(2)
    adapter = tuners.peft_config(config)
    return model if adapter is None else get_peft_model(model, adapter)


def train(model: torch.nn.Module) -> None:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    model.train()
    for _ in range(3):
        model(input_ids=TOKENS, labels=TOKENS).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.inference_mode():
        return model.eval()(TOKENS).logits


@pytest.mark.parametrize("name", TUNERS)
@pytest.mark.filterwarnings("ignore")
def test_adapter_trains_saves_loads_and_merges(name: str, base: Path, tmp_path: Path) -> None:
    config = ModelConfig(path=str(base), tuner=name.split()[0], **TUNERS[name])
    model = begin(config, tmp_path)
    untrained = logits(AutoModelForCausalLM.from_pretrained(base))
    if name not in ("lora orthogonal", "fourierft"):  # every fresh adapter but these begins as the model itself
        assert torch.allclose(logits(model), untrained, atol=1e-4)
    before = {key: value.detach().clone() for key, value in model.named_parameters()}
    train(model)
    changed = {key for key, value in model.named_parameters() if not torch.equal(value, before[key])}
    assert changed == {key for key, value in model.named_parameters() if value.requires_grad}
    assert {parameters.kind_of(key) for key in changed} == {"adapter"}
    trained = logits(model)
    assert not torch.allclose(trained, untrained, atol=1e-3)

    model.save_pretrained(tmp_path / "adapter")
    below = json.loads((tmp_path / "adapter/adapter_config.json").read_text())["base_model_name_or_path"]
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(below), tmp_path / "adapter")
    assert torch.equal(logits(loaded), trained)
    assert torch.allclose(logits(loaded.merge_and_unload(safe_merge=True)), trained, atol=1e-4)


def test_a_run_starts_from_adapters(base: Path, tmp_path: Path) -> None:
    for name in ("first", "second"):
        model = begin(ModelConfig(path=str(base), tuner="lora", lora_dropout=0), tmp_path)
        torch.manual_seed(len(name))
        train(model)
        model.save_pretrained(tmp_path / name)
    folders = [str(tmp_path / name) for name in ("first", "second")]
    config = ModelConfig(path=str(base), tuner="lora", adapters=folders)
    assert adapter_problems(config) == []
    expected = AutoModelForCausalLM.from_pretrained(base)
    for folder in folders:
        expected = PeftModel.from_pretrained(expected, folder).merge_and_unload()
    model = begin(config, tmp_path / "run")
    assert torch.allclose(logits(model), logits(expected), atol=1e-4)
    assert model.peft_config["default"].base_model_name_or_path == str(tmp_path / "run/init")
    before = logits(model)
    train(model)
    assert not torch.allclose(logits(model), before, atol=1e-3)


def test_an_adapter_that_does_not_fit(base: Path, tmp_path: Path) -> None:
    begin(ModelConfig(path=str(base), tuner="lora"), tmp_path).save_pretrained(tmp_path / "adapter")
    config = ModelConfig(path=str(base), tuner="vera", adapters=[str(tmp_path / "adapter")])
    assert "is of kind lora; set model.tuner lora" in adapter_problems(config)[0]
    config = ModelConfig(path=str(base), tuner="lora", adapters=["gone"])
    assert "'gone' is not a folder here" in adapter_problems(config)[0]
    config = ModelConfig(path=str(base), tuner="lora", adapters=[str(tmp_path)])
    assert "holds no complete checkpoint" in adapter_problems(config)[0]
    wide = AutoConfig.from_pretrained(base)
    wide.hidden_size = 48
    AutoModelForCausalLM.from_config(wide).save_pretrained(tmp_path / "wide")
    config = ModelConfig(path=str(tmp_path / "wide"), tuner="lora", adapters=[str(tmp_path / "adapter")])
    assert "down_proj is [32, 8], the model's [48, 64]" in adapter_problems(config)[0]
    with pytest.raises(UserError, match="does not fit the model"):
        load_model(config, config.path, "float32")
    for verb in ("infer", "export"):  # before anything is loaded
        with pytest.raises(UserError, match=rf"{verb}.base = .*wide': .* does not fit the model .*\[48, 64\]"):
            find_model(str(tmp_path / "adapter"), f"{verb}.model", base=str(tmp_path / "wide"))
    assert find_model(str(tmp_path / "adapter"), "export.model", base=str(base)).weights == base


def test_full_training_freezes_by_name_and_by_share(base: Path) -> None:
    def trained(**fields: Any) -> set[str]:
        model = load_model(ModelConfig(path=str(base), **fields), str(base), "float32")
        return {name for name, parameter in model.named_parameters() if parameter.requires_grad}

    names = trained()
    assert "model.embed_tokens.weight" in names
    assert names - trained(freeze="model.embed") == {"model.embed_tokens.weight"}
    assert trained(freeze="model", unfreeze=r".*norm") == {name for name in names if "norm" in name}
    half = trained(freeze_ratio=0.7)  # the embedding is 60 % of this model
    assert "model.embed_tokens.weight" not in half
    assert "model.layers.0.mlp.down_proj.weight" in half
    with pytest.raises(UserError, match="leave nothing to train"):
        trained(freeze=".*")


def test_modules_that_are_not_there(base: Path) -> None:
    for fields, message in [
        ({"target_modules": ["q_prj"]}, "model.target_modules: the model has no module q_prj; it has down_proj"),
        ({"modules_to_save": ["head"]}, "model.modules_to_save: the model has no module head"),
        ({"target_regex": "q_proj"}, "model.target_regex = 'q_proj' matches no module"),
    ]:
        config = ModelConfig(path=str(base), tuner="lora", **fields)
        for look in (lambda: load_model(config, str(base), "float32"), lambda: shapes.find(config, "causal_lm")):  # noqa: B023
            with pytest.raises(UserError) as refused:
                look()
            assert message in str(refused.value)
    tied = ModelConfig(path=str(base), tuner="lora", target_modules=["q_proj", "lm_head"])
    assert shapes.find(tied, "causal_lm").shapes
    with pytest.raises(UserError, match="has no module lm_head"):
        shapes.find(tied, "none")


def test_lora_plus_cuts_each_group(base: Path, tmp_path: Path) -> None:
    model = begin(ModelConfig(path=str(base), tuner="lora"), tmp_path)
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    groups = [{"params": [p for _, p in trained], "lr": 1e-3, "weight_decay": 0.1}, {"params": [], "lr": 1e-3}]
    slow, fast = tuners.lora_plus_groups(groups, model, 16)
    assert (slow["lr"], fast["lr"], fast["weight_decay"]) == (1e-3, 16e-3, 0.1)
    assert {id(p) for p in fast["params"]} == {id(p) for name, p in trained if "lora_B" in name}
    assert len(slow["params"]) + len(fast["params"]) == len(trained)


def test_new_tokens_and_a_stretched_context(base: Path, tmp_path: Path) -> None:
    (tmp_path / "tokens.txt").write_text("<|think|>\n\n<|act|>\n")
    config = ModelConfig(
        path=str(base),
        new_special_tokens=["<|plan|>", str(tmp_path / "tokens.txt")],
        rope_scaling={"rope_type": "yarn"},
        max_position_embeddings=8000,
    )
    model = begin(config, tmp_path)
    assert model.get_input_embeddings().num_embeddings == 515
    written = AutoConfig.from_pretrained(tmp_path / "init")
    assert (written.vocab_size, written.max_position_embeddings) == (515, 8000)
    scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 2048}
    assert scaling.items() <= written.rope_parameters.items()
    old = AutoModelForCausalLM.from_pretrained(base).get_input_embeddings().weight
    assert torch.equal(model.get_input_embeddings().weight[:512], old)
    tokenizer = json.loads((tmp_path / "tokenizer/tokenizer.json").read_text())
    assert [t["content"] for t in tokenizer["added_tokens"] if t["special"]][-3:] == [
        "<|plan|>",
        "<|think|>",
        "<|act|>",
    ]


def test_table_of_parameters(base: Path, tmp_path: Path) -> None:
    lines = parameters.table(begin(ModelConfig(path=str(base), tuner="lora"), tmp_path))
    counts = {line.split()[0]: line.split()[1:3] for line in lines}
    assert counts["parameters"] == ["total", "trained"]
    assert counts["embedding"] == [f"{512 * 32:,}", "0"]
    # rank 8 x (in + out): four attention projections of 32 x 32, three of 32 x 64
    assert counts["adapter"] == [f"{8 * (4 * 64 + 3 * 96):,}"] * 2
    assert counts["all"][1] == counts["adapter"][0]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--tuner", "ia3", "--freeze", "model"], "model.freeze is of full training"),
        (["--adapters", "gone"], "model.adapters needs a tuner"),
        (["--tuner", "vera", "--lora_plus_ratio", "16"], "model.lora_plus_ratio is of model.tuner lora"),
        (["--tuner", "boft", "--quantization", "nf4"], "no boft trains on quantized weights"),
        (["--tuner", "lora", "--quantization", "nf4", "--zero_stage", "3"], "quantized weights cannot be cut"),
        (["--optim", "galore_adamw", "--zero_stage", "2"], "works on whole matrices, and ZeRO cuts them"),
        (
            ["--tuner", "adalora", "--max_steps", "9", "--model.tuner_kwargs", '{"tinit": 5, "tfinal": 4}'],
            "tinit + tfinal = 9 leave no step of train.max_steps = 9",
        ),
        (["--tuner", "adalora", "--max_steps", "9", "--zero_stage", "2"], "ZeRO has freed them"),
        (["--tuner", "loha", "--zero_stage", "3"], "takes the shapes of whole weights, and ZeRO-3 cuts them"),
        (["--optim", "schedule_free_adamw", "--zero_stage", "1"], "switches between two sets of weights"),
        (["--optim", "apollo_adamw"], "set train.optim_target_modules"),
        (["--rope_scaling", '{"rope_type": "yarm", "factor": 2}'], "rope_type = 'yarm' is not one of"),
        (["--rope_scaling", '{"rope_type": "yarn"}'], "model.rope_scaling has no factor"),
        (["--max_length", "3000"], "data.max_length = 3000, but the model has 2048 positions"),
    ],
)
def test_what_does_not_go_together(flags: list[str], message: str, base: Path) -> None:
    config = load("sft", ["--model", str(base), "--dataset", "rows.jsonl", "--num_workers", "0", *flags]).config
    with pytest.raises(UserError) as refused:
        resolve(config, lay_out(config.cluster), None)
    assert message in str(refused.value)


def test_a_stretched_model_takes_longer_rows(base: Path) -> None:
    flags = ["--max_length", "3000", "--rope_scaling", '{"rope_type": "linear", "factor": 1.5}', "--num_workers", "0"]
    config = load("sft", ["--model", str(base), "--dataset", "rows.jsonl", *flags]).config
    assert resolve(config, lay_out(config.cluster), None).config.data.max_length == 3000


def test_a_package_that_is_not_there() -> None:
    flags = ["--model", "m", "--dataset", "d.jsonl", "--optim", "grokadamw"]
    with pytest.raises(UserError, match="grokadamw needs the package grokadamw, which is not installed; pip install"):
        refuse_unbuilt(load("sft", flags).config)


def test_vllm_is_asked_only_for_what_it_takes() -> None:
    for adapter, obstacle in [
        ({"peft_type": "VERA", "r": 256}, "peft_type VERA"),
        ({"peft_type": "LORA", "r": 8, "use_dora": True}, "use_dora"),
        ({"peft_type": "LORA", "r": 8, "init_lora_weights": "pissa"}, "init_lora_weights pissa"),
    ]:
        assert choose_backend("auto", adapter) == "transformers"
        if find_spec("vllm"):
            with pytest.raises(UserError, match=f"cannot load an adapter with {obstacle}"):
                choose_backend("vllm", adapter)
