"""Section `rollout` -> the setup of an engine and the resources of its actor; without ray, torch and vllm."""

import os
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from rayswift.cluster.layout import Layout
from rayswift.config.model import ModelConfig
from rayswift.config.rollout import RolloutConfig
from rayswift.engines.engine import SamplingSettings
from rayswift.log import UserError

INSTALL_VLLM = "pip install 'rayswift[gpu]' (with no GPU: 'rayswift[cpu]')"
_VLLM_LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
# Settings of an adapter that vLLM refuses or silently ignores.
_NOT_IN_VLLM = (
    *("alora_invocation_tokens", "alpha_pattern", "bias", "layer_replication", "lora_bias", "modules_to_save"),
    *("rank_pattern", "target_parameters", "trainable_token_indices", "use_dora", "use_qalora"),
)
_UNSET: tuple[Any, ...] = (None, False, "none", [], {})
# Initialisations of a LoRA that change the base weights.
_CHANGES_WEIGHTS = ("pissa", "olora", "loftq", "corda", "lora_ga")
# Arguments of vLLM that must not change, or log-probabilities would be wrong.
_OURS = (
    "async_scheduling",
    "enable_batch_sharded_sampling",
    "enable_lora",
    "load_format",
    "logprobs_mode",
    "model",
    "pipeline_parallel_size",
    "return_sampling_mask",
    "worker_extension_cls",
)


@dataclass(frozen=True)
class EngineSetup:
    """The setup of a vLLM engine, as plain values.

    model: folder or hub id of config and, unless `load_format` is dummy, weights. max_model_len: tokens of prompt and
    completion. tokenizer: its folder, needed only for stop strings and for a regular expression. lora_rank: of the
    adapter on the weights at `model`; None: no adapter. adapter: its folder; None: it arrives by `load`.
    num_threads: if it computes on CPUs.
    load_timeout_s: time limit for published bytes to arrive. engine_kwargs: further arguments under vLLM's names.
    """

    model: str
    sampling: SamplingSettings
    max_model_len: int
    device: str = "cpu"  # cpu | cuda
    dtype: str = "float32"
    load_format: Literal["dummy", "auto"] = "dummy"
    tokenizer: str | None = None
    lora_rank: int | None = None
    adapter: str | None = None
    revision: str | None = None
    trust_remote_code: bool = False
    seed: int = 0
    num_threads: int = 1
    max_num_seqs: int = 256
    tensor_parallel_size: int = 1
    gpu_memory_utilization: float = 0.9
    load_timeout_s: float = 300.0
    engine_kwargs: Mapping[str, Any] = field(default_factory=dict)


def engine_setup(
    rollout: RolloutConfig, layout: Layout, model: str, tokenizer: str, dtype: str, max_model_len: int, **more: Any
) -> EngineSetup:
    """Return the setup of a run's engines.

    Args:
        rollout: The section, checked.
        layout: The run's devices.
        model: Folder or hub id of the weights that training begins with.
        tokenizer: Folder of the run's tokenizer.
        dtype: `model.dtype`; auto is bfloat16 on GPUs, else float32.
        max_model_len: Tokens of the longest prompt and completion.
        more: `lora_rank`, `revision`, `trust_remote_code`, `seed`, and `stop_token_ids`.
    """
    stop_token_ids: Sequence[int] = more.pop("stop_token_ids", ())
    if dtype == "auto":
        dtype = "bfloat16" if layout.device == "cuda" else "float32"
    sampling = SamplingSettings(
        temperature=rollout.temperature,
        top_p=rollout.top_p,
        top_k=rollout.top_k,
        min_p=rollout.min_p,
        repetition_penalty=rollout.repetition_penalty,
        stop=tuple(rollout.stop),
        stop_token_ids=tuple(stop_token_ids),
        structured_outputs_regex=rollout.structured_outputs_regex,
    )
    return EngineSetup(
        model=model,
        sampling=sampling,
        max_model_len=rollout.max_model_len or max_model_len,
        device=layout.device,
        dtype=dtype,
        # An adapter is served over its base weights from disk; all other weights arrive by `load`.
        load_format="auto" if more.get("lora_rank") else "dummy",
        tokenizer=tokenizer if rollout.stop or rollout.structured_outputs_regex else None,
        num_threads=layout.engine_threads,
        max_num_seqs=rollout.max_num_seqs,
        tensor_parallel_size=rollout.tensor_parallel_size,
        gpu_memory_utilization=rollout.gpu_memory_utilization,
        load_timeout_s=rollout.load_timeout_s,
        engine_kwargs=dict(rollout.engine_kwargs),
        **more,
    )


def engine_options(resources: Mapping[str, float]) -> dict[str, Any]:
    """Return Ray's options for the actor of an engine with these resources ("CPU", "GPU", custom ones).

    Ray never restarts it: a new process would answer with weights that were never published.
    """
    custom = {name: amount for name, amount in resources.items() if name not in ("CPU", "GPU")}
    return {
        "num_cpus": resources.get("CPU", 0.0),
        "num_gpus": resources.get("GPU", 0.0),
        "resources": custom,
        "max_restarts": 0,
        "max_task_retries": 0,
    }


def require_model(setup: EngineSetup) -> None:
    """Check that the folders of model and adapter are on this machine, before vLLM takes its name for a hub id.

    Raises:
        UserError: with the machine's name.
    """
    for setting, path in (("model.path", setup.model), ("model.adapters", setup.adapter)):
        if path and Path(path).is_absolute() and not Path(path).is_dir():
            raise UserError(
                f"{setting} = {path} is no folder on {socket.gethostname()}, where an engine starts; put it where "
                "every node sees it, or give engines nodes that do (rollout.engine_resources)",
                exit_code=1,
            )


def require_vllm(setting: str) -> None:
    """Check that vLLM is installed on this machine.

    Raises:
        UserError: with the command that installs it.
    """
    if find_spec("vllm") is None:
        raise UserError(f"{setting} needs vLLM, which is not installed; {INSTALL_VLLM}")


def adapter_obstacles(adapter: Mapping[str, Any]) -> list[str]:
    """Return why vLLM cannot serve an adapter with this PEFT config; empty: it can."""
    if adapter.get("peft_type", "LORA") != "LORA":
        return [f"peft_type {adapter['peft_type']}"]
    found = [key for key in _NOT_IN_VLLM if adapter.get(key) not in _UNSET]
    if str(adapter.get("init_lora_weights")).startswith(_CHANGES_WEIGHTS):
        found.append(f"init_lora_weights {adapter['init_lora_weights']}")
    if adapter.get("r", 0) > _VLLM_LORA_RANKS[-1]:
        found.append(f"r above {_VLLM_LORA_RANKS[-1]}")
    return found


def lora_capacity(rank: int) -> int:
    """Return the smallest of vLLM's ranks that fits an adapter of this rank."""
    return next(size for size in _VLLM_LORA_RANKS if size >= rank)


def engine_kwargs_problems(rollout: RolloutConfig) -> list[str]:
    """Return a line for each of `rollout.engine_kwargs` that RaySwift sets itself."""
    return [
        f"rollout.engine_kwargs.{name} is set by RaySwift; leave it out"
        for name in sorted(rollout.engine_kwargs.keys() & set(_OURS))
    ]


def policy_problems(model: ModelConfig, rollout: RolloutConfig) -> list[str]:
    """Return why engines cannot take the weights of such a policy; they are built from the folder at `model.path`."""
    found = [
        f"model.{name} changes the model's config, and engines are built from that at model.path: write the changed "
        "model first (rayswift sft with it), and start from there"
        for name in ("new_special_tokens", "rope_scaling", "max_position_embeddings")
        if getattr(model, name)
    ]
    return found + _lora_sync_problems(model, rollout)


def _lora_sync_problems(model: ModelConfig, rollout: RolloutConfig) -> list[str]:
    if rollout.lora_sync == "merged":
        if model.quantization:
            return [
                f"rollout.lora_sync = merged: an adapter cannot be merged into {model.quantization} weights; set it to "
                "adapter, and engines serve the adapter over the weights as they are on disk"
            ]
        return []
    if model.tuner == "full":
        return ["rollout.lora_sync = adapter needs an adapter; set model.tuner lora, or leave it out"]
    adapter = {"peft_type": model.tuner.upper(), "r": model.lora_rank, "modules_to_save": model.modules_to_save}
    obstacles = adapter_obstacles(adapter | model.tuner_kwargs)
    if obstacles:
        return [f"rollout.lora_sync = adapter: vLLM cannot serve one with {', '.join(obstacles)}; set it to merged"]
    if model.random_init or len(model.adapters) > 1:
        return [
            "rollout.lora_sync = adapter: engines read the weights below the adapter from model.path, where those of "
            "model.random_init or with earlier model.adapters merged in are not; set it to merged"
        ]
    return []


def prepare_environment(setup: EngineSetup) -> None:
    """Set the variables that vLLM and OpenMP read once, at their import."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # the engine's core in this process
    os.environ["VLLM_CONFIGURE_LOGGING"] = "0"
    if setup.device == "cpu":
        os.environ |= {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": str(setup.num_threads)}
        os.environ.pop("VLLM_CPU_KVCACHE_SPACE", None)  # it would override kv_cache_memory_bytes
