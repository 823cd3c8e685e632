"""Names of TRL, LLaMA-Factory, axolotl, OpenRLHF and verl are answered with ours."""

import re
from pathlib import Path

import pytest

from rayswift.config.load import load
from rayswift.config.reading.names import paths_of
from rayswift.config.reading.other_names import AXOLOTL, LLAMA_FACTORY, OPENRLHF, TRL, VERL, answer
from rayswift.config.schema import VERB_CONFIGS
from rayswift.config.swift import knows
from rayswift.log import UserError

NAMES = sorted({*TRL, *LLAMA_FACTORY, *AXOLOTL, *OPENRLHF, *VERL})
KNOWN = {path for verb in ("pt", "sft", "rlhf") for path in paths_of(VERB_CONFIGS[verb])}


@pytest.mark.parametrize("name", NAMES)
def test_an_answer_names_a_field_that_is_there(name: str) -> None:
    hint = answer(name)
    assert hint is not None
    for path in re.findall(r"\b(?:model|data|train|cluster|rollout)\.\w+", hint):
        if path not in ("train.jsonl", "file.py"):
            assert path in KNOWN, hint


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--model_name_or_path", "m"], "it is a name of TRL and LLaMA-Factory; here it is model.path"),
        (["--finetuning_type", "lora"], "it is a name of LLaMA-Factory; here it is model.tuner"),
        (["--cutoff_len", "1024"], "it is a name of LLaMA-Factory; here it is data.max_length"),
        (["--micro_batch_size", "2"], "it is a name of axolotl; here it is train.per_device_train_batch_size"),
        (["--train.micro_batch_size", "2"], "it is a name of axolotl; here it is train.per_device_train_batch_size"),
        (["--sequence_len", "2048"], "it is a name of axolotl; here it is data.max_length"),
        (["--use_peft"], "it is a name of TRL; here it is model.tuner"),
        (["--val_size", "0.1"], "it is a name of LLaMA-Factory; here it is data.eval_fraction"),
    ],
)
def test_a_flag_of_theirs_is_answered_with_ours(argv: list[str], said: str) -> None:
    with pytest.raises(UserError) as caught:
        load("sft", ["--model", "m", "--dataset", "d", *argv])
    (line,) = str(caught.value).splitlines()
    assert said in line, line


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--pretrain", "m"], "it is a name of OpenRLHF; here it is model.path"),
        (["--n_samples_per_prompt", "8"], "here it is rollout.num_generations"),
        (["--init_kl_coef", "0.1"], "TRL; here it is train.kl_coef; it is a name of OpenRLHF"),
        (["--reward.model_name_or_path", "m"], "it is a name of OpenRLHF; here it is rollout.reward_models"),
        (["--algo.kl.init_coef", "0.1"], "here it is train.kl_coef (ppo) or train.beta (grpo)"),
        (["--data.train_files", "d"], "it is a name of verl; here it is data.dataset"),
        (["--actor_rollout_ref.rollout.n", "8"], "it is a name of verl; here it is rollout.num_generations"),
        (["--actor_rollout_ref.actor.fsdp_config.param_offload", "true"], "cluster.zero_stage and cluster.offload"),
    ],
)
def test_flags_of_rl_trainers_are_answered_with_ours(argv: list[str], said: str) -> None:
    with pytest.raises(UserError) as caught:
        load("rlhf", ["--model", "m", "--dataset", "d", "--reward_funcs", "accuracy", *argv])
    (line,) = str(caught.value).splitlines()
    assert said in line, line


def test_words_of_verl_are_answered_each(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        load("rlhf", ["data.train_files=d.parquet", "+trainer.total_epochs=3", "x=1"])
    lines = str(caught.value).splitlines()
    assert "`data.train_files=d.parquet` is not a flag; it is a name of verl; here it is data.dataset" in lines
    assert "`+trainer.total_epochs=3` is not a flag; it is a name of verl; here it is train.num_train_epochs" in lines
    assert "`x=1` is not a flag; flags look like --data.max_length 1024" in lines
    file = tmp_path / "verl.yaml"
    file.write_text("data: {train_files: d}\nactor_rollout_ref: {rollout: {n: 8}}\nalgorithm: {gamma: 1.0}\n")
    with pytest.raises(UserError) as caught:
        load("rlhf", [str(file)])
    text = str(caught.value)
    assert "data.train_files is unknown; it is a name of verl; here it is data.dataset" in text
    assert "`actor_rollout_ref` is not a section; it is a name of verl" in text
    assert "`algorithm` is not a section; it is a name of verl; here it is the fields of `train`" in text


def test_a_file_of_theirs_is_answered_field_by_field(tmp_path: Path) -> None:
    file = tmp_path / "axolotl.yml"
    file.write_text(
        "base_model: org/name\ndatasets:\n  - path: d.jsonl\n    type: chat_template\nsequence_len: 2048\n"
        "special_tokens:\n  pad_token: x\nlearning_rate: 1e-4\n",
        encoding="utf-8",
    )
    with pytest.raises(UserError) as caught:
        load("sft", [str(file)])
    lines = str(caught.value).splitlines()
    for name, ours in {
        "base_model": "model.path",
        "datasets": "data.dataset",
        "sequence_len": "data.max_length",
    }.items():
        assert any(f"--{name} is not a field here" in line and f"here it is {ours}" in line for line in lines), lines
    assert any("`special_tokens` is not a section; it is a name of axolotl" in line for line in lines)
    assert not any("learning_rate" in line for line in lines)


def test_no_name_of_ours_or_of_ms_swift_is_in_the_table() -> None:
    ours = {path.split(".")[1] for path in KNOWN}
    assert not [name for name in NAMES if name in ours or knows(name)]
