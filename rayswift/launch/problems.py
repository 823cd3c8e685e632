"""Contradictions in a resolved config, or between config and layout: one line each."""

from pathlib import Path

from rayswift.cluster.layout import Layout
from rayswift.config.checks.built import problems
from rayswift.config.derived import max_sequence_length, rollout_of
from rayswift.config.schema import RlhfConfig, TrainingConfig
from rayswift.config.train import TrainConfig
from rayswift.data.sequence.mixing import weights_of
from rayswift.data.sources import parse_source
from rayswift.log import UserError
from rayswift.model.kind import abilities
from rayswift.model.kind.kinds import holds_weights, stretched_positions
from rayswift.run import checkpoint
from rayswift.train import evaluation

_NOT_STRETCHABLE = ("reduce_lr_on_plateau", "greedy", "warmup_stable_decay")


def worker_problems(config: TrainingConfig, layout: Layout) -> list[str]:
    found = []
    batch = config.train.global_batch_size or 0
    if layout.world_size > batch:
        found.append(
            f"cluster.num_workers = {layout.world_size} leaves workers without a row of a global batch of {batch}; "
            "lower it, or raise train.global_batch_size"
        )
    if layout.min_workers and config.train.save_only_model:
        found.append("train.save_only_model leaves nothing that a changing number of workers can continue; unset it")
    return found


def config_problems(config: TrainingConfig, has_eval: bool) -> list[str]:
    """Problems of the config alone; has_eval: there are evaluation rows."""
    train, cluster, data = config.train, config.cluster, config.data
    found = problems(config)
    if train.eval_strategy != "no" and not has_eval:
        found.append(f"train.eval_strategy = {train.eval_strategy} has no rows; set data.eval or data.eval_fraction")
    if train.eval_on_start and not has_eval:
        found.append("train.eval_on_start = True has no rows; set data.eval or data.eval_fraction, or unset it")
    for name in ("load_best_model_at_end", "early_stopping_patience"):
        if getattr(train, name) and train.eval_strategy == "no":
            found.append(f"train.{name} needs evaluations; set data.eval or data.eval_fraction")
    metric = train.metric_for_best_model.removeprefix("eval_")
    if train.task == "causal_lm" and not train.metrics and metric not in evaluation.BUILT_IN:
        found.append(
            f"train.metric_for_best_model = {metric!r} is not a metric of an evaluation; choose one of "
            f"{', '.join(evaluation.BUILT_IN)}, or one of train.metrics"
        )
    if train.metrics and train.eval_strategy == "no":
        found.append("train.metrics needs evaluations; set data.eval or data.eval_fraction")
    if data.eval and data.eval_fraction:
        found.append("data.eval and data.eval_fraction both name evaluation rows; keep one")
    try:
        weights_of(data.dataset, data.mix)
    except UserError as error:
        found.append(str(error))
    found += [
        f"data.eval: {parse_source(each).written} has a weight, but only rows to train on are mixed; leave it out"
        for each in data.eval
        if not isinstance(each, str) and each.weight is not None
    ]
    if cluster.offload == "all" and cluster.zero_stage != 3:
        found.append(f"cluster.offload = all needs cluster.zero_stage 3, it is {cluster.zero_stage}")
    if cluster.uses_deepspeed and "[" in f"{Path(train.output_dir).absolute()}{cluster.scratch_dir}{train.resume}":
        found.append(
            f"train.output_dir = {train.output_dir!r}: DeepSpeed looks for its checkpoints by patterns, in which [ is "
            "special, and would not find them; choose a path without it (cluster.scratch_dir and train.resume too)"
        )
    if cluster.offload == "optimizer" and not cluster.zero_stage:
        found.append("cluster.offload = optimizer needs cluster.zero_stage 1, 2 or 3, it is 0")
    if train.max_steps <= 0 and _counts_steps(train):
        found.append(f"train.lr_scheduler_type = {train.lr_scheduler_type} counts steps; set train.max_steps")
    folder = Path(config.model.path)
    has_weights = config.model.random_init or holds_weights(folder)
    if folder.is_dir() and not has_weights and not abilities.training_problems(config):
        result = checkpoint.model_folder(folder) if checkpoint.newest(folder) else folder
        remedy = f"name its checkpoint {result}" if result != folder else "set model.random_init for random weights"
        found.append(
            f"model.path = {str(folder)!r} holds no weights (model*.safetensors or pytorch_model*.bin); {remedy}"
        )
    positions = stretched_positions(config.model)
    online = isinstance(config, RlhfConfig) and rollout_of(config) is not None
    longest = max_sequence_length(config) if isinstance(config, RlhfConfig) and online else data.max_length
    if positions and longest > positions:
        what = f"a prompt and its completion have up to {longest} tokens" if online else f"data.max_length = {longest}"
        which = "data.max_length, or rollout.max_prompt_length and rollout.max_completion_length" if online else "it"
        found.append(f"{what}, but the model has {positions} positions; lower {which}")
    return found


def _counts_steps(train: TrainConfig) -> bool:
    """Whether a schedule cannot be stretched over rows: its own arguments, or what it takes for them, are steps."""
    if train.lr_scheduler_type == "inverse_sqrt":  # its time scale is the warm-up, or else 10,000 steps
        return "timescale" in (train.trl_extra.get("lr_scheduler_kwargs") or {}) or not 0 < train.warmup_steps < 1
    return train.lr_scheduler_type in _NOT_STRETCHABLE
