"""Muon and LISA: the parameters that a step moves, and the size of the update."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, TrainerControl, TrainerState, TrainingArguments

from rayswift.config.checks.model import MUON_OPTIONS
from rayswift.config.model import ModelConfig
from rayswift.model.layers import layer_of
from rayswift.train.tuning import lisa, muon

TINY = Path(__file__).parents[3] / "examples/tiny"
TOKENS = torch.arange(8, 40).view(2, 16)


def network(layers: int = 2) -> Any:
    architecture = AutoConfig.from_pretrained(TINY)
    architecture.num_hidden_layers, architecture.layer_types = layers, ["full_attention"] * layers
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(architecture)


def arguments(**given: Any) -> TrainingArguments:
    return TrainingArguments(output_dir="unused", report_to="none", use_cpu=True, learning_rate=1e-2, **given)


def optimizer_of(model: Any, args: TrainingArguments, decays: float) -> torch.optim.Optimizer:
    cls, kwargs = muon.recipe(model, args)
    trained = [p for p in model.parameters() if p.requires_grad]
    return cls(
        [{"params": trained[::2], "weight_decay": decays}, {"params": trained[1::2], "weight_decay": 0.0}], **kwargs
    )


def step(model: Any, optimizer: torch.optim.Optimizer) -> None:
    model(input_ids=TOKENS, labels=TOKENS).loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def test_muon_steps_matrices_and_adamw_the_rest() -> None:
    ours, theirs = network(), network()
    optimizer = optimizer_of(ours, arguments(optim_args="momentum=0.9, ns_steps=4,nesterov=false"), 0.1)
    is_matrix = {id(p) for name, p in theirs.named_parameters() if "proj" in name}
    matrices: Any = [[p for p in part if id(p) in is_matrix] for part in halves(theirs)]
    others: Any = [[p for p in part if id(p) not in is_matrix] for part in halves(theirs)]
    references: list[torch.optim.Optimizer] = [
        torch.optim.Muon(
            [{"params": part, "weight_decay": decay} for part, decay in zip(matrices, (0.1, 0.0), strict=True)],
            lr=1e-2,
            momentum=0.9,
            ns_steps=4,
            nesterov=False,
            adjust_lr_fn="match_rms_adamw",
        ),
        torch.optim.AdamW(
            [{"params": part, "weight_decay": decay} for part, decay in zip(others, (0.1, 0.0), strict=True)], lr=1e-2
        ),
    ]
    for _ in range(3):
        step(ours, optimizer)
        theirs(input_ids=TOKENS, labels=TOKENS).loss.backward()
        for reference in references:
            reference.step()
            reference.zero_grad()
    for mine, yours in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(mine, yours)


def halves(model: Any) -> tuple[list[Any], list[Any]]:
    trained = list(model.parameters())
    return trained[::2], trained[1::2]


def test_a_step_of_a_matrix_is_as_large_as_adamws() -> None:
    """Root mean square 0.2 of the learning rate, up to what five Newton-Schulz steps leave of the singular values."""
    model = network()
    before = copy.deepcopy(model.state_dict())
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)  # of full rank
    optimizer_of(model, arguments(), 0.0).step()
    for name, parameter in model.named_parameters():
        if "proj" in name:
            rms = float((parameter.detach() - before[name]).square().mean().sqrt())
            assert 0.5 < rms / (0.2 * 1e-2) < 1.3, name


def test_muon_goes_on_from_its_state() -> None:
    whole = network()
    optimizer = optimizer_of(whole, arguments(), 0.1)
    for _ in range(2):
        step(whole, optimizer)
    cut = copy.deepcopy(whole)
    again = optimizer_of(cut, arguments(), 0.1)
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for model, each in ((whole, optimizer), (cut, again)):
        for group in each.param_groups:
            group["lr"] = 5e-3  # as a schedule does
        step(model, each)
    for one, other in zip(whole.parameters(), cut.parameters(), strict=True):
        assert torch.equal(one, other)


def test_embeddings_and_heads_are_no_matrices_and_those_of_an_adapter_are() -> None:
    model = network()
    assert all("proj" in name for name, p in model.named_parameters() if any(p is m for m in muon.matrices(model)))
    assert len(muon.matrices(model)) == 2 * 7
    tuned = get_peft_model(model, LoraConfig(target_modules="all-linear"))
    assert len(muon.matrices(tuned)) == 2 * 7 * 2
    assert set(muon._OPTIONS) == set(MUON_OPTIONS)


def test_lisa_trains_a_few_layers_at_a_time(tmp_path: Path) -> None:
    config = ModelConfig(path="m", lisa_layers=2, lisa_interval=3)
    model, seen = network(5), set()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    callback = lisa.SampledLayers(config, seed=7)
    for at in range(15):
        before = copy.deepcopy(dict(model.named_parameters()))
        callback.on_step_begin(arguments(), TrainerState(global_step=at), TrainerControl(), model=model)
        step(model, optimizer)
        moved = {layer_of(name) for name, p in model.named_parameters() if not torch.equal(p, before[name])}
        assert None in moved
        active = frozenset(moved - {None})
        assert active == lisa.drawn(7, at // 3, 5, 2)
        assert len(active) == 2
        seen |= active
    assert seen == set(range(5))
    assert lisa.drawn(7, 0, 1, 2) == {0}


@pytest.mark.parametrize("seed", range(3))
def test_layers_are_drawn_alike(seed: int) -> None:
    """Each of 8 layers in a quarter of 4,000 intervals, within five standard deviations (27 each)."""
    counts = [0] * 8
    for interval in range(4000):
        for layer in lisa.drawn(seed, interval, 8, 2):
            counts[layer] += 1
    assert all(abs(count - 1000) < 5 * 27.4 for count in counts), counts
