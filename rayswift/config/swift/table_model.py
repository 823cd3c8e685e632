"""ms-swift's model, tuner and quantization flags."""

from rayswift.config.swift.rules import DTYPES, ByValue, Into, NoEffect, Refused, Rule, To, for_all

_TEXT_ONLY = NoEffect("models are text only: there is no vision or audio part")
# Flags of one tuner that become entries of `model.tuner_kwargs`: prefix -> the rest of the names.
_TUNER_KWARGS = {
    "": "use_dora use_rslora boft_block_size boft_block_num boft_dropout vera_dropout",
    "lora_": "bias",
    "fourier_": "n_frequency scaling",
    "vera_": "projection_prng_key d_initial",
    "adalora_": "target_r init_r tinit tfinal deltaT beta1 beta2 orth_reg_weight",
}

MODEL: dict[str, Rule] = {
    "model_id_or_path": To("model.path"),
    "model_revision": To("model.revision"),
    **for_all(
        "model_type ref_model_type reward_model_type teacher_model_type",
        NoEffect("the model's config.json names its type"),
    ),
    **for_all("torch_dtype dtype", To("model.dtype", DTYPES)),
    "bf16": ByValue({"true": To("model.dtype", {"true": "bfloat16"})}, NoEffect("model.dtype sets the number format")),
    "fp16": ByValue({"true": To("model.dtype", {"true": "float16"})}, NoEffect("model.dtype sets the number format")),
    "attn_impl": To("model.attn_implementation", {"flash_attn": "flash_attention_2", "flex": "flex_attention"}),
    "experts_impl": To("model.experts_implementation"),
    "max_model_len": To("model.max_position_embeddings"),
    **for_all(
        "device_map max_memory",
        NoEffect("each worker has a device of its own; cluster.zero_stage 3 spreads a model over them"),
    ),
    "local_repo_path": Refused("model code comes with the checkpoint; set model.trust_remote_code"),
    "init_strategy": Refused("weights that a checkpoint lacks are initialised as transformers does"),
    "model_kwargs": Refused("it holds settings of vision and audio models, and models are text only"),
    "use_hf": NoEffect("hub ids are Hugging Face's"),
    "hub_token": Refused("secrets do not belong into a saved config; log in with `hf auth login` or set HF_TOKEN"),
    "check_model": NoEffect("model files are not compared with the hub"),
    "enable_npu_model_patch": NoEffect("no library is patched"),
    "merge_lora": NoEffect("`rayswift export --merge_lora` merges an adapter once it is trained"),
    # tuners
    "tuner_backend": NoEffect("tuners are PEFT's"),
    **{
        f"{prefix}{name}": Into("model.tuner_kwargs", (name,))
        for prefix, names in _TUNER_KWARGS.items()
        for name in names.split()
    },
    "vera_rank": Into("model.tuner_kwargs", ("r",)),
    "target_parameters": Into("model.tuner_kwargs", ("target_parameters",), is_list=True),
    **for_all(
        "init_weights init_lora_weights", Into("model.tuner_kwargs", ("init_lora_weights",), {"lora-ga": "lora_ga"})
    ),
    "lora_target_modules": To("model.target_modules", {"ALL": "all-linear"}),
    "lora_dtype": NoEffect("adapter weights are float32, or under DeepSpeed model.dtype"),
    "lorap_lr_ratio": To("model.lora_plus_ratio"),
    **for_all(
        "lora_ga_batch_size lora_ga_iters",
        NoEffect("LoRA-GA takes its gradients from model.init_rows packed rows, one by one"),
    ),
    "lora_ga_max_length": NoEffect("the gradients of LoRA-GA come from rows of up to data.max_length tokens"),
    "lora_ga_direction": Into("model.tuner_kwargs", ("lora_ga_config", "direction")),
    "lora_ga_scale": Into(
        "model.tuner_kwargs", ("lora_ga_config", "scale"), {"gd": "gd_scale", "weightS": "weight_svd"}
    ),
    "lora_ga_stable_gamma": Into("model.tuner_kwargs", ("lora_ga_config", "stable_gamma")),
    "freeze_parameters_ratio": To("model.freeze_ratio"),
    "lisa_activated_layers": To("model.lisa_layers"),
    "lisa_step_interval": To("model.lisa_interval"),
    "reft_*": Refused("its tuner is not one of PEFT's; see the values of model.tuner"),
    # quantization; method, bits and 4-bit type are read together (combined_flags.py)
    **for_all("bnb_4bit_compute_dtype bnb_4bit_quant_storage", NoEffect("4-bit weights are computed in model.dtype")),
    "bnb_4bit_use_double_quant": To("model.double_quantization"),
    "hqq_axis": Refused("weights are quantized by bitsandbytes only"),
    # parts of models that are not text
    **for_all(
        "freeze_vit freeze_aligner vit_gradient_checkpointing vit_lr aligner_lr max_pixels norm_bbox", _TEXT_ONLY
    ),
    "freeze_llm": ByValue({"false": _TEXT_ONLY}, Refused("models are text only: nothing would be left to train")),
    # other models of a run
    "ref_model": To("model.reference"),
    "ref_adapters": To("model.reference_adapters"),
    "teacher_model": To("model.teacher"),
    "ref_model_revision": Refused("download that revision and give its folder as model.reference"),
    "teacher_model_revision": Refused("download that revision and give its folder as model.teacher"),
    "reward_model_revision": Refused("download that revision and give its folder in rollout.reward_models"),
    "reward_adapters": Refused("merge the adapter (`rayswift export`) and give the folder in rollout.reward_models"),
    "teacher_deepspeed": NoEffect("the teacher is spread as cluster.zero_stage spreads the student"),
    "offload_teacher_model": NoEffect("the teacher is offloaded as cluster.offload says of the student"),
    "teacher_model_server": To("rollout.teacher_server"),
    "teacher_tag_key": To("rollout.teacher_tag_key"),
}
