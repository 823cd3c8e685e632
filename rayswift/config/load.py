"""argv -> config: field default < `--config file.yaml` < flag; every problem is found before any is reported.

load("sft", ["--config", "run.yaml", "--learning_rate", "1e-4"])
"""

import difflib
import json
import types
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from rayswift.config import swift, trl_fields
from rayswift.config.names import annotation_of, owner_in, paths_of, section_of, suggest, tasks_of
from rayswift.config.row_verbs import FOR_TRAINING
from rayswift.config.schema import TRAINING_VERBS, VERB_CONFIGS
from rayswift.config.section import Section
from rayswift.log import UserError

Tree = dict[str, Any]

_TRANSLATED = "ms-swift's spelling"

# Fields and flags that name rows to evaluate on.
_EVAL_ROWS = ("eval", "eval_fraction", "val_dataset", "cached_val_dataset", "split_dataset_ratio")


@dataclass(frozen=True)
class Invocation:
    """What a command line asked for."""

    config: Any
    dry_run: bool = False
    notes: tuple[str, ...] = ()
    """What was translated from ms-swift's spelling, and which of its flags change nothing; one line each."""


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
    problems = _Problems()
    switches = ("--dry_run", "--dry-run")
    trains = argv[0] if verb in FOR_TRAINING and argv and argv[0] in TRAINING_VERBS else None
    files, flags = _split([a for a in argv[trains is not None :] if a not in switches], problems)
    yamls = [_read_yaml(Path(file), problems) for file in files]
    schema = VERB_CONFIGS[verb]
    if verb in FOR_TRAINING:
        trains = trains or _trains(yamls, flags)
        schema = FOR_TRAINING[verb][trains]
    read = [_flat(schema, tree) for tree in yamls]
    task = _task_of(schema, read, flags)
    has_eval_rows = _names_eval_rows(read, flags)
    notes: list[str] = []
    tree: Tree = {}
    for sections, flat in [*read, ({}, flags)]:
        _merge(tree, sections)
        for name, words in _ours(trains or verb, task, flat, has_eval_rows, notes, problems):
            path = _resolve_name(schema, name, problems)
            if path:
                _put(tree, path, _value(annotation_of(schema, task, path), path, words, problems))
    _check_keys(schema, task, tree, problems)
    config = _validate(schema, task, tree, problems)
    problems.raise_if_any()
    if verb in TRAINING_VERBS and any(note.startswith(_TRANSLATED) for note in notes) and "tuner" not in tree["model"]:
        notes.append("model.tuner is not set: all weights are trained, where ms-swift would train a LoRA")
    return Invocation(config, dry_run=any(a in switches for a in argv), notes=tuple(notes))


# Fields that are never written to a file or a log.
SECRETS = frozenset(("hub_token",))


def to_yaml(config: BaseModel) -> str:
    """The resolved config as YAML that `--config` reads back, secrets left out."""
    tree = config.model_dump(mode="json")
    for section in tree.values():
        for name in SECRETS & section.keys() if isinstance(section, dict) else ():
            del section[name]
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=False)


# ---- argv ----


def _split(argv: list[str], problems: _Problems) -> tuple[list[str], list[swift.Flag]]:
    """Config files (`--config a.yaml`, or `a.yaml` as the first word) and the other flags."""
    if argv and argv[0].endswith((".yaml", ".yml", ".json")):
        argv = ["--config", *argv]
    files: list[str] = []
    flags: list[swift.Flag] = []
    for name, words in _flags(argv, problems):
        if name != "config":
            flags.append((name, words))
            continue
        if not words:
            problems.add("--config names no file")
        files += words
    return files, flags


def _task_of(schema: type[Section], files: list[tuple[Tree, list[swift.Flag]]], flags: list[swift.Flag]) -> str:
    """The task a verb trains, as far as it can be known before anything is checked."""
    tasks = tasks_of(schema)
    if not tasks:
        return ""
    task = tasks[0]
    names = ("rlhf_type",) if "rollout" in schema.model_fields else ("task_type",)
    for sections, flat in [*files, ({}, flags)]:
        train = sections.get("train")
        named = [train["task"]] if isinstance(train, dict) and "task" in train else []
        named += [words[0] for name, words in flat if name in (*names, "task", "train.task") and words]
        task = named[-1] if named else task
    return task if task in tasks else tasks[0]


def _trains(files: list[Tree], flags: list[swift.Flag]) -> str:
    """The verb that a command line without its name is for: rlhf where it asks for one of its tasks, else sft."""
    tasks = tasks_of(FOR_TRAINING["data inspect"]["rlhf"])
    named: list[Any] = [words[0] for name, words in flags if name in ("task", "train.task") and words]
    for tree in files:
        train = tree.get("train")
        named += [train.get("task")] if isinstance(train, dict) else [tree.get("task")]
    asked = {*(name for name, _ in flags), *(name for tree in files for name in tree)}
    samples = "rollout" in asked or any(name.startswith("rollout.") for name in asked)
    return "rlhf" if samples or "rlhf_type" in asked or any(name in tasks for name in named) else "sft"


def _names_eval_rows(files: list[tuple[Tree, list[swift.Flag]]], flags: list[swift.Flag]) -> bool:
    names = [name.removeprefix("data.") for _, flat in [*files, ({}, flags)] for name, _ in flat]
    for sections, _ in files:
        data = sections.get("data")
        names += data if isinstance(data, dict) else []
    return any(name in _EVAL_ROWS for name in names)


def _ours(
    verb: str, task: str, flags: list[swift.Flag], has_eval_rows: bool, notes: list[str], problems: _Problems
) -> list[swift.Flag]:
    """Flags with ms-swift's among them translated, if the verb trains."""
    if not task:
        return flags
    translation = swift.translate(flags, verb, task, has_eval_rows)
    if translation.renamed:
        notes.append(f"{_TRANSLATED}: {'; '.join(translation.renamed)}")
    notes += translation.notes
    problems.lines += translation.problems
    return translation.flags


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
    if trl_fields.MOVED.get(flag) in matches:
        return trl_fields.MOVED[flag]
    if matches:
        problems.add(f"--{flag} could be {' or '.join('--' + m for m in matches)}", "write the one you mean")
        return None
    if "train" in schema.model_fields:
        owned_name = flag.removeprefix("train.")
        owner = owner_in(schema, owned_name)
        if owner and "." not in owned_name:
            if owned_name in trl_fields.MOVED:
                return owner
            problems.add(f"--{flag} is not a field here", f"use {owner}")
            return None
    problems.add(f"--{flag} is unknown", suggest(flag, known, "--") or "see --help all")
    return None


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


def _flat(schema: type[Section], tree: Tree) -> tuple[Tree, list[swift.Flag]]:
    """Sections, and the flags of a file that is written flat as ms-swift's are (`model: org/name`)."""
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
            flags.append((str(key), [word if isinstance(word, str) else json.dumps(word) for word in words]))
        else:
            sections[key] = value
    return sections, flags


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


def _check_keys(schema: type[Section], task: str, tree: Tree, problems: _Problems) -> None:
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
                    _misplaced(schema, f"{section_name}.{name}", section.pop(name), tree, problems)
            if section_name == "train":
                _check_task(schema, task, section, problems)


def _check_task(schema: type[Section], task: str, train: Tree, problems: _Problems) -> None:
    """Report TRL fields that belong to another task of the verb."""
    section = section_of(schema, "train")
    for name in [n for n in train if n not in section.model_fields and n not in trl_fields.read_fields(task)]:
        tasks = [t for t in tasks_of(schema) if t in trl_fields.tasks_with(name)]
        problems.add(f"train.{name} is not a field of task {task}", f"it belongs to {', '.join(tasks)}")
        del train[name]


def _misplaced(schema: type[Section], path: str, value: Any, tree: Tree, problems: _Problems) -> None:
    section, name = path.split(".", 1)
    owner = owner_in(schema, name) if section == "train" else None
    if owner and name in trl_fields.MOVED:
        _put(tree, owner, value)
    elif owner:
        problems.add(f"train.{name} is not a field here", f"use {owner}")
    else:
        problems.add(f"{path} is unknown", suggest(path, paths_of(schema)) or "see --help all")


# ---- types ----


def _validate(schema: type[Section], task: str, tree: Tree, problems: _Problems) -> Section | None:
    train = tree.get("train")
    if "train" in schema.model_fields and isinstance(train, dict):
        section = section_of(schema, "train")
        for name in [n for n in train if n not in section.model_fields]:
            try:
                trl_field = trl_fields.read_fields(task)[name]
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
