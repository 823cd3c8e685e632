"""Translations that depend on several files and flags of a command, or on flags that are missing."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rayswift.config.swift import environment
from rayswift.config.swift.rules import Flag, Translation
from rayswift.config.tasks import ONLINE_TASKS

Tree = dict[str, Any]

_PROMPT = "rollout.max_prompt_length"
# Length of prompts without --max_length and vllm_max_model_len; ms-swift's limit is the model's.
_PROMPT_TOKENS = 2048
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
# Organisations that only ModelScope has.
_OF_MODELSCOPE = (
    "AI-ModelScope", "LLM-Research", "modelscope", "swift", "iic", "damo", "Xorbits", "DAMO_NLP",
    "Shanghai_AI_Laboratory", "ZhipuAI", "openai-mirror",
)  # fmt: skip


def complete(tree: Tree, written: Sequence[Flag], environ: Mapping[str, str], result: Translation) -> list[Flag]:
    """More flags that follow from the whole command; notes go to `result`.

    tree: the sections so far; written: the flags and the entries of flat files, before translation.
    """
    verb, task, words = result.verb, result.task, dict(written)
    given = {f"{section}.{name}" for section, fields in tree.items() if isinstance(fields, dict) for name in fields}
    flags = environment.read(environ, task, given, result)
    if not (result.renamed or flags):
        return flags
    if task in ONLINE_TASKS:
        flags += _prompt_room(tree, given, result)
        flags += _round(tree, words, result)
    if verb != "sample":  # it has no training
        _say_defaults(tree, verb, task, given, result)
    says_so = words["use_hf"] if "use_hf" in words else [environ.get("USE_HF", "0")]
    if says_so and says_so[0].lower() not in ("1", "true"):
        _say_hub(tree, result)
    return flags


def _prompt_room(tree: Tree, given: set[str], result: Translation) -> list[Flag]:
    """ms-swift's `max_length` is the length of a prompt, which must leave at least one token of the window."""
    rollout = _section(tree, "rollout")
    window = _count(rollout.get("max_model_len"))
    if _PROMPT in given:
        length = _count(rollout["max_prompt_length"])
        if window is None or length is None or length < window:
            return []
        why = f"a prompt leaves the window of {window} tokens at least one for its completion"
    elif "data.max_length" in given:
        return []
    else:
        why = "no --max_length says how long a prompt may be"
    room = str(_PROMPT_TOKENS if window is None else max(1, window - 1))
    result.renamed.append(f"{_PROMPT} {room} ({why})")
    return [(_PROMPT, [room])]


def _round(tree: Tree, words: Mapping[str, list[str]], result: Translation) -> list[Flag]:
    """ms-swift counts the steps of a round in micro-batches, we in optimizer steps."""
    train = _section(tree, "train")
    batches = _count(train.get("steps_per_generation"))
    if "steps_per_generation" not in words or batches is None:
        return []
    steps = -(-batches // (_count(train.get("gradient_accumulation_steps")) or 1))
    if steps == batches:
        return []
    result.renamed.append(f"--steps_per_generation {batches} micro-batches -> train.steps_per_generation {steps}")
    return [("train.steps_per_generation", [str(steps)])]


def _say_defaults(tree: Tree, verb: str, task: str, given: set[str], result: Translation) -> None:
    """A note with the flags for ms-swift's defaults, if they differ from ours and are not given."""
    lora = _section(tree, "model").get("tuner", "full") != "full"
    if "model.tuner" not in given:
        result.notes.append("model.tuner is not set: all weights are trained, where ms-swift would train a LoRA")
    theirs = {
        "data.packing": "--packing false",
        "train.per_device_train_batch_size": "--per_device_train_batch_size 1",
        "train.per_device_eval_batch_size": "--per_device_eval_batch_size 1",
        "train.learning_rate": f"--learning_rate {'1e-4' if lora else '1e-5'}",
        "train.lr_scheduler_type": "--lr_scheduler_type cosine",
        "train.weight_decay": "--weight_decay 0.1",
        "train.adam_beta2": "--adam_beta2 0.95",
        "train.logging_steps": "--logging_steps 5",
    }
    if task in ONLINE_TASKS:
        del theirs["data.packing"]
        theirs |= {"data.truncation": "--truncation_strategy left", "rollout.temperature": "--temperature 0.9"}
    elif verb == "rlhf" or task != "causal_lm":
        del theirs["data.packing"]
    if task == "grpo":
        theirs |= {
            "train.beta": "--beta 0.04",
            "train.loss_type": "--loss_type grpo",
            "rollout.importance_sampling": "--rollout.importance_sampling none",
        }
    if task == "ppo":
        theirs["train.critic"] = "--train.critic separate"
    if task == "embedding":
        theirs["train.infonce_temperature"] = "--infonce_temperature 0.1"
    if verb == "sft" and task == "causal_lm" and "data.loss_scale" not in given:
        theirs["data.ignore_empty_think"] = "--ignore_empty_think true"  # of models that may think
    if lora and verb == "sft":  # the same default in ms-swift
        del theirs["train.learning_rate"]
    missing = [flag for path, flag in theirs.items() if path not in given]
    if not given & {"train.gradient_accumulation_steps", "train.global_batch_size"}:
        missing.append("--global_batch_size 16")
    more = "" if given & {"data.max_length", _PROMPT} or task in ONLINE_TASKS else "; --max_length is the model's there"
    if missing or more:
        result.notes.append(f"defaults are not ms-swift's; these flags bring its own back: {' '.join(missing)}{more}")


def _say_hub(tree: Tree, result: Translation) -> None:
    """Notes on hub ids: ms-swift's default hub is ModelScope's, ours is Hugging Face's."""
    ids: list[str] = []
    foreign: list[str] = []
    for section, names in (("model", ("path", "reference", "teacher")), ("data", ("dataset", "eval"))):
        for name in names:
            written = _section(tree, section).get(name)
            for word in written if isinstance(written, list) else [written]:
                if not isinstance(word, str):
                    continue
                hub_id = re.split(r"[:#]", word)[0]
                if _HUB_ID.fullmatch(hub_id) and not Path(hub_id).exists():
                    (foreign if hub_id.split("/")[0] in _OF_MODELSCOPE else ids).append(hub_id)
    if foreign:
        result.notes.append(
            f"{', '.join(dict.fromkeys(foreign))}: an id of ModelScope, and hub ids are Hugging Face's here; name its "
            "id there, or fetch it with `modelscope download` and name the folder"
        )
    if ids:
        result.notes.append(
            f"{', '.join(dict.fromkeys(ids))}: taken from Hugging Face's hub, where ms-swift asks ModelScope's "
            "(--use_hf true hides this note)"
        )


def _section(tree: Tree, name: str) -> Tree:
    section = tree.get(name)
    return section if isinstance(section, dict) else {}


def _count(written: Any) -> int | None:
    return int(written) if isinstance(written, str | int) and str(written).isdigit() else None
