"""ms-swift's flags for sampling, rewards, engines and reinforcement learning."""

from rayswift.config.swift.rules import ByValue, Into, NoEffect, Refused, Rule, To, off_only

_ENGINE_ACTORS = NoEffect("engines are Ray actors that the run starts itself: no server to start or to name")
_MEMORY = NoEffect("colocated engines sleep while the trainer computes (rollout.placement)")
_KEPT = NoEffect("completions are always kept in the run folder")
_TEXT_ONLY = NoEffect("models are text only: there is no vision or audio part")
_NOT_OFFERED = Refused("this method is not offered; see the fields of `rayswift rlhf --help all`")
_OTHER_ENGINE = NoEffect("completions come from vLLM")
_COSINE = ("min_len_value_wrong", "max_len_value_wrong", "min_len_value_correct", "max_len_value_correct", "max_len")
_PASSED_ON = (
    "enforce_eager",
    "enable_expert_parallel",
    "disable_custom_all_reduce",
    "disable_cascade_attn",
    "enable_prefix_caching",
    "quantization",
    "speculative_config",
    "max_lora_rank",
)

ROLLOUT: dict[str, Rule] = {
    "rlhf_type": To("train.task"),
    # verb sample
    "num_return_sequences": To("rollout.num_generations"),
    "orm_model": To("rollout.reward_funcs", {"math": "accuracy"}),
    "prm_model": Refused("give it as --reward_model, which scores whole completions"),
    "prm_threshold": Refused("there is one reward; sample.min_reward is its threshold"),
    "sampler_type": ByValue(
        {"sample": NoEffect("completions are sampled by the model itself")},
        Refused("answers of a server are not sampled"),
    ),
    "sampler_engine": ByValue(
        {"vllm": NoEffect("completions come from vLLM"), "transformers": NoEffect("completions come from vLLM")},
        Refused("completions come from vLLM"),
    ),
    "num_sampling_batch_size": NoEffect("as many prompts are under way as engines hold"),
    "num_sampling_batches": Refused("take so many rows: --dataset rows.jsonl#500"),
    "data_range": Refused("take some rows: --dataset rows.jsonl#500"),
    "cache_files": Refused("completions are sampled and scored at once"),
    "override_exist_file": off_only("a file is continued or refused", "delete the file"),
    "response_length": To("rollout.max_completion_length"),
    "max_new_tokens": To("rollout.max_completion_length"),
    "stop_words": To("rollout.stop"),
    "structured_outputs_regex": To("rollout.structured_outputs_regex"),
    "vllm_structured_outputs_regex": To("rollout.structured_outputs_regex"),
    "enable_thinking": Into("data.chat_template_kwargs", ("enable_thinking",)),
    "reward_model": To("rollout.reward_models"),
    "reward_template": NoEffect("a reward model reads what its own chat template renders"),
    **{f"cosine_{name}": Into("rollout.reward_kwargs", ("cosine", name)) for name in _COSINE},
    "repetition_n_grams": Into("rollout.reward_kwargs", ("repetition", "n_grams")),
    "repetition_max_penalty": Into("rollout.reward_kwargs", ("repetition", "max_penalty")),
    "soft_max_length": Into("rollout.reward_kwargs", ("soft_overlong", "max_length")),
    "soft_cache_length": Into("rollout.reward_kwargs", ("soft_overlong", "cache_length")),
    "dynamic_sample": To("rollout.dynamic_sampling"),
    "max_resample_times": To("rollout.max_resamples"),
    "async_generate": To("rollout.max_staleness", {"true": "1", "True": "1", "false": "0", "False": "0"}),
    "rollout_importance_sampling_mode": To("rollout.importance_sampling"),
    "rollout_importance_sampling_threshold": To("rollout.importance_sampling_max"),
    "log_completions": _KEPT,
    "log_unique_prompts": _KEPT,
    "wandb_log_unique_prompts": _KEPT,
    "context_manager": Refused("messages of an episode are changed by its environment alone"),
    "log_rollout_offpolicy_metrics": NoEffect("they are always logged"),
    "log_entropy": NoEffect("it is always logged"),
    "overlong_filter": To("train.mask_truncated_completions"),
    "off_policy_sequence_mask_delta": To("train.off_policy_mask_threshold"),
    "tau_pos": To("train.sapo_temperature_pos"),
    "tau_neg": To("train.sapo_temperature_neg"),
    "scale_rewards": ByValue(
        {"gdpo": To("train.multi_objective_aggregation", {"gdpo": "normalize_then_sum"})},
        To("train.scale_rewards", {"true": "group", "false": "none", "True": "group", "False": "none"}),
    ),
    "max_turns": To("rollout.max_turns"),
    "gkd_logits_topk": To("train.logits_topk"),
    "local_rollout_forward_batch_size": NoEffect("micro-batches are cut by a token budget"),
    "num_sample_generations": NoEffect("completions are written to files all along"),
    "ds3_gather_for_generation": NoEffect("weights are gathered bucket by bucket"),
    # engines
    "use_vllm": NoEffect("completions always come from vLLM"),
    "vllm_mode": To("rollout.placement", {"colocate": "colocated", "server": "separate"}),
    "vllm_gpu_memory_utilization": To("rollout.gpu_memory_utilization"),
    "vllm_tensor_parallel_size": To("rollout.tensor_parallel_size"),
    "vllm_data_parallel_size": To("rollout.num_engines"),
    "vllm_max_model_len": To("rollout.max_model_len"),
    "vllm_max_num_seqs": To("rollout.max_num_seqs"),
    "vllm_pipeline_parallel_size": off_only("engines have no pipeline", "use rollout.tensor_parallel_size"),
    "vllm_enable_lora": To(
        "rollout.lora_sync", {"true": "adapter", "True": "adapter", "false": "merged", "False": "merged"}
    ),
    "vllm_engine_kwargs": To("rollout.engine_kwargs"),
    **{f"vllm_{name}": Into("rollout.engine_kwargs", (name,)) for name in _PASSED_ON},
    "num_infer_workers": To("rollout.num_engines"),
    "vllm_device": _ENGINE_ACTORS,
    "gc_collect_after_offload": _MEMORY,
    "vllm_limit_mm_per_prompt": _TEXT_ONLY,
    "vllm_mm_processor_cache_gb": _TEXT_ONLY,
    "vllm_use_async_engine": _ENGINE_ACTORS,
    "vllm_server_*": _ENGINE_ACTORS,
    "vllm_reasoning_parser": NoEffect("rewards see the whole completion"),
    "enable_flattened_weight_sync": NoEffect("weights always travel in buckets"),
    "sleep_level": _MEMORY,
    "offload_optimizer": _MEMORY,
    "offload_model": _MEMORY,
    "move_model_batches": _MEMORY,
    "sglang_*": _OTHER_ENGINE,
    "lmdeploy_*": _OTHER_ENGINE,
    # not offered
    "router_replay*": _NOT_OFFERED,
    "chord_*": Refused("a step trains completions or rows, not both: train with `rayswift sft` first"),
    "fipo_detach_weight": NoEffect("weights of advantages have no gradient"),
    "rlsd_*": _NOT_OFFERED,
    "sdar_*": _NOT_OFFERED,
    "advantage_reweight": _NOT_OFFERED,
}
