"""A command line and its config files, parsed but not interpreted: flags with their words, trees of sections."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from rayswift.config import swift
from rayswift.config.reading import yaml_text
from rayswift.config.reading.names import paths_of, tasks_of
from rayswift.config.reading.values import Plain, plain, takes, untyped
from rayswift.config.section import Section
from rayswift.log import UserError

Tree = dict[str, Any]


@dataclass
class Problems:
    lines: list[str] = field(default_factory=list)

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
            problems.add(f"`{word}` is not a flag", "flags look like --data.max_length 1024")
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
        return "true"  # a bare switch
    if len(words) > 1:
        problems.add(f"--{path} takes one value, got {' '.join(words)}")
    return Plain(words[0])


def read_yaml(path: Path, problems: Problems) -> Tree:
    try:
        tree = yaml_text.load(path.read_text(encoding="utf-8"))
    except OSError as error:
        problems.add(f"--config {path}: {error.strerror}", "check the path")
        return {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        problems.add(f"--config {path} is not valid YAML: {' '.join(str(error).split())}")
        return {}
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        problems.add(f"--config {path} holds {type(tree).__name__}", "it needs sections: model, data, train, cluster")
        return {}
    return tree


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
