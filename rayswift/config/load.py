"""argv -> config: field default < `--config file.yaml` < flag; every problem is found before any is reported.

load("sft", ["--config", "run.yaml", "--learning_rate", "1e-4"])
"""

import difflib
import json
import types
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from rayswift.config import trl_fields
from rayswift.config.schema import VERB_CONFIGS, Section, TrainConfig
from rayswift.log import UserError

Tree = dict[str, Any]


@dataclass(frozen=True)
class Invocation:
    """What a command line asked for."""

    config: Any
    dry_run: bool = False


@dataclass
class _Problems:
    lines: list[str] = field(default_factory=list)

    def add(self, what: str, fix: str = "") -> None:
        self.lines.append(f"{what}; {fix}" if fix else what)

    def raise_if_any(self) -> None:
        if self.lines:
            raise UserError("\n".join(self.lines))


def load(verb: str, argv: list[str]) -> Invocation:
    """Resolve a command line of `rayswift <verb>`.

    Raises:
        UserError: with one line for each problem: unknown key, wrong type, field owned by Ray, missing field.
    """
    schema = VERB_CONFIGS[verb]
    problems = _Problems()
    switches = ("--dry_run", "--dry-run")
    files, flags = _split(schema, [a for a in argv if a not in switches], problems)
    tree: Tree = {}
    for file in files:
        _merge(tree, _read_yaml(Path(file), problems))
    for path, value in flags:
        _put(tree, path, value)
    _check_keys(schema, tree, problems)
    config = _validate(schema, tree, problems)
    problems.raise_if_any()
    return Invocation(config, dry_run=any(a in switches for a in argv))


def paths_of(schema: type[Section]) -> list[str]:
    """The dotted path of every field, TRL's included."""
    paths = []
    for name, info in schema.model_fields.items():
        section = info.annotation
        assert isinstance(section, type) and issubclass(section, Section)
        names = list(section.model_fields)
        if section is TrainConfig:
            names += [n for n in trl_fields.read_fields() if n not in names and not trl_fields.owner_of(n)]
        paths += [f"{name}.{n}" for n in names]
    return paths


def to_yaml(config: BaseModel) -> str:
    """The resolved config as YAML that `--config` reads back."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=False)


# ---- argv ----


def _split(schema: type[Section], argv: list[str], problems: _Problems) -> tuple[list[str], list[tuple[str, Any]]]:
    files: list[str] = []
    flags: list[tuple[str, Any]] = []
    for flag, words in _flags(argv, problems):
        if flag == "config":
            if not words:
                problems.add("--config names no file")
            files += words
            continue
        path = _resolve_name(schema, flag, problems)
        if path:
            flags.append((path, _value(_annotation(schema, path), path, words, problems)))
    return files, flags


def _flags(argv: list[str], problems: _Problems) -> Iterator[tuple[str, list[str]]]:
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


def _resolve_name(schema: type[Section], flag: str, problems: _Problems) -> str | None:
    known = paths_of(schema)
    if flag in known:
        return flag
    if flag in schema.model_fields and f"{flag}.path" in known:
        return f"{flag}.path"
    matches = [p for p in known if p.split(".")[1] == flag]
    if len(matches) == 1:
        return matches[0]
    if matches:
        problems.add(f"--{flag} could be {' or '.join('--' + m for m in matches)}", "write the one you mean")
        return None
    if "train" in schema.model_fields:
        owned_name = flag.removeprefix("train.")
        owner = trl_fields.owner_of(owned_name)
        if owner and "." not in owned_name:
            if owned_name in trl_fields.MOVED:
                return owner
            problems.add(f"--{flag} is not a field here", f"use {owner}")
            return None
    problems.add(f"--{flag} is unknown", _suggest(flag, known, "--") or "see --help all")
    return None


def _suggest(name: str, known: list[str], prefix: str = "") -> str:
    bare = {p.split(".")[1]: p for p in known} | {p.split(".")[0]: p for p in known if p.endswith(".path")}
    close = difflib.get_close_matches(name, known, 1, 0.75) or [
        bare[b] for b in difflib.get_close_matches(name.split(".")[-1], list(bare), 1, 0.75)
    ]
    return f"did you mean {prefix}{close[0]}?" if close else ""


def _annotation(schema: type[Section], path: str) -> Any:
    section_name, name = path.split(".")
    section = schema.model_fields[section_name].annotation
    assert isinstance(section, type) and issubclass(section, Section)
    if name in section.model_fields:
        return section.model_fields[name].annotation
    return trl_fields.read_fields()[name].annotation


def _value(annotation: Any, path: str, words: list[str], problems: _Problems) -> Any:
    if _takes(annotation, list) and not (len(words) == 1 and words[0][:1] != "[" and _takes(annotation, int)):
        if len(words) == 1 and words[0].startswith("["):
            return _structured(words[0], path, problems)
        return words
    if not words:
        return "true"  # a bare switch
    if len(words) > 1:
        problems.add(f"--{path} takes one value, got {' '.join(words)}")
    word = words[0]
    if word.lower() in ("null", "none") and _takes(annotation, type(None)):
        return None
    if _takes(annotation, dict) and word.startswith("{"):
        return _structured(word, path, problems)
    return word


def _structured(word: str, path: str, problems: _Problems) -> Any:
    try:
        return json.loads(word)
    except json.JSONDecodeError as error:
        problems.add(f"--{path} {word} is not valid JSON ({error.msg} at character {error.pos})")
        return None


def _takes(annotation: Any, kind: type) -> bool:
    if isinstance(annotation, str):  # a TRL field, as its source writes it
        return ("None" if kind is type(None) else kind.__name__) in annotation
    if get_origin(annotation) is Annotated:
        return _takes(get_args(annotation)[0], kind)
    if get_origin(annotation) in (Union, types.UnionType):
        return any(_takes(a, kind) for a in get_args(annotation))
    return annotation is kind or get_origin(annotation) is kind


# ---- YAML ----


def _read_yaml(path: Path, problems: _Problems) -> Tree:
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        problems.add(f"--config {path}: {error.strerror}", "check the path")
        return {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        problems.add(f"--config {path} is not valid YAML: {' '.join(str(error).split())}")
        return {}
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        problems.add(f"--config {path} holds {type(tree).__name__}", "it wants sections: model, data, train, cluster")
        return {}
    return tree


def _merge(tree: Tree, other: Tree) -> None:
    for key, value in other.items():
        if isinstance(value, dict) and isinstance(tree.get(key), dict):
            tree[key] = {**tree[key], **value}
        else:
            tree[key] = value


def _put(tree: Tree, path: str, value: Any) -> None:
    section, name = path.split(".")
    if not isinstance(tree.get(section), dict):
        tree[section] = {}
    tree[section][name] = value


def _check_keys(schema: type[Section], tree: Tree, problems: _Problems) -> None:
    """Report unknown keys and move TRL names that belong to another section; `tree` is changed in place."""
    known = paths_of(schema)
    for section_name in list(tree):
        section = tree[section_name]
        if section_name not in schema.model_fields:
            hint = difflib.get_close_matches(str(section_name), list(schema.model_fields), 1)
            fix = f"did you mean {hint[0]}?" if hint else f"sections are {', '.join(schema.model_fields)}"
            problems.add(f"`{section_name}` is not a section", fix)
            del tree[section_name]
        elif not isinstance(section, dict):
            if section is None:
                tree[section_name] = {}
            continue
        else:
            for name in list(section):
                if f"{section_name}.{name}" not in known:
                    _misplaced(section_name, str(name), section.pop(name), tree, known, problems)


def _misplaced(section: str, name: str, value: Any, tree: Tree, known: list[str], problems: _Problems) -> None:
    owner = trl_fields.owner_of(name) if section == "train" else None
    if owner and name in trl_fields.MOVED:
        _put(tree, owner, value)
    elif owner:
        problems.add(f"train.{name} is not a field here", f"use {owner}")
    else:
        problems.add(f"{section}.{name} is unknown", _suggest(f"{section}.{name}", known) or "see --help all")


# ---- types ----


def _validate(schema: type[Section], tree: Tree, problems: _Problems) -> Section | None:
    train = tree.get("train")
    if "train" in schema.model_fields and isinstance(train, dict):
        for name in [n for n in train if n not in TrainConfig.model_fields]:
            try:
                trl_field = trl_fields.read_fields()[name]
                train[name] = trl_fields.type_of(trl_field.annotation).validate_python(train[name])
            except ValidationError as error:
                _explain(error, f"train.{name}", problems)
    try:
        return schema.model_validate({section: {} for section in schema.model_fields} | tree)
    except ValidationError as error:
        _explain(error, "", problems)
        return None


def _explain(error: ValidationError, prefix: str, problems: _Problems) -> None:
    seen = set()
    for detail in error.errors():
        where = prefix or ".".join(str(p) for p in detail["loc"][:2])
        if detail["type"] == "missing":
            flag = "--model" if where == "model.path" else f"--{where}"
            problems.add(f"{where} is required", f"give it in the YAML or as {flag}")
            continue
        given = detail["input"]
        line = f"{where} = {given!r}: {detail['msg'][0].lower()}{detail['msg'][1:]}"
        if where not in seen:  # a union reports each of its members
            seen.add(where)
            problems.add(line)


def literal_values(annotation: Any) -> list[str]:
    """The values of a `Literal`, for help texts."""
    return [str(v) for v in get_args(annotation)] if get_origin(annotation) is Literal else []
