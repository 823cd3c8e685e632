"""What model, tuner and optimizer need of each other, of the cluster and of installed packages; before Ray starts."""

from importlib.util import find_spec
from pathlib import Path

from rayswift.config.model import ModelConfig
from rayswift.config.schema import TrainingConfig

_ROPE_TYPES = ("linear", "dynamic", "yarn", "longrope", "llama3")
# How the name of an optimizer begins or ends -> module it comes from, and what pip calls it.
_OPTIMIZER_PACKAGES = (
    (("galore",), ("galore_torch", "galore-torch")),
    (("apollo",), ("apollo_torch", "apollo-torch")),
    (("schedule_free",), ("schedulefree", "schedulefree")),
    (("stable_adamw",), ("optimi", "torch-optimi")),
    (("grokadamw",), ("grokadamw", "grokadamw")),
    (("lomo", "adalomo"), ("lomo_optim", "lomo-optim")),
    (("adamw_torch_4bit", "adamw_torch_8bit"), ("torchao", "torchao")),
    (("adamw_bnb", "adamw_8bit", "ademamix", "lion", "paged", "rmsprop_bnb"), ("bitsandbytes", "bitsandbytes")),
)


def model_problems(config: TrainingConfig) -> list[str]:
    """One line for each setting that cannot work here."""
    return [
        *_quantization(config),
        *_initialisation(config.model),
        *_optimizer(config),
        *_rope(config.model),
        *_special_tokens(config.model),
    ]


def _quantization(config: TrainingConfig) -> list[str]:
    field = f"model.quantization = {config.model.quantization}"
    if not config.model.quantization:
        return []
    found = _missing(field, "bitsandbytes", "bitsandbytes")
    if config.cluster.zero_stage == 3 or config.cluster.deepspeed:
        found.append(f"{field}: quantized weights cannot be cut over the workers; set cluster.zero_stage 0, 1 or 2")
    return found


def _initialisation(model: ModelConfig) -> list[str]:
    if model.tuner_kwargs.get("init_lora_weights") != "loftq":
        return []
    field = "model.tuner_kwargs.init_lora_weights = loftq"
    return _missing(field, "bitsandbytes", "bitsandbytes") + _missing(field, "scipy", "scipy")


def _optimizer(config: TrainingConfig) -> list[str]:
    optim, workers = config.train.optim, config.cluster.num_workers
    field = f"train.optim = {optim}"
    found = []
    for prefixes, (module, package) in _OPTIMIZER_PACKAGES:
        if optim.startswith(prefixes):
            found += _missing(field, module, package)
    if optim.startswith(("galore", "apollo")):
        if config.cluster.uses_deepspeed:
            found.append(f"{field} works on whole matrices, and ZeRO cuts them; set cluster.zero_stage 0")
        if optim.endswith("layerwise") and workers not in (0, 1):
            found.append(f"{field} steps in the backward pass, on one worker only; set cluster.num_workers 1")
        if "optim_target_modules" not in config.train.trl_extra:
            found.append(f"{field} needs to know the layers; set train.optim_target_modules (all-linear)")
    if optim.endswith("lomo"):
        found.append(f"{field} replaces the backward pass, which this trainer does not allow; choose another")
    return found


def _rope(model: ModelConfig) -> list[str]:
    scaling = model.rope_scaling
    if scaling is None:
        return []
    kind = scaling.get("rope_type")
    if kind not in _ROPE_TYPES:
        return [f"model.rope_scaling: rope_type = {kind!r} is not one of {', '.join(_ROPE_TYPES)}"]
    if "factor" not in scaling and model.max_position_embeddings is None:
        return ["model.rope_scaling has no factor; give it, or model.max_position_embeddings to derive it from"]
    return []


def _special_tokens(model: ModelConfig) -> list[str]:
    return [
        f"model.new_special_tokens: {name} is no file here"
        for name in model.new_special_tokens
        if name.endswith(".txt") and not Path(name).is_file()
    ]


def _missing(field: str, module: str, package: str) -> list[str]:
    if find_spec(module):
        return []
    return [f"{field} needs the package {package}, which is not installed; pip install {package}"]
