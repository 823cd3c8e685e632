"""AdaLoRA (Zhang et al., 2023): ranks move to the matrices where they matter most, while the training goes on.

A weight's update is B diag(E) A. PEFT's allocator scores each of its singular values by the gradients and sets the
least important of all to zero, fewer and fewer staying; what it has seen so far is part of every checkpoint.
"""

from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

STATE = "adalora.pt"
"""What the allocator has seen, in the checkpoint's folder."""


def penalty(model: Any) -> torch.Tensor:
    """How far the A [r, in] and B [out, r] are from orthogonal, weighed (equation 4): a term of the loss.

    PEFT adds it to a loss that the model itself computes; here the trainer computes the loss from the outputs.
    """
    distances = []
    for name, matrix in model.named_parameters():
        if "lora_A" in name or "lora_B" in name:
            products = matrix @ matrix.T if "lora_A" in name else matrix.T @ matrix
            distances.append(torch.linalg.norm(products - torch.eye(len(products)).to(products)))
    weight: float = model.peft_config["default"].orth_reg_weight
    return weight * torch.stack(distances).mean()


class RankBudget(TrainerCallback):
    """Lets the allocator look at the gradients of every step, and keeps what it has seen.

    Args:
        run_dir: Where checkpoints are.
        resume_from: The checkpoint that is continued.
    """

    def __init__(self, run_dir: Path, resume_from: Path | None):
        self._run_dir, self._resume_from = run_dir, resume_from
        # Singular values that are left, by matrix. PEFT keeps them in the adapter's config, and then saves these only,
        # which an optimizer's state no longer fits; zeros are saved here.
        self._left: dict[str, list[bool]] | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Go on where the checkpoint stands."""
        if self._resume_from is None:
            return
        allocator = kwargs["model"].base_model.rankallocator
        device = args.device.type  # of several workers on a CPU it is cpu:0, which torch.load does not know
        saved = torch.load(self._resume_from / STATE, map_location=device, weights_only=True)
        self._left = saved["left"]
        allocator.exp_avg_ipt, allocator.exp_avg_unc = saved["importance"], saved["uncertainty"]
        allocator.ipt = dict(saved["importance"])  # only whether a name is there counts

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Behind the step, while its gradients are there."""
        tuned = kwargs["model"]
        config = tuned.peft_config["default"]
        config.rank_pattern = self._left
        tuned.base_model.update_and_allocate(state.global_step)
        self._left, config.rank_pattern = config.rank_pattern, None

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Beside the adapter; all ranks have seen the same."""
        if args.should_save:
            allocator = kwargs["model"].base_model.rankallocator
            seen = {"importance": allocator.exp_avg_ipt, "uncertainty": allocator.exp_avg_unc, "left": self._left}
            torch.save(seen, self._run_dir / f"checkpoint-{state.global_step}" / STATE)
