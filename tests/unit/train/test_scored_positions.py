"""The head at the trained positions alone gives the same log-probabilities, entropies and gradients."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM
from trl.trainer.utils import add_fused_lm_head

from rayswift.train.scored_positions import ScoredPositions, scored

OUTPUTS = ("log_probs", "entropy", "is_top1")


def made(folder: Path, adapter: bool) -> tuple[Any, ScoredPositions]:
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    add_fused_lm_head(base, outputs=OUTPUTS)
    model = base
    if adapter:
        model = get_peft_model(base, LoraConfig(target_modules="all-linear", init_lora_weights=False))
    return model, ScoredPositions(model)


def batch(trained: float) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, 200, (3, 17), generator=generator)
    labels = ids.masked_fill(torch.rand(ids.shape, generator=generator) >= trained, -100)
    positions = torch.arange(17).repeat(3, 1)
    return {"input_ids": ids, "position_ids": positions, "labels": labels, "fused_lm_head": True}


def gradients(model: Any) -> dict[str, torch.Tensor]:
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("adapter", [False, True])
@pytest.mark.parametrize("trained", [0.3, 1.0])
def test_the_same_numbers_as_at_every_position(tiny_model_dir: Path, adapter: bool, trained: float) -> None:
    model, head = made(tiny_model_dir, adapter)
    inputs = batch(trained)
    wanted = model(**inputs)
    wanted.log_probs.sum().backward()
    wanted_gradients = {name: each.clone() for name, each in gradients(model).items()}
    model.zero_grad()
    seen: list[int] = []
    base = model.get_base_model() if adapter else model
    hook = base.base_model.register_forward_hook(lambda *args: seen.append(args[2].last_hidden_state.shape[1]))
    found = scored(model, head, inputs)
    hook.remove()
    found.log_probs.sum().backward()
    assert seen == [int((inputs["labels"][:, 1:] != -100).sum())]
    # A product over other rows may be summed in another order: a few units of float32's last place.
    for name in OUTPUTS:
        torch.testing.assert_close(found[name], wanted[name], rtol=1e-5, atol=1e-5)
    assert torch.equal(found.label_mask, inputs["labels"][:, 1:] != -100)
    for name, gradient in gradients(model).items():
        scale = float(wanted_gradients[name].abs().max())
        torch.testing.assert_close(gradient, wanted_gradients[name], rtol=1e-5, atol=1e-5 * scale)


def test_nothing_to_train_has_no_loss_and_a_gradient_of_zero(tiny_model_dir: Path) -> None:
    """A rank whose share of the last batch is empty still takes part in the step."""
    model, head = made(tiny_model_dir, adapter=False)
    found = scored(model, head, batch(0.0))
    (-found.log_probs.sum()).backward()
    assert float(found.log_probs.abs().sum()) == 0
    assert gradients(model)
    assert all(float(each.abs().sum()) == 0 for each in gradients(model).values())
