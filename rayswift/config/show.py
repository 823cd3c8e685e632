"""Help pages, from the same dataclasses that are parsed."""

from typing import Any

from rayswift.config import trl_fields
from rayswift.config.names import literal_values, section_of, trl_names
from rayswift.config.schema import VERB_CONFIGS, TrainConfig
from rayswift.config.section import Section

# The fields people set first, by section; `--help all` shows every one.
_FIRST = {
    "model": ("path", "tuner", "dtype", "lora_rank", "lora_alpha", "target_modules", "random_init"),
    "data": ("dataset", "eval", "eval_fraction", "columns", "max_length", "truncation", "packing", "loss_on"),
    "train": (
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


def help_page(verb: str, what: str, full: bool) -> str:
    """Text of `rayswift <verb> --help [all]`."""
    schema = VERB_CONFIGS[verb]
    lines = [f"rayswift {verb}: {what}", "", f"usage: rayswift {verb} --config run.yaml [--section.field value ...]"]
    lines.append("A field that is unique can go without its section: --learning_rate 1e-4. --dry_run shows the plan.")
    for name in schema.model_fields:
        section = section_of(schema, name)
        lines += ["", f"{name}: {(section.__doc__ or '').strip()}"]
        for key, field in section.model_fields.items():
            if full or key in _FIRST.get(name, (key,)):
                default = "required" if field.is_required() else _plain(field.default)
                lines.append(_line(f"--{name}.{key}", default, field.description or "", field.annotation))
        if full and issubclass(section, TrainConfig):
            lines += ["", f"{name}, further fields of the tasks' TRL configs:"]
            for key, trl_field in trl_names(section).items():
                lines.append(_line(f"--train.{key}", trl_field.default, _with_tasks(section, key, trl_field), None))
    if not full:
        lines += ["", f"rayswift {verb} --help all shows every field."]
    return "\n".join(lines)


def _with_tasks(section: type[Section], name: str, trl_field: trl_fields.TrlField) -> str:
    """A TRL field's help, with the tasks that have it where not all of the verb do."""
    tasks = literal_values(section.model_fields["task"].annotation)
    those = [task for task in tasks if task in trl_fields.tasks_with(name)]
    return trl_field.help if those == tasks else f"{trl_field.help} (task {', '.join(those)})"


def _line(flag: str, default: str, help_text: str, annotation: Any) -> str:
    values = literal_values(annotation)
    choice = f" ({', '.join(values)})" if values else ""
    return f"  {flag:<38} {help_text}{choice} [{default}]"


def _plain(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return str(value)
