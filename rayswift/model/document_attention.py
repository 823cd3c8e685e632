"""Attention within each document of a row, for models with SDPA.

Without this kernel, packed rows need a mask of T x T, and SDPA computes all of it. With `Documents`, each document
costs what it costs alone, and rows need no padding. The kernel is registered in `transformers`' attention interface; a
call without documents is plain SDPA.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from inspect import unwrap
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from rayswift.data.collate.documents import Documents
from rayswift.data.collate.packed import Layout
from rayswift.log import UserError
from rayswift.model.load import layout_of

_KERNEL = "documents"
# Their layers do not pass these arguments on to their attention (transformers 5.19).
_DEAF_MODELS = ("nemotron", "stablelm")
_needs_mask = ContextVar("needs_mask", default=True)


def _attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    documents: Documents | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Called by `transformers`: query, key, value [B, H, T, D], B = 1 with documents; -> [B, T, H, D]."""
    if documents is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **kwargs)

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        found: Tensor = sdpa_attention_forward(module, query, key, value, None, dropout, scaling)[0]
        return found

    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    return documents.attention(q, k, v, attend)[None], None


def _mask(
    batch_size: int, q_length: int, kv_length: int, *args: Any, attention_mask: Tensor | None = None, **kwargs: Any
) -> Tensor | None:
    """Return SDPA's mask; None within `without_mask`."""
    if not _needs_mask.get():
        return None
    return sdpa_mask(batch_size, q_length, kv_length, *args, attention_mask=attention_mask, **kwargs)


@contextmanager
def without_mask() -> Iterator[None]:
    """Around a forward pass whose kernel is told which tokens see which: the model makes no mask of T x T for it."""
    before = _needs_mask.set(False)
    try:
        yield
    finally:
        _needs_mask.reset(before)


def register(kernel: str, attention: Any) -> None:
    """Register a kernel of attention for rows without padding, with SDPA's masks for all other calls of the model."""
    AttentionInterface.register(kernel, attention)
    AttentionMaskInterface.register(kernel, _mask)


register(_KERNEL, _attention)


def choose_layout(model: PreTrainedModel | PeftModel) -> Layout:
    """Choose the layout of packed rows, and set the model's attention to it."""
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    if not takes_kernel(base, _KERNEL):
        return layout_of(base)
    base.set_attn_implementation(_KERNEL)
    return "documents"


@contextmanager
def attended(documents: Documents) -> Iterator[None]:
    """Around the forward pass of these documents, which needs no mask.

    Raises:
        UserError: attention did not use them, so that one saw another.
    """
    with without_mask():
        yield
    if not documents.num_uses:
        raise UserError(
            "the model's layers do not tell attention where a document ends; set model.attn_implementation eager",
            exit_code=1,
        )


def takes_kernel(model: PreTrainedModel, kernel: str) -> bool:
    """Whether tokens interact only in SDPA over the whole text: no window, no recurrent state, no encoder.

    The code of the model is checked too, because not every such model uses the attention interface.
    """
    config = model.config.get_text_config()
    kinds = getattr(config, "layer_types", None)
    is_windowed = getattr(config, "sliding_window", None) if kinds is None else set(kinds) != {"full_attention"}
    is_deaf = config.model_type in _DEAF_MODELS
    if str(model.config._attn_implementation) not in ("sdpa", kernel) or is_windowed or model._is_stateful or is_deaf:
        return False
    attentions = [module for module in model.modules() if hasattr(module, "is_causal")]
    return len(attentions) >= config.num_hidden_layers and all(
        module.is_causal and "ALL_ATTENTION_FUNCTIONS" in unwrap(type(module).forward).__code__.co_names
        for module in attentions
    )
