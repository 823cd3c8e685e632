"""The process of `shapes.built`: builds a model and its adapter on torch's meta device, without storage."""

import json
import sys
from typing import Any, cast

import torch
from peft import get_peft_model
from transformers import AutoConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.base import get_keys_to_not_convert
from transformers.quantizers.quantizers_utils import should_convert_module

from rayswift.config.model import ModelConfig
from rayswift.config.tasks import Head
from rayswift.model import tuners
from rayswift.model.heads import CLASSES, settings
from rayswift.model.size.parameters import SIZES


def build(folder: str, head: Head, model: ModelConfig) -> dict[str, Any]:
    """The fields of `shapes.Found`: `shapes`, `num_trainable` (None in full training), `num_quantizable`, `config`.

    transformers and PEFT raise their own errors for a model or adapter that they cannot build.
    """
    config = AutoConfig.from_pretrained(folder, trust_remote_code=model.trust_remote_code, **settings(model, head))
    with torch.device("meta"):
        network = CLASSES[head].from_config(config, trust_remote_code=model.trust_remote_code)
        shapes = {name: tuple(parameter.shape) for name, parameter in network.named_parameters()}
        num_quantizable = _num_quantizable(network) if model.quantization else None
        num_trainable = None
        if model.tuner != "full":
            # Initialisation and dropout change no shape, and some initialisations need the values of weights.
            kwargs = {name: value for name, value in model.tuner_kwargs.items() if name != "init_lora_weights"}
            plain = model.model_copy(update={"tuner_kwargs": kwargs, "lora_dropout": 0.0})
            adapter = tuners.new_adapter(plain, head, num_steps=1000, network=network)
            tuned = get_peft_model(network, adapter)
            num_trainable = sum(parameter.numel() for parameter in tuned.parameters() if parameter.requires_grad)
    text = network.config.get_text_config()
    # Attributes map names of families (n_embd, n_layer, d_model) to those of `SIZES`.
    known = {name: getattr(text, name) for name in SIZES if isinstance(getattr(text, name, None), int)}
    return {"shapes": shapes, "num_trainable": num_trainable, "num_quantizable": num_quantizable, "config": known}


def _num_quantizable(network: PreTrainedModel) -> int:
    """Parameters in the matrices that `transformers` quantizes with bitsandbytes."""
    kept = get_keys_to_not_convert(network)
    return sum(
        module.weight.numel()
        for name, module in network.named_modules()
        if (type(module) is torch.nn.Linear or isinstance(module, Conv1D)) and should_convert_module(name, kept)
    )


if __name__ == "__main__":
    result = build(sys.argv[1], cast(Head, sys.argv[2]), ModelConfig.model_validate_json(sys.argv[3]))
    print(json.dumps(result))  # noqa: T201
