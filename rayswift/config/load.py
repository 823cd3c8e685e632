"""argv -> config: field default < `--config file.yaml` < flag; every problem is found before any is reported.

load("sft", ["--config", "run.yaml", "--learning_rate", "1e-4"])
"""

import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pydantic import BaseModel, ValidationError

from rayswift.config import swift
from rayswift.config.checks import built
from rayswift.config.fields import trl as trl_fields
from rayswift.config.reading import other_names, yaml_text
from rayswift.config.reading.aliases import without_aliases
from rayswift.config.reading.names import annotation_of, owner_in, paths_of, section_of, suggest, tasks_of
from rayswift.config.reading.paths import at_first_module
from rayswift.config.reading.values import home, plain, read
from rayswift.config.reading.written import (
    Problems,
    Tree,
    flat_of,
    last_of_each,
    read_yaml,
    said_twice,
    split,
    with_values,
    words_for,
)
from rayswift.config.row_verbs import FOR_TRAINING
from rayswift.config.schema import TRAINING_VERBS, VERB_CONFIGS, TrainingConfig
from rayswift.config.section import Section

_TRANSLATED = "ms-swift's spelling"

# Fields and flags that name rows to evaluate on.
_EVAL_ROWS = ("eval", "eval_fraction", "val_dataset", "cached_val_dataset", "split_dataset_ratio")


@dataclass(frozen=True)
class Invocation:
    """The result of a command line."""

    config: Any
    dry_run: bool = False
    notes: tuple[str, ...] = ()
    """One line for each translated flag of ms-swift, and for each of its flags without an effect."""


def load(verb: str, argv: list[str], environ: Mapping[str, str] = MappingProxyType({})) -> Invocation:
    """Resolve a command line of `rayswift <verb>`.

    Args:
        verb: One of `VERB_CONFIGS`.
        argv: The words after the verb.
        environ: Variables of the process; those that `swift` reads (NPROC_PER_NODE, NNODES, ...) are used.

    Raises:
        UserError: with one line for each problem: unknown key, wrong type, field owned by Ray, missing field.
    """
    problems = Problems()
    trains = argv[0] if verb in FOR_TRAINING and argv and argv[0] in TRAINING_VERBS else None
    files, flags, dry_run = split(argv[trains is not None :], problems)
    trees, flags = without_aliases([read_yaml(Path(home(file)), problems) for file in files], flags)
    if verb in FOR_TRAINING:
        trains = trains or _trains(trees, flags)
    schema = FOR_TRAINING[verb][trains] if trains else VERB_CONFIGS[verb]
    given = [flat_of(schema, tree) for tree in trees]
    task = _task_of(schema, given, flags)
    flags, replaced = last_of_each(with_values(schema, task, flags, problems))
    said = swift.Translation(trains or verb, task, notes=replaced)
    tree = _merged(schema, [*given, ({}, flags)], said, environ, problems)
    _check_keys(schema, task, tree, problems)
    _read_values(schema, task, tree, problems)
    config = _validate(schema, task, tree, problems)
    problems.lines += said.problems
    (said.notes if dry_run else problems.lines).extend(said.problems_of_a_start)
    if problems.lines and config is None:  # checked without the bad fields, so that one problem hides no other
        config = _without_bad_fields(schema, tree)
    if problems.lines and isinstance(config, TrainingConfig):
        more = built.problems(config) if dry_run else built.static_problems(config)
        problems.lines += [line for line in more if line not in problems.lines]
    problems.raise_if_any()
    renamed = [f"{_TRANSLATED}: {'; '.join(said.renamed)}"] if said.renamed else []
    return Invocation(at_first_module(config), dry_run=dry_run, notes=(*renamed, *said.notes))


def _merged(
    schema: type[Section],
    given: list[tuple[Tree, list[swift.Flag]]],
    said: swift.Translation,
    environ: Mapping[str, str],
    problems: Problems,
) -> Tree:
    """Files and flags as one tree, in which later ones win; ms-swift's flags are translated, values not yet read."""
    tree: Tree = {}

    def put(flags: list[swift.Flag]) -> None:
        written: dict[str, list[str]] = {}
        for name, words in flags:
            path = _resolve_name(schema, name, problems)
            if path:
                if written.setdefault(path, words) != words:  # under two names
                    said.notes.append(said_twice(path, written[path], words))
                written[path] = words
                _put(tree, path, words_for(annotation_of(schema, said.task, path), path, words, problems))

    has_eval_rows = _names_eval_rows(given)
    for sections, flat in given:
        _merge(tree, sections)
        if said.task:
            put(said.add(swift.translate(flat, said.verb, said.task, has_eval_rows)))
        else:
            put(said.add(swift.translate_other(flat, said.verb)))
    if said.task:
        flat_flags = [flag for _, flat in given for flag in flat]
        put(swift.complete(tree, flat_flags, environ, said))
    return tree


# Fields that are never written to a file or a log.
SECRETS = frozenset(("hub_token",))


def to_yaml(config: BaseModel) -> str:
    """The resolved config as YAML that `--config` reads back, secrets left out."""
    tree = config.model_dump(mode="json")
    for section in tree.values():
        for name in SECRETS & section.keys() if isinstance(section, dict) else ():
            del section[name]
    return yaml_text.dump(tree)


# ---- argv ----


def _task_of(schema: type[Section], files: list[tuple[Tree, list[swift.Flag]]], flags: list[swift.Flag]) -> str:
    """The task of a verb, as far as it is known before the checks."""
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
    """The verb of a command line that names none: rlhf for one of its tasks, else sft."""
    tasks = tasks_of(FOR_TRAINING["data inspect"]["rlhf"])
    named: list[Any] = [words[0] for name, words in flags if name in ("task", "train.task") and words]
    for tree in files:
        train = tree.get("train")
        named += [train.get("task")] if isinstance(train, dict) else [tree.get("task")]
    asked = {*(name for name, _ in flags), *(name for tree in files for name in tree)}
    samples = "rollout" in asked or any(name.startswith("rollout.") for name in asked)
    return "rlhf" if samples or "rlhf_type" in asked or any(name in tasks for name in named) else "sft"


def _names_eval_rows(given: list[tuple[Tree, list[swift.Flag]]]) -> bool:
    """Whether evaluation rows are given; a share of 0 gives none."""
    names = [(name.removeprefix("data."), words) for _, flat in given for name, words in flat]
    for sections, _ in given:
        data = sections.get("data")
        names += [(name, [str(value)]) for name, value in data.items()] if isinstance(data, dict) else []
    return any(name in _EVAL_ROWS and words and plain(words[0]) not in (0, [], "[]") for name, words in names)


def _resolve_name(schema: type[Section], flag: str, problems: Problems) -> str | None:
    known = paths_of(schema)
    if flag in known:
        return flag
    if flag in schema.model_fields and f"{flag}.path" in known:
        return f"{flag}.path"
    matches = [p for p in known if p.split(".")[1] == flag]
    if len(matches) == 1:
        return matches[0]
    if flag == "eval":  # the rows; `rollout.eval` says how they are sampled
        return "data.eval"
    if trl_fields.MOVED.get(flag) in matches:
        return trl_fields.MOVED[flag]
    if matches:
        problems.add(f"--{flag} could be {' or '.join('--' + m for m in matches)}", "write the one you mean")
        return None
    hint = other_names.answer(flag)
    if hint:
        problems.add(f"--{flag} is not a field here", hint)
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


def _check_keys(schema: type[Section], task: str, tree: Tree, problems: Problems) -> None:
    """Report unknown keys and move TRL names that belong to another section; `tree` is changed in place."""
    known = paths_of(schema)
    for section_name in list(tree):
        section = tree[section_name]
        hint = other_names.answer(str(section_name)) if section_name not in schema.model_fields else None
        if hint:
            problems.add(f"`{section_name}` is not a section", hint)
            del tree[section_name]
        elif section_name not in schema.model_fields:
            found = difflib.get_close_matches(str(section_name), list(schema.model_fields), 1)
            fix = f"did you mean {found[0]}?" if found else f"sections are {', '.join(schema.model_fields)}"
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


def _check_task(schema: type[Section], task: str, train: Tree, problems: Problems) -> None:
    """Report TRL fields that belong to another task of the verb."""
    section = section_of(schema, "train")
    for name in [n for n in train if n not in section.model_fields and n not in trl_fields.read_fields(task)]:
        tasks = [t for t in tasks_of(schema) if t in trl_fields.tasks_with(name)]
        problems.add(f"train.{name} is not a field of task {task}", f"it belongs to {', '.join(tasks)}")
        del train[name]


def _misplaced(schema: type[Section], path: str, value: Any, tree: Tree, problems: Problems) -> None:
    section, name = path.split(".", 1)
    owner = owner_in(schema, name) if section == "train" else None
    hint = other_names.answer(path)
    if owner and name in trl_fields.MOVED:
        _put(tree, owner, value)
    elif owner:
        problems.add(f"train.{name} is not a field here", f"use {owner}")
    else:
        problems.add(f"{path} is unknown", hint or suggest(path, paths_of(schema)) or "see --help all")


# ---- types ----


def _read_values(schema: type[Section], task: str, tree: Tree, problems: Problems) -> None:
    """Replace each written value by its meaning for the field; `tree` is changed in place."""
    for section_name, section in tree.items():
        for name, written in list(section.items()) if isinstance(section, dict) else ():
            path = f"{section_name}.{name}"
            try:
                section[name] = read(annotation_of(schema, task, path), written)
            except json.JSONDecodeError as error:
                problems.add(f"--{path} {written} is not valid JSON ({error.msg} at character {error.pos})")
                del section[name]


def _validate(schema: type[Section], task: str, tree: Tree, problems: Problems) -> Section | None:
    train = tree.get("train")
    if "train" in schema.model_fields and isinstance(train, dict):
        section = section_of(schema, "train")
        for name in [n for n in train if n not in section.model_fields]:
            try:
                trl_field = trl_fields.read_fields(task)[name]
                train[name] = trl_fields.type_of(trl_field.annotation).validate_python(train[name])
            except ValidationError as error:
                _explain(error, f"train.{name}", problems)
                del train[name]  # the checks continue with the other fields
    try:
        return schema.model_validate({section: {} for section in schema.model_fields} | tree)
    except ValidationError as error:
        _explain(error, "", problems)
        return None


def _without_bad_fields(schema: type[Section], tree: Tree) -> Section | None:
    """The config without the refused fields; None: required fields are missing."""
    whole: Tree = {section: {} for section in schema.model_fields} | tree
    try:
        schema.model_validate(whole)
    except ValidationError as error:
        places = {tuple(str(part) for part in detail["loc"][:2]) for detail in error.errors()}
        for section, *name in places:
            if name and isinstance(whole[section], dict):
                whole[section] = {key: value for key, value in whole[section].items() if key != name[0]}
    try:
        return schema.model_validate(whole)
    except ValidationError:
        return None


def _explain(error: ValidationError, prefix: str, problems: Problems) -> None:
    seen = set()
    for detail in error.errors():
        depth = 4 if detail["loc"][:2] == ("rollout", "eval") else 2  # which holds sections of its own
        where = prefix or ".".join(str(p) for p in detail["loc"][:depth])
        if detail["type"] == "missing" and problems.explains(where):
            continue
        if detail["type"] == "missing":
            flag = "--model" if where == "model.path" else f"--{where}"
            problems.add(f"{where} is required", f"give it in the YAML or as {flag}")
            continue
        given = detail["input"]
        why = detail["msg"].removeprefix("Value error, ")
        line = f"{where} = {given!r}: {why[0].lower()}{why[1:]}"
        if where == "train.task":
            verbs = [verb for verb in TRAINING_VERBS if given in tasks_of(VERB_CONFIGS[verb])]
            line += f"; {given} is a task of `rayswift {verbs[0]}`" if verbs else ""
        if where not in seen:  # a union reports each of its members
            seen.add(where)
            problems.add(line)
