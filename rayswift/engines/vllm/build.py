"""Builds vLLM's engine from a setup, and the sampling parameters of its requests."""

from collections.abc import Callable
from typing import Any

from rayswift import imports
from rayswift.engines.engine import SamplingSettings
from rayswift.engines.samples import RequestSampling
from rayswift.engines.vllm.setup import EngineSetup, lora_capacity, prepare_environment, require_vllm

_CPU_KV_CACHE_BYTES = 512 << 20
_PREFILL_TOKENS = 4096
SCORE_PLACES = 8
"""Slots for scores, beside those for samples."""


def build(setup: EngineSetup) -> tuple[Any, Callable[[int, int, RequestSampling | None], Any]]:
    """vLLM's engine, and how it takes the sampling of a request: (room in tokens, seed, its own way to choose
    tokens) -> parameters."""
    require_vllm("rollout")
    prepare_environment(setup)
    with imports.of_libraries():
        import torch

        torch.set_num_threads(setup.num_threads)
        if setup.device == "cpu":
            # vLLM still compiles parts: this needs a compiler, or takes code from a cache that another CPU filled.
            torch.compiler.set_stance("force_eager")
        from vllm import EngineArgs, LLMEngine, SamplingParams
        from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

    engine = LLMEngine.from_engine_args(EngineArgs(**arguments(setup)))
    wanted = setup.sampling
    engine.collective_rpc("put_policy_before_sampling", args=(wanted.temperature or 1.0, _is_unpenalised(wanted)))

    def sampling(max_tokens: int, seed: int, own: RequestSampling | None) -> Any:
        chosen: SamplingSettings | RequestSampling = own or wanted
        regex = wanted.structured_outputs_regex
        return SamplingParams(
            temperature=chosen.temperature / (wanted.temperature or 1.0),  # the logits are divided by that already
            top_p=chosen.top_p,
            top_k=chosen.top_k,
            min_p=wanted.min_p,
            repetition_penalty=wanted.repetition_penalty,
            seed=seed,
            max_tokens=max_tokens,
            stop=list(wanted.stop) or None,
            stop_token_ids=list(wanted.stop_token_ids),
            detokenize=bool(wanted.stop),
            logprobs=0,  # only of the sampled token
            flat_logprobs=True,
            output_kind=RequestOutputKind.FINAL_ONLY,
            structured_outputs=StructuredOutputsParams(regex=regex) if regex else None,
            skip_clone=True,  # each is made for one request
        )

    return engine, sampling


def score_params(top: int) -> Any:
    """Return the parameters of a request that scores its prompt, with the `top` likeliest tokens at each position."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        max_tokens=1,  # vLLM takes no 0
        prompt_logprobs=top,
        detokenize=False,
        flat_logprobs=True,
        output_kind=RequestOutputKind.FINAL_ONLY,
        skip_clone=True,
    )


def _is_unpenalised(sampling: SamplingSettings) -> bool:
    """Whether sampling stays the same if a constant is added to all logits."""
    return sampling.repetition_penalty == 1


def arguments(setup: EngineSetup) -> dict[str, Any]:
    """Return the arguments of vLLM's engine, under vLLM's names."""
    found: dict[str, Any] = {
        "model": setup.model,
        "dtype": setup.dtype,
        "load_format": setup.load_format,
        "revision": setup.revision,
        "trust_remote_code": setup.trust_remote_code,
        "generation_config": "vllm",  # all sampling settings are ours
        "max_model_len": setup.max_model_len,
        "max_num_seqs": setup.max_num_seqs,
        "scheduling_policy": "priority",  # samples run in the order of their arrival; scores run first
        "seed": setup.seed,
        # Of the policy's whole distribution, before sampling leaves tokens out; see `put_policy_before_sampling`.
        "logprobs_mode": "raw_logits" if _is_unpenalised(setup.sampling) else "raw_logprobs",
        "async_scheduling": False,  # a load must not meet a step that is under way
        "worker_extension_cls": "rayswift.engines.vllm.worker.PolicyWorker",
        "disable_log_stats": True,
        "enable_prefix_caching": True,  # the samples of a group share their prompt
    }
    found |= {"tokenizer": setup.tokenizer} if setup.tokenizer else {"skip_tokenizer_init": True}
    if setup.lora_rank:
        found |= {"enable_lora": True, "max_loras": 1, "max_lora_rank": lora_capacity(setup.lora_rank)}
    if setup.device == "cpu":
        found |= {"enforce_eager": True, "distributed_executor_backend": "uni"}
        found["kv_cache_memory_bytes"] = _CPU_KV_CACHE_BYTES
        # vLLM 0.29 fails where a part of a prompt draws a seeded number on a CPU ("does not use offset").
        found |= {"enable_chunked_prefill": False, "max_num_batched_tokens": max(_PREFILL_TOKENS, setup.max_model_len)}
    else:
        found["gpu_memory_utilization"] = setup.gpu_memory_utilization
    if setup.tensor_parallel_size > 1:
        found["tensor_parallel_size"] = setup.tensor_parallel_size
        found["distributed_executor_backend"] = "mp"
    found |= dict(setup.engine_kwargs)
    return found | {"max_num_seqs": found["max_num_seqs"] + SCORE_PLACES}
