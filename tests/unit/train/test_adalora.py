"""AdaLoRA with our loss equals PEFT's, and continues exactly from a checkpoint."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, TrainerControl, TrainerState, TrainingArguments

from rayswift.config.model import ModelConfig
from rayswift.model import tuners
from rayswift.train.tuning import adalora

TINY = Path(__file__).parents[3] / "examples/tiny"
TOKENS = torch.arange(8, 40).view(2, 16)
STEPS, CUT = 12, 7
KWARGS = {"tinit": 2, "tfinal": 3, "deltaT": 1, "init_r": 6, "target_r": 3}
CONFIG = ModelConfig(path="model", tuner="adalora", lora_dropout=0, tuner_kwargs=KWARGS)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """A model this small is slower on more."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


def base() -> torch.nn.Module:
    architecture = AutoConfig.from_pretrained(TINY)
    architecture.num_hidden_layers, architecture.layer_types = 1, architecture.layer_types[:1]
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(architecture)


def fresh(num_steps: int = STEPS) -> tuple[Any, torch.optim.Optimizer]:
    torch.manual_seed(1)
    model = get_peft_model(base(), tuners.new_adapter(CONFIG, num_steps=num_steps))
    return model, torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)


def train(model: Any, optimizer: Any, steps: range, budget: Any, loss_of: Callable[[Any], torch.Tensor]) -> list[float]:
    losses = []
    for step in steps:
        loss = loss_of(model)
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
        budget(step)
        optimizer.zero_grad()
    return losses


def own_loss(model: Any) -> torch.Tensor:
    logits = model(input_ids=TOKENS).logits[:, :-1].flatten(0, 1)
    return torch.nn.functional.cross_entropy(logits, TOKENS[:, 1:].flatten()) + adalora.penalty(model)


def even(step: int) -> float:
    return (step + 1) / STEPS


def uneven(step: int) -> float:
    """Progress of rows that fill fewer steps the longer the training goes on."""
    return ((step + 1) / STEPS) ** 1.2


@pytest.mark.parametrize("progress", [None, even, uneven])
def test_losses_are_pefts_and_a_resume_changes_nothing(tmp_path: Path, progress: Callable[[int], float] | None) -> None:
    """PEFT's number of steps is given, or follows from the share of the rows that is done."""
    args, control = TrainingArguments(output_dir=str(tmp_path), report_to="none", use_cpu=True), TrainerControl()

    def ours(steps: range, model: Any, optimizer: Any, resume_from: Path | None = None) -> list[float]:
        at = [0]
        callback = adalora.AdaLoraCallback(tmp_path, resume_from, progress and (lambda: progress(at[0])))
        callback.on_train_begin(args, TrainerState(), control, model=model)

        def budget(step: int) -> None:
            at[0] = step
            callback.on_optimizer_step(args, TrainerState(global_step=step), control, model=model)

        losses = train(model, optimizer, steps, budget, own_loss)
        model.save_pretrained(tmp_path / f"checkpoint-{steps.stop}")
        callback.on_save(args, TrainerState(global_step=steps.stop), control, model=model)
        return losses

    model, optimizer = fresh()
    pefts = train(
        model,
        optimizer,
        range(STEPS),
        model.base_model.update_and_allocate,
        lambda model: model(input_ids=TOKENS, labels=TOKENS).loss,
    )
    model, optimizer = fresh(-1 if progress else STEPS)
    whole = ours(range(STEPS), model, optimizer)
    if progress is not uneven:
        assert whole == pytest.approx(pefts, abs=1e-5)
    left = sum(int((p != 0).sum()) for name, p in model.named_parameters() if "lora_E" in name)
    assert left == KWARGS["target_r"] * 7  # seven linear layers
    with torch.inference_mode():
        loaded = PeftModel.from_pretrained(base(), tmp_path / f"checkpoint-{STEPS}").eval()
        assert torch.equal(loaded(TOKENS).logits, model.eval()(TOKENS).logits)

    model, optimizer = fresh(-1 if progress else STEPS)
    cut = ours(range(CUT), model, optimizer)
    state = optimizer.state_dict()
    model, optimizer = fresh(-1 if progress else STEPS)
    model.load_adapter(str(tmp_path / f"checkpoint-{CUT}"), "default", is_trainable=True)
    optimizer.load_state_dict(state)
    assert cut + ours(range(CUT, STEPS), model, optimizer, tmp_path / f"checkpoint-{CUT}") == whole
