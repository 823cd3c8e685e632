"""Whether a run may be continued with a config: a field that changes its steps must not differ."""

import ast
import contextlib
import json
from typing import Any

from rayswift.config.fields import trl as trl_fields
from rayswift.config.load import SECRETS
from rayswift.config.schema import TrainingConfig
from rayswift.config.section import Section
from rayswift.config.train import TrainConfig
from rayswift.data.cache.fingerprint import by_stamp, contents, source_differences
from rayswift.log import UserError, logger
from rayswift.run.fingerprint import read_sources
from rayswift.run.folder import FINGERPRINT, Resume

# Fields that may differ when a run is continued, because they change no step. All others must be equal, also new ones.
# Callbacks are the user's own responsibility.
_FREE_NAMES = {
    "cluster": """
        address device max_failures num_data_cpus num_workers scratch_dir storage_timeout_s threads_per_worker
        timeout_s wait_for_nodes_s
    """,
    "data": "eval max_bad_fraction",
    "rollout": """
        canary_steps engine_resources engine_threads gpu_memory_utilization max_failed_fraction max_logprob_drift
        max_num_seqs num_engines eval num_generations_eval reward_timeout_s reward_workers
        teacher_server tool_threads tool_timeout_s tool_workers
    """,
    "train": """
        callbacks debug early_stopping_patience eval_delay eval_do_concat_batches eval_on_start eval_steps
        eval_strategy eval_use_gather_object gradient_accumulation_steps greater_is_better hub_always_push
        hub_model_id hub_private_repo hub_revision hub_strategy hub_token include_num_input_tokens_seen
        load_best_model_at_end log_level log_level_replica log_on_each_node logging_first_step logging_steps
        metric_for_best_model metrics output_dir per_device_eval_batch_size per_device_train_batch_size project
        push_to_hub report_to resume run_name save_only_model save_steps save_strategy save_total_limit
        skip_memory_metrics torch_empty_cache_steps trackio_bucket_id trackio_space_id trackio_static_space_id
    """,
}
FREE = frozenset(f"{section}.{name}" for section, names in _FREE_NAMES.items() for name in names.split())
"""Fields that may differ when a run is continued."""


def check_unchanged(resume: Resume, config: TrainingConfig, found: dict[str, Any]) -> None:
    """Raise UserError with a line (field, saved value, new value) for each difference that changes a step.

    Other differences are logged.
    """
    lines = []
    changed = differences(config, resume.config)
    goes_on = _may_go_on(config, resume.config)
    for path, line in changed.items():
        if path in FREE or (path in _LENGTH and goes_on):
            logger.info("changed since %s: %s", resume.saved.path.name, line)
        else:
            lines.append(f"  {line}")
    file = resume.saved.path.parent / FINGERPRINT
    saved = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    for name, was in saved.items():
        if found.get(name) != was:
            lines.append(f"  content of the {name}: was {was}, is {found.get(name)}")
    lines += _changed_rows(resume, config)
    if lines:
        raise UserError(
            f"{resume.saved.path} cannot be continued with other values of fields that change its steps:\n"
            + "\n".join(lines)
            + "\n  set them back, or begin a new run with another --train.output_dir"
            + (_HOW_TO_GO_ON.format(resume.saved.path) if changed.keys() & _LENGTH and not goes_on else "")
        )


_LENGTH = frozenset(("train.num_train_epochs", "train.max_steps"))
_HOW_TO_GO_ON = (
    " and --model {}, which trains the weights further under a new schedule (only a run with a constant schedule can "
    "become longer)"
)


def _may_go_on(config: TrainingConfig, saved: dict[str, Any]) -> bool:
    """Whether the schedule does not depend on the run's length, so that the run may become longer or shorter."""
    train, was = config.train, saved.get("train", {})
    has_share = train.lr_scheduler_type == "constant_with_warmup" and 0 < train.warmup_steps < 1
    is_constant = train.lr_scheduler_type in ("constant", "constant_with_warmup") and not has_share
    counts_alike = (train.max_steps > 0) == (was.get("max_steps", -1) > 0)
    return is_constant and counts_alike and config.model.tuner != "adalora"


def _changed_rows(resume: Resume, config: TrainingConfig) -> list[str]:
    """A line for each source file whose content changed since the first launch; only files with a new time are read."""
    was = read_sources(resume.saved.path.parent)
    if config.data.cache or not was or len(was) != len(config.data.dataset):
        return []  # no hashes, or other sources, which is a difference of the field data.dataset
    now = contents(config.data.dataset, by_stamp(was))
    return [f"  data.dataset: {line}" for pair in zip(was, now, strict=True) for line in source_differences(*pair)]


def differences(config: TrainingConfig, saved: dict[str, Any]) -> dict[str, str]:
    """Each field that differs from a saved config -> a line with both values; missing fields have their defaults."""
    now, found = config.model_dump(mode="json"), {}
    for section, fields in now.items():
        was_fields = saved.get(section, {})
        defaults = _defaults(type(getattr(config, section)), config.train.task)
        for name in sorted({*fields, *was_fields} - SECRETS):
            was, is_now = (tree.get(name, defaults.get(name)) for tree in (was_fields, fields))
            if was != is_now:
                found[f"{section}.{name}"] = f"{section}.{name}: was {was!r}, is {is_now!r}"
    return found


def _defaults(section: type[Section], task: str) -> dict[str, Any]:
    """Defaults of a section's fields, with those of TRL that are literals."""
    found: dict[str, Any] = {}
    for name, trl_field in trl_fields.read_fields(task).items() if issubclass(section, TrainConfig) else ():
        with contextlib.suppress(ValueError, SyntaxError):
            found[name] = ast.literal_eval(trl_field.default)
    return found | {name: info.default for name, info in section.model_fields.items() if not info.is_required()}
