"""ms-swift's trainer, launch and logging flags."""

from rayswift.config.swift.rules import ByValue, NoEffect, Refused, Rule, To, for_all, off_only

_FSDP = Refused("use cluster.zero_stage 3, which shards the same")
_NOT_GENERATED = NoEffect("evaluation computes losses; nothing is generated")
_OPTIMIZERS: dict[str, Rule] = {
    "lorap": NoEffect("model.lora_plus_ratio turns LoRA+ on"),
    "muon": To("train.optim"),
    "muonclip": Refused("it clips by the largest logit of attention, which attention kernels do not return; give muon"),
}

TRAIN: dict[str, Rule] = {
    "warmup_ratio": To("train.warmup_steps"),
    "label_names": ByValue(
        {"labels": NoEffect("the labels are those of the rows; model.label_names names classes")},
        To("model.label_names"),
    ),
    "evaluation_strategy": To("train.eval_strategy"),
    "early_stop_interval": To("train.early_stopping_patience"),
    "enable_dft_loss": ByValue(
        {"true": To("train.loss_type", {"true": "dft"})}, NoEffect("train.loss_type sets the loss")
    ),
    "enable_channel_loss": NoEffect("the loss is logged over all rows, not by channel"),
    "mrl_dims": To("train.matryoshka_dims"),
    "resume_from_checkpoint": To("train.resume", {"true": "auto", "True": "auto"}),
    "resume_only_model": off_only(
        "a resumed run continues with its optimizer",
        "give the checkpoint's folder as --model to start from its weights alone",
    ),
    "ignore_data_skip": NoEffect("the data position is part of every checkpoint"),
    "optimizer": ByValue(_OPTIMIZERS, Refused("name one of transformers' optimizers, or muon, as train.optim")),
    "use_muon": ByValue(
        {"true": To("train.optim", {"true": "muon", "True": "muon"})}, NoEffect("train.optim sets the optimizer")
    ),
    "acc_strategy": NoEffect("accuracy is counted by token"),
    "use_logits_to_keep": NoEffect("logits are computed where the loss needs them"),
    **for_all("predict_with_generate num_beams stream logprobs top_logprobs", _NOT_GENERATED),
    "metric_for_best_model": ByValue(
        dict.fromkeys(("rouge-1", "rouge-2", "rouge-l", "bleu-4"), _NOT_GENERATED), To("train.metric_for_best_model")
    ),
    "do_train": NoEffect("the verb decides what is done"),
    "do_eval": NoEffect("train.eval_strategy sets when to evaluate"),
    "logging_strategy": NoEffect("train.logging_steps sets when to log"),
    "logging_nan_inf_filter": NoEffect("a loss that is not finite ends the run"),
    "disable_tqdm": NoEffect("the driver draws the progress bar"),
    **for_all(
        "eval_accumulation_steps batch_eval_metrics include_for_metrics",
        NoEffect("evaluation sums its loss as it goes"),
    ),
    "tf32": NoEffect("matrix products keep PyTorch's default precision"),
    **for_all(
        "no_cuda use_cpu",
        ByValue({"true": To("cluster.device", {"true": "cpu"})}, NoEffect("cluster.device sets where workers compute")),
    ),
    "infer_backend": NoEffect("completions come from vLLM"),
    # the run folder
    **for_all(
        "logging_dir add_version overwrite_output_dir create_checkpoint_symlink",
        NoEffect("train.output_dir is the run folder itself; train.resume continues it"),
    ),
    **for_all("load_args load_data_args", NoEffect("a run's config is its config.yaml, read with --config")),
    "save_on_each_node": NoEffect("all workers share the run folder"),
    **for_all(
        "safe_serialization save_safetensors max_shard_size",
        NoEffect("models are saved as safetensors files of transformers' size"),
    ),
    "use_flash_ckpt": NoEffect("every rank writes its own files of a checkpoint"),
    "ignore_args_error": NoEffect("an unknown flag is always an error"),
    "swanlab_token": Refused("secrets do not belong into a saved config; set SWANLAB_API_KEY"),
    "swanlab_secret": Refused("secrets do not belong into a saved config"),
    "swanlab_*": NoEffect("SwanLab reads its own environment variables; train.report_to names it"),
    # what Ray and DeepSpeed own
    "zero_hpz_partition_size": Refused("write it into a DeepSpeed JSON and give that as cluster.deepspeed"),
    "deepspeed_autotp_size": off_only("one device holds whole layers", "use cluster.zero_stage 3 to spread a model"),
    "fsdp": ByValue(
        {
            "fsdp2": To("cluster.zero_stage", {"fsdp2": "3"}),
            "full_shard": To("cluster.zero_stage", {"full_shard": "3"}),
            "shard_grad_op": To("cluster.zero_stage", {"shard_grad_op": "2"}),
        },
        _FSDP,
    ),
    "fsdp_*": _FSDP,
    "ddp_timeout": To("cluster.timeout_s"),
    **for_all("ddp_* local_rank", NoEffect("Ray Train starts and connects the workers")),
    "use_ray": NoEffect("everything here runs on Ray"),
    "ray_exp_name": NoEffect("train.output_dir names the run"),
    "ENV": Refused("set environment variables in the shell that starts the run"),
    "device_groups": Refused("use cluster.num_workers and rollout.num_engines"),
    "dataloader_*": NoEffect("Ray Data feeds the workers; cluster.num_data_cpus sets the number of CPUs"),
    **for_all(
        "eval_use_evalscope eval_dataset eval_dataset_args eval_limit eval_generation_config",
        NoEffect("no benchmark runs while training; ask the model with `rayswift infer` afterwards"),
    ),
}
