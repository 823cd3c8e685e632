"""Checks of model, tuner and optimizer against each other, the cluster and installed packages; before Ray starts."""

import difflib
from importlib.util import find_spec

from rayswift.config.fields import transformers_names
from rayswift.config.model import ModelConfig
from rayswift.config.schema import TrainingConfig

_ROPE_TYPES = ("linear", "dynamic", "yarn", "longrope", "llama3")
MUON_OPTIONS = ("momentum", "ns_steps", "nesterov")
"""The keys of `train.optim_args` for optimizer muon."""
_BITSANDBYTES = ("bitsandbytes", "bitsandbytes")
# Prefix of an optimizer's name -> its module, and the name of its package for pip.
_OPTIMIZER_PACKAGES = (
    (("galore",), ("galore_torch", "galore-torch")),
    (("apollo",), ("apollo_torch", "apollo-torch")),
    (("schedule_free",), ("schedulefree", "schedulefree")),
    (("stable_adamw",), ("optimi", "torch-optimi")),
    (("grokadamw",), ("grokadamw", "grokadamw")),
    (("lomo", "adalomo"), ("lomo_optim", "lomo-optim")),
    (("adamw_torch_4bit", "adamw_torch_8bit"), ("torchao", "torchao")),
    (("adamw_bnb", "adamw_8bit", "ademamix", "lion", "paged", "rmsprop_bnb"), _BITSANDBYTES),
)


def model_problems(config: TrainingConfig) -> list[str]:
    """One line for each setting that cannot work on any machine."""
    parts = (_names, _quantization, _adalora, _lisa, _loha, _optimizer)
    return [*(line for part in parts for line in part(config)), *_rope(config.model)]


def missing_packages(config: TrainingConfig) -> list[str]:
    """One line for each package that the config needs and that is not installed here."""
    model, optim = config.model, config.train.optim
    needed: list[tuple[str, str, str]] = []
    if model.quantization:
        needed.append((f"model.quantization = {model.quantization}", *_BITSANDBYTES))
    if model.use_kernels:
        needed.append(("model.use_kernels", "kernels", "kernels"))
    for prefixes, package in _OPTIMIZER_PACKAGES:
        if optim.startswith(prefixes):
            needed.append((f"train.optim = {optim}", *package))
    if config.train.trl_extra.get("use_liger_kernel"):
        needed.append(("train.use_liger_kernel", "liger_kernel", "liger-kernel"))
    return [
        f"{field} needs the package {package}, which is not installed; pip install {package}"
        for field, module, package in needed
        if find_spec(module) is None
    ]


def _names(config: TrainingConfig) -> list[str]:
    """Problems of names that `transformers` would refuse only after the workers have started."""
    train, attention = config.train, config.model.attn_implementation
    given = [
        ("train.optim", train.optim, (*transformers_names.optimizers(), "muon")),
        ("train.lr_scheduler_type", train.lr_scheduler_type, transformers_names.schedules()),
    ]
    if not train.plugins:  # plugins may register their own
        trackers = ("all", "none", *transformers_names.trackers())
        given += [("train.report_to", name, trackers) for name in train.report_to]
        if attention is not None and "/" not in attention:  # a kernel of the hub
            names = transformers_names.attentions()
            given.append(("model.attn_implementation", attention.removeprefix("paged|"), names))
    return [_unknown(field, name, known) for field, name, known in given if name not in known]


def _unknown(field: str, name: str, known: tuple[str, ...]) -> str:
    close = [one for one in known if one.startswith(name)] or difflib.get_close_matches(name, known, 1, 0.7)
    meant = f"did you mean {close[0]}? " if close else ""
    return f"{field} = {name!r} is unknown to transformers; {meant}there are {', '.join(known)}"


def _quantization(config: TrainingConfig) -> list[str]:
    model, found = config.model, []
    if model.quantization is None:
        return []
    if config.cluster.zero_stage == 3 or config.cluster.deepspeed:
        found.append(
            f"model.quantization = {model.quantization}: quantized weights cannot be cut over the workers; "
            "set cluster.zero_stage 0, 1 or 2"
        )
    if config.train.task == "rm" and model.dtype != "bfloat16":
        found.append(
            f"model.quantization = {model.quantization}: TRL trains the head of a reward model in bfloat16 then; set "
            "model.dtype bfloat16"
        )
    return found


def _adalora(config: TrainingConfig) -> list[str]:
    model, max_steps = config.model, config.train.max_steps
    if model.tuner != "adalora":
        return []
    found, what = [], "model.tuner = adalora"
    fixed = sum(int(model.tuner_kwargs.get(name, 0)) for name in ("tinit", "tfinal"))
    if 0 < max_steps <= fixed:
        found.append(
            f"{what}: tinit + tfinal = {fixed} leave no step of train.max_steps = {max_steps} to lower the ranks"
        )
    if config.cluster.uses_deepspeed:
        found.append(f"{what} reads gradients after the step, and ZeRO has freed them; set cluster.zero_stage 0")
    if model.dtype == "float16":
        found.append(f"{what} scores by gradients, infinite at times in float16; set model.dtype bfloat16 or float32")
    return found


def _lisa(config: TrainingConfig) -> list[str]:
    if config.model.lisa_layers and config.cluster.uses_deepspeed:
        what = f"model.lisa_layers = {config.model.lisa_layers}: ZeRO steps all weights, those that LISA freezes too"
        return [f"{what}; set cluster.zero_stage 0"]
    return []


def _loha(config: TrainingConfig) -> list[str]:
    if config.model.tuner == "loha" and (config.cluster.zero_stage == 3 or config.cluster.deepspeed):
        what = "model.tuner = loha takes the shapes of whole weights, and ZeRO-3 cuts them"
        return [f"{what}; set cluster.zero_stage 0, 1 or 2"]
    return []


def _optimizer(config: TrainingConfig) -> list[str]:
    optim = config.train.optim
    field, found = f"train.optim = {optim}", []
    if optim.startswith(("galore", "apollo")):
        if config.cluster.uses_deepspeed:
            found.append(f"{field} works on whole matrices, and ZeRO cuts them; set cluster.zero_stage 0")
        if "optim_target_modules" not in config.train.trl_extra:
            found.append(f"{field} needs to know the layers; set train.optim_target_modules (all-linear)")
    if optim == "muon":
        if config.cluster.uses_deepspeed:
            found.append(f"{field} makes steps of whole matrices, and ZeRO cuts them; set cluster.zero_stage 0")
        words = str(config.train.trl_extra.get("optim_args") or "").replace(" ", "").split(",")
        unknown = [word for word in words if word and word.partition("=")[0] not in MUON_OPTIONS]
        if unknown:
            options = ", ".join(MUON_OPTIONS)
            found.append(f"train.optim_args = {', '.join(unknown)}: optimizer muon has {options}")
    if optim.startswith("schedule_free") and config.cluster.uses_deepspeed:
        found.append(f"{field} switches between two sets of weights, which ZeRO does not; set cluster.zero_stage 0")
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
