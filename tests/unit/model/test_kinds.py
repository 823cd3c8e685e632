"""The table of kinds of models and tasks: each cell gives a loss, or is refused by name before anything starts."""

import json
import math
from pathlib import Path

import pytest

from rayswift.config.load import load
from rayswift.config.tasks import TASKS
from rayswift.launch.dry_run import dry_run
from rayswift.log import UserError
from rayswift.model.kind import abilities
from rayswift.model.kind.kinds import look, of_config
from rayswift.verbs import infer
from rayswift.verbs import train as training
from tests.support.model_folders import adapter, built, packed, with_tokenizer, written
from tests.support.one_loss import one_loss

OFFLINE = tuple(task for task in TASKS if not TASKS[task].is_online)
BUILT = (
    "decoder", "headless", "encoder", "encoder-decoder", "gemma3", "gemma4", "one output", "encoder, one output",
    "three outputs", "token labels",
)  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder, or file, of each kind."""
    home = tmp_path_factory.mktemp("kinds")
    found = {kind: built(kind, home / kind.replace(", ", "_").replace(" ", "_")) for kind in BUILT}
    found |= {method: packed(home / method, method) for method in ("gptq", "awq", "compressed-tensors", "fp8")}
    found["bitsandbytes"] = packed(home / "bitsandbytes", "bitsandbytes")
    found["adapter"] = adapter(home / "adapter", "org/base")
    found["gguf"] = written(home / "gguf", model__gguf="GGUF") / "model.gguf"
    found["ggufs"] = found["gguf"].parent
    found["file"] = written(home / "file", model__safetensors="") / "model.safetensors"
    found["weights"] = found["file"].parent
    (home / "tokenizer").mkdir()
    found["tokenizer"] = with_tokenizer(home / "tokenizer")
    found["diffusers"] = written(home / "diffusers", model_index__json="{}")
    found["unet"] = written(
        home / "unet", config__json='{"_class_name": "UNet2DConditionModel"}', model__safetensors=""
    )
    found["nameless"] = written(home / "nameless", config__json="{}", model__safetensors="")
    found["nothing"] = written(home / "nothing", README__md="hello")
    return found


# What follows "model.path = '...' is ", by kind; then, of each task, why it is refused. "" is a cell that is trained.
WRITES = tuple(task for task in TASKS if task in abilities.WRITING)
JUDGES = ("seq_cls", "rm", "reranker")
WHAT = {
    "decoder": "a decoder (LlamaForCausalLM)",
    "headless": "a decoder without its language-model head (LlamaModel)",
    "encoder": "an encoder (BertForMaskedLM)",
    "encoder-decoder": "an encoder-decoder (T5ForConditionalGeneration)",
    "gemma3": "a model of images or sound (Gemma3ForConditionalGeneration)",
    "gemma4": "a model of images or sound (Gemma4ForConditionalGeneration)",
    "one output": "a model with a sequence-classification head (LlamaForSequenceClassification)",
    "encoder, one output": "a model with a sequence-classification head (BertForSequenceClassification)",
    "three outputs": "a model with a sequence-classification head (BertForSequenceClassification)",
    "token labels": "a model with a head of another task (BertForTokenClassification)",
    "gptq": "a decoder (LlamaForCausalLM) with weights quantised by gptq",
    "awq": "a decoder (LlamaForCausalLM) with weights quantised by awq",
    "compressed-tensors": "a decoder (LlamaForCausalLM) with weights quantised by compressed-tensors",
    "fp8": "a decoder (LlamaForCausalLM) with weights quantised by fp8",
    "adapter": "an adapter (LORA on org/base), not a model; give --model org/base --adapters ",
    "gguf": "a GGUF file",
    "ggufs": "a folder of GGUF files",
    "file": "a file",
    "weights": "a folder with weights and without config.json",
    "tokenizer": "the folder of a tokenizer alone",
    "diffusers": "a diffusion pipeline",
    "unet": "a part of a diffusion pipeline (UNet2DConditionModel)",
    "nameless": "a folder whose config.json names no model (neither model_type nor architectures)",
    "nothing": "a folder without config.json",
}
DOES_NOT_WRITE = "its attention looks both ways, so it does not write; name a decoder (...ForCausalLM)"
NO_HEAD = (
    "it has no language-model head, and a new one would have random weights; name the language model (...ForCausalLM)"
)
AT_RANDOM = "its new head would have random weights; name the model that it was made from"
FOR_LLAMA_CPP = "those are weights for llama.cpp; name the model that they were made from"
NO_MODEL = "name a folder with config.json and weights, or a hub id"
MADE_FROM = "which cannot be trained; name the model that they were made from, with --quantization nf4"
REFUSED: dict[str, dict[str, str]] = {
    "decoder": {},
    "headless": dict.fromkeys(WRITES, "name the model with its head (...ForCausalLM)"),
    "encoder": dict.fromkeys(WRITES, DOES_NOT_WRITE),
    "encoder-decoder": dict.fromkeys(TASKS, "no task here trains one; name a decoder (...ForCausalLM), or an encoder"),
    "gemma3": {},
    "gemma4": dict.fromkeys(JUDGES, "only text is trained here; name a text model"),
    "one output": dict.fromkeys(WRITES, NO_HEAD),
    "encoder, one output": dict.fromkeys(WRITES, NO_HEAD),
    "three outputs": dict.fromkeys(WRITES, NO_HEAD)
    | dict.fromkeys(("rm", "reranker"), "of 3 outputs, and task {} trains one score; name its base model"),
    "token labels": dict.fromkeys((*WRITES, *JUDGES), AT_RANDOM),
    **{method: dict.fromkeys(TASKS, MADE_FROM) for method in ("gptq", "awq", "compressed-tensors", "fp8")},
    "adapter": dict.fromkeys(TASKS, "or merge it with rayswift export --merge_lora"),
    **{kind: dict.fromkeys(TASKS, FOR_LLAMA_CPP) for kind in ("gguf", "ggufs")},
    **{
        kind: dict.fromkeys(TASKS, NO_MODEL)
        for kind in ("file", "weights", "tokenizer", "diffusers", "unet", "nameless", "nothing")
    },
}
CELLS = [(kind, task) for kind in REFUSED for task in TASKS]


def test_the_table_has_a_column_for_every_task_and_a_row_for_every_kind() -> None:
    assert set(TASKS) | {"infer"} == abilities.ALL
    assert set(abilities.TABLE) == set(abilities._INSTEAD) | {"decoder", "adapter"}


@pytest.mark.parametrize(("kind", "task"), [cell for cell in CELLS if cell[1] in REFUSED[cell[0]]])
def test_a_cell_is_refused_by_name(kind: str, task: str, folders: dict[str, Path]) -> None:
    path = str(folders[kind])
    (found,) = abilities.problems("model.path", path, task)
    assert found.startswith(f"model.path = {path!r} is {WHAT[kind]}")
    assert REFUSED[kind][task].format(task) in found
    assert task in found or "not a model" in found or "quantised" in found


FLAGS = {
    "embedding": ("--pooling", "mean"),
    "generative_reranker": ("--train.positive_token", "1", "--train.negative_token", "0", "--max_length", "256"),
}
TRAINED = [(kind, task) for kind, task in CELLS if task not in REFUSED[kind] and task in OFFLINE]


@pytest.mark.parametrize(("kind", "task"), TRAINED)
def test_a_cell_is_trained(kind: str, task: str, folders: dict[str, Path], tmp_path: Path) -> None:
    """One loss and its gradient, of real rows by the real trainer."""
    flags = FLAGS.get(task, ())
    if task == "seq_cls" and "one output" in kind:
        flags = ("--num_labels", "1")  # a regression
    loss, trainer = one_loss(task, folders[kind], tmp_path / "run", *flags)
    gradients = [p.grad for p in trainer.model.parameters() if p.grad is not None]
    assert math.isfinite(loss) and loss > 0
    assert gradients and all(bool(gradient.isfinite().all()) for gradient in gradients)


@pytest.mark.parametrize("kind", ["one output", "encoder, one output"])
def test_a_head_of_another_number_of_outputs_is_refused(kind: str, folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UserError) as refused:
        one_loss("seq_cls", folders[kind], tmp_path / "run")
    assert str(refused.value) == (
        f"model.path = {str(folders[kind])!r} is {WHAT[kind]} of 1 outputs, and the rows need 3; name its base "
        "model, for a new head"
    )


@pytest.mark.parametrize("kind", [kind for kind in REFUSED if "grpo" not in REFUSED[kind]])
def test_what_samples_may_be_trained_by_it(kind: str, folders: dict[str, Path]) -> None:
    assert abilities.problems("model.path", str(folders[kind]), "grpo") == []


# ---- where it is asked ----


@pytest.mark.parametrize(
    ("verb", "own", "kind"),
    [
        ("sft", (), "encoder"),
        ("pt", (), "three outputs"),
        ("rlhf", ("--rlhf_type", "dpo"), "gptq"),
        ("rlhf", ("--rlhf_type", "grpo", "--reward_funcs", "format"), "encoder"),
        ("sft", ("--task_type", "embedding"), "encoder-decoder"),
        ("sft", (), "adapter"),
        ("sft", (), "gguf"),
        ("sft", (), "tokenizer"),
    ],
)
def test_a_command_ends_before_anything_starts(
    verb: str,
    own: tuple[str, ...],
    kind: str,
    folders: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path, run_dir = str(folders[kind]), tmp_path / "run"
    flags = ["--model", path, "--data.dataset", "rows.jsonl", "--train.output_dir", str(run_dir), *own]
    invocation = load(verb, flags)
    for start in (lambda: training.run(invocation), lambda: dry_run(invocation.config)):
        monkeypatch.setattr(training, "join", lambda *_: pytest.fail("it started"))
        with pytest.raises(UserError) as refused:
            start()
        assert refused.value.exit_code == 2
        assert f"model.path = {path!r} is {WHAT[kind]}" in str(refused.value)
        assert "holds no weights" not in str(refused.value)
    assert not run_dir.exists()


def test_a_reference_is_of_a_kind_that_writes(folders: dict[str, Path]) -> None:
    flags = ["--model", str(folders["decoder"]), "--data.dataset", "r.jsonl", "--rlhf_type", "dpo"]
    config = load("rlhf", [*flags, "--model.reference", str(folders["encoder"])]).config
    (found,) = abilities.training_problems(config)
    assert found.startswith(f"model.reference = {str(folders['encoder'])!r} is an encoder")


@pytest.mark.parametrize(
    ("kind", "wanted"),
    [
        ("one output", None),
        ("encoder, one output", None),
        ("adapter", None),
        ("three outputs", "of 3 outputs, wanted one score"),
        ("decoder", "whose score would be random numbers; give a checkpoint of task rm"),
        ("encoder", "whose score would be random numbers"),
        ("gguf", "whose score would be random numbers"),
    ],
)
def test_a_reward_model_has_a_head_of_one_output(kind: str, wanted: str | None, folders: dict[str, Path]) -> None:
    found = abilities.score_problems("rollout.reward_models", str(folders[kind]))
    assert len(found) == (wanted is not None)
    assert not wanted or (wanted in found[0] and str(folders[kind]) in found[0])


@pytest.mark.parametrize(
    ("kind", "wanted"),
    [
        ("decoder", None),
        ("headless", None),
        ("one output", None),
        ("three outputs", "of 3 outputs, and a critic has one"),
        ("encoder", "a critic reads from left to right"),
        ("encoder, one output", "a critic reads from left to right"),
        ("adapter", "merge it with rayswift export"),
    ],
)
def test_a_critic_is_a_decoder(kind: str, wanted: str | None, folders: dict[str, Path]) -> None:
    found = critic_problems(folders["decoder"], folders[kind])
    assert len(found) == (wanted is not None)
    assert not wanted or (wanted in found[0] and "or set train.critic shared" in found[0])


def critic_problems(policy: Path, critic: Path, *flags: str) -> list[str]:
    own = ("--rlhf_type", "ppo", "--train.critic", "separate", "--reward_models", str(critic))
    return abilities.training_problems(
        load("rlhf", ["--model", str(policy), "--data.dataset", "r.jsonl", *own, *flags]).config
    )


def test_a_critic_reads_the_policys_tokens(folders: dict[str, Path], tmp_path: Path) -> None:
    """Another number of tokens, or as many others; a reward model that is no critic may have any."""
    larger = built("one output", tmp_path / "larger", vocab_size=600)
    (found,) = critic_problems(folders["decoder"], larger)
    assert f"rollout.reward_models = {str(larger)!r}" in found
    assert "of 600 tokens, the policy has 512, and the critic reads the policy's tokens; name another" in found
    other = with_tokenizer(built("one output", tmp_path / "other"))
    file = other / "tokenizer.json"
    tokens = json.loads(file.read_text())
    tokens["model"]["vocab"]["another"] = tokens["model"]["vocab"].pop(next(iter(tokens["model"]["vocab"])))
    file.write_text(json.dumps(tokens))
    (found,) = critic_problems(with_tokenizer(built("decoder", tmp_path / "policy")), other)
    assert "whose tokenizer has other tokens than that of model.path" in found
    assert not critic_problems(folders["decoder"], larger, "--train.critic", "shared")


def test_ready_packed_weights_are_trained_below_an_adapter(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def found(task: str, tuner: str, quantization: str | None = None) -> str:
        path = str(folders["bitsandbytes"])
        return "".join(abilities.problems("model.path", path, task, tuner, quantization=quantization))

    monkeypatch.setattr(abilities, "find_spec", lambda name: None)
    assert found("causal_lm", "lora").endswith("which needs the package bitsandbytes; pip install bitsandbytes")
    monkeypatch.setattr(abilities, "find_spec", lambda name: name)
    assert found("causal_lm", "lora") == "" == found("dpo", "lora") == found("infer", "full")
    assert "which are frozen; set --tuner lora, or name the model that they were made from" in found(
        "causal_lm", "full"
    )
    assert "already; leave model.quantization out" in found("causal_lm", "lora", "nf4")
    assert "which engines cannot update" in found("grpo", "lora")


@pytest.mark.parametrize("kind", ["headless", "one output", "token labels"])
def test_of_what_is_made_anew_the_config_alone_counts(kind: str, folders: dict[str, Path]) -> None:
    task = "seq_cls" if kind == "token labels" else "causal_lm"
    assert abilities.problems("model.path", str(folders[kind]), task)
    assert abilities.problems("model.path", str(folders[kind]), task, random_init=True) == []


def test_a_head_that_is_left_out_is_said(folders: dict[str, Path]) -> None:
    (said,) = abilities.remarks("model.path", str(folders["three outputs"]), "embedding")
    assert said.endswith("(BertForSequenceClassification): its head is left out, of training and of what is saved")
    assert not abilities.remarks("model.path", str(folders["encoder"]), "embedding")
    assert not abilities.remarks("model.path", str(folders["three outputs"]), "seq_cls")


@pytest.mark.parametrize(
    ("config", "kind"),
    [
        ({"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3"}, "decoder"),
        ({"model_type": "llama"}, "decoder"),
        ({"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2"}, "decoder"),
        ({"architectures": ["GPT2Model"], "model_type": "gpt2"}, "decoder"),
        ({"architectures": ["MistralModel"], "model_type": "mistral"}, "headless decoder"),
        ({"architectures": ["Gemma3TextModel"], "model_type": "gemma3_text"}, "decoder"),
        (
            {"architectures": ["Gemma3TextModel"], "model_type": "gemma3_text", "use_bidirectional_attention": True},
            "encoder",
        ),
        ({"architectures": ["BertLMHeadModel"], "model_type": "bert", "is_decoder": True}, "decoder"),
        ({"architectures": ["ModernBertDecoderForCausalLM"], "model_type": "modernbert-decoder"}, "decoder"),
        ({"architectures": ["BertLMHeadModel"], "model_type": "bert"}, "encoder"),
        ({"architectures": ["BertModel"], "model_type": "bert"}, "encoder"),
        ({"model_type": "xlm-roberta"}, "encoder"),
        ({"architectures": ["NomicBertModel"], "model_type": "nomic_bert", "auto_map": {}}, "encoder"),
        ({"architectures": ["ModernBertForMaskedLM"], "model_type": "modernbert"}, "encoder"),
        ({"architectures": ["ElectraForPreTraining"], "model_type": "electra"}, "encoder"),
        ({"architectures": ["BartForCausalLM"], "model_type": "bart", "is_encoder_decoder": False}, "decoder"),
        ({"architectures": ["BartModel"], "model_type": "bart", "is_encoder_decoder": True}, "encoder-decoder"),
        ({"architectures": ["T5EncoderModel"], "model_type": "t5", "is_encoder_decoder": True}, "encoder-decoder"),
        ({"architectures": ["Qwen2_5_VLForConditionalGeneration"], "vision_config": {}}, "vision-language"),
        ({"architectures": ["CLIPModel"], "model_type": "clip", "vision_config": {}}, "vision-language"),
        ({"architectures": ["WhisperForConditionalGeneration"], "num_mel_bins": 80}, "vision-language"),
        ({"architectures": ["ViTForImageClassification"], "image_size": 224}, "vision-language"),
        ({"architectures": ["RobertaForQuestionAnswering"], "model_type": "roberta"}, "other head"),
        ({"architectures": ["Qwen2ForRewardModel"], "model_type": "qwen2"}, "other head"),
        ({"architectures": ["DebertaV2ForSequenceClassification"]}, "sequence classifier"),
    ],
)
def test_kinds_by_config(config: dict[str, object], kind: str) -> None:
    assert of_config(config).kind == kind


def test_what_is_not_here_is_not_judged(tmp_path: Path) -> None:
    assert look("org/never-fetched") is None
    assert look("no/such/folder") is None
    assert look(str(written(tmp_path / "run", config__yaml="").parent)) is not None
    (tmp_path / "run" / "checkpoint-3").mkdir()
    assert look(str(tmp_path / "run")) is None


def test_a_hub_model_that_is_in_the_cache_is_judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"architectures": ["BertModel"], "model_type": "bert"}))
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_, **__: str(file))
    (found,) = abilities.problems("model.path", "org/bert", "causal_lm")
    assert found.startswith("model.path = 'org/bert' is an encoder (BertModel), which task causal_lm cannot take")


# ---- infer ----


@pytest.mark.parametrize("kind", [kind for kind in REFUSED if kind not in ("decoder", "adapter", "nothing")])
def test_what_does_not_write_is_not_asked(kind: str, folders: dict[str, Path]) -> None:
    path = str(folders[kind])
    section = load("infer", ["--model", path, "--prompt", "hi"]).config.infer
    if kind in ("gemma3", "gemma4", "gptq", "awq", "compressed-tensors", "fp8"):
        assert infer._found(section).weights == folders[kind]
        return
    with pytest.raises(UserError) as refused:
        infer._found(section)
    assert str(refused.value).startswith(f"infer.model = {path!r} is {WHAT[kind]}, which task infer cannot take")


def test_an_adapter_that_judges_is_not_asked(folders: dict[str, Path], tmp_path: Path) -> None:
    judge = adapter(tmp_path / "judge", str(folders["decoder"]), "SEQ_CLS")
    section = load("infer", ["--model", str(judge), "--prompt", "hi"]).config.infer
    with pytest.raises(UserError, match="is an adapter of SEQ_CLS, which does not write; it scores or embeds texts"):
        infer._found(section)
