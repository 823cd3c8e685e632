"""Attention for completions that share their prompts: each prompt is computed once for all its completions.

A micro-batch is one row: the prompts, then the completions. All layers but attention work token by token. Attention
follows `SharedPrompts`: a prompt attends to itself, a completion to its prompt and to itself, so each completion has
the same distribution as alone. On a GPU in a 16-bit format this is one call of variable-length flash attention;
otherwise it is SDPA on padded pieces of similar lengths.

It is registered in `transformers`' attention interface; a call without `SharedPrompts` is plain SDPA.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from peft import PeftModel
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn
from transformers import PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from rayswift.data.collate.pieces import padded_pieces, ranges
from rayswift.log import UserError
from rayswift.model.document_attention import register, takes_kernel, without_mask
from rayswift.model.load import layout_of
from rayswift.train.policy.micro_batch_plan import PolicyLayout

_KERNEL = "shared_prompts"
_PIECE_TOKENS = 64
"""The cost of one more call of SDPA, in tokens."""
_FLASH_HEAD_DIM = 256


@dataclass(frozen=True)
class _Piece:
    """b completions, padded to `longest` tokens, in slots from `begin` on; prompts [b]: of the block, each one's."""

    begin: int
    longest: int
    lengths: NDArray[np.int64]
    prompts: NDArray[np.int64]


@dataclass(frozen=True)
class _Block:
    """u prompts, padded to `longest` tokens, in slots from `begin` on, and the pieces of their completions."""

    begin: int
    longest: int
    lengths: NDArray[np.int64]
    pieces: Sequence[_Piece]


@dataclass
class SharedPrompts:
    """Which of a row's T tokens attend to which: u prompts, then B completions, those of a prompt side by side.

    Args:
        prompt_lengths: [u], decreasing.
        prompt_of: [B], of each completion.
        lengths: [B], tokens of each.
        num_uses: Number of layers whose attention used it.
    """

    prompt_lengths: NDArray[np.int64]
    prompt_of: NDArray[np.int64]
    lengths: NDArray[np.int64]
    num_uses: int = 0
    _tensors: dict[Any, Any] = field(default_factory=dict)

    @cached_property
    def _blocks(self) -> tuple[list[_Block], NDArray[np.int64], int]:
        """Return blocks, the slot of each token [T], and the number of slots."""
        prompt_slots, slots = np.empty_like(self.prompt_lengths), np.empty_like(self.lengths)
        blocks, end = [], 0
        for block in padded_pieces(self.prompt_lengths, _PIECE_TOKENS):
            prompts = self.prompt_lengths[block]
            begin, longest = end, int(prompts[0])
            prompt_slots[block] = begin + longest * np.arange(len(prompts))
            end += longest * len(prompts)
            rows = np.flatnonzero((self.prompt_of >= block.start) & (self.prompt_of < block.stop))
            rows = rows[np.argsort(-self.lengths[rows], kind="stable")]
            pieces = []
            for cut in padded_pieces(self.lengths[rows], _PIECE_TOKENS):
                chosen = rows[cut]
                lengths = self.lengths[chosen]
                pieces.append(_Piece(end, int(lengths[0]), lengths, self.prompt_of[chosen] - block.start))
                slots[chosen] = end + int(lengths[0]) * np.arange(len(chosen))
                end += int(lengths[0]) * len(chosen)
            blocks.append(_Block(begin, longest, prompts, pieces))
        begins = np.concatenate([prompt_slots, slots])
        return blocks, ranges(begins, np.concatenate([self.prompt_lengths, self.lengths])), end

    def for_one_pass(self) -> "SharedPrompts":
        """Return a copy whose tensors, mostly masks, are freed with the forward pass that gets it."""
        passing = copy(self)
        passing.num_uses, passing._tensors = 0, {}
        return passing

    @contextmanager
    def attended(self) -> Iterator[None]:
        """Around the forward pass that gets this, which needs no mask.

        Raises:
            UserError: attention did not use it, so that one completion saw another.
        """
        with without_mask():
            yield
        if not self.num_uses:
            raise UserError(
                "the model's layers do not tell attention which tokens share a prompt; set "
                "model.attn_implementation eager, where none do",
                exit_code=1,
            )

    def padded(self, query: Tensor, key: Tensor, value: Tensor, attend: Any) -> Tensor:
        """Attention by SDPA.

        Args:
            query: [T, H, D]; key and value alike, with their own heads.
            attend: (query, key, value [b, H, L, D], mask) -> [b, L, H, D]; mask None: causal.

        Returns:
            [T, H, D].
        """
        blocks, slot_of, num_slots = self._blocks
        slots = self._kept(("slots", query.device), _on_device, slot_of, query.device)
        q, k, v = (x.new_zeros(num_slots, *x.shape[1:]).index_copy(0, slots, x) for x in (query, key, value))

        def rows(x: Tensor, begin: int, number: int, length: int) -> Tensor:
            return x[begin : begin + number * length].view(number, length, *x.shape[1:]).transpose(1, 2)

        found = []
        for block in blocks:
            size = block.begin, len(block.lengths), block.longest
            prompt_keys, prompt_values = rows(k, *size), rows(v, *size)
            found.append(attend(rows(q, *size), prompt_keys, prompt_values, None).flatten(0, 1))
            for piece in block.pieces:
                size = piece.begin, len(piece.lengths), piece.longest
                of = self._kept((piece.begin, q.device), _on_device, piece.prompts, q.device)
                keys = torch.cat([prompt_keys.index_select(0, of), rows(k, *size)], dim=2)
                values = torch.cat([prompt_values.index_select(0, of), rows(v, *size)], dim=2)
                mask = self._kept((piece.begin, q.device, q.dtype), _mask, block, piece, q)
                found.append(attend(rows(q, *size), keys, values, mask).flatten(0, 1))
        return torch.cat(found).index_select(0, slots)

    def flash(self, query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
        """Attention by flash attention, without padding."""
        queries, keys, places = self._kept(("flash", query.device), self._borders, query.device)
        picked = [_picked(x, places) for x in (key, value)]
        longest = int(self.lengths.max(initial=0)), int(self.prompt_lengths.max(initial=0))
        out: Tensor = varlen_attn(
            query.contiguous(), *picked, queries, keys, max(longest), sum(longest), scale=scale, window_size=(-1, 0),
            enable_gqa=query.shape[1] != key.shape[1],
        )  # fmt: skip
        return out

    def _borders(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """Return cumulative lengths of queries and of keys, and the token of each key."""
        begins = np.cumsum(self.prompt_lengths) - self.prompt_lengths
        own = int(self.prompt_lengths.sum()) + np.cumsum(self.lengths) - self.lengths
        of, zeros = self.prompt_of, np.zeros_like(self.prompt_lengths)
        seen = np.concatenate([zeros, self.prompt_lengths[of]])  # a prompt attends only to itself
        lengths = np.concatenate([self.prompt_lengths, self.lengths])
        each = np.stack([np.concatenate([zeros, begins[of]]), np.concatenate([begins, own])], axis=1).ravel()
        places = ranges(each, np.stack([seen, lengths], axis=1).ravel())
        borders = [np.concatenate([[0], np.cumsum(x)]).astype(np.int32) for x in (lengths, seen + lengths)]
        queries, keys = (_on_device(x, device) for x in borders)
        return queries, keys, _on_device(places, device)

    def _kept(self, key: Any, make: Any, *given: Any) -> Any:
        """Return the result of `make`, computed once for all layers."""
        if key not in self._tensors:
            self._tensors[key] = make(*given)
        return self._tensors[key]


def _on_device(values: NDArray[Any], device: torch.device) -> Tensor:
    return torch.from_numpy(values).to(device)


def _mask(block: _Block, piece: _Piece, query: Tensor) -> Tensor:
    """Return the mask [b, 1, C, P + C] to add to scores: 0 where a token attends, else minus infinity."""
    seen = _on_device(block.lengths[piece.prompts], query.device)
    prompt = torch.arange(block.longest, device=query.device) < seen[:, None, None]
    own = torch.ones(piece.longest, piece.longest, dtype=torch.bool, device=query.device).tril()
    size = len(seen), piece.longest
    both = torch.cat([prompt.expand(*size, -1), own.expand(*size, -1)], dim=-1)[:, None]
    return torch.zeros(both.shape, dtype=query.dtype, device=query.device).masked_fill_(~both, -torch.inf)


def _picked(x: Tensor, places: Tensor) -> Tensor:
    """Return selected tokens, some several times; their gradients are summed in float32."""
    return x.float().index_select(0, places).to(x.dtype)


def _attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    shared_prompts: SharedPrompts | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Called by `transformers`: query, key, value [B, H, T, D], B = 1 with `shared_prompts`; -> [B, T, H, D]."""
    if shared_prompts is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **kwargs)
    if torch.is_autocast_enabled(query.device.type):  # as for SDPA itself: rotated queries and keys come in float32
        dtype = torch.get_autocast_dtype(query.device.type)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    shared_prompts.num_uses += 1
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    if _flash_takes(query, key, value) and not dropout:
        return shared_prompts.flash(q, k, v, scaling)[None], None

    def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        found: Tensor = sdpa_attention_forward(module, query, key, value, mask, dropout, scaling)[0]
        return found

    return shared_prompts.padded(q, k, v, attend)[None], None


def _flash_takes(query: Tensor, key: Tensor, value: Tensor) -> bool:
    is_half = query.dtype in (torch.bfloat16, torch.float16) and key.dtype == value.dtype == query.dtype
    return query.is_cuda and is_half and query.shape[-1] == value.shape[-1] <= _FLASH_HEAD_DIM


register(_KERNEL, _attention)


def choose_layout(*models: PreTrainedModel | PeftModel) -> PolicyLayout:
    """Choose the layout of micro-batches for models that score the same ones; prompts are shared if all models can."""
    bases = [model.get_base_model() if isinstance(model, PeftModel) else model for model in models]
    if not all(takes_kernel(base, _KERNEL) for base in bases):
        return layout_of(bases[0])
    for base in bases:
        base.set_attn_implementation(_KERNEL)
    return "shared"
