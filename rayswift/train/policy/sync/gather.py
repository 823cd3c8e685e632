"""Gathers the policy's weights for engines: whole tensors on the host, named as in a Hugging Face checkpoint.

It works bucket by bucket, so that with ZeRO-3, where every rank holds a part of each tensor, no device ever has the
whole model. Without ZeRO-3 nothing is gathered, and on CPUs nothing is copied. The training weights do not change by a
bit: an adapter is merged into a copy.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from rayswift.model.tuners import REFERENCE, num_elements
from rayswift.train.policy.ppo.critic import NAME as CRITIC

Named = list[tuple[str, torch.Tensor]]
_ADAPTER = "default"
_NOT_POLICY = f"{CRITIC}."


@dataclass(frozen=True)
class _Part:
    """Tensors that must be gathered together: their parameters, and the function that computes others from them."""

    needs: Sequence[torch.Tensor]
    make: Callable[[], Named]

    @property
    def num_bytes(self) -> int:
        return sum(num_elements(tensor) * tensor.element_size() for tensor in self.needs)


def whole_model(
    model: PreTrainedModel | PeftModel, dtype: torch.dtype | None, keeps: bool, bucket_bytes: int
) -> Iterator[Named]:
    """Yield the model's weights, with the adapter merged, in buckets of about `bucket_bytes`.

    Args:
        model: The trained model, without the wrapper of DeepSpeed or DDP.
        dtype: Number format of the yielded floating-point weights; None: their own.
        keeps: Whether this rank wants them; other ranks only take part in gathering and get empty buckets.
        bucket_bytes: A larger tensor has its own bucket.
    """
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    for parts in _cut(_parts(model, base), bucket_bytes):
        with torch.no_grad(), _gathered([tensor for part in parts for tensor in part.needs]):
            if not keeps:
                yield []
                continue
            named = dict(pair for part in parts for pair in part.make())
            # A model may hold tensors in another form than checkpoints do: experts stacked, names changed.
            yield [(name, _on_host(tensor, dtype)) for name, tensor in revert_weight_conversion(base, named).items()]


def adapter(model: PeftModel, keeps: bool) -> tuple[dict[str, Any], Named]:
    """Return PEFT's config of the trained adapter, and its tensors under PEFT's names, gathered at once."""
    own = (model.base_model.prefix, f".{_ADAPTER}")
    trained = [parameter for name, parameter in model.named_parameters() if all(part in name for part in own)]
    with torch.no_grad(), _gathered(trained):
        named: Named = []
        if keeps:
            state = get_peft_model_state_dict(model, adapter_name=_ADAPTER)
            named = [(name, _on_host(tensor, None)) for name, tensor in state.items()]
    return json.loads(json.dumps(model.peft_config[_ADAPTER].to_dict(), default=_plain)), named


def _plain(value: Any) -> Any:
    return sorted(value) if isinstance(value, set) else str(value)


def _on_host(tensor: torch.Tensor, dtype: torch.dtype | None) -> torch.Tensor:
    tensor = tensor.detach()
    return tensor.to("cpu", dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype)


def _gathered(tensors: Sequence[torch.Tensor]) -> AbstractContextManager[Any]:
    """Hold parameters that ZeRO-3 has sharded whole on every rank, within the block."""
    cut = [tensor for tensor in tensors if hasattr(tensor, "ds_id")]
    if not cut:
        return nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters(cut)


def _cut(parts: Iterator[_Part], bucket_bytes: int) -> Iterator[list[_Part]]:
    bucket: list[_Part] = []
    size = 0
    for part in parts:
        if bucket and size + part.num_bytes > bucket_bytes:
            yield bucket
            bucket, size = [], 0
        bucket.append(part)
        size += part.num_bytes
    if bucket:
        yield bucket


def _parts(model: PreTrainedModel | PeftModel, base: PreTrainedModel) -> Iterator[_Part]:
    """Yield every tensor of a checkpoint of the whole model, in the order of its modules."""
    tuned = {name: layer for name, layer in base.named_modules() if isinstance(layer, BaseTunerLayer)}
    inner = {f"{name}.": layer for name, layer in tuned.items()}
    done: set[str] = set()
    for name, tensor in _stored(base):
        owner = next((prefix for prefix in inner if name.startswith(prefix)), None)
        if owner is None:
            saved = _checkpoint_name(name)
            if saved is not None:
                yield _Part([tensor], lambda saved=saved, tensor=tensor: [(saved, tensor.data)])  # type: ignore[misc]
        elif owner not in done:
            done.add(owner)
            layer = inner[owner]
            make = lambda owner=owner, layer=layer: _merged(owner, layer)  # noqa: E731
            yield _Part(list(layer.parameters()), make)


def _stored(model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield parameters, shared ones once, and the buffers of checkpoints, without those of a critic."""
    yield from ((name, each) for name, each in model.named_parameters() if not name.startswith(_NOT_POLICY))
    for prefix, module in model.named_modules():
        if f"{prefix}.".startswith(_NOT_POLICY):
            continue
        for name, buffer in module.named_buffers(recurse=False):
            if name not in module._non_persistent_buffers_set:
                yield f"{prefix}.{name}" if prefix else name, buffer


def _checkpoint_name(name: str) -> str | None:
    """Return the name of a tensor outside the adapted layers; None: `modules_to_save` has a trained copy of it, or it
    is the reference's."""
    if ".original_module." in name or f".modules_to_save.{REFERENCE}." in name:
        return None
    return name.replace(f".modules_to_save.{_ADAPTER}.", ".")


def _merged(prefix: str, layer: Any) -> Named:
    """Return the weights of an adapted layer with the adapter merged.

    PEFT's safe merge replaces the parameter's tensor by a new one; the old tensor is put back unchanged.
    """
    base = layer.get_base_layer()
    kept = [(name, parameter, parameter.data) for name, parameter in base.named_parameters()]
    layer.merge(safe_merge=True)
    made = [(f"{prefix}{name}", parameter.data) for name, parameter, _ in kept]
    for _, parameter, data in kept:
        parameter.data = data
    layer.merged_adapters.clear()
    return made
