"""Flags of ms-swift that are read together, or whose value sets several fields."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rayswift.config.reading.values import home
from rayswift.config.swift.rules import Translation, plain
from rayswift.config.tasks import ONLINE_TASKS

Given = dict[str, list[str]]

_TUNER = {"tuner_type", "train_type", "sft_type"}
_NOT_TUNERS = {
    "reft": "none of PEFT's tuners: it changes states of a few positions, which no merged weights and no engine can do",
    **dict.fromkeys(("longlora", "adapter", "lora_llm", "unsloth", "dummy"), "none of PEFT's tuners"),
}
_LOSS_ON = {"default": "assistant", "last_round": "last_turn", "all": "all"}
_BUILT_IN_REWARDS = {"accuracy", "format", "cosine", "repetition", "soft_overlong", "tag_count"}
_SFT_LOSSES = {
    "cross_entropy": "nll",
    "loss_scale": "nll",
    "channel_loss": "nll",
    "pointwise_reranker": "pointwise",
    "reranker": "pointwise",
    "generative_reranker": "pointwise",
    "listwise_reranker": "listwise",
    "listwise_generative_reranker": "listwise",
}
_BUILT_IN_CALLBACKS = {
    "deepspeed_elastic": "cluster.num_workers decides whether a run is elastic",
    "graceful_exit": "a run that is ended continues with train.resume auto",
    "perf_log": "throughput is always logged",
    "adalora": "model.tuner adalora brings its callback",
    "early_stop": "--early_stop_interval turns it on",
}


def _system(given: Given, result: Translation) -> None:
    word = given["system"][0]
    if not word.endswith(".txt"):
        result.flags.append(("data.system", given["system"]))
        return
    try:
        text = Path(home(word)).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        result.problems.append(f"--system {word}: {error}; give the system prompt, or a .txt file that holds it")
        return
    result.flags.append(("data.system", [text]))
    result.renamed.append(f"--system {word} -> its text as data.system")


def _loss_scale(given: Given, result: Translation) -> None:
    word = given["loss_scale"][0].replace("last_round_with_ignore_empty_think", "last_round+ignore_empty_think")
    first, *rest = word.split("+")
    if first in _LOSS_ON:
        result.rename("loss_scale", "data.loss_on", [_LOSS_ON[first]])
    else:
        rest = [first, *rest]
    if rest:
        result.rename("loss_scale", "data.loss_scale", rest)


def _deepspeed(given: Given, result: Translation) -> None:
    word = given["deepspeed"][0]
    preset = re.fullmatch(r"(?:default-)?zero([0-3])([_-]offload)?", word)
    if word.startswith("{"):
        result.refuse("deepspeed", "write the JSON into a file and give its path")
    elif preset:
        stage, offload = preset.groups()
        result.rename("deepspeed", "cluster.zero_stage", [stage])
        if offload:
            result.rename("deepspeed", "cluster.offload", ["all" if stage == "3" else "optimizer"])
    else:
        result.flags.append(("cluster.deepspeed", [word]))


def _tuner(given: Given, result: Translation) -> None:
    for name in (one for one in given if one in _TUNER):  # as written: the last one counts
        word = given[name][0]
        if word in _NOT_TUNERS:
            result.refuse(name, f"{word} is {_NOT_TUNERS[word]}; model.tuner lora is the closest")
        elif word == "llamapro":
            blocks = given.get("llamapro_num_new_blocks", ["4"])
            if given.get("llamapro_num_groups", blocks) != blocks:
                result.refuse("llamapro_num_groups", "there is one new block in each group; leave it out")
            result.rename(name, "model.tuner", ["full"])
            return result.rename("llamapro_num_new_blocks", "model.new_blocks", blocks)
        else:
            result.rename(name, "model.tuner", [{"bone": "miss"}.get(word, word)])
    for name in (one for one in given if one not in _TUNER):
        result.no_effect(name, "it is of tuner llamapro")


def _quantization(given: Given, result: Translation) -> None:
    method, bits = given.get("quant_method", ["bnb"])[0], given.get("quant_bits", ["4"])[0]
    if method.lower() not in ("bnb", "bitsandbytes"):
        result.refuse("quant_method", f"{method}: weights are quantized by bitsandbytes (bnb) only")
    elif bits in ("0", "none", "None"):
        result.no_effect("quant_bits", "weights are not quantized")
    elif bits == "8":
        result.rename("quant_bits", "model.quantization", ["int8"])
    elif bits == "4":
        result.rename("quant_bits", "model.quantization", [given.get("bnb_4bit_quant_type", ["nf4"])[0]])
    else:
        result.refuse("quant_bits", f"{bits}: bitsandbytes quantizes to 4 or 8 bits")


def _rope(given: Given, result: Translation) -> None:
    word = given["rope_scaling"][0]
    scaling: Any = plain(word)
    if isinstance(scaling, dict):
        if "type" in scaling:
            scaling["rope_type"] = scaling.pop("type")
    else:
        scaling = {"rope_type": word}
    result.rename("rope_scaling", "model.rope_scaling", [json.dumps(scaling)])


def _freeze(names: str, pattern: str, path: str) -> Callable[[Given, Translation], None]:
    def read(given: Given, result: Translation) -> None:
        parts = [re.escape(name) for name in given.get(names, [])]
        parts += [f".*?(?:{word})" for word in given.get(pattern, [])]  # ms-swift searches the whole name
        result.rename(" --".join(given), path, ["|".join(parts)])

    return read


def _galore(given: Given, result: Translation) -> None:
    if given.get("use_galore", ["false"])[0].lower() != "true":
        return result.no_effect(" --".join(given), "use_galore is off")
    for name in given:
        if name.removeprefix("galore_") in _Q_GALORE and given[name][0].lower() != "false":
            result.no_effect(name, "GaLore's projections and weights are not quantized, which takes more memory")
    layerwise = given.get("galore_optim_per_parameter", ["false"])[0].lower() == "true"
    result.rename("use_galore", "train.optim", ["galore_adamw_layerwise" if layerwise else "galore_adamw"])
    result.rename("use_galore", "train.optim_target_modules", given.get("galore_target_modules", ["attn", "mlp"]))
    args = {
        n: given[f"galore_{n}"][0] for n in ("rank", "update_proj_gap", "scale", "proj_type") if f"galore_{n}" in given
    }
    if args:
        result.rename("galore_*", "train.optim_args", [",".join(f"{key}={value}" for key, value in args.items())])
    if given.get("galore_with_embedding", ["false"])[0].lower() == "true":
        result.refuse("galore_with_embedding", "add the embedding's name to train.optim_target_modules")


def _max_length(given: Given, result: Translation) -> None:
    if "packing_length" in given:
        if given.get("max_length", given["packing_length"]) != given["packing_length"]:
            return result.refuse("packing_length", "rows are packed to data.max_length; give one length for both")
        return result.rename("packing_length", "data.max_length", given["packing_length"])
    if result.task in ONLINE_TASKS:  # for this verb it is the length of a prompt
        result.rename("max_length", "rollout.max_prompt_length", given["max_length"])
    else:
        result.flags.append(("data.max_length", given["max_length"]))


def _task_type(given: Given, result: Translation) -> None:
    if result.verb == "rlhf":
        result.no_effect("task_type", "--rlhf_type sets the task")
    else:
        result.rename("task_type", "train.task", given["task_type"])


def _beta(given: Given, result: Translation) -> None:
    if result.task == "ppo":
        result.no_effect("beta", "task ppo weighs its KL by --kl_coef")
    elif result.task == "rm":
        result.no_effect("beta", "task rm has no reference model")
    else:
        result.flags.append(("beta", given["beta"]))


def _evaluation_rows(given: Given, result: Translation) -> None:
    rows = [*given.get("val_dataset", []), *given.get("cached_val_dataset", [])]
    if rows:
        result.rename("val_dataset" if "val_dataset" in given else "cached_val_dataset", "data.eval", rows)
        if "split_dataset_ratio" in given:
            result.no_effect("split_dataset_ratio", "--val_dataset brings the evaluation rows")
    else:
        result.rename("split_dataset_ratio", "data.eval_fraction", given["split_dataset_ratio"])


def _training_rows(given: Given, result: Translation) -> None:
    sources = [re.sub("^(hf|HF)::", "", source) for source in given.get("dataset", [])]
    for source in sources:
        if source.lower().startswith("ms::"):
            result.refuse("dataset", f"{source} is ModelScope's; hub ids are Hugging Face's: fetch it, name its folder")
    if "cached_dataset" in given:  # rows with their lengths beside them, saved by `datasets`
        sources = [*sources, *given["cached_dataset"]]
        result.rename("cached_dataset", "data.dataset", sources)
    elif sources:
        result.flags.append(("data.dataset", sources))
    shares = given.get("interleave_prob", [])
    if not shares:
        if "stopping_strategy" in given:
            result.no_effect("stopping_strategy", "without --interleave_prob the sources follow each other")
    elif len(shares) != len(sources):
        result.refuse("interleave_prob", f"it has {len(shares)} shares for the {len(sources)} sources of --dataset")
    else:
        mix = {source: plain(share) for source, share in zip(sources, shares, strict=True)}
        result.rename("interleave_prob", "data.mix", [json.dumps(mix)])
        result.rename("stopping_strategy", "data.mix_until", given.get("stopping_strategy", ["first_exhausted"]))


def _length_of_the_run(given: Given, result: Translation) -> None:
    if "max_steps" in given:
        result.flags.append(("train.max_steps", given["max_steps"]))
    if "max_epochs" not in given:
        return
    if given.get("max_steps", ["-1"])[0] in ("-1", "0"):
        result.rename("max_epochs", "train.num_train_epochs", given["max_epochs"])
        inner = {"ppo": "train.num_ppo_epochs", "gkd": ""}.get(result.task, "train.num_iterations")
        if result.samples and inner and result.verb == "rlhf":
            result.notes.append(f"--max_epochs counts passes over the prompts; OpenRLHF's, over a round, are {inner}")
    else:
        result.no_effect("max_epochs", "train.max_steps ends the run")


def _rewards(given: Given, result: Translation) -> None:
    plugins = [*given.get("external_plugins", []), *given.get("custom_register_path", [])]
    if plugins:
        result.rename("external_plugins", "train.plugins", plugins)
    for name, path, built_in in (
        ("reward_funcs", "rollout.reward_funcs", _BUILT_IN_REWARDS),
        ("reward_model_plugin", "rollout.reward_model_plugins", {"default", "genrm"}),
    ):
        if name in given:  # a name that a plugin registers is a function or class of its file here
            is_own = [len(plugins) == 1 and ":" not in word and word not in {"[]", *built_in} for word in given[name]]
            words = zip(given[name], is_own, strict=True)
            result.rename(name, path, [f"{plugins[0]}:{word}" if own else word for word, own in words])


def _turns(given: Given, result: Translation) -> None:
    """Several turns: a scheduler of a plugin, or the environment that its scheduler runs."""
    scheduler = given.get("multi_turn_scheduler", ["none"])[0]
    env = given.get("gym_env", [""])[0]
    plays_env = given.get("use_gym_env", [str(bool(env))])[0].lower() in ("true", "1", "yes")
    if scheduler in _REPLACED_SCHEDULERS:
        return result.refuse("multi_turn_scheduler", f"{scheduler}: {_REPLACED_SCHEDULERS[scheduler]}")
    if scheduler in ("none", "gym_scheduler") and (plays_env or scheduler == "gym_scheduler"):
        flag = next(name for name in ("gym_env", "multi_turn_scheduler", "use_gym_env") if name in given)
        result.rename(flag, "rollout.environment", [f"swift_env:{env}" if env else "swift_env"])
    elif scheduler != "none":
        result.rename("multi_turn_scheduler", "rollout.environment", [f"swift_scheduler:{scheduler}"])
    elif "use_gym_env" in given:
        return result.no_effect("use_gym_env", "no environment answers")
    else:
        return
    scope = given.get("completion_length_limit_scope", ["per_round"])
    result.rename("completion_length_limit_scope", "rollout.completion_length_limit_scope", scope)


def _callbacks(given: Given, result: Translation) -> None:
    if own := [word for word in given["callbacks"] if ":" in word]:
        result.flags.append(("train.callbacks", own))
    for word in dict.fromkeys(word for word in given["callbacks"] if word not in own):
        if word in _BUILT_IN_CALLBACKS:
            result.no_effect(f"callbacks {word}", _BUILT_IN_CALLBACKS[word])
        elif word == "activation_cpu_offload":
            result.rename("callbacks activation_cpu_offload", "train.activation_offloading", ["true"])
        else:
            result.refuse(f"callbacks {word}", "give a callback of your own as module:name or file.py:name")


def _metrics(given: Given, result: Translation) -> None:
    for name, words in given.items():
        if own := [word for word in words if ":" in word]:
            result.rename(name, "train.metrics", own)
        else:
            result.no_effect(name, "each task has its metrics; train.metrics adds your own, as file.py:name")


def _ratio(given: Given, result: Translation) -> None:
    """GSPO-token (arXiv 2507.18071) is GSPO if all tokens of a completion have one advantage, as in ms-swift."""
    for name, (word, *_) in given.items():
        result.flags.append((f"train.{name}", [word.removesuffix("_token")]))
        if word == "sequence_token":
            result.renamed.append(f"--{name} sequence_token -> train.{name} sequence, which has the same gradient")


def _loss(given: Given, result: Translation) -> None:
    """Loss types; in DPO the RPO term is the loss `sft` with a weight."""
    losses = given.get("loss_type", [])
    alpha = given.get("rpo_alpha", ["none"])[0]
    if result.verb != "rlhf" and losses:
        result.flags.append(("train.loss_type", [_SFT_LOSSES.get(word, word) for word in losses]))
    elif result.task == "dpo" and alpha.lower() not in ("none", "null", "0", "0.0"):
        losses = losses or ["sigmoid"]
        weights = given.get("loss_weights", ["1.0"] * len(losses))
        result.rename("rpo_alpha", "train.loss_type", [*losses, "sft"])
        result.rename("rpo_alpha", "train.loss_weights", [json.dumps([plain(w) for w in [*weights, alpha]])])
        return
    elif losses:
        result.flags.append(("train.loss_type", losses))
    if "loss_weights" in given:
        result.flags.append(("train.loss_weights", [json.dumps([plain(w) for w in given["loss_weights"]])]))
    if "rpo_alpha" in given:
        result.no_effect("rpo_alpha", "it adds no term" if result.task == "dpo" else "it is a term of task dpo")


_REPLACED_SCHEDULERS = {
    "thinking_tips_scheduler": "it trains each turn with a history of its own; give a scheduler that puts the "
    "tip in a message",
    "openenv_scheduler": "its environments are played by rollout.environment: set it to openenv:URL",
}


def _seq_kd(given: Given, result: Translation) -> None:
    if given["seq_kd"][0].lower() not in ("true", "1"):
        return result.no_effect("seq_kd", "the teacher writes no answers")
    result.flags.append(("train.seq_kd", ["true"]))
    result.rename("seq_kd", "rollout.teacher_engines", ["1"])  # which write them


_GALORE = ("target_modules", "rank", "update_proj_gap", "scale", "proj_type", "optim_per_parameter", "with_embedding")
_Q_GALORE = ("quantization", "proj_quant", "proj_bits", "proj_group_size", "cos_threshold", "gamma_proj", "queue_size")

COMBINED: dict[tuple[str, ...], Callable[[Given, Translation], None]] = {
    ("system",): _system,
    ("task_type",): _task_type,
    ("loss_scale",): _loss_scale,
    ("deepspeed",): _deepspeed,
    ("tuner_type", "train_type", "sft_type", "llamapro_num_new_blocks", "llamapro_num_groups"): _tuner,
    ("quant_method", "quant_bits", "bnb_4bit_quant_type"): _quantization,
    ("rope_scaling",): _rope,
    ("freeze_parameters", "freeze_parameters_regex"): _freeze(
        "freeze_parameters", "freeze_parameters_regex", "model.freeze"
    ),
    ("trainable_parameters", "trainable_parameters_regex"): _freeze(
        "trainable_parameters", "trainable_parameters_regex", "model.unfreeze"
    ),
    ("use_galore", *(f"galore_{name}" for name in (*_GALORE, *_Q_GALORE))): _galore,
    ("max_length", "packing_length"): _max_length,
    ("beta",): _beta,
    ("seq_kd",): _seq_kd,
    ("val_dataset", "cached_val_dataset", "split_dataset_ratio"): _evaluation_rows,
    ("dataset", "cached_dataset", "interleave_prob", "stopping_strategy"): _training_rows,
    ("max_steps", "max_epochs"): _length_of_the_run,
    ("external_plugins", "custom_register_path", "reward_funcs", "reward_model_plugin"): _rewards,
    ("multi_turn_scheduler", "gym_env", "use_gym_env", "completion_length_limit_scope"): _turns,
    ("callbacks",): _callbacks,
    ("eval_metric", "metric"): _metrics,
    ("importance_sampling_level",): _ratio,
    ("loss_type", "rpo_alpha", "loss_weights"): _loss,
}
