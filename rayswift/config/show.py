"""Help pages, made from the dataclasses that are parsed."""

import types
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from rayswift.config.checks.built import is_unbuilt
from rayswift.config.fields import trl as trl_fields
from rayswift.config.reading.names import literal_values, section_of, tasks_of, trl_names
from rayswift.config.schema import VERB_CONFIGS
from rayswift.config.section import Section
from rayswift.config.train import TrainConfig

# The most common fields, by section; `--help all` shows every field.
_FIRST = {
    "model": ("path", "tuner", "dtype", "lora_rank", "lora_alpha", "target_modules", "random_init"),
    "data": ("dataset", "eval", "eval_fraction", "columns", "max_length", "truncation", "packing", "loss_on"),
    "rollout": ("reward_funcs", "num_generations", "max_completion_length", "temperature", "max_staleness"),
    "train": (
        "task",
        "output_dir",
        "resume",
        "learning_rate",
        "num_train_epochs",
        "max_steps",
        "per_device_train_batch_size",
        "gradient_accumulation_steps",
        "lr_scheduler_type",
        "warmup_steps",
        "eval_strategy",
        "eval_steps",
        "save_steps",
        "save_total_limit",
        "logging_steps",
        "report_to",
        "seed",
    ),
    "cluster": ("num_workers", "zero_stage", "offload", "device", "address"),
}


@dataclass(frozen=True)
class FieldLine:
    """A field of a help page: path, type, default and description; `from_trl`: it comes from a TRL config."""

    path: str
    type: str
    default: str
    sentence: str
    from_trl: bool = False


def field_lines(verb: str, section_name: str) -> list[FieldLine]:
    """Every field of a verb's section, those that `train` takes from TRL last."""
    section = section_of(VERB_CONFIGS[verb], section_name)
    lines = [
        FieldLine(
            f"{section_name}.{name}",
            type_name(field.annotation),
            "required" if field.is_required() else _plain(field.default),
            " ".join((field.description or "").split()) + _mark(f"{section_name}.{name}"),
        )
        for name, field in section.model_fields.items()
    ]
    if issubclass(section, TrainConfig):
        lines += [_trl_line(verb, name) for name in trl_names(section)]
    return lines


def _trl_line(verb: str, name: str) -> FieldLine:
    """A TRL field, merged over the tasks of the verb that have it."""
    tasks = tasks_of(VERB_CONFIGS[verb])
    fields = {task: trl_fields.read_fields(task)[name] for task in tasks if task in trl_fields.tasks_with(name)}
    return FieldLine(
        f"train.{name}",
        by_name({task: field.annotation for task, field in fields.items()}),
        by_name({task: field.default for task, field in fields.items()}),
        next(iter(fields.values())).help
        + ("" if len(fields) == len(tasks) else f" (task {', '.join(fields)})")
        + _mark(f"train.{name}"),
        from_trl=True,
    )


def _mark(path: str) -> str:
    return " Not built yet." if is_unbuilt(path) else ""


def by_name(values: dict[str, str]) -> str:
    """The common text, once; if texts differ, each with the names that have it."""
    names: dict[str, list[str]] = {}
    for name, value in values.items():
        names.setdefault(value, []).append(name)
    return (
        next(iter(names)) if len(names) == 1 else "; ".join(f"{', '.join(of)}: {value}" for value, of in names.items())
    )


def help_page(verb: str, what: str, full: bool) -> str:
    """Text of `rayswift <verb> --help [all]`."""
    schema = VERB_CONFIGS[verb]
    lines = [f"rayswift {verb}: {what}", "", f"usage: rayswift {verb} --config run.yaml [--section.field value ...]"]
    lines.append("A field that is unique can go without its section: --learning_rate 1e-4. --dry_run shows the plan.")
    for name in schema.model_fields:
        lines += ["", f"{name}: {(section_of(schema, name).__doc__ or '').strip()}"]
        fields = field_lines(verb, name)
        for field in fields:
            key = field.path.split(".")[1]
            if not field.from_trl and (full or key in _FIRST.get(name, (key,))):
                lines.append(_line(field, section_of(schema, name)))
        from_trl = [field for field in fields if field.from_trl]
        if full and from_trl:
            lines += ["", f"{name}, further fields of the tasks' TRL configs:"]
            lines += [_line(field, section_of(schema, name)) for field in from_trl]
    if not full:
        lines += ["", f"rayswift {verb} --help all shows every field."]
    return "\n".join(lines)


def type_name(annotation: Any) -> str:
    """A type in words: `int or null`, `full | lora`, `list of str`."""
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return type_name(args[0])
    if origin is Literal:
        return " | ".join(str(value) for value in args)
    if origin in (Union, types.UnionType):
        return " or ".join("null" if arg is type(None) else type_name(arg) for arg in args)
    if origin is list:
        return f"list of {type_name(args[0])}"
    if origin is dict:
        return f"{type_name(args[0])} -> {type_name(args[1])}"
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return "mapping"
    return "anything" if annotation is Any else str(annotation.__name__)


def _line(field: FieldLine, section: type[Section]) -> str:
    info = section.model_fields.get(field.path.split(".")[1])
    values = literal_values(info.annotation) if info else []
    choice = f" ({', '.join(values)})" if values else ""
    return f"  {'--' + field.path:<38} {field.sentence}{choice} [{field.default}]"


def _plain(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return str(value)
