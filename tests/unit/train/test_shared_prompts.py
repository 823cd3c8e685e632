"""Completions that share the computation of a prompt have the same distributions and gradients as alone."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from transformers import (
    BertConfig,
    BertLMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen3NextConfig,
    Qwen3NextForCausalLM,
    StableLmConfig,
    StableLmForCausalLM,
)

from rayswift.log import UserError
from rayswift.train.policy.shared_prompts import SharedPrompts, choose_layout

SMALL: dict[str, Any] = {
    "vocab_size": 32, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "initializer_range": 0.3,
}  # fmt: skip
Lengths = list[tuple[int, list[int]]]
GROUPS = st.lists(
    st.tuples(st.integers(1, 70), st.lists(st.integers(1, 90), min_size=1, max_size=4)), min_size=1, max_size=4
)


def plan_of(groups: Lengths) -> SharedPrompts:
    """Of (prompt, completions) lengths by falling prompt."""
    of = np.repeat(np.arange(len(groups)), [len(each) for _, each in groups])
    flat = [length for _, each in groups for length in each]
    return SharedPrompts(np.array([prompt for prompt, _ in groups]), of, np.array(flat))


def alone(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Causal attention of one text, [L, H, D], by its definition, in float64."""
    repeated = [x.double().repeat_interleave(query.shape[1] // x.shape[1], 1) for x in (key, value)]
    scores = torch.einsum("qhd,khd->hqk", query.double(), repeated[0]) / query.shape[-1] ** 0.5
    scores = scores.masked_fill(~torch.ones(scores.shape[1:], dtype=torch.bool).tril(), -torch.inf)
    return torch.einsum("hqk,khd->qhd", scores.softmax(-1), repeated[1])


def texts_of(groups: Lengths) -> list[tuple[int, torch.Tensor]]:
    """Of each completion, its length and the places of its prompt's tokens and its own."""
    prompts = np.cumsum([0, *(prompt for prompt, _ in groups)])
    begin, found = int(prompts[-1]), []
    for number, (prompt, completions) in enumerate(groups):
        for length in completions:
            own = torch.arange(begin, begin + length)
            found.append((length, torch.cat([torch.arange(prompts[number], prompts[number] + prompt), own])))
            begin += length
    return found


@settings(max_examples=12, deadline=None)
@given(GROUPS, st.integers(0, 1000))
def test_attention_is_that_of_each_text_alone(groups: Lengths, seed: int) -> None:
    groups = sorted(groups, key=lambda each: -each[0])
    plan, generator = plan_of(groups), torch.Generator().manual_seed(seed)
    size = sum(prompt + sum(each) for prompt, each in groups)
    q, k, v = (torch.randn(size, heads, 8, generator=generator, requires_grad=True) for heads in (4, 2, 2))

    def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Any) -> torch.Tensor:
        repeated = [x.repeat_interleave(2, 1) for x in (key, value)]
        done = torch.nn.functional.scaled_dot_product_attention(
            query, *repeated, attn_mask=mask, is_causal=mask is None
        )
        return done.transpose(1, 2)

    found = plan.padded(q, k, v, attend)
    chosen = torch.randn(found.shape, generator=generator)
    gradients = torch.autograd.grad((found * chosen).sum(), (q, k, v))
    wanted = torch.zeros(found.shape, dtype=torch.float64)
    for length, places in texts_of(groups):
        wanted = wanted.index_copy(0, places, alone(q[places], k[places], v[places]))
        assert len(places) > length
    torch.testing.assert_close(found.double(), wanted, atol=1e-5, rtol=1e-5)
    for ours, theirs in zip(gradients, torch.autograd.grad((wanted * chosen).sum(), (q, k, v)), strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-4)


@settings(max_examples=30, deadline=None)
@given(GROUPS)
def test_flash_attention_gets_the_keys_of_each_text(groups: Lengths) -> None:
    groups = sorted(groups, key=lambda each: -each[0])
    queries, keys, places = plan_of(groups)._borders(torch.device("cpu"))
    lengths = [prompt for prompt, _ in groups] + [length for _, each in groups for length in each]
    assert queries.diff().tolist() == lengths
    seen = [each.tolist() for each in places.split(keys.diff().tolist())]
    assert [text for each in seen[: len(groups)] for text in each] == list(range(sum(p for p, _ in groups)))
    assert seen[len(groups) :] == [text.tolist() for _, text in texts_of(groups)]


@pytest.mark.parametrize("is_tuned", [False, True])
def test_models_score_as_if_alone(is_tuned: bool) -> None:
    torch.manual_seed(0)
    model: Any = LlamaForCausalLM(LlamaConfig(**SMALL))
    if is_tuned:
        model = get_peft_model(model, LoraConfig(target_modules="all-linear", init_lora_weights=False))
    groups = [(6, [3, 5]), (2, [4])]
    ids = torch.randint(0, 32, (8 + 12,))
    wanted = [model(input_ids=ids[places][None]).logits[0, -length:] for length, places in texts_of(groups)]
    assert choose_layout(model) == "shared"
    # Without prompts, as for the canary, a call does not change.
    again = [model(input_ids=ids[places][None]).logits[0, -length:] for length, places in texts_of(groups)]
    torch.testing.assert_close(again, wanted)
    positions = torch.tensor([[*range(6), *range(2), *range(6, 9), *range(6, 11), *range(2, 6)]])
    plan = plan_of(groups)
    with pytest.raises(UserError, match="attn_implementation eager"), plan.attended():
        pass
    with plan.attended():
        found = model(input_ids=ids[None], position_ids=positions, shared_prompts=plan, use_cache=False).logits[0, 8:]
    assert plan.num_uses == SMALL["num_hidden_layers"]
    torch.testing.assert_close(found, torch.cat(wanted), atol=1e-5, rtol=1e-5)


def test_models_that_cannot_share_are_laid_out_in_rows() -> None:
    """A window, a recurrent state, an encoder, another kernel: what a token sees depends on its place in the row."""
    windowed = MistralForCausalLM(MistralConfig(**SMALL, sliding_window=4))
    whole = MistralForCausalLM(MistralConfig(**SMALL, sliding_window=None))
    assert choose_layout(windowed) == choose_layout(whole, windowed) == "rows"
    assert whole.config._attn_implementation == "sdpa"
    assert choose_layout(whole) == choose_layout(whole, whole) == "shared"
    eager = LlamaForCausalLM._from_config(LlamaConfig(**SMALL), attn_implementation="eager")
    assert choose_layout(eager) == "rows"
    assert choose_layout(BertLMHeadModel(BertConfig(**SMALL))) == "rows"
    assert choose_layout(StableLmForCausalLM(StableLmConfig(**SMALL))) == "rows"
    hybrid = {"layer_types": ["linear_attention", "full_attention"], "head_dim": 8, "num_experts": 2}
    hybrid |= {f"linear_{name}": 8 for name in ("key_head_dim", "value_head_dim")}
    hybrid |= {f"linear_num_{name}_heads": 2 for name in ("key", "value")}
    assert choose_layout(Qwen3NextForCausalLM(Qwen3NextConfig(**SMALL, **hybrid))) == "rows"
