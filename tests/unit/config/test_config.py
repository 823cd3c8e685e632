"""argv + YAML -> config: precedence, spelling, types, TRL's names, and what a person reads."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from rayswift import cli
from rayswift.config import reference, show
from rayswift.config.fields import tasks as task_fields
from rayswift.config.fields import trl as trl_fields
from rayswift.config.load import Invocation, load, to_yaml
from rayswift.config.reading import other_names
from rayswift.config.reading.names import paths_of
from rayswift.config.schema import VERB_CONFIGS, RlhfConfig, SftConfig
from rayswift.config.tasks import TASKS
from rayswift.config.train import SftTrainConfig, TrainConfig
from rayswift.data.sources import parse_source
from rayswift.log import UserError, logger

REPO = Path(__file__).resolve().parents[3]
HUB_MODELS = ("HuggingFaceTB/SmolLM2-135M-Instruct", "sentence-transformers/all-MiniLM-L6-v2")
NEEDED = ["--model", "m", "--dataset", "d.jsonl"]


def sft(*argv: str) -> SftConfig:
    config = load("sft", [*NEEDED, *argv]).config
    assert isinstance(config, SftConfig)
    return config


def problems(*argv: str, needed: bool = True) -> list[str]:
    with pytest.raises(UserError) as caught:
        load("sft", [*(NEEDED if needed else []), *argv])
    assert caught.value.exit_code == 2
    return str(caught.value).splitlines()


def write_yaml(path: Path, tree: Any) -> str:
    path.write_text(tree if isinstance(tree, str) else yaml.safe_dump(tree), encoding="utf-8")
    return str(path)


# ---- precedence and spelling ----


def test_default_then_yaml_then_flag(tmp_path: Path) -> None:
    file = write_yaml(tmp_path / "a.yaml", {"train": {"seed": 7, "weight_decay": 0.5}})
    assert (sft().train.seed, sft().train.weight_decay) == (42, 0.0)
    from_yaml = sft("--config", file).train
    assert (from_yaml.seed, from_yaml.weight_decay) == (7, 0.5)
    for argv in (["--config", file, "--seed", "8"], ["--seed", "8", "--config", file]):
        flagged = sft(*argv).train
        assert (flagged.seed, flagged.weight_decay) == (8, 0.5)


def test_later_yaml_files_win_field_by_field(tmp_path: Path) -> None:
    one = write_yaml(tmp_path / "a.yaml", {"train": {"seed": 1, "weight_decay": 0.5}})
    two = write_yaml(tmp_path / "b.yaml", {"train": {"seed": 2}})
    train = sft("--config", one, "--config", two).train
    assert (train.seed, train.weight_decay) == (2, 0.5)


def test_yaml_alone_and_empty_sections(tmp_path: Path) -> None:
    text = "model: {path: m}\ndata:\n  dataset: d.jsonl\ntrain:\n"
    config = load("sft", ["--config", write_yaml(tmp_path / "a.yaml", text)]).config
    assert (config.model.path, config.data.dataset, config.train) == ("m", ["d.jsonl"], SftTrainConfig())


@pytest.mark.parametrize(
    "argv",
    [
        ["--learning_rate", "1e-4"],
        ["--learning_rate=1e-4"],
        ["--train.learning_rate", "1e-4"],
        ["--train.learning_rate=1e-4"],
        ["--learning-rate", "1e-4"],
    ],
)
def test_spellings_of_a_flag(argv: list[str]) -> None:
    assert sft(*argv).train.learning_rate == 1e-4


def test_model_stands_for_its_path() -> None:
    assert load("sft", ["--model=org/name", "--data.dataset", "d"]).config.model.path == "org/name"


def test_a_value_may_hold_an_equals_sign() -> None:
    assert sft("--system=a=b").data.system == "a=b"


def test_negative_numbers_are_values() -> None:
    assert sft("--max_steps", "-1").train.max_steps == -1


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--eval", "a", "b"], ["a", "b"]),
        (["--eval", "a"], ["a"]),
        (["--eval", '["a", "b"]'], ["a", "b"]),
        (["--eval", "[]"], []),
    ],
)
def test_lists(argv: list[str], expected: list[str]) -> None:
    assert sft(*argv).data.eval == expected


def test_a_list_in_yaml_may_be_its_only_item(tmp_path: Path) -> None:
    assert sft("--config", write_yaml(tmp_path / "a.yaml", {"data": {"eval": "x"}})).data.eval == ["x"]


def test_dicts_are_json() -> None:
    assert sft("--columns", '{"question": "query"}').data.columns == {"question": "query"}
    assert sft("--lr_scheduler_kwargs", '{"num_cycles": 2}').train.trl_extra == {
        "lr_scheduler_kwargs": {"num_cycles": 2}
    }
    line = problems("--columns", '{"question"')[0]
    assert "--data.columns" in line
    assert "not valid JSON" in line


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--packing"], True),
        (["--packing", "false"], False),
        (["--packing=True"], True),
        (["--packing", "0"], False),
    ],
)
def test_booleans(argv: list[str], expected: bool) -> None:
    assert sft(*argv).data.packing is expected


@pytest.mark.parametrize("word", ["null", "None", "none", "NULL"])
def test_null(word: str, tmp_path: Path) -> None:
    file = write_yaml(tmp_path / "a.yaml", {"train": {"save_total_limit": 3}})
    assert sft("--config", file).train.save_total_limit == 3
    assert sft("--config", file, "--save_total_limit", word).train.save_total_limit is None


def test_none_is_a_word_where_null_is_not_a_value() -> None:
    config = sft("--offload", "none", "--report_to", "none")
    assert (config.cluster.offload, config.train.report_to) == ("none", ["none"])


def test_dry_run_is_no_field() -> None:
    assert load("sft", [*NEEDED, "--dry_run"]).dry_run
    assert load("sft", NEEDED) == Invocation(sft(), dry_run=False)


def test_the_config_is_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        sft().train.seed = 3


# ---- problems ----


@pytest.mark.parametrize(
    ("argv", "parts"),
    [
        (["--learning_rat", "1"], ["--learning_rat is unknown", "did you mean --train.learning_rate?"]),
        (["--data.max_lenght", "1"], ["did you mean --data.max_length?"]),
        (["--zzzzzz", "1"], ["--zzzzzz is unknown", "--help all"]),
        (["--max_length", "many"], ["data.max_length = 'many'", "integer"]),
        (["--max_length", "1"], ["data.max_length = 1:", "greater than or equal to 2"]),
        (["--truncation", "up"], ["data.truncation = 'up'", "'drop', 'left', 'right' or 'split'"]),
        (["--seed", "1", "2"], ["--train.seed takes one value", "1 2"]),
        (["--adam_beta2", "high"], ["train.adam_beta2 = 'high'", "number"]),
    ],
)
def test_one_problem_one_line(argv: list[str], parts: list[str]) -> None:
    (line,) = problems(*argv)
    assert [part for part in parts if part not in line] == [], line


def test_a_stray_word(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="`stray` is not a flag"):
        load("sft", ["stray", *NEEDED])


@pytest.mark.parametrize(
    ("tree", "parts"),
    [
        ({"dat": {"packing": True}}, ["`dat` is not a section", "did you mean data?"]),
        ({"quux": {}}, ["`quux` is not a section", "model, data, train, cluster"]),
        ({"data": {"max_lenght": 3}}, ["data.max_lenght is unknown", "did you mean data.max_length?"]),
        ({"train": {"adam_beta3": 0.5}}, ["train.adam_beta3 is unknown", "did you mean train.adam_beta"]),
        ({"cluster": {"max_length": 3}}, ["cluster.max_length is unknown", "data.max_length"]),
        (["a"], ["holds a list"]),
        ("a: [", ["not valid YAML"]),
    ],
)
def test_problems_of_a_yaml_file(tree: Any, parts: list[str], tmp_path: Path) -> None:
    (line,) = problems("--config", write_yaml(tmp_path / "a.yaml", tree))
    assert [part for part in parts if part not in line] == [], line


def test_a_missing_yaml_file(tmp_path: Path) -> None:
    (line,) = problems("--config", str(tmp_path / "none.yaml"))
    assert "none.yaml" in line
    assert "No such file" in line


def test_a_section_that_is_no_section(tmp_path: Path) -> None:
    (line,) = problems("--config", write_yaml(tmp_path / "a.yaml", {"cluster": "big"}))
    assert line.startswith("cluster = 'big'")


def test_required_fields_are_named_with_their_flag() -> None:
    lines = problems(needed=False)
    assert lines == [
        "model.path is required; give it in the YAML or as --model",
        "data.dataset is required; give it in the YAML or as --data.dataset",
    ]


def test_all_problems_are_reported_together(tmp_path: Path) -> None:
    file = write_yaml(
        tmp_path / "a.yaml", {"dat": {}, "data": {"max_lenght": 3}, "train": {"seed": "x", "adam_beta2": "y"}}
    )
    lines = problems("--config", file, "--learning_rat", "1", "--truncation", "up", "--train.ddp_backend", "nccl")
    for part in (
        "`dat`",
        "max_lenght",
        "train.seed",
        "adam_beta2",
        "learning_rat ",
        "truncation",
        "ddp_backend",
    ):
        assert [line for line in lines if part in line], (part, lines)


# ---- TRL's names ----


def test_trl_fields_pass_with_their_type() -> None:
    train = sft("--adam_beta2", "0.99", "--neftune_noise_alpha", "5").train
    assert train.trl_extra == {"adam_beta2": 0.99, "neftune_noise_alpha": 5.0}


def test_trl_fields_from_yaml_in_scientific_notation(tmp_path: Path) -> None:
    # YAML 1.1 reads 1e-7 as a string.
    assert sft("--config", write_yaml(tmp_path / "a.yaml", "train: {adam_epsilon: 1e-7}")).train.trl_extra == {
        "adam_epsilon": 1e-7
    }


@pytest.mark.parametrize(("name", "field"), sorted(trl_fields.MOVED.items()))
def test_moved_fields_move(name: str, field: str, tmp_path: Path) -> None:
    section, key = field.split(".")
    verb = "sft" if f"{section}.{key}" in paths_of(SftConfig) else "rlhf"
    values = {"max_length": 77, "packing": False, "trust_remote_code": True, "teacher_model_name_or_path": "t"}
    values |= {"chat_template_kwargs": {"a": 1}, "reward_weights": [0.5]}
    value = values.get(name, 1)
    file = write_yaml(tmp_path / "a.yaml", {"train": {name: value}})
    for argv in (["--config", file], [f"--train.{name}", value if isinstance(value, str) else json.dumps(value)]):
        config = load(verb, [*NEEDED, *argv]).config
        assert getattr(getattr(config, section), key) == value
        assert config.train.trl_extra == {}


@pytest.mark.parametrize("pattern", sorted(trl_fields.OWNED))
def test_owned_fields_are_refused_with_their_replacement(pattern: str, tmp_path: Path) -> None:
    known = [n for n in trl_fields.read_fields() if n == pattern or (pattern[-1] == "*" and n.startswith(pattern[:-1]))]
    known = [n for n in known if n not in other_names.TRL]  # those have an answer of their own
    name = known[0] if known else pattern.replace("*", "x")
    replacement = trl_fields.OWNED[pattern]
    (line,) = problems("--config", write_yaml(tmp_path / "a.yaml", {"train": {name: 1}}))
    assert line == f"train.{name} is not a field here; use {replacement}"
    (line,) = problems(f"--train.{name}", "1")
    assert line == f"--train.{name} is not a field here; use {replacement}"


def test_replacements_name_fields_that_exist() -> None:
    known = set(paths_of(SftConfig)) | set(paths_of(RlhfConfig))
    for name, owner in (trl_fields.MOVED | trl_fields.OWNED).items():
        named = {w.strip("(),:`") for w in owner.split() if w.split(".")[0] in RlhfConfig.model_fields and "." in w}
        assert named <= known, name


def test_owned_patterns_still_match_trl() -> None:
    names = [name for task in TASKS for name in trl_fields.read_fields(task)]
    unmatched = {
        p
        for p in trl_fields.OWNED | trl_fields.MOVED
        if not any(n == p or (p[-1] == "*" and n.startswith(p[:-1])) for n in names)
    }
    assert not unmatched


def test_train_fields_are_trls_or_ours() -> None:
    ours = {"task", "resume", "early_stopping_patience", "global_batch_size", "plugins", "callbacks", "metrics", "loss"}
    assert set(TrainConfig.model_fields) - set(trl_fields.read_fields()) == ours


def test_fields_read_from_source_match_the_real_classes() -> None:
    import dataclasses

    from trl import DPOConfig, KTOConfig, RewardConfig, SFTConfig
    from trl.experimental.cpo.cpo_config import CPOConfig
    from trl.experimental.gkd.gkd_config import GKDConfig
    from trl.experimental.orpo.orpo_config import ORPOConfig
    from trl.trainer.grpo_config import GRPOConfig

    classes = {"causal_lm": SFTConfig, "dpo": DPOConfig, "kto": KTOConfig, "rm": RewardConfig, "cpo": CPOConfig}
    classes |= {"simpo": CPOConfig, "orpo": ORPOConfig, "grpo": GRPOConfig, "gkd": GKDConfig}
    beyond_trl = {"dpo": task_fields.DpoFields, "grpo": task_fields.GrpoFields, "gkd": task_fields.GkdFields}
    for task, trl_class in classes.items():
        real = {f.name: f for f in dataclasses.fields(trl_class) if f.init}
        ours = {f.name for f in dataclasses.fields(beyond_trl[task])} if task in beyond_trl else set()
        read = trl_fields.read_fields(task)
        assert set(read) == set(real) | ours, task
        for name in ("adam_beta2", "neftune_noise_alpha", "lr_scheduler_kwargs", "adam_epsilon", "beta"):
            if name in real:
                default = real[name].default if real[name].default is not dataclasses.MISSING else None
                assert read[name].default in (repr(default), ""), (task, name)
        for name in read:
            trl_fields.type_of(read[name].annotation)  # every annotation makes a validator


# ---- round trips, examples, help ----

# PyYAML itself loses U+0085 and its kind when it may write Unicode.
TEXT = st.text(st.characters(exclude_categories=("Cc", "Cs", "Zl", "Zp"), exclude_characters="\ufeff"), max_size=12)

PATH = TEXT.filter(lambda text: text.strip() and "$" not in text and text[0] != "{")

CONFIGS = st.fixed_dictionaries(
    {},
    optional={
        "model": st.fixed_dictionaries({"path": PATH, "lora_alpha": st.floats(0, 1e6)}),
        "data": st.fixed_dictionaries(
            {"dataset": st.lists(PATH, max_size=3)},
            optional={
                "columns": st.dictionaries(TEXT, TEXT, max_size=3),
                "system": st.none() | TEXT,
                "max_length": st.integers(2, 10**9),
                "packing": st.booleans(),
                "max_bad_fraction": st.floats(0, 1),
            },
        ),
        "train": st.fixed_dictionaries(
            {},
            optional={
                "learning_rate": st.none() | st.floats(1e-12, 1e3),
                "num_train_epochs": st.floats(1e-3, 1e6),
                "save_total_limit": st.none() | st.integers(1, 99),
                "report_to": st.lists(st.sampled_from(["none", "null", "yes", "1e3", "0x10", "~"])),
                "adam_beta2": st.floats(0, 1),
                "lr_scheduler_kwargs": st.dictionaries(TEXT, st.integers() | st.floats(0, 1), max_size=2),
            },
        ),
    },
)


@settings(max_examples=40)
@given(CONFIGS)
def test_the_resolved_yaml_reloads_to_the_same_config(tmp_path_factory: pytest.TempPathFactory, tree: dict) -> None:
    folder = tmp_path_factory.getbasetemp()
    tree = {"model": {"path": "m"}, "data": {"dataset": ["d"]}} | tree
    first = load("sft", ["--config", write_yaml(folder / "in.yaml", tree)]).config
    second = load("sft", ["--config", write_yaml(folder / "out.yaml", to_yaml(first))]).config
    assert second == first
    assert second.train.trl_extra == first.train.trl_extra
    for section, fields in tree.items():
        for name, value in fields.items():
            assert getattr(getattr(first, section), name) == value


@pytest.mark.parametrize("file", sorted((REPO / "examples").glob("*.yaml")), ids=lambda p: p.name)
def test_examples_parse_and_name_files_that_exist(file: Path) -> None:
    verb = file.read_text(encoding="utf-8").partition("# Run: rayswift ")[2].split()[0]
    config = load(verb, ["--config", str(file)]).config
    for source in (*config.data.dataset, *config.data.eval):
        assert (REPO / parse_source(source).path).exists(), source
    assert config.model.path in HUB_MODELS or (REPO / config.model.path).exists()
    header = file.read_text(encoding="utf-8").split("\n\n")[0]
    assert f"# Run: rayswift {verb} --config examples/{file.name}" in header.splitlines()


@pytest.mark.parametrize("verb", sorted(VERB_CONFIGS))
def test_help_lists_every_field(verb: str) -> None:
    page = show.help_page(verb, cli.VERBS[verb].help, full=True)
    flags = [line.split()[0] for line in page.splitlines() if line.startswith("  --")]
    assert sorted(flags) == sorted(f"--{path}" for path in paths_of(VERB_CONFIGS[verb]))


def test_the_short_help_is_a_part_of_the_long_one() -> None:
    short, full = (show.help_page("sft", "x", full).splitlines() for full in (False, True))
    assert {line for line in short if line.startswith("  --")} < set(full)
    assert [line for line in short if "--train.learning_rate" in line]
    assert any("(drop, left, right, split) [drop]" in line for line in short)


def test_the_reference_page_is_current() -> None:
    written, current = ((REPO / "rayswift/config/README.md").read_text(encoding="utf-8"), reference.page())
    if reference.versions() not in written:  # other releases of TRL and transformers say other things
        written, current = (text.split(reference.TRL_HEADING)[0] for text in (written, current))
    assert written == current, f"the page is out of date; run: {reference.COMMAND}"


@pytest.mark.parametrize("verb", sorted(VERB_CONFIGS))
def test_every_field_has_one_sentence(verb: str) -> None:
    for section in VERB_CONFIGS[verb].model_fields.values():
        assert isinstance(section.annotation, type)
        for name, field in section.annotation.model_fields.items():
            assert field.description, name
            assert field.description.rstrip().endswith("."), name


# ---- exit codes ----


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Any:
    def call(*argv: str) -> tuple[int, str, str]:
        code = cli._run(list(argv))
        captured = capfd.readouterr()
        return code, captured.out, captured.err

    yield call
    logger.handlers = []


def test_exit_code_0(run: Any) -> None:
    for argv, shown in (
        (["--help"], "usage"),
        (["--version"], "rayswift"),
        (["sft", "--help"], "--model.path"),
    ):
        code, out, err = run(*argv)
        assert (code, err) == (0, "")
        assert shown in out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], ""),
        (["train"], "`train` is not a verb; train with `rayswift pt`, `sft` or `rlhf`"),
        (["dpo"], "`dpo` is not a verb; `rayswift rlhf --rlhf_type dpo`"),
        (["Sft"], "`Sft` is not a verb; did you mean sft? verbs are pt, sft, rlhf"),
        (["data", "inspekt"], "`data inspekt` is not a verb; did you mean data inspect? verbs are"),
        (["sft"], "model.path is required"),
        (["sft", *NEEDED, "--learning_rat", "1"], "did you mean --train.learning_rate?"),
        (["sft", *NEEDED, "--config", "nowhere.yaml"], "nowhere.yaml"),
    ],
)
def test_exit_code_2(run: Any, argv: list[str], message: str) -> None:
    code, _, err = run(*argv)
    assert code == 2
    assert message in err
    assert "Traceback" not in err
    assert all(line.startswith("error: ") for line in err.splitlines())


def test_main_exits_with_the_code() -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["no-such-verb"])
    assert caught.value.code == 2
    logger.handlers = []


def test_a_dry_run_prints_yaml_that_loads(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPO)
    run_dir = tmp_path / "run"
    tree = {
        "model": {"path": "examples/tiny", "random_init": True},
        "data": {"dataset": "examples/sums/train.jsonl", "max_length": 128},
        "train": {"per_device_train_batch_size": 8, "adam_beta2": 0.99},
    }
    argv = [
        "--config",
        write_yaml(tmp_path / "run.yaml", tree),
        "--output_dir",
        str(run_dir),
        "--seed",
        "9",
        "--zero_stage",
        "1",
    ]
    code, out, _ = run("sft", *argv, "--dry_run", "--device", "cpu", "--num_workers", "2")
    assert code == 0
    assert not run_dir.exists()
    text, plan = out.split("\nplan\n")
    config = load("sft", ["--config", write_yaml(tmp_path / "resolved.yaml", text)]).config
    assert (config.train.seed, config.cluster.zero_stage, config.cluster.num_workers) == (9, 1, 2)
    assert config.train.trl_extra == {"adam_beta2": 0.99}
    assert "8 x 1 x 2 = 16" in plan
    assert "memory" in plan


def test_bad_input_found_in_a_verb_is_exit_code_2(run: Any, tmp_path: Path) -> None:
    argv = [
        "--data.eval",
        "a",
        "--eval_fraction",
        "0.1",
        "--device",
        "cpu",
        "--num_workers",
        "0",
        "--dry_run",
    ]
    code, _, err = run("sft", *NEEDED, *argv)
    assert code == 2
    assert "error: data.eval and data.eval_fraction both name evaluation rows; keep one" in err


def test_every_verb_has_a_config_and_a_help_line() -> None:
    assert set(cli.VERBS) == set(VERB_CONFIGS)


@pytest.mark.parametrize("verb", sorted(cli.VERBS))
def test_every_verb_has_a_module(verb: str) -> None:
    assert importlib.util.find_spec(f"rayswift.verbs.{cli.VERBS[verb].module}") is not None


def test_json_and_yaml_agree_on_what_a_resolved_config_is() -> None:
    config = sft("--adam_beta2", "0.5")
    assert yaml.safe_load(to_yaml(config)) == json.loads(config.model_dump_json())
