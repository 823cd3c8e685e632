"""ms-swift's spelling as a whole: workers, lengths, defaults, hubs, evaluation; and its verbs that do not train."""

import re
import shlex
from typing import Any

import pytest

from rayswift import cli
from rayswift.config.derived import max_prompt_length, max_sequence_length
from rayswift.config.load import Invocation, load
from rayswift.config.swift import VERBS
from rayswift.data.encode.config import EncodeConfig
from rayswift.data.raw_rows import made_rows
from rayswift.data.sources import RawRow
from rayswift.log import UserError, logger

NEEDED = ["--model", "m", "--dataset", "d.jsonl"]
PPO = ["--rlhf_type", "ppo", "--reward_model", "rm", "--vllm_mode", "colocate"]
GRPO = ["--rlhf_type", "grpo", "--reward_funcs", "format", "--vllm_mode", "colocate"]


def resolve(verb: str, argv: list[str], **environ: str) -> Invocation:
    return load(verb, [*NEEDED, *argv], environ)


def note(invocation: Invocation, start: str) -> str:
    (line,) = [line for line in invocation.notes if line.startswith(start)]
    return line


# ---- workers ----


@pytest.mark.parametrize(
    ("environ", "num_workers"),
    [
        ({"NPROC_PER_NODE": "8"}, 8),
        ({"NNODES": "2", "NPROC_PER_NODE": "4"}, 8),
        ({"NNODES": "1", "NPROC_PER_NODE": "2", "NODE_RANK": "0"}, 2),
        ({"NNODES": "2"}, None),
        ({"NPROC_PER_NODE": "gpu"}, None),
        ({"NPROC_PER_NODE": "0"}, None),
        ({"CUDA_VISIBLE_DEVICES": "0,1"}, None),
    ],
)
def test_processes_become_workers(environ: dict[str, str], num_workers: int | None) -> None:
    invocation = resolve("sft", ["--tuner_type", "lora"], **environ)
    assert invocation.config.cluster.num_workers == num_workers
    said = [line for line in invocation.notes if "NPROC_PER_NODE" in line]
    assert len(said) == ("CUDA_VISIBLE_DEVICES" not in environ)
    if num_workers:
        assert f"-> cluster.num_workers {num_workers}" in said[0]


def test_what_the_command_says_of_workers_wins() -> None:
    invocation = resolve("sft", ["--tuner_type", "lora", "--num_workers", "3"], NPROC_PER_NODE="8")
    assert invocation.config.cluster.num_workers == 3
    assert not any("NPROC_PER_NODE" in line for line in invocation.notes)


def test_a_run_is_started_on_one_node() -> None:
    environ = {"NNODES": "2", "NODE_RANK": "1", "NPROC_PER_NODE": "4"}
    with pytest.raises(UserError, match="NODE_RANK=1 is refused: a run is started once, where NODE_RANK is 0"):
        resolve("sft", ["--tuner_type", "lora"], **environ)
    dry = resolve("sft", ["--tuner_type", "lora", "--dry_run"], **environ)
    assert dry.config.cluster.num_workers == 8
    assert note(dry, "NODE_RANK=1")


def test_variables_of_losses_are_read_or_answered() -> None:
    environ = {"INFONCE_TEMPERATURE": "0.2", "INFONCE_INCLUDE_QQ": "true"}
    invocation = resolve("sft", ["--task_type", "embedding", "--loss_type", "infonce"], **environ)
    assert invocation.config.train.infonce_temperature == 0.2
    assert "queries are compared with documents only" in note(invocation, "INFONCE_INCLUDE_QQ=true has no effect")
    plain = resolve("sft", ["--tuner_type", "lora"], **environ)
    assert not any("INFONCE" in line for line in plain.notes)


# ---- lengths of prompts and completions ----


@pytest.mark.parametrize(
    ("argv", "prompt", "sequence"),
    [
        (["--max_length", "4096", "--max_completion_length", "4096"], 4096, 8192),
        (["--max_length", "2048", "--max_completion_length", "1024", "--vllm_max_model_len", "2048"], 2047, 2048),
        (["--max_length", "2048", "--max_completion_length", "8192", "--vllm_max_model_len", "10240"], 2048, 10240),
        (["--max_length", "12000", "--max_completion_length", "8192", "--vllm_max_model_len", "16384"], 12000, 16384),
        (["--max_completion_length", "4096", "--vllm_max_model_len", "8192"], 8191, 8192),
        (["--max_completion_length", "8192"], 2048, 10240),
        (["--max_completion_length", "64", "--rollout.max_prompt_length", "100"], 100, 164),
        (["--data.max_length", "1000", "--max_completion_length", "400"], 600, 1000),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
@pytest.mark.parametrize("task", ["grpo", "ppo", "gkd"])
def test_max_length_is_a_prompts_and_a_completion_ends_at_the_window(
    task: str, argv: list[str], prompt: int, sequence: int
) -> None:
    config = resolve("rlhf", ["--rlhf_type", task, "--vllm_mode", "colocate", *argv]).config
    assert (max_prompt_length(config), max_sequence_length(config)) == (prompt, sequence)


@pytest.mark.parametrize(
    ("batches", "accumulation", "steps"), [("8", "4", 2), ("4", "8", 1), ("2", "2", 1), ("32", "4", 8), ("3", "1", 3)]
)
def test_their_steps_of_a_round_are_micro_batches(batches: str, accumulation: str, steps: int) -> None:
    argv = [*GRPO, "--steps_per_generation", batches, "--gradient_accumulation_steps", accumulation]
    assert resolve("rlhf", argv).config.train.trl_extra["steps_per_generation"] == steps
    ours = ["--train.task", "grpo", "--reward_funcs", "format", "--steps_per_generation", batches]
    config = load("rlhf", [*NEEDED, *ours, "--gradient_accumulation_steps", accumulation]).config
    assert config.train.trl_extra["steps_per_generation"] == int(batches)


# ---- defaults ----

THEIRS = {
    "train.per_device_train_batch_size": 1,
    "train.per_device_eval_batch_size": 1,
    "train.lr_scheduler_type": "cosine",
    "train.weight_decay": 0.1,
    "train.adam_beta2": 0.95,
    "train.logging_steps": 5,
    "train.global_batch_size": 16,
}
SFT = {"data.packing": False, "data.ignore_empty_think": True}
ONLINE = {"data.truncation": "left", "rollout.temperature": 0.9}
OF_PPO = {"rollout.num_generations": 1}
OF_GRPO = {"train.beta": 0.04, "train.loss_type": "grpo", "rollout.importance_sampling": "none"}


@pytest.mark.parametrize(
    ("verb", "argv", "theirs"),
    [
        ("sft", ["--tuner_type", "lora"], {**THEIRS, **SFT, "train.learning_rate": None}),
        ("sft", ["--tuner_type", "full"], {**THEIRS, **SFT, "train.learning_rate": 1e-5}),
        ("pt", ["--tuner_type", "full"], {**THEIRS, "data.packing": False, "train.learning_rate": 1e-5}),
        ("rlhf", ["--rlhf_type", "dpo", "--tuner_type", "lora"], {**THEIRS, "train.learning_rate": 1e-4}),
        ("rlhf", [*GRPO, "--tuner_type", "full"], {**THEIRS, **ONLINE, **OF_GRPO, "train.learning_rate": 1e-5}),
        ("rlhf", [*PPO, "--tuner_type", "full"], {**THEIRS, **ONLINE, **OF_PPO, "train.learning_rate": 1e-5}),
        ("sft", ["--task_type", "embedding", "--tuner_type", "lora"], {**THEIRS, "train.infonce_temperature": 0.1}),
    ],
)
def test_one_line_brings_their_defaults_back(verb: str, argv: list[str], theirs: dict[str, Any]) -> None:
    line = note(resolve(verb, argv), "defaults are not ms-swift's; these flags bring its own back: ")
    flags = shlex.split(line.split(": ", 1)[1].split(";")[0])
    again = resolve(verb, [*argv, *flags, "--data.max_length", "512"])
    dumped = again.config.model_dump()
    assert {path: dumped[path.split(".")[0]][path.split(".")[1]] for path in theirs} == theirs
    assert not any(line.startswith("defaults are not") for line in again.notes)


def test_nothing_is_said_of_defaults_in_our_own_spelling() -> None:
    assert resolve("sft", ["--learning_rate", "1e-4"]).notes == ()


# ---- hubs ----


def test_ids_of_another_hub_are_named() -> None:
    argv = ["--model", "Qwen/Qwen3-4B", "--dataset", "AI-ModelScope/alpaca#500", "o/rows:sub#3", "d.jsonl"]
    invocation = load("sft", [*argv, "--tuner_type", "lora"])
    assert "an id of ModelScope" in note(invocation, "AI-ModelScope/alpaca: ")
    assert "taken from Hugging Face's hub" in note(invocation, "Qwen/Qwen3-4B, o/rows: ")
    for meant in ([*argv, "--tuner_type", "lora", "--use_hf", "true"],):
        assert not any("ModelScope" in line for line in load("sft", meant).notes)
    assert not any("ModelScope" in line for line in load("sft", [*argv, "--tuner_type", "lora"], {"USE_HF": "1"}).notes)
    assert load("sft", argv).notes == ()


def test_a_source_may_say_its_hub() -> None:
    config = load("sft", ["--model", "m", "--dataset", "HF::o/n:s#3", "hf::o/m"]).config
    assert config.data.dataset == ["o/n:s#3", "o/m"]
    with pytest.raises(UserError, match="ms::o/n is ModelScope's"):
        load("sft", ["--model", "m", "--dataset", "ms::o/n"])


# ---- rows ----


@pytest.mark.parametrize("ratio", ["0", "0.0", "0."])
def test_a_share_of_nothing_names_no_rows_to_evaluate_on(ratio: str) -> None:
    argv = ["--split_dataset_ratio", ratio, "--eval_strategy", "steps", "--tuner_type", "lora"]
    invocation = resolve("sft", argv)
    assert invocation.config.train.eval_strategy is None
    assert any("no rows to evaluate on" in line for line in invocation.notes)


def test_rows_learn_the_models_name_in_their_own_language() -> None:
    config = resolve("sft", ["--model_name", "小鱼", "Fish", "--model_author", "Sea"]).config
    assert (config.data.model_name, config.data.model_author) == (["小鱼", "Fish"], ["Sea"])
    names = {"{{NAME}}": config.data.model_name, "{{AUTHOR}}": config.data.model_author}
    rows = [
        RawRow("a:1", {"query": "Who are you?", "response": "I am {{NAME}} by {{AUTHOR}}.", "n": 3}),
        RawRow("a:2", {"query": "你是谁", "response": "我是{{NAME}}"}),
        RawRow("a:3", {"messages": [{"role": "assistant", "content": "{{NAME}}"}], "tag": "zh"}),
        RawRow("a:4", {"text": "nothing of it"}),
    ]
    made = [row.value for (row,) in made_rows(EncodeConfig("t", "h", 64, names=names), rows)]
    assert made[0] == {"query": "Who are you?", "response": "I am Fish by Sea.", "n": 3}
    assert made[1]["response"] == "我是小鱼"
    assert made[2]["messages"][0]["content"] == "小鱼"
    assert made[3] == rows[3].value
    with pytest.raises(UserError, match="at most 2"):
        resolve("sft", ["--model_name", "a", "b", "c"])


# ---- verbs that do not train ----


def test_flags_of_infer_and_export() -> None:
    infer = load("infer", shlex.split("--adapters run/checkpoint-3 --infer_backend pt --stream true --prompt hi"))
    assert (infer.config.infer.model, infer.config.infer.backend) == ("run/checkpoint-3", "transformers")
    assert note(infer, "--stream has no effect")
    both = load("infer", shlex.split("--model base --adapters run --max_new_tokens 9 --temperature 0 --prompt hi"))
    assert (both.config.infer.model, both.config.infer.base, both.config.infer.max_new_tokens) == ("run", "base", 9)
    export = load("export", shlex.split("--adapters run --merge_lora true --use_hf true"))
    assert (export.config.export.model, export.config.export.merge_lora) == ("run", True)
    merged = load("export", shlex.split("--model m --merge_lora true --task_type seq_cls --safe_serialization True"))
    assert note(merged, "--task_type has no effect") and note(merged, "--safe_serialization has no effect")
    for name in ("torch_dtype", "dtype"):
        found = load("export", shlex.split(f"--adapters run --merge_lora true --{name} bf16")).config
        assert found.export.dtype == "bfloat16"
    for verb, argv, said in [
        ("infer", "--model m --val_dataset d", "--val_dataset is refused: questions are given with --prompt"),
        ("infer", "--model m --infer_backend lmdeploy --prompt x", "--infer_backend is refused"),
        ("infer", "--model m --prompt x --top_p 0.9", "--top_p is refused: answers are sampled by infer.temperature"),
        ("infer", "--model m --prompt x --enable_thinking false", "--enable_thinking is refused"),
        ("export", "--model m --merge_lora true --safe_serialization false", "--safe_serialization is refused"),
        ("export", "--model m --to_mcore true", "--to_mcore is refused: folders have the layout of transformers"),
        ("infer", "--model m --task_type embedding --prompt x", "--task_type is refused: answers are written"),
        ("infer", "--model m --metric acc --prompt x", "--metric is refused: questions are given with --prompt"),
        ("export", "--model m --quant_bits 4", "--quant_bits is refused: models are not quantized on disk"),
        ("export", "--model m --to_cached_dataset true", "`rayswift data encode`"),
    ]:
        with pytest.raises(UserError, match=re.escape(said)):
            load(verb, shlex.split(argv))


@pytest.mark.parametrize("verb", VERBS)
def test_their_other_verbs_are_answered(verb: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert cli._run([verb, "--model", "m"]) == 2
    err = capfd.readouterr().err
    logger.handlers = []
    assert f"error: `{verb}` is not a verb; {VERBS[verb]}" in err


def test_a_path_of_ours_wins_over_their_name() -> None:
    for argv in (["--val_dataset", "a", "--data.eval", "b"], ["--data.eval", "b", "--val_dataset", "a"]):
        assert resolve("sft", argv).config.data.eval == ["b"]


@pytest.mark.parametrize(
    ("argv", "ours"),
    [
        (["--rlhf_type", "ppo", "--reward_funcs", "format"], "train.num_ppo_epochs"),
        (["--rlhf_type", "grpo", "--reward_funcs", "format"], "train.num_iterations"),
        (["--rlhf_type", "gkd", "--teacher_model", "t"], None),
        (["--rlhf_type", "dpo"], None),
    ],
)
def test_max_epochs_is_ms_swifts_and_openrlhfs_is_named(argv: list[str], ours: str | None) -> None:
    found = load("rlhf", ["--model", "m", "--dataset", "d.jsonl", "--max_epochs", "2", "--bf16", *argv])
    assert (found.config.train.num_train_epochs, found.config.model.dtype) == (2, "bfloat16")
    said = [note for note in found.notes if note.startswith("--max_epochs counts")]
    wanted = f"--max_epochs counts passes over the prompts; OpenRLHF's, over a round, are {ours}"
    assert said == ([wanted] if ours else [])
