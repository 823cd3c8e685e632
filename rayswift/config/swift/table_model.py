"""ms-swift's model, tuner and quantization flags."""

from rayswift.config.swift.rules import ByValue, Into, NoEffect, Refused, Rule, To

_TEXT_ONLY = NoEffect("models are text only: there is no vision or audio part")
_CONFIG_JSON = NoEffect("the model's config.json says what it is")
_NO_TUNER = Refused("its tuner is not one of PEFT's; see the values of model.tuner")
_BNB_DTYPE = NoEffect("4-bit weights are computed in model.dtype")
_DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}

_NOT_A_TUNER = {
    name: Refused(f"{name} is not a tuner of PEFT; model.tuner lora is the closest")
    for name in ("longlora", "llamapro", "adapter", "reft", "lora_llm", "unsloth", "dummy")
}
_TUNER = ByValue(_NOT_A_TUNER, To("model.tuner", {"bone": "miss"}))

MODEL: dict[str, Rule] = {
    "model_id_or_path": To("model.path"),
    "model_revision": To("model.revision"),
    "model_type": _CONFIG_JSON,
    "ref_model_type": _CONFIG_JSON,
    "reward_model_type": _CONFIG_JSON,
    "teacher_model_type": _CONFIG_JSON,
    "torch_dtype": To("model.dtype", _DTYPES),
    "dtype": To("model.dtype", _DTYPES),
    "bf16": ByValue({"true": To("model.dtype", {"true": "bfloat16"})}, NoEffect("model.dtype says the number format")),
    "fp16": ByValue({"true": To("model.dtype", {"true": "float16"})}, NoEffect("model.dtype says the number format")),
    "attn_impl": To("model.attn_implementation", {"flash_attn": "flash_attention_2", "flex": "flex_attention"}),
    "experts_impl": To("model.experts_implementation"),
    "max_model_len": To("model.max_position_embeddings"),
    "device_map": NoEffect("each worker has a device of its own; cluster.zero_stage 3 spreads a model over them"),
    "max_memory": NoEffect("each worker has a device of its own; cluster.zero_stage 3 spreads a model over them"),
    "local_repo_path": Refused("model code comes with the checkpoint; set model.trust_remote_code"),
    "init_strategy": Refused("weights that a checkpoint lacks are initialised as transformers does"),
    "model_kwargs": Refused("it holds settings of vision and audio models, and models are text only"),
    "use_hf": NoEffect("hub ids are Hugging Face's"),
    "hub_token": Refused("secrets do not belong into a saved config; log in with `hf auth login` or set HF_TOKEN"),
    "check_model": NoEffect("model files are not compared with the hub"),
    "enable_npu_model_patch": NoEffect("no library is patched"),
    "merge_lora": NoEffect("`rayswift export --merge_lora` merges an adapter once it is trained"),
    # tuners
    "tuner_type": _TUNER,
    "train_type": _TUNER,
    "sft_type": _TUNER,
    "tuner_backend": NoEffect("tuners are PEFT's"),
    "lora_target_modules": To("model.target_modules", {"ALL": "all-linear"}),
    "target_parameters": Into("model.tuner_kwargs", ("target_parameters",), is_list=True),
    "lora_bias": Into("model.tuner_kwargs", ("bias",)),
    "use_dora": Into("model.tuner_kwargs", ("use_dora",)),
    "use_rslora": Into("model.tuner_kwargs", ("use_rslora",)),
    "init_weights": Into("model.tuner_kwargs", ("init_lora_weights",), {"lora-ga": "lora_ga"}),
    "init_lora_weights": Into("model.tuner_kwargs", ("init_lora_weights",), {"lora-ga": "lora_ga"}),
    "lora_dtype": NoEffect("adapter weights are float32, or under DeepSpeed model.dtype"),
    "lorap_lr_ratio": To("model.lora_plus_ratio"),
    "lora_ga_batch_size": NoEffect("LoRA-GA takes its gradients from model.init_rows packed rows, one by one"),
    "lora_ga_iters": NoEffect("LoRA-GA takes its gradients from model.init_rows packed rows, one by one"),
    "lora_ga_max_length": NoEffect("the gradients of LoRA-GA come from rows of up to data.max_length tokens"),
    "lora_ga_direction": Into("model.tuner_kwargs", ("lora_ga_config", "direction")),
    "lora_ga_scale": Into(
        "model.tuner_kwargs", ("lora_ga_config", "scale"), {"gd": "gd_scale", "weightS": "weight_svd"}
    ),
    "lora_ga_stable_gamma": Into("model.tuner_kwargs", ("lora_ga_config", "stable_gamma")),
    "freeze_parameters_ratio": To("model.freeze_ratio"),
    "fourier_n_frequency": Into("model.tuner_kwargs", ("n_frequency",)),
    "fourier_scaling": Into("model.tuner_kwargs", ("scaling",)),
    "boft_block_size": Into("model.tuner_kwargs", ("boft_block_size",)),
    "boft_block_num": Into("model.tuner_kwargs", ("boft_block_num",)),
    "boft_dropout": Into("model.tuner_kwargs", ("boft_dropout",)),
    "vera_rank": Into("model.tuner_kwargs", ("r",)),
    "vera_projection_prng_key": Into("model.tuner_kwargs", ("projection_prng_key",)),
    "vera_dropout": Into("model.tuner_kwargs", ("vera_dropout",)),
    "vera_d_initial": Into("model.tuner_kwargs", ("d_initial",)),
    "adalora_target_r": Into("model.tuner_kwargs", ("target_r",)),
    "adalora_init_r": Into("model.tuner_kwargs", ("init_r",)),
    "adalora_tinit": Into("model.tuner_kwargs", ("tinit",)),
    "adalora_tfinal": Into("model.tuner_kwargs", ("tfinal",)),
    "adalora_deltaT": Into("model.tuner_kwargs", ("deltaT",)),
    "adalora_beta1": Into("model.tuner_kwargs", ("beta1",)),
    "adalora_beta2": Into("model.tuner_kwargs", ("beta2",)),
    "adalora_orth_reg_weight": Into("model.tuner_kwargs", ("orth_reg_weight",)),
    "lisa_activated_layers": ByValue({"0": NoEffect("0 layers: LISA is off")}, Refused("LISA is not offered")),
    "lisa_step_interval": NoEffect("LISA is not offered"),
    "reft_*": _NO_TUNER,
    "llamapro_*": _NO_TUNER,
    # quantization; method, bits and 4-bit type are read together (translate.py)
    "bnb_4bit_compute_dtype": _BNB_DTYPE,
    "bnb_4bit_quant_storage": _BNB_DTYPE,
    "bnb_4bit_use_double_quant": To("model.double_quantization"),
    "hqq_axis": Refused("weights are quantized by bitsandbytes only"),
    # parts of models that are not text
    "freeze_vit": _TEXT_ONLY,
    "freeze_aligner": _TEXT_ONLY,
    "freeze_llm": ByValue({"false": _TEXT_ONLY}, Refused("models are text only: nothing would be left to train")),
    "vit_gradient_checkpointing": _TEXT_ONLY,
    "vit_lr": _TEXT_ONLY,
    "aligner_lr": _TEXT_ONLY,
    "max_pixels": _TEXT_ONLY,
    "norm_bbox": _TEXT_ONLY,
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
