"""Problems found before anything starts: all are reported, each once, each with a remedy."""

import json
import shutil
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from rayswift import cli
from rayswift.cluster.layout import Layout
from rayswift.config.checks import built
from rayswift.config.checks.built import is_unbuilt, refuse_unbuilt
from rayswift.config.load import load
from rayswift.config.model import ModelConfig
from rayswift.config.reading.names import paths_of
from rayswift.config.schema import VERB_CONFIGS
from rayswift.config.show import field_lines
from rayswift.data.tokenizer.training_copy import model_files, prepare_tokenizer
from rayswift.launch import plan
from rayswift.launch.dry_run import dry_run
from rayswift.log import UserError, logger, raise_together
from rayswift.model.find import find_model

TINY = Path(__file__).parents[3] / "examples/tiny"
NEEDED = ["--model", "m", "--dataset", "d.jsonl"]


def problems(verb: str, *argv: str) -> list[str]:
    with pytest.raises(UserError) as caught:
        load(verb, [*NEEDED, *argv])
    assert caught.value.exit_code == 2
    return str(caught.value).splitlines()


def test_an_unknown_flag_hides_no_other_problem() -> None:
    argv = ["--bogus", "1", "--max_length", "x", "--optim", "adalomo", "--model.quantization", "nf4"]
    lines = problems("sft", *argv, "--model.freeze_ratio", "2")
    for start in (
        "--bogus is unknown",
        "data.max_length = 'x'",
        "model.freeze_ratio = 2",
        "train.optim = adalomo (it steps within the backward pass): not built yet",
        "model.quantization = nf4 freezes the weights, so it needs an adapter",
    ):
        assert len([line for line in lines if line.startswith(start)]) == 1, (start, lines)
    dry = problems("sft", *argv, "--dry_run")
    assert not any("not built" in line for line in dry)  # which a dry run resolves
    assert any(line.startswith("model.quantization = nf4") for line in dry)


def test_a_flag_without_a_value_is_no_text() -> None:
    # As `--output_dir $UNSET` is.
    with pytest.raises(UserError) as caught:
        load("sft", ["--model", "--dataset", "--output_dir", "--learning_rate", "--packing"])
    names = ("model", "dataset", "output_dir", "learning_rate")
    assert str(caught.value).splitlines() == [f"--{name} has no value; write one after it" for name in names]
    assert load("sft", [*NEEDED, "--random_init", "--packing"]).config.model.random_init


@pytest.mark.parametrize("path", ["data.dataset", "model.path", "train.output_dir", "cluster.deepspeed"])
def test_a_path_is_neither_empty_nor_a_variable(path: str) -> None:
    # An empty one is the folder of the command: all its rows would be trained, and the run be written there.
    assert problems("sft", f"--{path}", "") == [f"{path} = '': a path is not empty; `.` is the folder of the command"]
    for variable in ("${HOME}/x", "$HOME/x", "s3://bucket/${RUN}"):
        (line,) = problems("sft", f"--{path}", variable)
        assert line == f"{path} = {variable!r}: variables are not replaced; write the path itself"


@pytest.mark.parametrize(
    ("verb", "path"),
    [
        ("sft", "train.resume"),
        ("sft", "data.cache"),
        ("sft", "cluster.scratch_dir"),
        ("sample", "sample.output_file"),
        ("sample", "train.output_dir"),
        ("data encode", "encode.to"),
        ("data inspect", "inspect.html"),
        ("export", "export.output_dir"),
    ],
)
def test_a_url_is_no_folder_of_this_machine(verb: str, path: str) -> None:
    """`sample --output_file s3://bucket/x.jsonl` would write hours of rows to a folder named `s3:`."""
    lines = problems(verb, f"--{path}", "s3://bucket/x")
    said = "a URL, wanted a file or folder of this machine; copy it from or to there"
    assert f"{path} = 's3://bucket/x': {said}" in lines


def test_a_config_that_is_not_read_is_the_only_problem(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    for text in ("model: {path: m}\nmodel: {path: n}\n", "model:\n\tpath: m\n", "words\n"):
        file.write_text(text)
        with pytest.raises(UserError) as caught:
            load("sft", ["--config", str(file)])
        (line,) = str(caught.value).splitlines()
        assert line.startswith(f"--config {file} ")


def test_of_a_flag_given_twice_the_last_counts_and_it_is_said() -> None:
    argv = ["--model", "m", "--dataset", "a.jsonl", "--dataset", "b.jsonl", "--train_type", "lora", "--seed", "7"]
    found = load("sft", [*argv, "--tuner_type", "full", "--seed", "7", "--lora_rank", "4", "--model.lora_rank", "16"])
    config = found.config
    assert (config.data.dataset, config.model.tuner, config.model.lora_rank) == (["b.jsonl"], "full", 16)
    assert [note for note in found.notes if "twice" in note] == [
        "--dataset is given twice: b.jsonl counts, a.jsonl does not",
        "--model.tuner is given twice: full counts, lora does not",
        "--model.lora_rank is given twice: 16 counts, 4 does not",
    ]


def test_of_two_names_of_one_flag_the_last_written_counts() -> None:
    for first, second in (("train_type", "tuner_type"), ("tuner_type", "train_type"), ("sft_type", "tuner_type")):
        for one, other in (("lora", "full"), ("full", "lora")):
            found = load("sft", [*NEEDED, f"--{first}", one, f"--{second}", other])
            assert found.config.model.tuner == other
            again = load("sft", [*NEEDED, f"--{first}", one, f"--{second}", other, f"--{first}", one])
            assert again.config.model.tuner == one


@pytest.mark.parametrize(
    ("flag", "wrong", "meant"),
    [
        ("train.optim", "adamw", "did you mean adamw_torch?"),
        ("train.lr_scheduler_type", "cosin", "did you mean cosine?"),
        ("train.report_to", "wandbb", "did you mean wandb?"),
        ("model.attn_implementation", "spda", "did you mean sdpa?"),
    ],
)
def test_names_of_transformers_are_checked_before_anything_starts(flag: str, wrong: str, meant: str) -> None:
    assert _found(flag, wrong)[0].startswith(f"{flag} = {wrong!r} is unknown to transformers; {meant}")


def test_names_of_transformers_are_taken() -> None:
    for flag, names in {
        "train.optim": ["adafactor", "muon", "adamw_torch"],
        "train.lr_scheduler_type": ["cosine_with_min_lr", "constant"],
        "train.report_to": ["wandb", "none", "all"],
        "model.attn_implementation": ["eager", "paged|sdpa", "flash_attention_2", "kernels-community/flash-attn"],
    }.items():
        assert [name for name in names if _found(flag, name)] == []
    assert _found("model.attn_implementation", "mine", "--plugins", "mine.py") == []


def _found(flag: str, value: str, *argv: str) -> list[str]:
    return built.problems(load("sft", [*NEEDED, f"--{flag}", value, *argv]).config)


def test_a_task_of_another_verb_names_the_verb() -> None:
    (line,) = problems("sft", "--rlhf_type", "dpo")
    assert line.endswith("; dpo is a task of `rayswift rlhf`")
    (line,) = problems("rlhf", "--task", "seq_cls")
    assert line.endswith("; seq_cls is a task of `rayswift sft`")


def test_a_seed_is_one_that_every_library_takes() -> None:
    assert problems("sft", "--seed", "-1") == ["train.seed = -1: input should be greater than or equal to 0"]
    assert problems("sft", "--seed", str(2**32)) == [f"train.seed = {2**32}: input should be less than {2**32}"]


def test_what_is_required_is_said_beside_the_rest() -> None:
    with pytest.raises(UserError) as caught:
        load("sft", ["--bogus", "1", "--seed", "x"])
    lines = str(caught.value).splitlines()
    assert [line.split(" ")[0] for line in lines] == ["--bogus", "model.path", "data.dataset", "train.seed"]


def test_a_missing_package_hides_no_missing_plugin(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    argv = ["sft", *NEEDED, "--optim", "lomo", "--plugins", "nowhere.py", "--tuner", "lora", "--adapters", "nothing"]
    assert cli._run(argv) == 2
    err = capfd.readouterr().err
    logger.handlers = []
    assert "lomo-optim, which is not installed" in err
    assert "train.plugins = 'nowhere.py': no file nowhere.py" in err
    assert "model.adapters: 'nothing' is not a folder here" in err


def test_problems_of_several_checks_are_raised_together() -> None:
    def fails(*lines: str) -> None:
        raise UserError("\n".join(lines))

    with pytest.raises(UserError) as caught:
        raise_together(lambda: fails("a", "b"), lambda: None, lambda: fails("b", "c"))
    assert str(caught.value).splitlines() == ["a", "b", "c"]
    raise_together(lambda: None)


def test_an_evaluation_at_the_start_needs_rows() -> None:
    config = load("sft", [*NEEDED, "--eval_on_start", "true"]).config
    with pytest.raises(
        UserError, match=r"train\.eval_on_start = True has no rows; set data\.eval or data\.eval_fraction"
    ):
        plan.resolve(config, Layout(1, "cpu", 1, local=True), None)
    whole = load("sft", [*NEEDED, "--eval_on_start", "true", "--eval_fraction", "0.1"]).config
    assert plan.resolve(whole, Layout(1, "cpu", 1, local=True), None).config.train.eval_on_start


@pytest.fixture
def too_many(tmp_path: Path) -> Path:
    """A model whose tokenizer has two tokens more than its embedding has rows."""
    folder = tmp_path / "model"
    shutil.copytree(TINY, folder)
    config = json.loads((folder / "config.json").read_text())
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_tokens([f"filler{n}" for n in range(config["vocab_size"] - tokenizer.get_vocab_size())])
    tokenizer.add_tokens(["first", "second"])
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def test_a_token_without_a_row_is_named_before_training(too_many: Path, tmp_path: Path) -> None:
    num_rows = json.loads((too_many / "config.json").read_text())["vocab_size"]
    with pytest.raises(UserError) as caught:
        prepare_tokenizer(ModelConfig(path=str(too_many)), tmp_path / "tokenizer")
    message = str(caught.value)
    assert f"2 token(s) that the embedding has no row for, 'first' with number {num_rows}" in message
    assert "--model.new_special_tokens 'first'" in message
    grown = ModelConfig(path=str(too_many), new_special_tokens=["first"])
    assert prepare_tokenizer(grown, tmp_path / "grown").is_dir()
    assert prepare_tokenizer(ModelConfig(path=str(TINY)), tmp_path / "tiny").is_dir()


def _tiny(folder: Path, *without: str, **files: str) -> Path:
    shutil.copytree(TINY, folder, ignore=lambda _, names: [name for name in names if name.startswith(without)])
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)
    return folder


def test_a_folder_without_a_tokenizer_has_none(tmp_path: Path) -> None:
    # `transformers` makes one of special tokens alone, which would leave nothing of every text.
    folder = _tiny(tmp_path / "m", "tokenizer", "chat_template")
    with pytest.raises(UserError, match=r"model\.path = .* has no tokenizer: tokenizer\.json, or the vocabulary"):
        prepare_tokenizer(ModelConfig(path=str(folder)), tmp_path / "tokenizer")


@pytest.mark.parametrize("special_tokens", [[], ["<new>"]])
def test_damaged_files_of_a_tokenizer_are_named(tmp_path: Path, special_tokens: list[str]) -> None:
    for file, said in {
        "tokenizer__json": "tokenizer.json is damaged",
        "tokenizer_config__json": "is not valid JSON",
    }.items():
        folder = _tiny(tmp_path / file, **{file: "{"})
        with pytest.raises(UserError, match=said):
            model = ModelConfig(path=str(folder), new_special_tokens=special_tokens)
            prepare_tokenizer(model, tmp_path / f"{file}-copy")


@pytest.mark.parametrize("text", ["{", "[]"])
def test_a_damaged_config_of_a_model_is_named_by_a_dry_run(tmp_path: Path, text: str) -> None:
    folder = _tiny(tmp_path / "m", config__json=text)
    with pytest.raises(UserError, match=r"is a folder whose config\.json is no JSON object"):
        dry_run(load("sft", ["--model", str(folder), "--random_init", "--dataset", "d.jsonl"]).config)


def test_a_path_that_is_neither_a_folder_nor_a_hub_id() -> None:
    for path in ("/nowhere", "./nowhere", "a/b/c"):
        with pytest.raises(UserError) as caught:
            model_files(ModelConfig(path=path))
        assert str(caught.value) == f"model.path = {path!r} is no folder here, and no hub id (org/name)"


def test_damaged_weights_are_named_before_they_are_loaded(tmp_path: Path) -> None:
    folder = _tiny(tmp_path / "m", model__safetensors="damaged weights")
    with pytest.raises(UserError, match=r"model\.safetensors is not a complete safetensors file"):
        find_model(str(folder), "infer.model")


def test_a_dry_run_checks_the_names_of_rewards() -> None:
    argv = ["--model", str(TINY), "--random_init", "--dataset", "d.jsonl", "--task", "grpo"]
    with pytest.raises(UserError, match="'accurate' is no built-in reward; did you mean accuracy"):
        dry_run(load("rlhf", [*argv, "--reward_funcs", "accurate"]).config)


@pytest.mark.parametrize(
    ("kwargs", "reason"),
    [
        ({"ensure_weight_tying": True}, None),
        ({"bias": "all"}, None),
        ({"fan_in_fan_out": True}, None),
        ({"trainable_token_indices": [1]}, None),
        ({"target_parameters": ["a"]}, None),
        ({"use_qalora": True}, "GPTQ"),
        ({"layer_replication": [[0, 2]]}, "config.json"),
        ({"alora_invocation_tokens": [1]}, "merged"),
        ({"lora_bias": True}, "merged"),
    ],
)
def test_fields_of_peft_pass_unless_they_break_something(kwargs: dict[str, object], reason: str | None) -> None:
    argv = ["--model.tuner", "lora", "--model.tuner_kwargs", json.dumps(kwargs)]
    config = load("sft", [*NEEDED, *argv]).config
    assert config.model.tuner_kwargs == kwargs
    if reason is None:
        refuse_unbuilt(config)
        return
    with pytest.raises(UserError, match=rf"model\.tuner_kwargs\.{next(iter(kwargs))} = .*\(.*{reason}"):
        refuse_unbuilt(config)


@pytest.mark.parametrize("verb", ["pt", "sft", "rlhf"])
def test_fields_that_are_not_built_are_marked_where_they_are_listed(verb: str) -> None:
    lines = [line for section in VERB_CONFIGS[verb].model_fields for line in field_lines(verb, section)]
    assert {line.path for line in lines} <= set(paths_of(VERB_CONFIGS[verb]))
    marked = {line.path for line in lines if line.sentence.endswith("Not built yet.")}
    assert marked == {line.path for line in lines if is_unbuilt(line.path)}
    assert "cluster.sequence_parallel_size" in marked
    assert not marked & {"train.learning_rate", "model.path", "data.max_length", "rollout.temperature", "train.beta"}
    if verb == "rlhf":
        assert "rollout.placement" in marked


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (
            ["--data.eval", "b.jsonl", "--data.eval_fraction", "0.5"],
            "data.eval and data.eval_fraction = 0.5 both bring",
        ),
        (["--data.dataset", "[]"], "data.dataset names no rows"),
        (["--data.chat_template_kwargs", '{"tools": []}'], "data.chat_template_kwargs: tools of a chat template"),
    ],
)
def test_settings_of_rows_that_contradict_each_other(argv: list[str], said: str) -> None:
    config = load("sft", ["--model", "m", "--data.dataset", "a.jsonl", *argv]).config
    (line,) = built.problems(config)
    assert said in line


def test_epochs_end() -> None:
    with pytest.raises(UserError, match="num_train_epochs"):
        load("sft", ["--model", "m", "--dataset", "a.jsonl", "--num_train_epochs", "inf"])
