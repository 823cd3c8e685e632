"""Weights and adapters that are loaded whole: what `transformers` would draw, or PEFT leave out, is an error here."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import ModulesToSaveWrapper
from transformers import PreTrainedModel
from transformers.integrations import is_deepspeed_zero3_enabled

from rayswift.log import UserError, first_line
from rayswift.model.adapters import saved_shapes

_ADAPTER = "default"
# Of a module in `modules_to_save` that PEFT saves a second time, as an embedding that has grown.
_COPIES = (".modules_to_save.", ".original_module.")


def load(kind: Any, path: str, what: str = "", **options: Any) -> tuple[Any, list[str]]:
    """The model at `path` by an auto class of `transformers`, and the names of weights of its head that were drawn.

    Args:
        kind: The class.
        path: A folder or hub id.
        what: Names it in errors; empty: the path.
        options: Of `from_pretrained`.

    Raises:
        UserError: it cannot be loaded, or other weights would be drawn. Errors of the system are raised as they are.
    """
    try:
        network, found = kind.from_pretrained(path, output_loading_info=True, **options)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        # `transformers` raises OSError without a number, for what a folder lacks and for a hub that does not answer.
        is_of_system = isinstance(error, OSError) and (error.errno is not None or not Path(path).is_dir())
        is_of_device = isinstance(error, RuntimeError) and "mismatch" not in str(error)
        if is_of_system or is_of_device:
            raise
        raise UserError(f"{what or path} cannot be loaded: {why(error)}", exit_code=1) from error
    drawn = sorted(found["missing_keys"])
    refuse_drawn(network, drawn, what or path)
    return network, drawn


def why(error: Exception) -> str:
    """The first line of an error of `transformers`, and the field that it asks for."""
    asks = "trust_remote_code" in str(error)
    return first_line(error) + ("; set trust_remote_code to run the code in its folder" if asks else "")


def refuse_drawn(network: PreTrainedModel, missing: Collection[str], what: str) -> None:
    """Raise UserError if weights are in no file, other than those of a new head: `transformers` has drawn them.

    missing: their names; what: names the model.
    """
    body = f"{network.base_model_prefix}."
    is_bare = network.base_model is network
    # Heads of classes are new, or those of an adapter. Embeddings do not use an encoder's pooler.
    lost = [
        name
        for name in sorted(missing)
        if network.can_generate() or ("pooler." not in name and len(body) > 1 and (is_bare or name.startswith(body)))
    ]
    if lost:
        shown = ", ".join(lost[:3]) + (f" and {len(lost) - 3} more" if len(lost) > 3 else "")
        raise UserError(
            f"{what} has no weights for {shown}, so they would be random; its config.json describes another model than "
            "its weights, or files are missing: copy or download it again",
            exit_code=1,
        )


def put_on(network: PreTrainedModel, folder: Path, *, trains: bool = False) -> PeftModel:
    """The model with the adapter in `folder`; raise UserError if a part of the adapter has no place in it."""
    # Under ZeRO-3 all parameters that are not partitioned must have one dtype (DeepSpeed issue 8072).
    casts = not is_deepspeed_zero3_enabled()
    base = network.name_or_path
    try:
        if not trains:
            _grow(network, folder)
        config: Any = PeftConfig.from_pretrained(str(folder))
        config.inference_mode = not trains
        if config.task_type == "CAUSAL_LM" and not network.can_generate():
            config.task_type = None  # PEFT's class of that type generates
        config.base_model_name_or_path = None  # `get_peft_model` sets it, and warns of another one
        tuned: Any = get_peft_model(network, config, _ADAPTER, autocast_adapter_dtype=casts)
        # `PeftModel.from_pretrained` only warns of missing tensors, and leaves out others without a word.
        found = tuned.load_adapter(str(folder), _ADAPTER, is_trainable=trains, autocast_adapter_dtype=casts)
    except (ValueError, RuntimeError, KeyError) as error:
        reason = next((line.strip() for line in str(error).splitlines() if "size mismatch" in line), first_line(error))
        raise UserError(f"the adapter {folder} does not fit the model {base}: {reason}", exit_code=1) from error
    if tuned.peft_config[_ADAPTER].is_prompt_learning:
        return tuned  # its tensors have no names of the model
    left = [name for name in found.unexpected_keys if not any(part in name for part in _COPIES)]
    for names, what in (
        (left, "the adapter's {} has no place in it"),
        (found.missing_keys, "its {} is not in the adapter"),
    ):
        if names:
            more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
            raise UserError(
                f"the adapter {folder} does not fit the model {base}: {what.format(names[0])}{more}", exit_code=1
            )
    return tuned


def refuse_lost(tuned: PeftModel, drawn: Collection[str], folder: Path) -> None:
    """Raise UserError if weights that were drawn are not in the adapter in `folder` either, so that none trains them.

    drawn: their names in the model below the adapter.
    """
    network = tuned.get_base_model()
    for name in drawn:
        parts = name.split(".")
        modules = (network.get_submodule(".".join(parts[:end])) for end in range(1, len(parts)))
        if not any(isinstance(module, ModulesToSaveWrapper) for module in modules):
            raise UserError(
                f"neither the model {network.name_or_path} nor the adapter {folder} has weights for {name}; name the "
                "model that the adapter was trained on",
                exit_code=1,
            )


def merged(tuned: PeftModel) -> PreTrainedModel:
    """The model with its adapter merged into the weights; raise UserError if that cannot be done.

    If embedding and output matrix are tied and only one of them is changed, they are separate from then on.
    """
    config = tuned.peft_config[_ADAPTER]
    if config.is_prompt_learning:
        raise UserError(f"an adapter of kind {config.peft_type.value} is no change of weights and cannot be merged")
    _untie(tuned.get_base_model())
    try:
        network: PreTrainedModel = tuned.merge_and_unload(safe_merge=True)
    except ValueError as error:  # NaN in the adapter
        raise UserError(f"the adapter cannot be merged: {first_line(error)}", exit_code=1) from error
    return network


def _untie(network: PreTrainedModel) -> None:
    """Give the output matrix a weight of its own if an adapter is on it or on the embedding."""
    if not network.all_tied_weights_keys:
        return
    ends = [network.get_input_embeddings(), network.get_output_embeddings()]
    if not any(isinstance(end, BaseTunerLayer) for end in ends):
        return
    embedding, output = (end.get_base_layer() if isinstance(end, BaseTunerLayer) else end for end in ends)
    if output is None or output.weight is not embedding.weight:
        return
    output.weight = torch.nn.Parameter(embedding.weight.detach().clone(), requires_grad=False)
    network.config.tie_word_embeddings = False
    network.config.get_text_config().tie_word_embeddings = False


def _grow(network: PreTrainedModel, folder: Path) -> None:
    """Add rows for tokens that the adapter holds and the model does not."""
    saved = saved_shapes(folder)
    if not any(len(shape) == 2 for shape in saved.values()):
        return
    embedding, output = network.get_input_embeddings(), network.get_output_embeddings()
    names = {id(module): name for name, module in network.named_modules()}
    num_rows = embedding.weight.shape[0]
    shape = saved.get(f"{names[id(embedding)]}.weight", [0])
    if shape[0] <= num_rows:
        return
    if output is not None and output.weight is not embedding.weight and f"{names[id(output)]}.weight" not in saved:
        raise ValueError(f"it holds an embedding of {shape[0]} rows, the model has {num_rows}, and no output matrix")
    network.resize_token_embeddings(shape[0], mean_resizing=False)
