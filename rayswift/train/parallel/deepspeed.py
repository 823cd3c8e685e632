"""`cluster.zero_stage` and `cluster.offload` -> the DeepSpeed config that HF's Trainer completes ("auto")."""

import json
from pathlib import Path
from typing import Any

from rayswift.config.schema import ClusterConfig
from rayswift.log import UserError

REDUCE_BUCKET = 500_000_000
"""DeepSpeed's default: gradients, counted in parameters, that are reduced at once."""


def deepspeed_config(cluster: ClusterConfig, device: str, dtype: str, universal: bool) -> dict[str, Any]:
    """Return the DeepSpeed config of a run.

    Args:
        cluster: With `zero_stage` resolved, or with a file of the user.
        device: cpu or cuda.
        dtype: float32, bfloat16 or float16.
        universal: Whether a checkpoint in the universal format will be loaded.

    Raises:
        UserError: the user's file cannot be read.
    """
    if cluster.deepspeed:
        config = _read(Path(cluster.deepspeed))
        return config | {"checkpoint": config.get("checkpoint", {}) | {"load_universal": universal}}
    stage = cluster.zero_stage or 0
    zero: dict[str, Any] = {"stage": stage}
    if stage == 3:
        zero["stage3_gather_16bit_weights_on_model_save"] = True
    if cluster.offload != "none":
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": device == "cuda"}
    if cluster.offload == "all":
        zero["offload_param"] = {"device": "cpu", "pin_memory": device == "cuda"}
    return {
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        # The optimizer is the one that train.optim names, also if its states are on the CPU.
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": dtype == "bfloat16"},
        "fp16": {"enabled": dtype == "float16"},
        "checkpoint": {"load_universal": universal},
        "steps_per_print": 1 << 30,
    }


def fit_reduce_bucket(config: dict[str, Any], num_trainable: int) -> None:
    """Limit the bucket of gradients to the number of gradients: DeepSpeed allocates all of it, 1 GB in bfloat16.

    Args:
        config: DeepSpeed's, changed in place; a file of the user is never passed.
        num_trainable: Number of trained parameters.
    """
    config["zero_optimization"]["reduce_bucket_size"] = min(REDUCE_BUCKET, num_trainable)


def _read(path: Path) -> dict[str, Any]:
    try:
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise UserError(f"cluster.deepspeed = {str(path)!r}: {error}") from error
    return config
