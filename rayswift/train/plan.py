"""From what the user set to what will run: derived values, checks across fields, memory, and the plan as text."""

import json
from dataclasses import dataclass
from pathlib import Path

from rayswift.config.schema import SftConfig
from rayswift.log import UserError
from rayswift.resources import Layout, memory_per_worker_bytes
from rayswift.train import memory

_NOT_STRETCHABLE = ("reduce_lr_on_plateau", "greedy", "warmup_stable_decay")


@dataclass(frozen=True)
class Plan:
    """A resolved config, where it runs, and the memory each ZeRO stage would take (None where sizes are unknown)."""

    config: SftConfig
    layout: Layout
    estimates: list[memory.MemoryEstimate] | None
    available_bytes: int

    @property
    def global_batch(self) -> int:
        """Packed rows of one optimizer step."""
        train = self.config.train
        return train.per_device_train_batch_size * train.gradient_accumulation_steps * self.layout.world_size


def resolve(config: SftConfig, layout: Layout, zero_stage: int | None) -> Plan:
    """Fill in every default that depends on something else.

    Args:
        config: As loaded.
        layout: Workers and device.
        zero_stage: The stage frozen by an earlier launch of the same run, if there was one.

    Raises:
        UserError: fields that do not go together, one line each.
    """
    estimates = _estimates(config, layout)
    available = memory_per_worker_bytes(layout)
    stage = config.cluster.zero_stage if config.cluster.zero_stage is not None else zero_stage
    if stage is None:
        lowest = {"none": 0, "optimizer": 1, "all": 3}[config.cluster.offload]
        fitting = memory.smallest_stage(available, layout.world_size, estimates) if estimates else 0
        stage = max(lowest, fitting)
    has_eval = bool(config.data.eval or config.data.eval_fraction)
    learning_rate = config.train.learning_rate or (2e-5 if config.model.tuner == "full" else 1e-4)
    train = config.train.model_copy(
        update={
            "learning_rate": learning_rate,
            "eval_strategy": config.train.eval_strategy or ("steps" if has_eval else "no"),
            "eval_steps": config.train.eval_steps or config.train.save_steps,
        }
    )
    cluster = config.cluster.model_copy(update={"num_workers": layout.num_workers, "zero_stage": stage})
    resolved = config.model_copy(update={"train": train, "cluster": cluster})
    problems = _problems(resolved, has_eval)
    if problems:
        raise UserError("\n".join(problems))
    return Plan(resolved, layout, estimates, available)


def _problems(config: SftConfig, has_eval: bool) -> list[str]:
    train, cluster, data = config.train, config.cluster, config.data
    found = []
    if train.eval_strategy != "no" and not has_eval:
        found.append(f"train.eval_strategy = {train.eval_strategy} has no rows; set data.eval or data.eval_fraction")
    for name in ("load_best_model_at_end", "early_stopping_patience"):
        if getattr(train, name) and train.eval_strategy == "no":
            found.append(f"train.{name} needs evaluations; set data.eval or data.eval_fraction")
    if data.eval and data.eval_fraction:
        found.append("data.eval and data.eval_fraction both name evaluation rows; keep one")
    if cluster.offload == "all" and cluster.zero_stage != 3:
        found.append(f"cluster.offload = all needs cluster.zero_stage 3, it is {cluster.zero_stage}")
    if cluster.offload == "optimizer" and not cluster.zero_stage:
        found.append("cluster.offload = optimizer needs cluster.zero_stage 1, 2 or 3, it is 0")
    if train.max_steps <= 0 and train.lr_scheduler_type in _NOT_STRETCHABLE:
        found.append(f"train.lr_scheduler_type = {train.lr_scheduler_type} counts steps; set train.max_steps")
    folder = Path(config.model.path)
    if folder.is_dir() and not config.model.random_init and not _has_weights(folder):
        found.append(
            f"model.path = {str(folder)!r} holds no weights (*.safetensors); set model.random_init to begin anew"
        )
    positions = _config_value(config.model.path, "max_position_embeddings")
    if positions and data.max_length > positions:
        found.append(f"data.max_length = {data.max_length}, but the model has {positions} positions; lower it")
    return found


def _has_weights(folder: Path) -> bool:
    return any(folder.glob("*.safetensors")) or any(folder.glob("*.bin"))


def _config_value(path: str, key: str) -> int | None:
    file = Path(path) / "config.json"
    if not file.exists():
        return None
    config = json.loads(file.read_text(encoding="utf-8"))
    value = config.get("text_config", config).get(key)
    return value if isinstance(value, int) else None


def _estimates(config: SftConfig, layout: Layout) -> list[memory.MemoryEstimate] | None:
    try:
        size = memory.model_size(Path(config.model.path), config.model.tuner, config.model.lora_rank)
    except OSError:
        return None
    half = config.model.dtype in ("bfloat16", "float16") or (config.model.dtype == "auto" and layout.device == "cuda")
    return [
        memory.estimate(
            size,
            zero_stage=stage,
            offload=config.cluster.offload,
            world_size=layout.world_size,
            half=half,
            tokens_per_micro_batch=config.train.per_device_train_batch_size * config.data.max_length,
            gradient_checkpointing=config.train.gradient_checkpointing,
        )
        for stage in range(4)
    ]


def describe(plan: Plan, num_rows: int | None, unchecked: list[str]) -> str:
    """The placement plan, for `--dry_run` and the log."""
    config, layout = plan.config, plan.layout
    where = "in this process" if layout.num_workers == 0 else f"{layout.num_workers} worker(s)"
    per_step = (
        f"{config.train.per_device_train_batch_size} x {config.train.gradient_accumulation_steps} "
        f"x {layout.world_size} = {plan.global_batch}"
    )
    lines = [
        f"  training      {where} on {layout.device}, {layout.threads_per_worker} CPU thread(s) each, "
        f"ZeRO {config.cluster.zero_stage}, offload {config.cluster.offload}",
        f"  global batch  {per_step} packed rows of up to {config.data.max_length} tokens",
        f"  Ray           {'started for this run' if layout.local else 'the cluster that is there'}",
    ]
    if num_rows is not None:
        lines.append(f"  rows          {num_rows:,} to train")
    if plan.estimates:
        lines.append(f"  memory        of {_gib(plan.available_bytes)} per worker, estimated for each ZeRO stage:")
        for stage, needed in enumerate(plan.estimates):
            mark = ">" if stage == config.cluster.zero_stage else " "
            lines.append(
                f"             {mark}  {stage}: {_gib(needed.total)}  (weights {_gib(needed.weights)}, gradients "
                f"{_gib(needed.gradients)}, optimizer {_gib(needed.optimizer)}, activations {_gib(needed.activations)})"
            )
    lines += [f"  not checked   {what}" for what in unchecked]
    return "\n".join(["plan", *lines])


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.2f} GiB"
