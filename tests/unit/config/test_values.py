"""A written value means the same in YAML, in a dict inside YAML, in a flag and in JSON inside a flag."""

import json
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml

from rayswift import cli
from rayswift.config.load import load, to_yaml
from rayswift.config.reading import yaml_text
from rayswift.config.reading.values import Plain, home, plain, read
from rayswift.log import UserError, logger

NEEDED = ["--model", "m", "--dataset", "d.jsonl"]


def from_yaml(folder: Path, text: str, verb: str = "sft") -> Any:
    file = folder / "a.yaml"
    file.write_text("model: {path: m}\ndata: {dataset: d.jsonl}\n" + text, encoding="utf-8")
    return load(verb, [str(file)]).config


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("1e-4", 1e-4), ("1e3", 1000.0), ("-2.5E+2", -250.0), (".5", 0.5), ("1.", 1.0), ("7", 7), ("-7", -7),
        ("010", 10), ("1_000", 1000), ("0x1F", 31), ("0o17", 15), (".inf", float("inf")), ("-.inf", float("-inf")),
        ("true", True), ("False", False), ("null", None), ("~", None),
        ("no", "no"), ("on", "on"), ("y", "y"), ("1:30", "1:30"), ("2024-01-02", "2024-01-02"), ("1e", "1e"),
        ("e5", "e5"), ("None", "None"), ("", ""), ("1.2.3", "1.2.3"),
    ],
)  # fmt: skip
def test_a_word_is_what_yaml_1_2_says(word: str, value: Any) -> None:
    assert plain(word) == value
    assert type(plain(word)) is type(value)


@pytest.mark.parametrize("number", ["1e-4", "2e0", "3", "0.25", "1E3"])
@pytest.mark.parametrize(
    ("path", "wrapped"),
    [
        ("train.lr_scheduler_kwargs", {"min_lr": ...}),
        ("model.rope_scaling", {"rope_type": "linear", "factor": ...}),
        ("model.tuner_kwargs", {"scaling": ...}),
        ("model.tuner_kwargs", {"rank_pattern": {"q_proj": ...}}),
        ("model.tuner_kwargs", {"several": [..., "text"]}),
    ],
)
def test_a_number_in_a_dict_is_a_number_wherever_it_is_written(
    path: str, wrapped: dict[str, Any], number: str, tmp_path: Path
) -> None:
    section, name = path.split(".")
    as_json = json.dumps(wrapped, default=lambda _: "HERE").replace('"HERE"', number)
    as_yaml = as_json.replace('"', "")
    expected = json.loads(as_json)
    found = [load("sft", [*NEEDED, f"--{path}", as_json]).config]
    files = {
        "block": f"{section}: {{{name}: {as_yaml}}}\n",
        "JSON": f"{section}: {{{name}: {as_json}}}\n",
        "quoted JSON": f"{section}: {{{name}: '{as_json}'}}\n",
    }
    for text in files.values():
        if section == "model":
            text = text.replace("model: {", "model: {path: m, ")
        file = tmp_path / "a.yaml"
        file.write_text(text, encoding="utf-8")
        given = [*NEEDED[2:], "--config", str(file)] if section == "model" else [*NEEDED, "--config", str(file)]
        found.append(load("sft", given).config)
    for config in found:
        value = config.model_dump()[section][name]
        assert value == expected
        assert json.dumps(value) == json.dumps(expected)  # 2 and 2.0 differ


@pytest.mark.parametrize(
    ("line", "path", "value"),
    [
        ("train: {save_strategy: no}", "train.save_strategy", "no"),
        ("train: {eval_strategy: no}", "train.eval_strategy", "no"),
        ("train: {save_strategy: 'no'}", "train.save_strategy", "no"),
        ("train: {positive_token: yes, negative_token: no}", "train.negative_token", "no"),
        ("train: {positive_token: 1}", "train.positive_token", "1"),
        ("train: {max_steps: 1e3}", "train.max_steps", 1000),
        ("train: {learning_rate: 1e-3}", "train.learning_rate", 1e-3),
        ("train: {report_to: none}", "train.report_to", ["none"]),
        ("train: {eval_steps: null}", "train.eval_steps", None),
        ("train: {eval_steps: none}", "train.eval_steps", None),
        ("train: {run_name: 2024-01-02}", "train.run_name", "2024-01-02"),
        ("train: {gradient_checkpointing: off}", "train.gradient_checkpointing", False),
        ("train: {matryoshka_dims: {64: 1, 32: 5e-1}}", "train.matryoshka_dims", {64: 1.0, 32: 0.5}),
        ("cluster: {num_workers: [1, 4]}", "cluster.num_workers", [1, 4]),
    ],
)
def test_yaml_reads_a_word_as_its_field_means_it(line: str, path: str, value: Any, tmp_path: Path) -> None:
    section, name = path.split(".")
    config = from_yaml(tmp_path, line)
    found = config.model_dump()[section][name]
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    ("path", "word"),
    [("train.save_strategy", "no"), ("train.max_steps", "1e3"), ("train.gradient_checkpointing", "off"),
     ("train.positive_token", "1"), ("train.eval_steps", "none"), ("data.packing", "yes"), ("train.seed", "1_000")],
)  # fmt: skip
def test_a_flag_means_what_yaml_means(path: str, word: str, tmp_path: Path) -> None:
    section, name = path.split(".")
    file = tmp_path / "b.yaml"
    file.write_text(f"{section}: {{{name}: {word}}}\n", encoding="utf-8")
    by_file = load("sft", [*NEEDED, "--config", str(file)]).config
    assert load("sft", [*NEEDED, f"--{path}", word]).config == by_file


def test_a_boolean_is_no_number(tmp_path: Path) -> None:
    for argv in ([*NEEDED, "--max_steps", "true"], [*NEEDED, "--learning_rate", "yes"]):
        with pytest.raises(UserError, match="unable to parse string"):
            load("sft", argv)
    with pytest.raises(UserError, match=r"train.max_steps = 'true': input should be a valid integer"):
        from_yaml(tmp_path, "train: {max_steps: true}")


def test_what_is_quoted_stays_text() -> None:
    tree = yaml_text.load("a: '1e-4'\nb: 1e-4\nc: \"no\"\nd: [x, '3', 3]\n")
    assert read(dict[str, Any], tree) == {"a": "1e-4", "b": 1e-4, "c": "no", "d": ["x", "3", 3]}
    assert read(Literal["a", "none"] | None, Plain("none")) == "none"
    assert read(str | float, Plain("0.5")) == 0.5
    assert read(str | float, Plain("half")) == "half"


@pytest.mark.parametrize("text", ["1e-4", "no", "null", "none", "true", "007", "~", "1:30", "2024-01-02", "a: b", ""])
def test_the_resolved_config_is_read_back_as_it_is(text: str, tmp_path: Path) -> None:
    config = load(
        "sft", [*NEEDED, "--model.tuner", "lora", "--model.tuner_kwargs", json.dumps({"x": text, "y": 1e-5})]
    ).config.model_copy(deep=True)
    written = to_yaml(config)
    file = tmp_path / "resolved.yaml"
    file.write_text(written, encoding="utf-8")
    assert load("sft", ["--config", str(file)]).config == config
    assert yaml.safe_load(written)["model"]["tuner_kwargs"] == {"x": text, "y": 1e-5}  # YAML 1.1 reads the same


def test_a_key_that_stands_twice_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="`max_length` is there twice"):
        from_yaml(tmp_path, "train:\n  seed: 1\ncluster: {}\nextra: {max_length: 1, max_length: 2}\n")


@pytest.mark.parametrize(
    ("words", "dry"),
    [([], True), (["true"], True), (["True"], True), (["false"], False)],
)
def test_a_dry_run_is_a_switch_as_any_other(words: list[str], dry: bool) -> None:
    invocation = load("sft", [*NEEDED, "--dry_run", *words, "--seed", "3"])
    assert (invocation.dry_run, invocation.config.train.seed, invocation.config.data.dataset) == (dry, 3, ["d.jsonl"])
    assert load("sft", [*NEEDED, "--dry-run"]).dry_run
    with pytest.raises(UserError, match=r"--dry_run is a switch, got d\.jsonl"):
        load("sft", ["--model", "m", "--dry_run", "d.jsonl"])


# ---- paths ----


PATHS = [
    "train.output_dir", "train.resume", "train.plugins", "train.callbacks", "train.metrics", "train.loss",
    "model.path", "model.adapters", "model.chat_template", "model.new_special_tokens",
    "data.dataset", "data.eval", "data.cache", "data.map", "cluster.deepspeed", "cluster.scratch_dir",
]  # fmt: skip
OF_RLHF = [
    "model.reference", "model.reference_adapters", "model.teacher", "model.teacher_adapters", "rollout.reward_funcs",
    "rollout.reward_models",
]  # fmt: skip


@pytest.mark.parametrize("path", [*PATHS, *OF_RLHF])
def test_every_path_knows_the_users_home(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    section, name = path.split(".")
    needed = ["--model", "m"] if path == "data.dataset" else NEEDED
    config = load("rlhf", [*needed, f"--{path}", "~/x/a.py:f#3"]).config
    found = config.model_dump()[section][name]
    assert (found[0] if isinstance(found, list) else found) == f"{tmp_path}/x/a.py:f#3"


def test_other_places_of_a_path_know_it_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "run.yaml").write_text("model: {path: ~/base}\n", encoding="utf-8")
    (tmp_path / "system.txt").write_text("Be brief.", encoding="utf-8")
    argv = ["--config", "~/run.yaml", "--dataset", "~/d.jsonl", "--system", "~/system.txt"]
    config = load("sft", [*argv, "--data.mix", '{"~/d.jsonl": 1}']).config
    assert (config.model.path, config.data.system) == (f"{tmp_path}/base", "Be brief.")
    assert list(config.data.mix) == config.data.dataset == [f"{tmp_path}/d.jsonl"]
    encode = load("data encode", ["--model", "m", "--dataset", "d", "--to", "~/cache"]).config
    assert encode.encode.to == f"{tmp_path}/cache"
    source = load("sft", ["--model", "m", "--dataset", '{"path": "~/d.jsonl", "rows": 3}']).config.data.dataset[0]
    assert (source.path, source.rows) == (f"{tmp_path}/d.jsonl", 3)


@pytest.mark.parametrize("written", ["org/name", "~", "a~/b", "s3://b/~/c", "<|~|>"])
def test_what_is_no_home_stays(written: str) -> None:
    assert home(written) == written


# ---- help ----


@pytest.mark.parametrize(
    ("argv", "whole"),
    [
        (["--config", "x.yaml", "--help"], False),
        (["--seed", "1", "-h"], False),
        (["--help", "all"], True),
        (["--config", "x.yaml", "--help", "all"], True),
    ],
)
def test_help_is_answered_wherever_it_stands(argv: list[str], whole: bool, capfd: pytest.CaptureFixture[str]) -> None:
    assert cli._run(["sft", *argv]) == 0
    out = capfd.readouterr().out
    logger.handlers = []
    assert "usage: rayswift sft" in out
    assert ("--model.double_quantization" in out) == whole
