"""TRL's GRPO and RLOO trainers, and ours, on the same given completions and rewards.

Importing TRL's trainers takes seconds: for tests/ray and tests/bars only.
"""

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import AutoTokenizer
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from rayswift.engines.samples import Group
from tests.policy_runs import TINY, Rounds, make_groups, make_spec, make_trainer, tiny_model, with_answers

__all__ = ["NUM_GENERATIONS", "assert_equal", "make_groups", "with_answers"]
NUM_GENERATIONS = 4
Gradients = dict[str, torch.Tensor]


def _lines(groups: Sequence[Group]) -> Any:
    return [(group.prompt, each) for group in groups for each in group.scored]


class ScriptedGRPO(GRPOTrainer):
    """`GRPOTrainer` that gets its completions and rewards from the test; `use_vllm` without vLLM."""

    groups: Sequence[Group]

    def _generate(self, prompts: Any) -> Any:
        lines = _lines(self.groups)
        prompts, ids = [p.input_ids.tolist() for p, _ in lines], [s.completion.token_ids.tolist() for _, s in lines]
        logprobs = [np.nan_to_num(s.completion.logprobs).tolist() for _, s in lines]
        played = [s.completion.trajectory for _, s in lines]
        masks = [each.written.astype(int).tolist() for each in played if each is not None] or None
        return prompts, ids, masks, [""] * len(lines), logprobs, {}, None, None

    def _calculate_rewards(self, *args: Any) -> torch.Tensor:
        return torch.tensor([each.rewards for _, each in _lines(self.groups)], device=self.accelerator.device)


class ScriptedRLOO(RLOOTrainer):
    """The same for `RLOOTrainer`."""

    groups: Sequence[Group]

    def _generate(self, prompts: Any) -> Any:
        lines = _lines(self.groups)
        prompts, ids = [p.input_ids.tolist() for p, _ in lines], [s.completion.token_ids.tolist() for _, s in lines]
        return prompts, ids, [""] * len(lines)

    def _calculate_rewards(self, *args: Any) -> torch.Tensor:
        return torch.tensor([each.rewards for _, each in _lines(self.groups)], device=self.accelerator.device)


def moved(model: Any) -> None:
    """Move the weights a step away; equal models move equally."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))


def gradients(model: Any) -> Gradients:
    """The accumulated gradients."""
    return {name: each.grad.clone() for name, each in model.named_parameters() if each.grad is not None}


def of_trl(
    folder: Path, groups: Sequence[Group], model: Any, reference: Any, later: bool, options: Mapping[str, Any]
) -> tuple[float, Gradients]:
    """Loss and gradients of one optimizer step over all completions.

    Args:
        folder: For the arguments.
        groups: Scored completions.
        model: The policy; a copy is used.
        reference: The reference model.
        later: Whether the policy moves between the sampling and the step.
        options: Of `GRPOConfig`; of `RLOOConfig` where loss_type is rloo.
    """
    options = dict(options)
    is_rloo = options.get("loss_type") == "rloo"
    for name in ("loss_type", "advantage_estimator") if is_rloo else ():
        options.pop(name, None)
    number, num_rewards = len(_lines(groups)), len(groups[0].scored[0].rewards)
    correction = options.pop("importance_sampling", "none")
    kind: Any = RLOOConfig if is_rloo else GRPOConfig
    options |= {"vllm_importance_sampling_correction": correction != "none"} if not is_rloo else {}
    if correction != "none":
        options["vllm_importance_sampling_mode"] = correction
        options["vllm_importance_sampling_clip_max"] = options.pop("importance_sampling_max", 3.0)
        options["vllm_importance_sampling_clip_min"] = options.pop("importance_sampling_min", None)
    beta = options.pop("beta", 0.0)
    args = kind(
        output_dir=str(folder),
        per_device_train_batch_size=number,
        num_generations=NUM_GENERATIONS,
        report_to="none",
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        num_iterations=2 if later else 1,
        **{"beta": 0.0, **options},
    )
    trainer: Any = (ScriptedRLOO if is_rloo else ScriptedGRPO)(
        model=copy.deepcopy(model),
        args=args,
        reward_funcs=[lambda **_: [] for _ in range(num_rewards)],
        train_dataset=Dataset.from_dict({"prompt": ["a"] * number}),
        processing_class=AutoTokenizer.from_pretrained(TINY),
    )
    trainer.groups, trainer.beta = groups, beta
    if beta:
        from trl.trainer.utils import add_fused_lm_head

        trainer.ref_model = copy.deepcopy(reference)
        add_fused_lm_head(trainer.ref_model)
    trainer.use_vllm = correction != "none"
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train()
    inputs = trainer._generate_and_score_completions([{"prompt": "a"}] * number)
    if later:
        moved(trainer.model)
    loss = trainer._compute_loss(trainer.model, inputs)
    loss.backward()
    return loss.item(), gradients(trainer.model)


def of_ours(
    folder: Path, groups: Sequence[Group], model: Any, reference: Any, later: bool, options: Mapping[str, Any]
) -> tuple[float, Gradients]:
    """The same values of our trainer, with micro-batches of 40 tokens; `options`: flags."""
    flags = {"importance_sampling": "none", "num_generations": NUM_GENERATIONS, **options}
    flags |= {"micro_batch_tokens": 40, "train.num_iterations": 2 if later else 1}
    given = [part for name, value in flags.items() for part in (f"--{name}", str(value).lower())]
    num_rewards = len(groups[0].scored[0].rewards)
    spec = make_spec(folder, *given, "--rollout.reward_funcs", *(f"f{i}" for i in range(num_rewards)))
    trainer = make_trainer(
        spec, Rounds([groups], num_rewards=num_rewards), copy.deepcopy(model), copy.deepcopy(reference)
    )
    steps = iter(trainer.stream)
    first = next(steps)
    loss = trainer.training_step(trainer.model, first)
    if later:
        trainer.model.zero_grad()
        moved(trainer.model)
        loss = trainer.training_step(trainer.model, next(steps))
    return loss.item(), gradients(trainer.model)


def assert_equal(folder: Path, groups: Sequence[Group], later: bool, options: Mapping[str, Any]) -> None:
    """Check that the loss and every gradient are equal."""
    policy, reference = tiny_model(0), tiny_model(1)
    wanted, wanted_gradients = of_trl(folder, groups, policy, reference, later, options)
    found, found_gradients = of_ours(folder, groups, policy, reference, later, options)
    assert found == pytest.approx(wanted, abs=1e-5, rel=1e-5)
    assert found_gradients.keys() == wanted_gradients.keys()
    for name, gradient in wanted_gradients.items():
        scale = max(1.0, float(gradient.abs().max()))
        torch.testing.assert_close(found_gradients[name], gradient, atol=1e-5 * scale, rtol=1e-5)
