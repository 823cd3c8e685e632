"""Whether a run may be continued: nothing that changes its steps may differ from what it began with."""

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

# What may differ when a run is continued, because it changes no step; all else, new fields too, must be as it was.
# Callbacks are the user's own affair.
_FREE = frozenset(
    (
        "cluster.address",
        "cluster.device",
        "cluster.max_failures",
        "cluster.num_data_cpus",
        "cluster.num_workers",
        "cluster.scratch_dir",
        "cluster.storage_timeout_s",
        "cluster.threads_per_worker",
        "cluster.timeout_s",
        "cluster.wait_for_nodes_s",
        "data.eval",
        "data.max_bad_fraction",
        "rollout.canary_steps",
        "rollout.engine_resources",
        "rollout.engine_threads",
        "rollout.gpu_memory_utilization",
        "rollout.max_failed_fraction",
        "rollout.max_logprob_drift",
        "rollout.max_num_seqs",
        "rollout.num_engines",
        "rollout.num_generations_eval",
        "rollout.reward_timeout_s",
        "rollout.reward_workers",
        "rollout.teacher_server",
        "rollout.tool_threads",
        "rollout.tool_timeout_s",
        "rollout.tool_workers",
        "train.early_stopping_patience",
        "train.eval_on_start",
        "train.eval_steps",
        "train.eval_strategy",
        "train.gradient_accumulation_steps",
        "train.greater_is_better",
        "train.load_best_model_at_end",
        "train.logging_steps",
        "train.metric_for_best_model",
        "train.output_dir",
        "train.per_device_eval_batch_size",
        "train.per_device_train_batch_size",
        "train.callbacks",
        "train.debug",
        "train.eval_delay",
        "train.eval_do_concat_batches",
        "train.eval_use_gather_object",
        "train.hub_always_push",
        "train.hub_model_id",
        "train.hub_private_repo",
        "train.hub_revision",
        "train.hub_strategy",
        "train.hub_token",
        "train.include_num_input_tokens_seen",
        "train.log_level",
        "train.log_level_replica",
        "train.log_on_each_node",
        "train.logging_first_step",
        "train.metrics",
        "train.project",
        "train.push_to_hub",
        "train.report_to",
        "train.resume",
        "train.run_name",
        "train.save_only_model",
        "train.save_steps",
        "train.save_strategy",
        "train.save_total_limit",
        "train.skip_memory_metrics",
        "train.torch_empty_cache_steps",
        "train.trackio_bucket_id",
        "train.trackio_space_id",
        "train.trackio_static_space_id",
    )
)


def check_unchanged(resume: Resume, config: TrainingConfig, found: dict[str, Any]) -> None:
    """Refuse to continue with anything that would change a step; other differences are logged.

    Raises:
        UserError: a line for each difference: field, saved value, value now.
    """
    lines = []
    changed = differences(config, resume.config)
    goes_on = _may_go_on(config, resume.config)
    for path, line in changed.items():
        if path in _FREE or (path in _LENGTH and goes_on):
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
            f"{resume.saved.path} cannot be continued with what changes its steps:\n"
            + "\n".join(lines)
            + "\n  set these back, or begin a new run with another --train.output_dir"
            + (_HOW_TO_GO_ON.format(resume.saved.path) if changed.keys() & _LENGTH and not goes_on else "")
        )


# What a run's length is given by.
_LENGTH = frozenset(("train.num_train_epochs", "train.max_steps"))
_HOW_TO_GO_ON = (
    " and --model {}, which trains the weights further under a schedule of its own (a constant one has no end, and "
    "could be gone on with)"
)


def _may_go_on(config: TrainingConfig, saved: dict[str, Any]) -> bool:
    """Whether no step depends on how many follow, so that a run may become longer or shorter."""
    train, was = config.train, saved.get("train", {})
    has_share = train.lr_scheduler_type == "constant_with_warmup" and 0 < train.warmup_steps < 1
    is_constant = train.lr_scheduler_type in ("constant", "constant_with_warmup") and not has_share
    counts_alike = (train.max_steps > 0) == (was.get("max_steps", -1) > 0)
    return is_constant and counts_alike and config.model.tuner != "adalora"


def _changed_rows(resume: Resume, config: TrainingConfig) -> list[str]:
    """A line for each file of rows that is another one than at the first launch; only files touched since are read."""
    was = read_sources(resume.saved.path.parent)
    if config.data.cache or not was or len(was) != len(config.data.dataset):
        return []  # nothing was noted, or the sources are others by their names: said above
    now = contents(config.data.dataset, by_stamp(was))
    return [f"  data.dataset: {line}" for pair in zip(was, now, strict=True) for line in source_differences(*pair)]


def differences(config: TrainingConfig, saved: dict[str, Any]) -> dict[str, str]:
    """Every field that differs from a saved config, with both values; what a config leaves out has its default."""
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
    """Defaults of a section's fields, TRL's included where they are plain values."""
    found: dict[str, Any] = {}
    for name, trl_field in trl_fields.read_fields(task).items() if issubclass(section, TrainConfig) else ():
        with contextlib.suppress(ValueError, SyntaxError):
            found[name] = ast.literal_eval(trl_field.default)
    return found | {name: info.default for name, info in section.model_fields.items() if not info.is_required()}
