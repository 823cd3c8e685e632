"""Settings that tasks on whole texts take from a model's folder, and remarks if the user sets other values."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants as hub_constants

from rayswift.config.load import load
from rayswift.config.schema import SftConfig
from rayswift.launch import plan
from rayswift.log import UserError
from rayswift.model.kind.kinds import ENCODERS, is_encoder, num_positions
from rayswift.model.texts.old_layout import at_first_module_of_hub
from rayswift.model.texts.row_kind import row_kind
from rayswift.model.texts.sentence_files import copy, pooling_modes, read, read_for
from rayswift.model.texts.settings import problems, remarks, row_texts, settled
from tests.support.tokenizer_families import CHAT_TEMPLATE, FAMILIES, write
from tests.unit.data.encode.test_similarity import LAYOUT

POOLING = {"word_embedding_dimension": 32, "pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}
BERT = {"model_type": "bert", "architectures": ["BertModel"], "max_position_embeddings": 512, "hidden_size": 32}


def folder_of(path: Path, template: str | None = None, **architecture: Any) -> Path:
    """A tokenizer and a `config.json`; weights are looked for, and not read."""
    folder = write(path, FAMILIES["bert"], template)
    (folder / "config.json").write_text(json.dumps(BERT | architecture), encoding="utf-8")
    (folder / "model.safetensors").touch()
    return folder


def sentence_folder(path: Path, template: str | None = None, **files: Any) -> Path:
    """The same with the files of sentence-transformers, in the layout of its second version."""
    folder = folder_of(path, template)
    modules = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Dense", "Dense"), ("3_Normalize", "Normalize")]
    listed = [{"idx": i, "path": p, "type": f"sentence_transformers.models.{t}"} for i, (p, t) in enumerate(modules)]
    written = {
        "modules.json": listed,
        "sentence_bert_config.json": {"max_seq_length": 200, "do_lower_case": True},
        "config_sentence_transformers.json": {"prompts": {"query": "q: ", "passage": "p: "}},
        "1_Pooling/config.json": POOLING,
        "2_Dense/config.json": {"in_features": 32, "out_features": 8},
    } | {name.replace("__", "/") + ".json": content for name, content in files.items()}
    for name, content in written.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(content), encoding="utf-8")
    return folder


def config_of(folder: Path, task: str, *flags: str) -> SftConfig:
    """As loaded, of no rows."""
    config = load("sft", ["--model", str(folder), "--data.dataset", "d.jsonl", "--train.task", task, *flags]).config
    assert isinstance(config, SftConfig)
    return config


def test_encoders() -> None:
    """A model of a family that writes text from left to right is none, whatever its head."""
    from transformers.models.auto import modeling_auto as auto

    assert not ENCODERS & set(auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES)
    for name in ("bert", "roberta", "xlm-roberta", "deberta-v2", "modernbert", "distilbert", "mpnet", "electra"):
        assert is_encoder({"model_type": name})
    assert is_encoder({"model_type": "new", "architectures": ["NewForMaskedLM"]})
    assert is_encoder({"model_type": "jina_bert_v2", "architectures": ["JinaBertModel"]})  # code of its own
    assert not is_encoder({"model_type": "bert", "is_decoder": True})
    assert not is_encoder({"model_type": "modernbert-decoder", "architectures": ["ModernBertDecoderForCausalLM"]})
    assert not is_encoder({"model_type": "llama", "architectures": ["LlamaForCausalLM"]})


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"model_type": "bert", "max_position_embeddings": 512}, 512),
        ({"model_type": "roberta", "max_position_embeddings": 514, "pad_token_id": 1}, 512),
        ({"model_type": "xlm-roberta", "max_position_embeddings": 514}, 512),
        ({"model_type": "xlnet"}, None),
        ({"model_type": "gpt2", "n_positions": 1024}, 1024),
    ],
)
def test_positions_that_a_text_can_have(config: dict[str, Any], expected: int | None) -> None:
    """RoBERTa counts from behind the padding token's number on."""
    assert num_positions(config) == expected


@pytest.mark.parametrize("task", ["embedding", "seq_cls", "reranker"])
def test_an_encoder_is_read_as_its_tokenizer_has_it(task: str, tmp_path: Path) -> None:
    config = settled(config_of(folder_of(tmp_path), task), tmp_path)
    assert (config.data.truncation, config.data.max_length, config.data.use_chat_template) == ("right", 512, False)
    if task == "embedding":
        assert (config.model.pooling, config.model.normalize) == ("mean", True)
    assert settled(config, tmp_path) == config


def test_a_decoder_keeps_its_defaults_and_cuts(tmp_path: Path) -> None:
    llama = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "max_position_embeddings": 8192}
    folder = folder_of(tmp_path, CHAT_TEMPLATE, **llama)
    config = settled(config_of(folder, "embedding"), folder)
    assert (config.data.truncation, config.data.max_length, config.data.use_chat_template) == ("right", 2048, True)
    assert (config.model.pooling, config.model.normalize) == ("last_token", True)
    causal = config_of(folder, "causal_lm")
    assert settled(causal, folder) == causal


def test_what_is_given_stays(tmp_path: Path) -> None:
    given = ("--truncation", "drop", "--max_length", "64", "--pooling", "cls", "--normalize", "false")
    config = settled(config_of(folder_of(tmp_path), "embedding", *given), tmp_path)
    assert (config.data.truncation, config.data.max_length) == ("drop", 64)
    assert (config.model.pooling, config.model.normalize) == ("cls", False)


def test_a_folder_of_sentence_transformers_says_how_texts_are_read(tmp_path: Path) -> None:
    folder = sentence_folder(tmp_path, CHAT_TEMPLATE)
    config = settled(config_of(folder, "embedding"), folder)
    # Its tokenizer has a chat template, and the folder does not use it.
    assert (config.data.max_length, config.data.use_chat_template, config.model.pooling) == (200, False, "auto")
    kind = row_kind(config, folder)
    assert (kind.prompts, kind.lowers, kind.pools_prompt, kind.renders) == (("q: ", "p: "), True, True, False)
    said = "\n".join(remarks(config, folder))
    assert "modules of the folder: mean pooling, Dense 32 to 8, Normalize" in said
    assert "of up to 200 tokens, longer ones cut on the right" in said
    assert "prompts       of the folder: 'q: ', 'p: '" in said
    assert "set against" not in said


def test_a_folder_whose_texts_are_rendered(tmp_path: Path) -> None:
    rendered = {"modality_config": {"text": {}, "message": {}}, "max_seq_length": 100}
    folder = sentence_folder(tmp_path, CHAT_TEMPLATE, sentence_bert_config=rendered)
    assert settled(config_of(folder, "embedding"), folder).data.use_chat_template


def test_a_folder_of_another_task_is_named_and_not_used(tmp_path: Path) -> None:
    folder = sentence_folder(tmp_path)
    config = settled(config_of(folder, "reranker"), folder)
    assert config.data.max_length == 512
    assert row_texts(row_kind(config, folder), config, folder).prompts == ("", "")
    assert "not used" in "\n".join(remarks(config, folder))


def test_what_is_set_against_a_folder_is_said(tmp_path: Path) -> None:
    folder = sentence_folder(tmp_path)
    given = ("--pooling", "max", "--normalize", "false", "--system", "", "--max_length", "300")
    config = settled(config_of(folder, "embedding", *given), folder)
    said = [line.removeprefix("  set against   the folder: ") for line in remarks(config, folder)]
    assert said[-4:] == [
        "model.pooling = max, it has mean",
        "model.normalize = False, it has True",
        "data.system = '', its prompt is 'q: '",
        "data.max_length = 300, its max_seq_length is 200",
    ]


@pytest.mark.parametrize(
    ("settings", "modes"),
    [
        (POOLING, ("mean",)),
        ({"pooling_mode": "cls"}, ("cls",)),
        ({"pooling_mode": ["cls", "max"]}, ("cls", "max")),
        ({"pooling_mode_cls_token": True, "pooling_mode_lasttoken": True}, ("cls", "lasttoken")),
        ({}, ("mean",)),
    ],
)
def test_pooling_of_every_layout(settings: dict[str, Any], modes: tuple[str, ...], tmp_path: Path) -> None:
    from sentence_transformers.sentence_transformer.modules import Pooling

    assert pooling_modes(settings) == modes
    written = {"word_embedding_dimension": 32} | settings
    (tmp_path / "config.json").write_text(json.dumps(written), encoding="utf-8")
    found = Pooling.load(str(tmp_path)).pooling_mode
    assert ((found,) if isinstance(found, str) else tuple(found)) == modes


def test_vectors_that_do_not_fit(tmp_path: Path) -> None:
    both = POOLING | {"pooling_mode_max_tokens": True}
    folder = sentence_folder(tmp_path, **{"1_Pooling__config": both})
    (line,) = problems(config_of(folder, "embedding", "--pooling", "cls"), folder)
    assert "its own is max + mean" in line
    dims = ("--matryoshka_dims", '{"16": 1}')
    (line,) = problems(config_of(folder, "embedding", *dims), folder)
    assert "the model's embeddings have 8 numbers" in line


@pytest.mark.parametrize(
    ("kind", "path", "message"),
    [
        ("Router", "1_Router", "its module 1_Router is a Router, which is not trained"),
        ("StaticEmbedding", "", "begins with StaticEmbedding, and only a Transformer"),
        ("Transformer", "0_Transformer", "begins with Transformer in 0_Transformer, and only"),
    ],
)
def test_modules_that_are_not_trained(kind: str, path: str, message: str, tmp_path: Path) -> None:
    first = [{"path": "", "type": "x.Transformer"}] if kind == "Router" else []
    folder = sentence_folder(tmp_path, modules=[*first, {"path": path, "type": f"x.{kind}"}])
    with pytest.raises(UserError, match=message):
        read_for(folder, "SentenceTransformer")
    with pytest.raises(UserError, match=message):
        plan.resolve(config_of(folder, "embedding"), LAYOUT, None)


def test_a_copy_says_the_same(tmp_path: Path) -> None:
    folder = sentence_folder(tmp_path / "one")
    (tmp_path / "two").mkdir()
    copy(folder, tmp_path / "two")
    assert read(tmp_path / "two") == read(folder) is not None


def test_the_model_in_a_subfolder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The layout before the second version of sentence-transformers; what is saved has the new one."""
    new, old, copied = (tmp_path / name for name in ("new", "old", "copied"))
    sentence_folder(new)
    inner = old / "0_Transformer"
    shutil.copytree(new, inner, ignore=shutil.ignore_patterns("modules.json", "config_sentence_*", "?_*"))
    for name in ("modules.json", "config_sentence_transformers.json", "1_Pooling", "2_Dense"):
        (shutil.copytree if (new / name).is_dir() else shutil.copyfile)(new / name, old / name)
    listed = json.loads((old / "modules.json").read_text())
    listed[0]["path"] = "0_Transformer"
    (old / "modules.json").write_text(json.dumps(listed), encoding="utf-8")
    assert config_of(new, "embedding").model.path == str(new)
    config = config_of(old, "embedding")
    assert config.model.path == config_of(inner, "embedding").model.path == str(inner)
    assert read(inner) == read(new) is not None
    copied.mkdir()
    copy(inner, copied)
    assert read(copied) == read(new)
    assert "modules of the folder: mean pooling" in plan.describe(plan.resolve(config, LAYOUT, None), None, [])
    # The same behind a hub id, in the cache of the hub's client.
    snapshot = tmp_path / "hub/models--org--old/snapshots/abc"
    shutil.copytree(old, snapshot)
    refs = snapshot.parents[1] / "refs"
    refs.mkdir()
    (refs / "main").write_text("abc")
    monkeypatch.setattr(hub_constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(hub_constants, "HF_HUB_OFFLINE", True)
    of_hub = at_first_module_of_hub(config_of(Path("org/old"), "embedding", "--revision", "main"))
    assert (of_hub.model.path, of_hub.model.revision) == (str(snapshot / "0_Transformer"), None)
    assert read(Path(of_hub.model.path)) == read(new)
    assert at_first_module_of_hub(config) == config
    (inner / "config.json").unlink()
    with pytest.raises(UserError, match="begins with Transformer in 0_Transformer, and only"):
        read(Path(config_of(old, "embedding").model.path))


def test_the_plan_shows_the_texts(tmp_path: Path) -> None:
    folder = sentence_folder(tmp_path)
    made = plan.resolve(config_of(folder, "embedding"), LAYOUT, None)
    assert made.config.data.max_length == 200
    assert "modules of the folder: mean pooling" in plan.describe(made, None, [])
    with pytest.raises(UserError, match=r"data\.max_length = 600, but the model has 512 positions"):
        plan.resolve(config_of(folder, "embedding", "--max_length", "600"), LAYOUT, None)
