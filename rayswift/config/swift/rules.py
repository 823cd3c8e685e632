"""What one of ms-swift's flags can mean here, and what is found out about a whole command line."""

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
    """Our field under another name; words found in `values` are translated, others pass as they are."""

    path: str
    values: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Into:
    """One entry of a field that holds a dict: `path[key] = word`, keys from the outside inwards, values as in `To`."""

    path: str
    keys: tuple[str, ...]
    values: Mapping[str, str] = field(default_factory=dict)
    is_list: bool = False


@dataclass(frozen=True)
class NoEffect:
    """Accepted, and one line says why it changes nothing."""

    why: str


@dataclass(frozen=True)
class Refused:
    """An error with the reason, and what to do instead."""

    why: str


@dataclass(frozen=True)
class ByValue:
    """A rule for each of some values (in lower case); `otherwise` for all others."""

    cases: Mapping[str, "Rule"]
    otherwise: "Rule"


Rule = To | Into | NoEffect | Refused | ByValue


def off_only(why_off: str, why_refused: str) -> ByValue:
    """A switch that may be off, and is refused when on."""
    off = NoEffect(why_off)
    return ByValue({"false": off, "0": off, "0.0": off, "1": off, "none": off, "no": off}, Refused(why_refused))


@dataclass
class Translation:
    """What became of the flags: ours, what to say about the others, and problems."""

    verb: str
    task: str
    flags: list[Flag] = field(default_factory=list)
    renamed: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    problems_of_a_start: list[str] = field(default_factory=list)
    """Why the run is not to be started here; what it resolves to can be looked at all the same."""

    @property
    def samples(self) -> bool:
        """Whether the run samples completions, so that section `rollout` has a meaning."""
        return self.verb in ("rlhf", "sample") and self.task in ONLINE_TASKS

    def add(self, other: "Translation") -> list[Flag]:
        """Take over what was said of further flags; their own flags come back."""
        self.renamed += other.renamed
        self.notes += other.notes
        self.problems += other.problems
        return other.flags

    def rename(self, name: str, path: str, words: Sequence[str]) -> None:
        """`--name` stands for `path`."""
        if path.startswith("rollout.") and not self.samples:
            self.no_effect(name, f"{self.task} samples no completions")
            return
        self.flags.append((path, list(words)))
        if path.split(".")[1] != name:
            self.renamed.append(f"--{name} -> {path} {' '.join(words)}".rstrip())

    def no_effect(self, name: str, why: str) -> None:
        """`--name` changes nothing."""
        self.notes.append(f"--{name} has no effect: {why}")

    def refuse(self, name: str, why: str) -> None:
        """`--name` is an error."""
        self.problems.append(f"--{name} is refused: {why}")


def plain(word: str) -> Any:
    """A word as the number, boolean, null or JSON it spells, else as it is."""
    try:
        return json.loads(word)
    except json.JSONDecodeError:
        return values.plain(word)
