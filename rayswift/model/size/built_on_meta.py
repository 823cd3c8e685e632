"""The process behind `shapes.built`: builds a model of `config.json` without storage, and the adapter around it."""

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
    """What `shapes.Found` holds of a built model: `shapes` (name -> shape of each parameter, a shared one once),
    `num_trainable` parameters (None in full training), `num_quantizable`, and of its config the sizes that activations
    scale with.

    Raises:
        ValueError: of the kinds that transformers and PEFT raise where they refuse the model or the adapter.
    """
    config = AutoConfig.from_pretrained(folder, trust_remote_code=model.trust_remote_code, **settings(model, head))
    with torch.device("meta"):
        network = CLASSES[head].from_config(config, trust_remote_code=model.trust_remote_code)
        shapes = {name: tuple(parameter.shape) for name, parameter in network.named_parameters()}
        num_quantizable = _num_quantizable(network) if model.quantization else None
        num_trainable = None
        if model.tuner != "full":
            # How an adapter is initialised, and its dropout, change no shape; some of them look at values.
            kwargs = {name: value for name, value in model.tuner_kwargs.items() if name != "init_lora_weights"}
            plain = model.model_copy(update={"tuner_kwargs": kwargs, "lora_dropout": 0.0})
            adapter = tuners.new_adapter(plain, head, num_steps=1000, network=network)
            tuned = get_peft_model(network, adapter)
            num_trainable = sum(parameter.numel() for parameter in tuned.parameters() if parameter.requires_grad)
    text = network.config.get_text_config()
    # By the names that `transformers` gives to what families call n_embd, n_layer, d_model.
    known = {name: getattr(text, name) for name in SIZES if isinstance(getattr(text, name, None), int)}
    return {"shapes": shapes, "num_trainable": num_trainable, "num_quantizable": num_quantizable, "config": known}


def _num_quantizable(network: PreTrainedModel) -> int:
    """Parameters in the matrices that `transformers` gives to bitsandbytes."""
    kept = get_keys_to_not_convert(network)
    return sum(
        module.weight.numel()
        for name, module in network.named_modules()
        if (type(module) is torch.nn.Linear or isinstance(module, Conv1D)) and should_convert_module(name, kept)
    )


if __name__ == "__main__":
    result = build(sys.argv[1], cast(Head, sys.argv[2]), ModelConfig.model_validate_json(sys.argv[3]))
    print(json.dumps(result))  # noqa: T201
