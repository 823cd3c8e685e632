"""The rules for ms-swift's flags, and the result of a translation."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rayswift.config.reading import values
from rayswift.config.tasks import ONLINE_TASKS

# `--name w1 w2` as (name, words); a name with a dot is ours already.
Flag = tuple[str, list[str]]


@dataclass(frozen=True)
class To:
    """Our field under another name; words in `values` are translated, others stay as they are."""

    path: str
    values: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Into:
    """An entry of a dict field: `path[key][...] = word`; values as in `To`."""

    path: str
    keys: tuple[str, ...]
    values: Mapping[str, str] = field(default_factory=dict)
    is_list: bool = False


@dataclass(frozen=True)
class NoEffect:
    """Accepted; a line says why it has no effect."""

    why: str


@dataclass(frozen=True)
class Refused:
    """An error that says what to do instead."""

    why: str


@dataclass(frozen=True)
class ByValue:
    """A rule for each value (in lower case), and one for all others."""

    cases: Mapping[str, "Rule"]
    otherwise: "Rule"


DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
"""ms-swift's short names of number formats."""

Rule = To | Into | NoEffect | Refused | ByValue


def for_all(names: str, rule: Rule) -> dict[str, Rule]:
    """One rule for several flags, separated by spaces."""
    return dict.fromkeys(names.split(), rule)


def off_only(why_off: str, why_refused: str) -> ByValue:
    """A switch that may be off; it is refused if it is on."""
    off = NoEffect(why_off)
    return ByValue({"false": off, "0": off, "0.0": off, "1": off, "none": off, "no": off}, Refused(why_refused))


@dataclass
class Translation:
    """The translated flags, with notes and problems."""

    verb: str
    task: str
    flags: list[Flag] = field(default_factory=list)
    renamed: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    problems_of_a_start: list[str] = field(default_factory=list)
    """Problems of a start that do not concern a dry run."""

    @property
    def samples(self) -> bool:
        """Whether the run samples completions, so that section `rollout` is used."""
        return self.verb in ("rlhf", "sample") and self.task in ONLINE_TASKS

    def add(self, other: "Translation") -> list[Flag]:
        """Take over the notes and problems of another translation, and return its flags."""
        self.renamed += other.renamed
        self.notes += other.notes
        self.problems += other.problems
        return other.flags

    def rename(self, name: str, path: str, words: Sequence[str]) -> None:
        if path.startswith("rollout.") and not self.samples:
            self.no_effect(name, f"{self.task} samples no completions")
            return
        self.flags.append((path, list(words)))
        if path.split(".")[1] != name:
            self.renamed.append(f"--{name} -> {path} {' '.join(words)}".rstrip())

    def no_effect(self, name: str, why: str) -> None:
        self.notes.append(f"--{name} has no effect: {why}")

    def refuse(self, name: str, why: str) -> None:
        self.problems.append(f"--{name} is refused: {why}")


def plain(word: str) -> Any:
    """The number, boolean, null or JSON value of a word, else the word."""
    try:
        return json.loads(word)
    except json.JSONDecodeError:
        return values.plain(word)


def apply(rule: Rule | None, name: str, words: list[str], result: Translation, entries: dict[str, Any]) -> None:
    """Apply a rule to a flag: to `result`, or to `entries` for entries of a dict field."""
    match rule:
        case ByValue(cases, otherwise):
            apply(cases.get(words[0].lower(), otherwise), name, words, result, entries)
        case To(path, values):
            by_lower = {word.lower(): ours for word, ours in values.items()}
            result.rename(name, path, [by_lower.get(word.lower(), word) for word in words])
        case Into(path) if path.startswith("rollout.") and not result.samples:
            result.rename(name, path, words)  # notes that it has no effect
        case Into(path, keys, values, is_list):
            inner = entries.setdefault(path, {})
            for key in keys[:-1]:
                inner = inner.setdefault(key, {})
            ours = [plain(values.get(word, word)) for word in words]
            inner[keys[-1]] = ours if is_list else ours[0]
            result.renamed.append(f"--{name} -> {path}.{'.'.join(keys)} {' '.join(words)}")
        case NoEffect(why):
            result.no_effect(name, why)
        case Refused(why):
            result.refuse(name, why)
