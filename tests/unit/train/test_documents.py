"""Documents side by side in one row have the same distributions and gradients as alone, whatever their lengths."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from transformers import AttentionMaskInterface, LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from rayswift.data.collate.documents import Documents
from rayswift.data.collate.packed import collate
from rayswift.data.sequence.windows import PackedRow
from rayswift.log import UserError
from rayswift.model.document_attention import attended, choose_layout, without_mask
from tests.unit.train.test_shared_prompts import SMALL, alone


def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """SDPA as `transformers` calls it."""
    found = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
    return found.transpose(1, 2)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(1, 150), min_size=1, max_size=12), st.integers(0, 10**6))
def test_attention_of_a_document_is_that_of_it_alone(lengths: list[int], seed: int) -> None:
    """Values and gradients, against the definition in float64: float32 sums of up to 150 terms."""
    torch.manual_seed(seed)
    total = sum(lengths)
    query, key, value = (torch.randn(total, heads, 8, requires_grad=True) for heads in (4, 2, 2))
    found = Documents(np.array(lengths)).attention(query, key, value, attend)
    pieces = zip(*(x.split(lengths) for x in (query, key, value)), strict=True)
    wanted = torch.cat([alone(*piece) for piece in pieces])
    torch.testing.assert_close(found.double(), wanted, atol=1e-5, rtol=1e-5)
    weights = torch.randn(found.shape)
    ours = torch.autograd.grad((found * weights).sum(), (query, key, value))
    theirs = torch.autograd.grad((wanted * weights).sum(), (query, key, value))
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def rows() -> list[PackedRow]:
    """Two packed rows of several documents."""
    generator = np.random.default_rng(0)
    lengths = [(5, 3, 9), (1, 4)]
    ids = [generator.integers(0, 32, sum(each)).astype(np.int32) for each in lengths]
    return [PackedRow(i, np.ones(len(i), dtype=bool), each, len(each)) for i, each in zip(ids, lengths, strict=True)]


@pytest.mark.parametrize("is_tuned", [False, True])
def test_a_model_scores_packed_rows_as_with_a_mask(is_tuned: bool) -> None:
    torch.manual_seed(0)
    model: Any = LlamaForCausalLM(LlamaConfig(**SMALL))
    if is_tuned:
        model = get_peft_model(model, LoraConfig(target_modules="all-linear", init_lora_weights=False))
    masked = collate(rows(), 0, "rows")
    del masked["labels"]
    wanted = model(**masked, use_cache=False).logits
    assert choose_layout(model) == "documents"
    batch = collate(rows(), 0, choose_layout(model))
    labels = batch.pop("labels")
    with pytest.raises(UserError, match="attn_implementation eager"), attended(batch["documents"]):
        pass
    with attended(batch["documents"]):
        found = model(**batch, use_cache=False).logits
    lengths = [sum(row.lengths) for row in rows()]
    assert labels.shape == (1, sum(lengths))
    torch.testing.assert_close(
        found[0], torch.cat([wanted[i, :length] for i, length in enumerate(lengths)]), atol=1e-5, rtol=1e-5
    )


def test_other_calls_of_the_model_do_not_change() -> None:
    """Padded texts, and a text that is continued with a cache: as a user's callback may generate."""
    torch.manual_seed(0)
    model: Any = LlamaForCausalLM(LlamaConfig(**SMALL)).eval()
    ids, mask = torch.randint(0, 32, (2, 6)), torch.ones(2, 6, dtype=torch.int64)
    mask[0, :3] = 0
    flags = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0, "return_dict_in_generate": True}
    wanted = model.generate(ids, attention_mask=mask, output_logits=True, **flags)
    assert choose_layout(model) == "documents"
    found = model.generate(ids, attention_mask=mask, output_logits=True, **flags)
    assert torch.equal(found.sequences, wanted.sequences)
    torch.testing.assert_close(found.logits, wanted.logits, atol=1e-5, rtol=1e-5)
    cache = model(input_ids=ids[:, :3]).past_key_values
    rest = model(input_ids=ids[:, 3:], past_key_values=cache).logits
    torch.testing.assert_close(rest, model(input_ids=ids).logits[:, 3:], atol=1e-5, rtol=1e-5)


def test_positions_alone_keep_documents_apart() -> None:
    """As `transformers` has it: a user's own forward pass of a row with several documents."""
    torch.manual_seed(0)
    model: Any = LlamaForCausalLM(LlamaConfig(**SMALL)).eval()
    ids, positions = torch.randint(0, 32, (1, 8)), torch.tensor([[*range(5), *range(3)]])
    wanted = torch.cat([model(input_ids=each).logits for each in (ids[:, :5], ids[:, 5:])], dim=1)
    assert choose_layout(model) == "documents"
    found = model(input_ids=ids, position_ids=positions, use_cache=False).logits
    with without_mask():
        assert AttentionMaskInterface()["documents"](1, 8, 8) is None
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


def test_a_model_with_a_window_keeps_its_rows() -> None:
    assert choose_layout(MistralForCausalLM(MistralConfig(**SMALL, sliding_window=4))) == "rows"
