"""ms-swift's spelling: whole command lines, single flags, and what a person reads."""

import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from rayswift import cli
from rayswift.cluster.layout import Layout
from rayswift.config.load import Invocation, load, to_yaml
from rayswift.config.reading.names import paths_of
from rayswift.config.schema import VERB_CONFIGS
from rayswift.config.swift import translate
from rayswift.config.swift.combined_flags import COMBINED
from rayswift.config.swift.rules import ByValue, Into, NoEffect, Refused, Rule, To
from rayswift.config.swift.translate import TABLE
from rayswift.launch import plan
from rayswift.log import UserError, logger

HERE = Path(__file__).parent
REPO = HERE.parents[2]
NEEDED = ["--model", "m", "--dataset", "d.jsonl"]


def resolve(verb: str, *argv: str) -> Invocation:
    return load(verb, [*NEEDED, *argv])


def value_at(config: Any, path: str) -> Any:
    section, name = path.split(".")
    return config.model_dump()[section][name]


def problems(verb: str, *argv: str) -> list[str]:
    with pytest.raises(UserError) as caught:
        resolve(verb, *argv)
    assert caught.value.exit_code == 2
    return str(caught.value).splitlines()


# ---- the table ----


def targets(rule: Rule) -> set[str]:
    match rule:
        case To(path) | Into(path):
            return {path}
        case ByValue(cases, otherwise):
            return set().union(*(targets(case) for case in cases.values()), targets(otherwise))
    return set()


def reasons(rule: Rule) -> list[str]:
    match rule:
        case NoEffect(why) | Refused(why):
            return [why]
        case ByValue(cases, otherwise):
            return [why for case in [*cases.values(), otherwise] for why in reasons(case)]
    return []


@pytest.mark.parametrize("name", sorted(TABLE))
def test_a_rule_leads_to_a_field_or_gives_a_reason(name: str) -> None:
    rule = TABLE[name]
    known = {path for schema in VERB_CONFIGS.values() for path in paths_of(schema)}
    assert targets(rule) <= known
    assert all(len(why) > 10 for why in reasons(rule))
    assert targets(rule) or reasons(rule)


def test_no_flag_has_two_rules() -> None:
    combined = [name for names in COMBINED for name in names]
    assert len(combined) == len(set(combined))
    assert not set(combined) & set(TABLE)


# ---- single flags ----


@pytest.mark.parametrize(
    ("verb", "argv", "expected"),
    [
        ("sft", ["--tuner_type", "lora"], {"model.tuner": "lora"}),
        ("sft", ["--train_type", "full"], {"model.tuner": "full"}),
        ("sft", ["--torch_dtype", "bfloat16"], {"model.dtype": "bfloat16"}),
        ("sft", ["--dtype", "bf16"], {"model.dtype": "bfloat16"}),
        ("sft", ["--bf16", "true"], {"model.dtype": "bfloat16"}),
        ("sft", ["--attn_impl", "flash_attn"], {"model.attn_implementation": "flash_attention_2"}),
        ("sft", ["--val_dataset", "a", "b"], {"data.eval": ["a", "b"]}),
        ("sft", ["--split_dataset_ratio", "0.01"], {"data.eval_fraction": 0.01}),
        ("sft", ["--val_dataset", "a", "--split_dataset_ratio", "0.1"], {"data.eval": ["a"], "data.eval_fraction": 0}),
        ("sft", ["--truncation_strategy", "delete"], {"data.truncation": "drop"}),
        ("sft", ["--dataset", "a.jsonl#500", "o/n:s#20"], {"data.dataset": ["a.jsonl#500", "o/n:s#20"]}),
        ("sft", ["--cached_dataset", "c", "--dataset", "d.jsonl"], {"data.dataset": ["d.jsonl", "c"]}),
        ("sft", ["--cached_val_dataset", "c"], {"data.eval": ["c"]}),
        ("sft", ["--loss_scale", "last_round"], {"data.loss_on": "last_turn"}),
        (
            "sft",
            ["--loss_scale", "all+ignore_empty_think+hermes"],
            {"data.loss_on": "all", "data.loss_scale": ["ignore_empty_think", "hermes"]},
        ),
        ("sft", ["--enable_thinking", "false"], {"data.chat_template_kwargs": {"enable_thinking": False}}),
        ("sft", ["--loss_scale", "react"], {"data.loss_on": "assistant", "data.loss_scale": ["react"]}),
        ("sft", ["--deepspeed", "zero2"], {"cluster.zero_stage": 2, "cluster.offload": "none"}),
        ("sft", ["--deepspeed", "zero2_offload"], {"cluster.zero_stage": 2, "cluster.offload": "optimizer"}),
        ("sft", ["--deepspeed", "zero3_offload"], {"cluster.zero_stage": 3, "cluster.offload": "all"}),
        ("sft", ["--deepspeed", "my/ds.json"], {"cluster.deepspeed": "my/ds.json", "cluster.zero_stage": None}),
        ("sft", ["--quant_method", "bnb", "--quant_bits", "4"], {"model.quantization": "nf4"}),
        ("sft", ["--quant_bits", "4", "--bnb_4bit_quant_type", "fp4"], {"model.quantization": "fp4"}),
        ("sft", ["--quant_method", "bnb", "--quant_bits", "8"], {"model.quantization": "int8"}),
        ("sft", ["--warmup_ratio", "0.05"], {"train.warmup_steps": 0.05}),
        ("sft", ["--enable_dft_loss", "true"], {"train.loss_type": "dft"}),
        ("sft", ["--loss_type", "cross_entropy"], {"train.loss_type": "nll"}),
        ("sft", ["--early_stop_interval", "3"], {"train.early_stopping_patience": 3}),
        ("sft", ["--resume_from_checkpoint", "out/checkpoint-5"], {"train.resume": "out/checkpoint-5"}),
        ("sft", ["--use_dora", "true", "--use_rslora"], {"model.tuner_kwargs": {"use_dora": True, "use_rslora": True}}),
        ("sft", ["--init_weights", "pissa_niter_4"], {"model.tuner_kwargs": {"init_lora_weights": "pissa_niter_4"}}),
        ("sft", ["--rope_scaling", "yarn"], {"model.rope_scaling": {"rope_type": "yarn"}}),
        (
            "sft",
            ["--rope_scaling", '{"type": "yarn", "factor": 2.0}', "--max_model_len", "65536"],
            {
                "model.rope_scaling": {"rope_type": "yarn", "factor": 2.0},
                "model.max_position_embeddings": 65536,
            },
        ),
        (
            "sft",
            ["--freeze_parameters", "model.embed", "--freeze_parameters_regex", "norm"],
            {"model.freeze": r"model\.embed|.*?(?:norm)"},
        ),
        ("sft", ["--freeze_parameters_ratio", "0.5"], {"model.freeze_ratio": 0.5}),
        (
            "sft",
            ["--use_galore", "true", "--galore_rank", "64", "--galore_optim_per_parameter", "true"],
            {"train.optim": "galore_adamw_layerwise", "train.optim_args": "rank=64"},
        ),
        ("sft", ["--packing_length", "512", "--max_length", "512"], {"data.max_length": 512}),
        ("sft", ["--use_cpu", "true"], {"cluster.device": "cpu"}),
        ("sft", ["--fsdp", "fsdp2"], {"cluster.zero_stage": 3}),
        ("sft", ["--strict", "true"], {"data.max_bad_fraction": 0}),
        ("sft", ["--ddp_timeout", "3600"], {"cluster.timeout_s": 3600}),
        (
            "sft",
            ["--task_type", "seq_cls", "--num_labels", "3"],
            {"train.task": "seq_cls", "model.num_labels": 3},
        ),
        (
            "sft",
            ["--task_type", "reranker", "--loss_type", "listwise_reranker"],
            {"train.loss_type": "listwise"},
        ),
        ("sft", ["--mrl_dims", '{"64": 1.0, "32": 0.5}'], {"train.matryoshka_dims": {64: 1.0, 32: 0.5}}),
        ("sft", ["--max_epochs", "2", "--streaming", "true"], {"train.num_train_epochs": 2}),
        ("sft", ["--max_epochs", "2", "--max_steps", "9"], {"train.num_train_epochs": 3, "train.max_steps": 9}),
        ("pt", [], {"data.loss_on": "all", "data.use_chat_template": False}),
        ("rlhf", ["--rlhf_type", "kto", "--desirable_weight", "0.5"], {"train.task": "kto"}),
        (
            "rlhf",
            ["--rlhf_type", "dpo", "--rpo_alpha", "0.1"],
            {"train.loss_type": ["sigmoid", "sft"], "train.loss_weights": [1.0, 0.1]},
        ),
        (
            "rlhf",
            ["--loss_type", "sigmoid", "bco_pair", "sft", "--loss_weights", "0.8", "0.2", "1.0"],
            {"train.loss_type": ["sigmoid", "bco_pair", "sft"], "train.loss_weights": [0.8, 0.2, 1.0]},
        ),
        ("rlhf", ["--rlhf_type", "dpo", "--max_length", "999"], {"data.max_length": 999}),
        ("rlhf", ["--rlhf_type", "grpo", "--max_length", "999"], {"rollout.max_prompt_length": 999}),
        ("rlhf", ["--rlhf_type", "grpo", "--top_k", "-1", "--temperature", "0.7"], {"rollout.temperature": 0.7}),
        ("rlhf", ["--rlhf_type", "ppo", "--response_length", "64"], {"rollout.max_completion_length": 64}),
        ("rlhf", ["--rlhf_type", "ppo", "--kl_coef", "0.1", "--lam", "0.9"], {"train.kl_coef": 0.1, "train.lam": 0.9}),
        ("rlhf", ["--rlhf_type", "ppo", "--reward_model", "rm"], {"rollout.reward_models": ["rm"]}),
        ("rlhf", ["--rlhf_type", "gkd", "--teacher_model", "t"], {"model.teacher": "t"}),
        ("rlhf", ["--rlhf_type", "gkd", "--gkd_logits_topk", "64"], {"train.logits_topk": 64}),
        (
            "rlhf",
            ["--rlhf_type", "gkd", "--teacher_model_server", "http://a:8000"],
            {"rollout.teacher_server": [{"url": "http://a:8000", "tags": []}]},
        ),
        (
            "rlhf",
            ["--rlhf_type", "gkd", "--teacher_model_server", '[{"url": "http://a:8000", "tags": ["x"]}]'],
            {"rollout.teacher_server": [{"url": "http://a:8000", "tags": ["x"]}]},
        ),
        ("rlhf", ["--ref_model", "r"], {"model.reference": "r"}),
        ("rlhf", ["--rlhf_type", "grpo", "--vllm_mode", "colocate"], {"rollout.placement": "colocated"}),
        ("rlhf", ["--rlhf_type", "grpo", "--vllm_mode", "server"], {"rollout.placement": "separate"}),
        ("rlhf", ["--rlhf_type", "grpo", "--vllm_tensor_parallel_size", "4"], {"rollout.tensor_parallel_size": 4}),
        (
            "rlhf",
            ["--rlhf_type", "grpo", "--vllm_enforce_eager", "true", "--vllm_enable_prefix_caching", "false"],
            {"rollout.engine_kwargs": {"enforce_eager": True, "enable_prefix_caching": False}},
        ),
        (
            "rlhf",
            ["--rlhf_type", "grpo", "--vllm_engine_kwargs", '{"seed": 3}', "--vllm_enforce_eager", "true"],
            {"rollout.engine_kwargs": {"enforce_eager": True, "seed": 3}},
        ),
        (
            "rlhf",
            [
                "--rlhf_type",
                "grpo",
                "--cosine_max_len",
                "9",
                "--rollout.reward_kwargs",
                '{"cosine": {"max_len_value_wrong": 0}}',
            ],
            {"rollout.reward_kwargs": {"cosine": {"max_len": 9, "max_len_value_wrong": 0}}},
        ),
        (
            "rlhf",
            ["--rlhf_type", "grpo", "--importance_sampling_level", "sequence_token"],
            {"train.importance_sampling_level": "sequence"},
        ),
        (
            "rlhf",
            ["--rlhf_type", "grpo", "--importance_sampling_level", "token"],
            {"train.importance_sampling_level": "token"},
        ),
        ("rlhf", ["--rlhf_type", "grpo", "--async_generate", "true"], {"rollout.max_staleness": 1}),
        ("rlhf", ["--rlhf_type", "grpo", "--scale_rewards", "none"], {"train.scale_rewards": "none"}),
        (
            "rlhf",
            ["--rlhf_type", "grpo", "--scale_rewards", "gdpo"],
            {"train.multi_objective_aggregation": "normalize_then_sum"},
        ),
        ("rlhf", ["--rlhf_type", "grpo", "--dynamic_sample", "true"], {"rollout.dynamic_sampling": True}),
        (
            "rlhf",
            ["--rlhf_type", "grpo", "--cosine_max_len", "100", "--soft_cache_length", "20"],
            {"rollout.reward_kwargs": {"cosine": {"max_len": 100}, "soft_overlong": {"cache_length": 20}}},
        ),
        (
            "rlhf",
            ["--rlhf_type", "grpo", "--enable_thinking", "false"],
            {"data.chat_template_kwargs": {"enable_thinking": False}},
        ),
        ("rlhf", ["--rlhf_type", "grpo", "--advantage_estimator", "rloo"], {"train.advantage_estimator": "rloo"}),
        ("rlhf", ["--rlhf_type", "grpo", "--tau_neg", "1.1"], {"train.sapo_temperature_neg": 1.1}),
        (
            "rlhf",
            ["--rlhf_type", "grpo", "--external_plugins", "p.py", "--reward_funcs", '["mine", "accuracy"]'],
            {"rollout.reward_funcs": ["p.py:mine", "accuracy"]},
        ),
        (
            "rlhf",
            ["--rlhf_type", "grpo", "--external_plugins", "p.py", "--gym_env", "e", "--reward_funcs", "[]"],
            {"rollout.reward_funcs": []},
        ),
        ("sft", ["--dataset", '["a", "b"]', "--interleave_prob", "[0.3, 0.7]"], {"data.mix": {"a": 0.3, "b": 0.7}}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_flag_becomes_ours(verb: str, argv: list[str], expected: dict[str, Any]) -> None:
    config = resolve(verb, *argv).config
    assert {path: value_at(config, path) for path in expected} == expected


def test_a_system_prompt_may_be_a_text_file(tmp_path: Path) -> None:
    file = tmp_path / "system.txt"
    file.write_text("Be brief.\n", encoding="utf-8")
    assert resolve("sft", "--system", str(file)).config.data.system == "Be brief.\n"
    (line,) = problems("sft", "--system", str(tmp_path / "none.txt"))
    assert "none.txt" in line


@pytest.mark.parametrize(
    ("verb", "argv", "said"),
    [
        ("sft", ["--dataset_num_proc", "8"], "Ray Data"),
        ("sft", ["--dataloader_num_workers", "4"], "Ray Data feeds the workers"),
        ("sft", ["--load_from_cache_file", "true"], "encoded as they stream"),
        ("sft", ["--use_vllm", "true"], "vLLM"),
        ("sft", ["--temperature", "0.5"], "samples no completions"),
        ("rlhf", ["--max_completion_length", "64"], "dpo samples no completions"),
        ("sft", ["--ddp_backend", "nccl"], "Ray Train"),
        ("sft", ["--freeze_vit", "true"], "text only"),
        ("sft", ["--template", "qwen2_5"], "chat template"),
        ("rlhf", ["--rlhf_type", "grpo", "--vllm_server_port", "8001"], "no server to start"),
        ("rlhf", ["--rlhf_type", "ppo", "--beta", "0.1"], "kl_coef"),
        ("rlhf", ["--rlhf_type", "rm", "--task_type", "seq_cls"], "--rlhf_type sets"),
        ("rlhf", ["--rlhf_type", "grpo", "--sleep_level", "1"], "sleep while the trainer computes"),
    ],
)
def test_what_ray_owns_is_accepted_with_a_line(verb: str, argv: list[str], said: str) -> None:
    invocation = resolve(verb, *argv)
    rlhf_type = argv[:2] if argv[0] == "--rlhf_type" else []
    assert invocation.config == resolve(verb, *rlhf_type).config
    (line,) = [note for note in invocation.notes if note.startswith(argv[len(rlhf_type)])]
    assert "has no effect: " in line
    assert said in line


@pytest.mark.parametrize(
    ("verb", "argv", "said"),
    [
        ("sft", ["--tuner_type", "longlora"], "none of PEFT's tuners"),
        ("sft", ["--quant_method", "hqq"], "bitsandbytes"),
        ("sft", ["--quant_bits", "3"], "4 or 8"),
        ("sft", ["--hub_token", "x"], "secrets"),
        ("sft", ["--max_length", "512", "--packing_length", "1024"], "one length"),
        ("sft", ["--deepspeed", '{"a": 1}'], "file"),
        ("sft", ["--fsdp_config", "f.json"], "cluster.zero_stage 3"),
        ("sft", ["--optimizer", "muonclip"], "attention kernels do not return"),
        ("sft", ["--tuner_type", "llamapro", "--llamapro_num_groups", "2"], "one new block in each group"),
        ("sft", ["--interleave_prob", "0.5", "0.5"], "2 shares for the 1 sources"),
        (
            "rlhf",
            ["--rlhf_type", "grpo", "--reward_funcs", "format", "--multi_turn_scheduler", "thinking_tips_scheduler"],
            "a history of its own",
        ),
        ("rlhf", ["--rlhf_type", "grpo", "--reward_funcs", "format", "--chord_mu_peak", "0.9"], "not both"),
    ],
)
def test_a_refusal_names_flag_and_reason(verb: str, argv: list[str], said: str) -> None:
    (line,) = problems(verb, *argv)
    flag = [word for word in argv if word.startswith("--")][-1]
    assert line.startswith(f"{flag} is refused: ")
    assert said in line


def test_a_field_of_another_task_is_named() -> None:
    (line,) = problems("rlhf", "--rlhf_type", "dpo", "--simpo_gamma", "1.0")
    assert line == "train.simpo_gamma is not a field of task dpo; it belongs to cpo, simpo"


def test_one_line_says_what_was_translated() -> None:
    notes = resolve("sft", "--torch_dtype", "bfloat16", "--learning_rate", "1e-4", "--val_dataset", "v").notes
    assert notes[0] == "ms-swift's spelling: --val_dataset -> data.eval v; --torch_dtype -> model.dtype bfloat16"
    assert resolve("sft", "--learning_rate", "1e-4").notes == ()


def test_a_default_that_differs_much_is_said() -> None:
    said = "where ms-swift would train a LoRA"
    assert any(said in note for note in resolve("sft", "--torch_dtype", "float16").notes)
    assert not any(said in note for note in resolve("sft", "--torch_dtype", "float16", "--tuner_type", "full").notes)


def test_dotted_flags_are_ours_whatever_they_are_called() -> None:
    translation = translate([("data.max_length", ["5"]), ("cluster.deepspeed", ["zero2"])], "rlhf", "grpo", False)
    assert translation.flags == [("data.max_length", ["5"]), ("cluster.deepspeed", ["zero2"])]


@pytest.mark.parametrize(
    ("verb", "argv", "said"),
    [
        ("sft", ["--task_type", "seq_cls", "--label_names", "a", "b", "--num_labels", "3"], "label_names has 2 names"),
        ("sft", ["--label_names", "a", "b"], "task causal_lm has no classes"),
        ("sft", ["--quant_bits", "4", "--tuner_type", "full"], "set model.tuner lora"),
        ("sft", ["--tuner_type", "lora", "--model.tuner_kwargs", '{"r": 4}'], "is said by model.lora_rank"),
        ("sft", ["--tuner_type", "ia3", "--use_dora", "true"], "use_dora is unknown to the tuner ia3"),
        ("rlhf", ["--rlhf_type", "grpo"], "has no reward"),
        ("rlhf", ["--rlhf_type", "ppo"], "has no reward"),
        ("rlhf", ["--rlhf_type", "gkd"], "has no teacher"),
        (
            "rlhf",
            ["--rlhf_type", "grpo", "--reward_funcs", "a", "--reward_weights", "1", "2"],
            "2 weights for 1 reward",
        ),
        ("rlhf", ["--rlhf_type", "grpo", "--reward_funcs", "a", "--num_generations", "1"], "nothing to compare"),
        ("rlhf", ["--rollout.temperature", "0.5"], "task dpo samples no completions"),
    ],
)
def test_what_a_task_lacks_is_said(verb: str, argv: list[str], said: str) -> None:
    with pytest.raises(UserError) as caught:
        plan.resolve(resolve(verb, *argv).config, Layout(1, "cpu", 1, local=True), None)
    (line,) = str(caught.value).splitlines()
    assert said in line


def test_evaluation_without_rows_is_left_out_as_ms_swift_does(tmp_path: Path) -> None:
    invocation = resolve("sft", "--tuner_type", "lora", "--eval_strategy", "steps")
    assert invocation.config.train.eval_strategy is None
    assert any("no rows to evaluate on" in note for note in invocation.notes)
    file = tmp_path / "a.yaml"
    file.write_text("data: {eval: v.jsonl}", encoding="utf-8")
    for rows in (["--config", str(file)], ["--val_dataset", "v"], ["--eval_fraction", "0.1"]):
        config = resolve("sft", "--tuner_type", "lora", "--eval_strategy", "steps", *rows).config
        assert config.train.eval_strategy == "steps"
    assert resolve("sft", "--eval_strategy", "steps").config.train.eval_strategy == "steps"  # ours: an error later on


# ---- files ----


@pytest.mark.parametrize("suffix", ["yaml", "json"])
def test_a_flat_file_of_their_flags(tmp_path: Path, suffix: str) -> None:
    flat = {
        "model": "org/name",
        "dataset": ["a.jsonl#5", "b.jsonl"],
        "tuner_type": "lora",
        "learning_rate": 1e-4,
        "packing": False,
        "columns": {"q": "query"},
        "deepspeed": "zero3",
    }
    file = tmp_path / f"a.{suffix}"
    file.write_text(json.dumps(flat) if suffix == "json" else yaml.safe_dump(flat), encoding="utf-8")
    for argv in (["--config", str(file)], [str(file)], [str(file), "--learning_rate", "1e-4"]):
        config = load("sft", argv).config
        assert config.model.path == "org/name"
        assert config.data.dataset == ["a.jsonl#5", "b.jsonl"]
        assert (config.model.tuner, config.cluster.zero_stage, config.train.learning_rate) == ("lora", 3, 1e-4)
        assert (config.data.packing, config.data.columns) == (False, {"q": "query"})


def test_a_flat_file_may_hold_null_and_no_environment(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("model: m\ndataset: d\ngradient_accumulation_steps: null\nval_dataset:\n", encoding="utf-8")
    assert load("sft", [str(file)]).config == load("sft", ["--model", "m", "--dataset", "d"]).config
    file.write_text("model: m\ndataset: d\nENV: {MAX_PIXELS: 1}\n", encoding="utf-8")
    with pytest.raises(UserError, match="--ENV is refused: set environment variables in the shell"):
        load("sft", [str(file)])


def test_flags_win_over_a_flat_file(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("model: m\ndataset: d\ntorch_dtype: float16\nrlhf_type: kto\n", encoding="utf-8")
    config = load("rlhf", [str(file), "--torch_dtype", "bfloat16"]).config
    assert (config.model.dtype, config.train.task) == ("bfloat16", "kto")


# ---- running ----


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Any:
    def call(*argv: str) -> tuple[int, str, str]:
        code = cli._run(list(argv))
        captured = capfd.readouterr()
        return code, captured.out, captured.err

    yield call
    logger.handlers = []


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["rlhf", "--rlhf_type", "ppo", "--reward_funcs", "format", "--vllm_mode", "colocate"], "rollout.placement"),
        (["sft", "--optim", "adalomo"], "train.optim = adalomo (it steps within"),
        (
            ["sft", "--tuner_type", "lora", "--init_weights", "loftq"],
            "init_lora_weights = loftq (PEFT makes it on a GPU",
        ),
        (
            ["sft", "--tuner_type", "lora", "--init_weights", "loftq"],
            "init_lora_weights = loftq (PEFT makes it on a GPU",
        ),
        (["sft", "--tuner_type", "lora", "--model.tuner_kwargs", '{"use_dorra": true}'], "did you mean use_dora?"),
    ],
)
def test_what_is_not_built_is_refused_but_resolves(run: Any, argv: list[str], message: str) -> None:
    verb, *rest = argv
    code, _, err = run(verb, *NEEDED, *rest)
    assert code == 2
    assert f"error: {message}" in err or message in err
    code, out, _ = run(verb, *NEEDED, *rest, "--dry_run")
    if "did you mean" in message:
        assert code == 2
    else:
        assert code == 0
        assert "  not built     " in out


# ---- whole command lines ----


def command_lines() -> list[tuple[str, list[str], list[str], dict[str, str]]]:
    """Verb, argv, the flags that must be refused and the environment of each command in `swift_commands.txt`."""
    found = []
    for line in (HERE / "swift_commands.txt").read_text(encoding="utf-8").splitlines():
        if not line or line.startswith("#"):
            continue
        command, _, refused = line.partition(" refused: ")
        words = shlex.split(command)
        verb, *argv = words[words.index("swift") + 1 :]
        environ = dict(word.split("=", 1) for word in words[: words.index("swift")])
        argv = [str(REPO / word) if word.startswith("tests/") else word for word in argv]
        found.append((verb, argv, refused.split(), environ))
    return found


COMMANDS = command_lines()


@pytest.mark.parametrize(("verb", "argv", "refused", "environ"), COMMANDS, ids=lambda v: " ".join(v)[:60] if v else "")
def test_a_command_line_is_understood(
    verb: str, argv: list[str], refused: list[str], environ: dict[str, str], tmp_path: Path
) -> None:
    if not refused:
        config = load(verb, [*argv, "--dry_run"], environ).config
        layout = Layout(config.cluster.num_workers or 1, "cpu", 1, local=True)
        resolved = plan.resolve(config, layout, None).config
        (tmp_path / "resolved.yaml").write_text(to_yaml(resolved), encoding="utf-8")
        assert load(verb, ["--config", str(tmp_path / "resolved.yaml")]).config == resolved
        return
    with pytest.raises(UserError) as caught:
        load(verb, [*argv, "--dry_run"], environ)
    lines = str(caught.value).splitlines()
    named = [line for line in lines if line.startswith("--")]  # others say what the task lacks without them
    assert sorted(line.split()[0] for line in named) == sorted(f"--{name}" for name in refused)
    assert all(line.split(" is refused: ")[1:] for line in named), lines


def test_at_least_98_percent_of_flag_uses_are_understood() -> None:
    uses = [word for _, argv, *_ in COMMANDS for word in argv if word.startswith("--")]
    refused = [name for _, _, names, _ in COMMANDS for name in names]
    assert len(COMMANDS) >= 55
    assert {verb for verb, *_ in COMMANDS} == {"pt", "sft", "rlhf"}
    assert len(refused) <= 0.02 * len(uses), (len(refused), len(uses))


def test_a_dry_run_loads_neither_ray_nor_torch() -> None:
    code = (
        f"import sys; from rayswift import cli; assert cli._run({['sft', *NEEDED, '--dry_run']!r}) == 0;"
        "loaded = {m.split('.')[0] for m in sys.modules};"
        "print(loaded & {'ray', 'torch', 'transformers', 'trl', 'vllm'}, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.stderr.splitlines()[-1] == "set()", done.stderr
