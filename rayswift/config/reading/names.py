"""The names of a verb's fields, their types, and suggestions for wrong names."""

import difflib
from functools import cache
from typing import Any, Literal, get_args, get_origin

from rayswift.config.fields import trl as trl_fields
from rayswift.config.section import Section
from rayswift.config.train import TrainConfig


def section_of(schema: type[Section], name: str) -> type[Section]:
    section = schema.model_fields[name].annotation
    assert isinstance(section, type) and issubclass(section, Section)
    return section


def tasks_of(schema: type[Section]) -> list[str]:
    """The tasks of a verb, the default first; empty for a verb without training."""
    if "train" not in schema.model_fields:
        return []
    task = section_of(schema, "train").model_fields["task"]
    return sorted(literal_values(task.annotation), key=lambda name: name != task.default)


@cache
def paths_of(schema: type[Section]) -> list[str]:
    """The dotted path of every field, with TRL's fields of all tasks of the verb."""
    paths = []
    for name in schema.model_fields:
        section = section_of(schema, name)
        names = list(section.model_fields)
        if issubclass(section, TrainConfig):
            names += list(trl_names(section))
        paths += [f"{name}.{n}" for n in names]
    return paths


@cache
def trl_names(section: type[Section]) -> dict[str, trl_fields.TrlField]:
    """The fields of section `train` that come from the TRL configs of its tasks."""
    fields: dict[str, trl_fields.TrlField] = {}
    for task in literal_values(section.model_fields["task"].annotation):
        for name, field_ in trl_fields.read_fields(task).items():
            if name not in section.model_fields and not trl_fields.owner_of(name):
                fields.setdefault(name, field_)
    return fields


def owner_in(schema: type[Section], name: str) -> str | None:
    """The replacement of a TRL field in this verb; None if the verb lacks that section."""
    owner = trl_fields.owner_of(name)
    return None if name in trl_fields.MOVED and owner and owner not in paths_of(schema) else owner


def suggest(name: str, known: list[str], prefix: str = "") -> str:
    """A question with the most similar field name, or empty."""
    bare = {p.split(".")[1]: p for p in known} | {p.split(".")[0]: p for p in known if p.endswith(".path")}
    close = difflib.get_close_matches(name, known, 1, 0.75) or [
        bare[b] for b in difflib.get_close_matches(name.split(".")[-1], list(bare), 1, 0.75)
    ]
    return f"did you mean {prefix}{close[0]}?" if close else ""


def annotation_of(schema: type[Section], task: str, path: str) -> Any:
    """A field's type; Any for a TRL field with a type of another library."""
    section_name, name = path.split(".")
    section = section_of(schema, section_name)
    if name in section.model_fields:
        return section.model_fields[name].annotation
    trl_field = trl_fields.read_fields(task).get(name) or trl_names(section)[name]
    return trl_fields.python_type(trl_field.annotation)


def literal_values(annotation: Any) -> list[str]:
    return [str(v) for v in get_args(annotation)] if get_origin(annotation) is Literal else []
