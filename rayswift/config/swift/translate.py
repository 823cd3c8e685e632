"""Translate a command line: first the flags that are read together, then each other flag by its rule."""

import json
from collections.abc import Sequence
from typing import Any

from rayswift.config.rollout import RolloutConfig
from rayswift.config.schema import DataConfig
from rayswift.config.swift.combined_flags import COMBINED
from rayswift.config.swift.rules import Flag, Rule, Translation, apply, plain
from rayswift.config.swift.table_data import DATA
from rayswift.config.swift.table_model import MODEL
from rayswift.config.swift.table_rollout import ROLLOUT
from rayswift.config.swift.table_train import TRAIN

TABLE: dict[str, Rule] = MODEL | DATA | TRAIN | ROLLOUT
_PATTERNS = {name[:-1]: rule for name, rule in TABLE.items() if name.endswith("*")}


def translate(flags: Sequence[Flag], verb: str, task: str, has_eval_rows: bool) -> Translation:
    """Translate ms-swift's flags into ours; a name with a dot is ours already.

    has_eval_rows: whether the command line or its files name evaluation rows.
    """
    result = Translation(verb, task)
    bare: dict[str, list[str]] = {}
    for name, words in flags:
        if "." in name:
            continue
        if knows(name):
            bare[name] = words or ["true"]
        elif name in RolloutConfig.model_fields and name not in DataConfig.model_fields and not result.samples:
            result.no_effect(name, f"{task} samples no completions")
        else:
            result.flags.append((name, words))
    for names, read in COMBINED.items():
        given = {name: _listed(words) for name, words in bare.items() if name in names}
        for name in given:
            del bare[name]
        if given:
            read(given, result)
    entries: dict[str, Any] = {}
    for name, words in bare.items():
        apply(rule_of(name), name, words, result, entries)
    result.flags += [(name, words) for name, words in flags if "." in name]  # ours come last, so they win
    for path, value in entries.items():
        result.flags = _with_entries(result.flags, path, value)
    if result.renamed and not has_eval_rows:
        _leave_out_evaluation(result)
    return result


def _listed(words: list[str]) -> list[str]:
    """The words of a flag, also if they are written as one list in JSON; an empty list stays as it is written."""
    found = plain(words[0]) if len(words) == 1 and words[0].startswith("[") else None
    if not isinstance(found, list) or not found or any(isinstance(word, list | dict) for word in found):
        return words
    return [str(word) for word in found]


def _with_entries(flags: Sequence[Flag], path: str, entries: dict[str, Any]) -> list[Flag]:
    """The flags with entries of a dict field, beside those of flags that give the whole dict."""
    others = list[Flag]()
    for name, words in flags:
        given = plain(" ".join(words)) if name in (path, path.partition(".")[2]) else None
        if isinstance(given, dict):
            entries = _merged(entries, given)
        else:
            others.append((name, words))
    return [(path, [json.dumps(entries)]), *others]


def _merged(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    both = {
        k: _merged(before[k], v) for k, v in after.items() if isinstance(v, dict) and isinstance(before.get(k), dict)
    }
    return before | after | both


def _leave_out_evaluation(result: Translation) -> None:
    """Drop `eval_strategy` without evaluation rows: ms-swift ignores it then, for us it is an error."""
    for name, words in list(result.flags):
        if name in ("eval_strategy", "train.eval_strategy") and words != ["no"]:
            result.flags.remove((name, words))
            result.no_effect("eval_strategy", "there are no rows to evaluate on (--val_dataset, --split_dataset_ratio)")


def knows(name: str) -> bool:
    """Whether a flag is translated."""
    return rule_of(name) is not None or any(name in names for names in COMBINED)


def rule_of(name: str) -> Rule | None:
    if name in TABLE:
        return TABLE[name]
    return next((rule for prefix, rule in _PATTERNS.items() if name.startswith(prefix)), None)
