"""Verbs of `swift` that do not train: flags of `infer` and `export`, and answers to the others."""

from collections.abc import Sequence
from typing import Any, get_args

from rayswift.config.swift.rules import DTYPES, ByValue, Flag, NoEffect, Refused, Rule, To, Translation, apply, for_all
from rayswift.config.train import RlhfTask

_CACHE = Refused("`rayswift data encode` writes encoded rows, for runs with data.cache")
_CONFIG_JSON = NoEffect("the model's config.json names its type")

INFER: dict[str, Rule] = {
    **for_all("adapters ckpt_dir model_id_or_path", To("infer.model")),
    "infer_backend": ByValue(
        {name: Refused("answers come from vLLM or transformers") for name in ("sglang", "lmdeploy")},
        To("infer.backend", {"pt": "transformers"}),
    ),
    "stream": NoEffect("an answer is printed when it is complete"),
    **for_all(
        "val_dataset val_dataset_sample result_path write_batch_size metric",
        Refused("questions are given with --prompt; rows are judged by evaluations while training (data.eval)"),
    ),
    "task_type": ByValue(
        {"causal_lm": NoEffect("answers are written")},
        Refused(
            "answers are written; the folder of embedding or reranker is loaded by sentence-transformers, that of "
            "seq_cls by transformers"
        ),
    ),
    **for_all("num_labels reranker_use_activation", Refused("answers are written, not scores")),
    **for_all("top_p top_k repetition_penalty num_beams", Refused("answers are sampled by infer.temperature alone")),
    "enable_thinking": Refused("the chat template renders prompts with its own defaults"),
    "load_data_args": NoEffect("questions are given with --prompt"),
    "load_args": NoEffect("a run's config.yaml names its base model and its template"),
    "merge_lora": NoEffect("an adapter is used as it is; `rayswift export --merge_lora` merges it"),
    "model_type": _CONFIG_JSON,
    "template": NoEffect("the tokenizer's chat template renders everything"),
    **for_all(
        "max_length max_batch_size max_model_len attn_impl torch_dtype gpu_memory_utilization tensor_parallel_size "
        "vllm_*",
        NoEffect("the answers are sampled by one engine with its own settings"),
    ),
}
EXPORT: dict[str, Rule] = {
    **for_all("adapters ckpt_dir model_id_or_path", To("export.model")),
    **for_all("to_cached_dataset dataset cached_dataset", _CACHE),
    "quant_*": Refused("models are not quantized on disk; model.quantization loads them in 8 or 4 bits"),
    "to_ollama": Refused("merge the adapter, and give its folder to `ollama create`"),
    "push_to_hub": Refused("train.push_to_hub uploads while training; `hf upload` takes the merged folder"),
    "hub_model_id": Refused("`hf upload` takes the merged folder"),
    "hub_token": Refused("secrets do not belong on a command line; log in with `hf auth login` or set HF_TOKEN"),
    "use_hf": NoEffect("hub ids are Hugging Face's"),
    "load_args": NoEffect("a run's config.yaml names its base model"),
    "model_type": _CONFIG_JSON,
    **for_all("task_type num_labels problem_type", NoEffect("the checkpoint names its task")),
    "safe_serialization": ByValue({"true": NoEffect("it is the only format")}, Refused("weights are safetensors")),
    "max_shard_size": NoEffect("files have the size that transformers gives them"),
    **for_all("to_mcore to_hf mcore_*", Refused("folders have the layout of transformers, and no other")),
    **for_all("torch_dtype dtype", To("export.dtype", DTYPES)),
}
_TABLES = {"infer": INFER, "export": EXPORT}

_SERVE = "serve a run's model with `vllm serve FOLDER`; an adapter is merged by `rayswift export --merge_lora`"
_MERGE = "`rayswift export --merge_lora --model CHECKPOINT`"
_PLAN = "`--dry_run` after a training command shows its plan"

# Other verbs, those of `swift` and of other trainers -> what to use here.
VERBS = {
    **dict.fromkeys(["deploy", "serve"], _SERVE),
    **dict.fromkeys(["merge", "merge-lora", "merge_lora"], _MERGE),
    **dict.fromkeys(["plan", "estimate"], _PLAN),
    **{task: f"`rayswift rlhf --rlhf_type {task}`" for task in get_args(RlhfTask)},
    "train": "train with `rayswift pt`, `sft` or `rlhf`",
    "rollout": "`rayswift rlhf` starts its engines itself; leave this command out",
    "eval": "there are no benchmarks here; evaluation rows are judged while training (data.eval), and lm-evaluation-"
    "harness or evalscope take the model's folder",
    "app": "serve a run's model with `vllm serve FOLDER`, and open any chat page on it",
    "web-ui": "`rayswift VERB --help all` lists every field",
}


def translate_other(flags: Sequence[Flag], verb: str) -> Translation:
    """Translate the flags of a verb without training; our own flags stay unchanged."""
    result, table = Translation(verb, ""), _TABLES.get(verb, {})
    names = {name for name, _ in flags}
    if "to_cached_dataset" in names and verb == "export":  # one error for the whole command
        apply(_CACHE, "to_cached_dataset", ["true"], result, {})
        result.flags += [(name, words) for name, words in flags if name in ("model", "output_dir")]
        return result
    entries: dict[str, Any] = {}
    for name, words in flags:
        rule = table.get(name) or next(
            (rule for known, rule in table.items() if known.endswith("*") and name.startswith(known[:-1])), None
        )
        if name == "model" and names & {"adapters", "ckpt_dir"}:
            apply(To(f"{verb}.base"), name, words, result, entries)
        elif rule is None or "." in name:
            result.flags.append((name, words))
        else:
            apply(rule, name, words or ["true"], result, entries)
    return result
