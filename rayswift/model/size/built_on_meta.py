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
from rayswift.log import UserError, first_line
from rayswift.model import tuners
from rayswift.model.heads import CLASSES, settings
from rayswift.model.size.parameters import SIZES
from rayswift.model.whole import why

_NO_SUCH_CLASS = "Unrecognized configuration class"


def build(folder: str, head: Head, model: ModelConfig) -> dict[str, Any]:
    """The fields of `shapes.Found`: `shapes`, `num_trainable` (None in full training), `num_quantizable`, `config`.

    Also the names of `modules`, and of `matrices` among them; `adapter_problem`: the first line of PEFT's error if it
    does not make the adapter.

    Raises:
        UserError: transformers does not know such a model. It raises its own errors for one that it cannot build.
    """
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=model.trust_remote_code, **settings(model, head))
    except (ValueError, KeyError) as error:
        raise UserError(f"model.path = {model.path!r} cannot be loaded: {why(error)}") from error
    with torch.device("meta"):
        try:
            network = CLASSES[head].from_config(config, trust_remote_code=model.trust_remote_code)
        except ValueError as error:
            if _NO_SUCH_CLASS not in str(error):
                raise
            raise UserError(f"model.path = {model.path!r} cannot be loaded: {why(error)}") from error
        modules = dict(network.named_modules())
        shapes = {name: tuple(parameter.shape) for name, parameter in network.named_parameters()}
        num_quantizable = _num_quantizable(network) if model.quantization else None
        num_trainable, problem = None, ""
        if model.tuner != "full":
            # Initialisation and dropout change no shape, and some initialisations need the values of weights.
            kwargs = {name: value for name, value in model.tuner_kwargs.items() if name != "init_lora_weights"}
            plain = model.model_copy(update={"tuner_kwargs": kwargs, "lora_dropout": 0.0})
            try:
                tuned = get_peft_model(network, tuners.new_adapter(plain, head, num_steps=1000, network=network))
                num_trainable = sum(parameter.numel() for parameter in tuned.parameters() if parameter.requires_grad)
            except (ValueError, TypeError, RuntimeError, NotImplementedError) as error:
                problem = first_line(error)
    text = network.config.get_text_config()
    # Attributes map names of families (n_embd, n_layer, d_model) to those of `SIZES`.
    known = {name: getattr(text, name) for name in SIZES if isinstance(getattr(text, name, None), int)}
    matrices = [name for name, module in modules.items() if isinstance(module, torch.nn.Linear | torch.nn.Embedding)]
    found = {"shapes": shapes, "config": known, "modules": list(modules), "matrices": matrices}
    found |= {"adapter_problem": problem}
    return found | {"num_trainable": num_trainable, "num_quantizable": num_quantizable}


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
