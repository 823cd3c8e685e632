"""What `model.tuner_kwargs` may hold: the fields of the tuner's PEFT config, read from PEFT's source."""

import difflib

from rayswift.config.model import ModelConfig
from rayswift.config.trl_fields import read_class

# tuner -> the PEFT classes whose fields it takes.
_CLASSES = {
    "lora": (("lora", "LoraConfig"),),
    "adalora": (("lora", "LoraConfig"), ("adalora", "AdaLoraConfig")),
    "vera": (("vera", "VeraConfig"),),
    "boft": (("boft", "BOFTConfig"),),
    "ia3": (("ia3", "IA3Config"),),
    "fourierft": (("fourierft", "FourierFTConfig"),),
    "loha": (("loha", "LoHaConfig"),),
    "lokr": (("lokr", "LoKrConfig"),),
    "miss": (("miss", "MissConfig"),),
}

# PEFT's name -> the field of `model` that says it.
_OWNED = {
    "target_modules": "model.target_modules",
    "modules_to_save": "model.modules_to_save",
    "lora_alpha": "model.lora_alpha",
    "lora_dropout": "model.lora_dropout",
}


def tuner_problems(model: ModelConfig) -> list[str]:
    """One line for each entry of `model.tuner_kwargs` that the tuner does not take."""
    if model.tuner == "full":
        return ["model.tuner_kwargs needs a tuner, and model.tuner is full"] if model.tuner_kwargs else []
    owned = _OWNED | ({"r": "model.lora_rank"} if model.tuner in ("lora", "adalora") else {})
    known = [
        n for folder, name in _CLASSES[model.tuner] for n in read_class("peft", f"tuners/{folder}/config.py", name)
    ]
    found = []
    for name in model.tuner_kwargs:
        if name in owned:
            found.append(f"model.tuner_kwargs.{name} is said by {owned[name]}; set that")
        elif name not in known:
            close = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {close[0]}?" if close else f"PEFT lists the fields of its {model.tuner} config"
            found.append(f"model.tuner_kwargs.{name} is unknown to the tuner {model.tuner}; {hint}")
    return found
