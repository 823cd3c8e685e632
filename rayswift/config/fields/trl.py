"""The fields of TRL's config classes, read from their source: importing them would load torch into the driver.

`train` accepts each of them under its TRL name, except those that Ray or another section replaces (`OWNED`).
"""

import ast
import importlib.util
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter

from rayswift.config.tasks import TASKS

# TRL fields that have the same meaning and values in another section: they are moved there.
MOVED = {
    "max_length": "data.max_length",
    "packing": "data.packing",
    "trust_remote_code": "model.trust_remote_code",
    "max_completion_length": "rollout.max_completion_length",
    "max_new_tokens": "rollout.max_completion_length",
    "num_generations": "rollout.num_generations",
    "num_generations_eval": "rollout.num_generations_eval",
    "temperature": "rollout.temperature",
    "top_p": "rollout.top_p",
    "top_k": "rollout.top_k",
    "min_p": "rollout.min_p",
    "repetition_penalty": "rollout.repetition_penalty",
    "chat_template_kwargs": "data.chat_template_kwargs",
    "reward_weights": "rollout.reward_weights",
    "teacher_model_name_or_path": "model.teacher",
}

# TRL name (a trailing * matches a prefix) -> what to use instead.
OWNED = {
    "eval_packing": "data.packing",
    "truncation_mode": "data.truncation",
    "shuffle_dataset": "data.shuffle",
    "assistant_only_loss": "data.loss_on",
    "completion_only_loss": "data.loss_on",
    "chat_template_path": "model.chat_template",
    "bf16": "model.dtype",
    "fp16": "model.dtype",
    "bf16_full_eval": "model.dtype",
    "fp16_full_eval": "model.dtype",
    "model_init_kwargs": "the fields of `model`",
    "deepspeed": "cluster.deepspeed",
    "fsdp*": "cluster.zero_stage",
    "ddp_*": "cluster (Ray Train starts the workers)",
    "local_rank": "cluster (Ray Train starts the workers)",
    "use_cpu": "cluster.device",
    "resume_from_checkpoint": "train.resume",
    "enable_jit_checkpoint": "train.save_steps (SIGTERM ends a run within seconds; --resume auto continues it)",
    "ignore_data_skip": "train.resume (the data position is part of every checkpoint)",
    "dataloader_*": "data and cluster.num_data_cpus (Ray Data feeds the workers)",
    "dataset_*": "data (Ray Data reads and encodes the rows)",
    "train_sampling_strategy": "data.packing and data.shuffle",
    "data_seed": "train.seed",
    "length_column_name": "data.packing",
    "remove_unused_columns": "data.columns",
    "padding_free": "data.packing",
    "pad_to_multiple_of": "data.packing",
    "auto_find_batch_size": "train.per_device_train_batch_size (the global batch is fixed at the first launch)",
    "accelerator_config": "cluster",
    "parallelism_config": "cluster",
    "generation_kwargs": "the sampling fields of `rollout`",
    "cache_implementation": "nothing: vLLM keeps the key-value cache",
    "use_transformers_*": "nothing: vLLM writes the completions",
    "transformers_continuous_batching_config": "nothing: vLLM writes the completions",
    "generate_during_eval": "`rayswift infer`",
    "ds3_gather_for_generation": "nothing: weights are gathered bucket by bucket",
    "max_tool_calling_iterations": "rollout.max_turns, which counts the first turn too",
    "log_completions*": "nothing: completions are always kept in the run folder",
    "log_unique_prompts": "nothing: completions are always kept in the run folder",
    "num_completions_to_print": "nothing: completions are always kept in the run folder",
    "log_multimodal": "nothing: text only",
    "is_encoder_decoder": "nothing: decoders only",
    "padding_value": "data.packing",
    "teacher_model_init_kwargs": "model.teacher",
    "use_vllm": "the rollout section of `rayswift rlhf`",
    "vllm_*": "the rollout section of `rayswift rlhf`",
    "logging_strategy": "train.logging_steps",
    "logging_nan_inf_filter": "nothing: a NaN loss is always shown",
    "disable_tqdm": "nothing: the driver draws the progress bar",
    "do_train": "the verb",
    "do_eval": "train.eval_strategy",
    "do_predict": "`rayswift infer`",
    "batch_eval_metrics": "nothing: evaluation sums its loss as it goes",
    "include_for_metrics": "nothing: evaluation sums its loss as it goes",
    "eval_accumulation_steps": "nothing: evaluation sums its loss as it goes",
    "save_on_each_node": "nothing: all ranks share the run folder",
    "restore_callback_states_from_checkpoint": "train.resume",
}


@dataclass(frozen=True)
class TrlField:
    """One field of a TRL config: its annotation as written, its default's source and its help."""

    annotation: str
    default: str
    help: str


@cache
def read_fields(task: str = "causal_lm") -> dict[str, TrlField]:
    """All fields of a task's config and its bases by name; a subclass overrides its base."""
    fields: dict[str, TrlField] = {}
    for source in TASKS[task].fields:
        fields |= read_class(*source)
    return fields


def tasks_with(name: str) -> list[str]:
    """The tasks whose config has this field."""
    return [task for task in TASKS if name in read_fields(task)]


@cache
def read_class(package: str, file: str, class_name: str) -> dict[str, TrlField]:
    """The fields of one dataclass, read from the source of its package."""
    spec = importlib.util.find_spec(package)
    assert spec is not None and spec.submodule_search_locations, f"{package} is a dependency"
    tree = ast.parse((Path(spec.submodule_search_locations[0]) / file).read_text(encoding="utf-8"))
    body = next(n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == class_name).body
    return {
        node.target.id: _field(node)
        for node in body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }


def _field(node: ast.AnnAssign) -> TrlField:
    default, help_text = "", ""
    if isinstance(node.value, ast.Call):
        for keyword in node.value.keywords:
            if keyword.arg == "default":
                default = ast.unparse(keyword.value)
            if keyword.arg == "default_factory" and isinstance(keyword.value, ast.Lambda):
                default = ast.unparse(keyword.value.body)
            if keyword.arg == "metadata" and isinstance(keyword.value, ast.Dict):
                for value in keyword.value.values:
                    if isinstance(value, ast.Constant):
                        help_text = str(value.value)
    elif node.value is not None:
        default = ast.unparse(node.value)
    return TrlField(ast.unparse(node.annotation), default, " ".join(help_text.split()))


def owner_of(name: str) -> str | None:
    """The replacement of a TRL field that RaySwift sets itself; None if the user sets the field."""
    for pattern, owner in (MOVED | OWNED).items():
        if name == pattern or (pattern.endswith("*") and name.startswith(pattern[:-1])):
            return owner
    return None


@cache
def type_of(annotation: str) -> TypeAdapter[Any]:
    """A validator for an annotation; `transformers` itself checks types that only it defines."""
    return TypeAdapter(python_type(annotation))


@cache
def python_type(annotation: str) -> Any:
    """The type of an annotation; Any if only `transformers` or `torch` defines it."""
    names = {
        "str": str,
        "int": int,
        "float": float,
        "bool": bool,
        "dict": dict,
        "list": list,
        "Any": Any,
        "Literal": Literal,
    }
    parsed = ast.parse(annotation, mode="eval")
    if any(isinstance(node, ast.Name) and node.id not in names for node in ast.walk(parsed)):
        return Any
    return eval(compile(parsed, "<annotation>", "eval"), {"__builtins__": {}}, names)
