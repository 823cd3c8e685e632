"""Makes the task's TRL config from the resolved config; in the worker, because it touches devices and global state."""

from typing import Any

from rayswift.log import UserError
from rayswift.train.parallel.deepspeed import deepspeed_config
from rayswift.train.spec import RunSpec

# Fields that only we have, or that are passed under another name below.
_NOT_TRL = (
    "task",
    "matryoshka_dims",
    "infonce_temperature",
    "contrastive_margin",
    "positive_token",
    "negative_token",
    "resume",
    "global_batch_size",
    "early_stopping_patience",
    "load_best_model_at_end",
    "output_dir",
    "plugins",
    "callbacks",
    "metrics",
    "loss",
    "micro_batch_tokens",
)


_NO_END = 1 << 40
"""Steps: more than any run trains; HF wants a number."""
_OF_THE_HUB = ("push_to_hub", "hub_token", "hub_model_id", "hub_strategy", "hub_always_push", "hub_revision")

# TRL's constructors must not change rows, which come from the stream.
_NO_ROWS = {"max_length": None, "packing": False, "dataset_kwargs": {"skip_prepare_dataset": True}}


def trainer_arguments(spec: RunSpec, arguments: Any, dtype: str, tracks: bool, universal: bool) -> Any:
    """Return the trainer's arguments of this rank.

    Args:
        spec: The run.
        arguments: The config class of its task, TRL's or HF's own.
        dtype: float32, bfloat16 or float16.
        tracks: Whether this rank reports to trackers.
        universal: Whether the checkpoint to continue is in DeepSpeed's universal format.

    Raises:
        UserError: TRL or HF refuses a value.
    """
    config = spec.config
    fields = arguments.__dataclass_fields__
    not_passed = {*_NOT_TRL, "loss_type"} - ({"loss_type"} & fields.keys())  # HF's own has none: checked to be unset
    names = [name for name in type(config.train).model_fields if name not in not_passed]
    values: dict[str, Any] = {name: getattr(config.train, name) for name in names} | config.train.trl_extra
    for name in _OF_THE_HUB:  # HF would push the run folder; `hub.py` pushes the model, and needs no token on the disk
        values.pop(name, None)
    if values.pop("reference_free", False):
        values["precompute_ref_log_probs"] = True  # so that TRL keeps no reference
    values |= {name: value for name, value in _NO_ROWS.items() if name in fields}
    if values["optim"] == "muon":
        values["optim"] = "adamw_torch"  # a name that HF knows; `Streamed.create_optimizer` makes ours
    if values.get("optim_target_modules") == ["all-linear"]:
        values["optim_target_modules"] = "all-linear"  # HF takes a list for names of modules
    values |= {
        "output_dir": str(spec.run_dir),
        "report_to": config.train.report_to if tracks else "none",
        # Epochs end with the data, at a step that is not known yet: a row may be cut into any number of pieces.
        "max_steps": config.train.max_steps if spec.feed_plan.ends_by_steps else _NO_END,
        "save_total_limit": None,  # retention counts complete checkpoints only, so it is ours
        "remove_unused_columns": False,
        "ignore_data_skip": True,
        "restore_callback_states_from_checkpoint": True,
        "logging_nan_inf_filter": False,
        "disable_tqdm": True,
        "use_cpu": spec.layout.device == "cpu",
        "bf16": dtype == "bfloat16",
        "fp16": dtype == "float16",
        "ddp_find_unused_parameters": config.model.lisa_layers > 0,  # those that are frozen for a while
        "ddp_timeout": config.cluster.timeout_s,
    }
    if not spec.feed_plan.ends_by_steps:
        # HF would take shares of it; `StreamFlow` takes them of the rows.
        for name in ("logging_steps", "eval_steps", "save_steps"):
            if values[name] is not None and values[name] < 1:
                values[name] = values["max_steps"] + 1
    if spec.layout.world_size > 1:
        values["ddp_backend"] = "gloo" if spec.layout.device == "cpu" else "nccl"
    if config.cluster.uses_deepspeed:
        values["deepspeed"] = deepspeed_config(config.cluster, spec.layout.device, dtype, universal)
    try:
        return arguments(**values)
    except (ValueError, TypeError, ImportError, AssertionError) as error:
        raise UserError(f"the train section is refused by TRL: {error}", exit_code=1) from error
