"""A command line and its config files, parsed but not interpreted: flags with their words, trees of sections."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from rayswift.config import swift
from rayswift.config.reading import other_names, yaml_text
from rayswift.config.reading.names import annotation_of, paths_of, tasks_of
from rayswift.config.reading.values import Plain, plain, takes, untyped
from rayswift.config.section import Section
from rayswift.log import UserError

Tree = dict[str, Any]


@dataclass
class Problems:
    """The problems of a command line, one line each.

    explains_missing: fields whose missing value is explained already; None: all, because a file cannot be read.
    """

    lines: list[str] = field(default_factory=list)
    explains_missing: set[str] | None = field(default_factory=set)

    def explains(self, path: str) -> bool:
        """Whether a problem already explains why a field has no value."""
        return self.explains_missing is None or path in self.explains_missing

    def add(self, what: str, fix: str = "") -> None:
        self.lines.append(f"{what}; {fix}" if fix else what)

    def raise_if_any(self) -> None:
        if self.lines:
            raise UserError("\n".join(self.lines))


def split(argv: list[str], problems: Problems) -> tuple[list[str], list[swift.Flag], bool]:
    """Config files (`--config a.yaml`, or `a.yaml` as the first word), the other flags, and `--dry_run`."""
    if argv and argv[0].endswith((".yaml", ".yml", ".json")):
        argv = ["--config", *argv]
    files: list[str] = []
    flags: list[swift.Flag] = []
    dry_run = False
    for name, words in _flags(argv, problems):
        if name == "config":
            if not words:
                problems.add("--config names no file")
                problems.explains_missing = None
            files += words
        elif name == "dry_run":
            switch = [plain(word) for word in words] or [True]
            if len(switch) > 1 or not isinstance(switch[0], bool):
                problems.add(
                    f"--dry_run is a switch, got {' '.join(words)}", "write --dry_run, or --dry_run true or false"
                )
            dry_run = switch[0] is True
        else:
            flags.append((name, words))
    return files, flags, dry_run


def _flags(argv: list[str], problems: Problems) -> Iterator[tuple[str, list[str]]]:
    """`--a x --b=y --c` -> (a, [x]), (b, [y]), (c, [])."""
    current: tuple[str, list[str]] | None = None
    for word in argv:
        if word.startswith("--") and len(word) > 2 and not word[2].isdigit():
            if current:
                yield current
            name, equals, value = word[2:].partition("=")
            current = (name.replace("-", "_"), [value] if equals else [])
        elif current is None:
            hint = other_names.answer(word.lstrip("+").partition("=")[0]) if "=" in word else None  # verl's
            problems.add(f"`{word}` is not a flag", hint or "flags look like --data.max_length 1024")
        else:
            current[1].append(word)
    if current:
        yield current


def words_for(annotation: Any, path: str, words: list[str], problems: Problems) -> Any:
    """A flag's words as a scalar or a list, by the field's type."""
    one_number = len(words) == 1 and words[0][:1] != "[" and takes(annotation, int)
    if takes(annotation, list) and not one_number:
        return Plain(words[0]) if len(words) == 1 and words[0].startswith("[") else [Plain(word) for word in words]
    if not words:
        return "true"  # a switch
    if len(words) > 1:
        problems.add(f"--{path} takes one value, got {' '.join(words)}")
    return Plain(words[0])


def with_values(schema: type[Section], task: str, flags: list[swift.Flag], problems: Problems) -> list[swift.Flag]:
    """The flags that have a value or are switches; all others are problems."""
    found = []
    for name, words in flags:
        known = paths_of(schema) if not words else ()
        paths = [path for path in known if path in (name, f"{name}.path") or path.split(".")[1] == name]
        kinds = [annotation_of(schema, task, path) for path in paths]
        if kinds and not any(takes(kind, bool) or kind is Any for kind in kinds):
            problems.add(f"--{name} has no value", "write one after it")
            if problems.explains_missing is not None:
                problems.explains_missing.update(paths)
        else:
            found.append((name, words))
    return found


def last_of_each(flags: list[swift.Flag]) -> tuple[list[swift.Flag], list[str]]:
    """The last flag of each name; and a line for each value that a later one replaces."""
    last: dict[str, list[str]] = {}
    for name, words in flags:
        last.pop(name, None)  # keep the place of the last one
        last[name] = words
    return list(last.items()), [said_twice(name, words, last[name]) for name, words in flags if words != last[name]]


def said_twice(name: str, before: list[str], now: list[str]) -> str:
    """The line for a value that a later one replaces."""
    return f"--{name} is given twice: {' '.join(now)} counts, {' '.join(before)} does not"


def read_yaml(path: Path, problems: Problems) -> Tree:
    try:
        tree = yaml_text.load(path.read_text(encoding="utf-8"))
    except OSError as error:
        problems.add(f"--config {path}: {error.strerror}", "check the path")
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        why = " ".join(str(error).replace('in "<unicode string>", ', "").split())
        problems.add(f"--config {path} is not valid YAML: {why}")
    else:
        if tree is None:
            return {}
        if isinstance(tree, dict):
            return tree
        what = "a list" if isinstance(tree, list) else "a text"
        problems.add(f"--config {path} holds {what}", "it needs sections: model, data, train, cluster")
    problems.explains_missing = None
    return {}


def flat_of(schema: type[Section], tree: Tree) -> tuple[Tree, list[swift.Flag]]:
    """The sections of a file, and its flat entries (`model: org/name`, as in ms-swift) as flags."""
    sections: Tree = {}
    flags: list[swift.Flag] = []
    bare = {path.split(".")[1] for path in paths_of(schema)}
    for key, value in tree.items():
        scalar = not isinstance(value, dict) and value is not None
        is_section = key in schema.model_fields and not (scalar and f"{key}.path" in paths_of(schema))
        is_known = key in bare or (tasks_of(schema) and swift.knows(str(key)))
        if is_known and value is None:
            continue
        if not is_section and (scalar or is_known):
            words = value if isinstance(value, list) else [value]
            flags.append((str(key), [word if isinstance(word, str) else json.dumps(untyped(word)) for word in words]))
        else:
            sections[key] = value
    return sections, flags
