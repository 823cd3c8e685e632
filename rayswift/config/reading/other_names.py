"""Names of TRL, LLaMA-Factory, axolotl, OpenRLHF and verl that are not fields here, and the fields to use instead."""

from rayswift.config.reading import rl_names

_TRL = {
    "model.path": "model_name_or_path sft_model_path",
    "model.tuner": "use_peft",
    "model.lora_rank": "lora_r",
    "nothing: train.task decides it": "lora_task_type",
    "model.tuner_kwargs (target_parameters)": "lora_target_parameters",
    "model.modules_to_save": "lora_modules_to_save",
    "model.quantization": "load_in_4bit load_in_8bit",
    "model.double_quantization": "use_bnb_nested_quant",
    "data.dataset": "dataset_name dataset_config dataset_train_split",
    "data.eval": "dataset_test_split",
    "data.columns": "dataset_text_field",
    "nothing: rows are always streamed": "dataset_streaming",
    "data.max_length": "max_seq_length",
    "rollout.reward_models": "reward_model_name_or_path reward_model_path",
    "train.critic and model.critic_path": "value_model",
    "train.num_ppo_epochs": "ppo_epochs",
    "train.kl_coef": "init_kl_coef",
    "train.kl_control": "adap_kl_ctrl",
    "train.num_train_epochs": "total_episodes",
    "nothing: a completion ends with the model's end token, or at a string of rollout.stop": "stop_token",
}
_LLAMA_FACTORY = {
    "model.path": "model_name_or_path",
    "model.adapters": "adapter_name_or_path create_new_adapter",
    "the verb (pt, sft, rlhf) and train.task": "stage",
    "model.tuner": "finetuning_type",
    "model.target_modules": "lora_target",
    "model.modules_to_save": "additional_target",
    "model.lora_plus_ratio": "loraplus_lr_ratio",
    "model.tuner_kwargs (init_lora_weights)": "pissa_init",
    "model.freeze and model.unfreeze": "freeze_trainable_layers freeze_trainable_modules",
    "model.quantization": "quantization_bit quantization_method",
    "model.double_quantization": "double_quantization_type",
    "model.attn_implementation": "flash_attn",
    "train.use_liger_kernel": "enable_liger_kernel",
    "nothing: models are transformers' own": "use_unsloth",
    "model.new_special_tokens": "resize_vocab add_tokens add_special_tokens",
    "data.dataset (paths or hub ids)": "dataset_dir",
    "data.max_length": "cutoff_len",
    "data.dataset (file.jsonl#1000 takes 1,000 rows)": "max_samples",
    "cluster.num_data_cpus": "preprocessing_num_workers",
    "nothing: rows are encoded as they stream": "overwrite_cache",
    "data.cache": "tokenized_path",
    "data.eval_fraction": "val_size",
    "data.mix": "mix_strategy interleave_probs",
    "data.packing": "neat_packing",
    "data.loss_on": "train_on_prompt mask_history",
    "data.system": "default_system",
    "nothing: the tokenizer's chat template renders tools": "tool_format",
    "train.beta": "pref_beta",
    "train.loss_type": "pref_loss",
    "train.loss_weights, with the loss sft": "pref_ftx",
    "train.label_smoothing": "dpo_label_smoothing",
    "train.desirable_weight": "kto_chosen_weight",
    "train.undesirable_weight": "kto_rejected_weight",
    "model.dtype": "pure_bf16 upcast_layernorm",
    "train.gradient_checkpointing": "disable_gradient_checkpointing",
    "nothing: the report draws the curves": "plot_loss",
    "`rayswift export`, export.output_dir": "export_dir",
}
_AXOLOTL = {
    "model.path": "base_model base_model_config",
    "model.path (the tokenizer is in its folder)": "tokenizer_config",
    "model.revision": "revision_of_model",
    "model.tuner": "adapter",
    "model.adapters": "lora_model_dir",
    "model.lora_rank": "lora_r",
    "model.target_modules": "lora_target_linear",
    "model.modules_to_save": "lora_modules_to_save",
    "model.tuner_kwargs (use_dora)": "peft_use_dora",
    "model.tuner_kwargs (use_rslora)": "peft_use_rslora",
    "model.lora_plus_ratio": "loraplus_lr_ratio",
    "model.quantization": "load_in_4bit load_in_8bit",
    "model.unfreeze": "unfrozen_parameters",
    "model.new_special_tokens": "special_tokens tokens",
    "model.attn_implementation": "flash_attention sdp_attention xformers_attention",
    "data.dataset": "datasets",
    "data.eval": "test_datasets",
    "data.eval_fraction": "val_set_size",
    "data.cache": "dataset_prepared_path",
    "cluster.num_data_cpus": "dataset_processes",
    "data.shuffle": "shuffle_merged_datasets",
    "data.max_length": "sequence_len",
    "data.packing": "sample_packing eval_sample_packing pad_to_sequence_len",
    "data.loss_on": "train_on_inputs",
    "train.per_device_train_batch_size": "micro_batch_size",
    "train.per_device_eval_batch_size": "eval_batch_size",
    "train.num_train_epochs": "num_epochs",
    "train.lr_scheduler_type": "lr_scheduler",
    "train.lr_scheduler_kwargs": "cosine_min_lr_ratio",
    "train.eval_steps": "evals_per_epoch",
    "train.save_steps": "saves_per_epoch",
    "train.resume": "auto_resume_from_checkpoints",
    "cluster.sequence_parallel_size": "context_parallel_size sequence_parallel_degree",
    "`rayswift rlhf`, train.task": "rl",
    "train.beta": "rl_beta",
    "train.report_to (wandb reads WANDB_PROJECT)": "wandb_project",
    "train.run_name": "wandb_name",
    "the fields of `rollout` and `train`": "trl",
}


def _by_name(table: dict[str, str]) -> dict[str, str]:
    return {name: ours for ours, names in table.items() for name in names.split()}


# Name -> the field here, or what to do instead.
TRL, LLAMA_FACTORY, AXOLOTL = _by_name(_TRL), _by_name(_LLAMA_FACTORY), _by_name(_AXOLOTL)
OPENRLHF, VERL = _by_name(rl_names.OPENRLHF), _by_name(rl_names.VERL)
_PEERS = {"TRL": TRL, "LLaMA-Factory": LLAMA_FACTORY, "axolotl": AXOLOTL, "OpenRLHF": OPENRLHF, "verl": VERL}


def answer(name: str) -> str | None:
    """Which trainers have a field of this name, and what to use here; None for an unknown name.

    A name with dots is looked up as a whole, then without its end (a group of verl), then by its end.
    """
    parts = name.split(".")
    wholes = [".".join(parts[:end]) for end in range(len(parts), 1, -1)]
    for one in (*wholes, parts[-1], *parts[:1]):
        answers: dict[str, list[str]] = {}
        for peer, names in _PEERS.items():
            if one in names:
                answers.setdefault(names[one], []).append(peer)
        if answers:
            lines = [f"it is a name of {_and(peers)}; here it is {ours}" for ours, peers in answers.items()]
            return "; ".join(lines)
    return None


def _and(peers: list[str]) -> str:
    return " and ".join([", ".join(peers[:-1]), peers[-1]]) if len(peers) > 1 else peers[0]
