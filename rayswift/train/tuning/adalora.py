"""AdaLoRA (Zhang et al., 2023): during training, moves ranks to the matrices where they matter most.

The update of a weight is B diag(E) A. PEFT's allocator scores each singular value by the gradients and sets the least
important of all to zero, more and more of them. Its statistics are part of every checkpoint.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from rayswift.log import logger

STATE = "adalora.pt"
"""File of the allocator's statistics, in the checkpoint's folder."""


def penalty(model: Any) -> torch.Tensor:
    """Return the weighted distance of A [r, in] and B [out, r] from orthogonal (equation 4): a term of the loss.

    PEFT adds it to a loss that the model itself computes; here the trainer computes the loss from the outputs.
    """
    distances = []
    for name, matrix in model.named_parameters():
        if "lora_A" in name or "lora_B" in name:
            products = matrix @ matrix.T if "lora_A" in name else matrix.T @ matrix
            distances.append(torch.linalg.norm(products - torch.eye(len(products)).to(products)))
    weight: float = model.peft_config["default"].orth_reg_weight
    return weight * torch.stack(distances).mean()


class AdaLoraCallback(TrainerCallback):
    """Gives the allocator the gradients of every step, and saves its statistics.

    Args:
        run_dir: The folder of checkpoints.
        resume_from: The checkpoint that is continued.
        progress: For a training over epochs: returns the share that is done after the current step. The number of steps
            is then unknown, and the allocator's plan follows the rows. None: the adapter's config has the number of
            steps.
    """

    def __init__(self, run_dir: Path, resume_from: Path | None, progress: Callable[[], float] | None = None):
        self._run_dir, self._resume_from, self._progress = run_dir, resume_from, progress
        self._num_steps: int | None = None  # once the final steps have begun
        # Singular values that are left, by matrix. PEFT keeps them in the adapter's config, and then saves these only,
        # which an optimizer's state no longer fits; zeros are saved here.
        self._left: dict[str, list[bool]] | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Load the statistics of the checkpoint."""
        if self._resume_from is None:
            return
        allocator = kwargs["model"].base_model.rankallocator
        device = args.device.type  # of several workers on a CPU it is cpu:0, which torch.load does not know
        saved = torch.load(self._resume_from / STATE, map_location=device, weights_only=True)
        self._left, self._num_steps = saved["left"], saved["num_steps"]
        allocator.exp_avg_ipt, allocator.exp_avg_unc = saved["importance"], saved["uncertainty"]
        allocator.ipt = dict(saved["importance"])  # only whether a name is there counts

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Update the allocator after the step, while its gradients exist."""
        tuned = kwargs["model"]
        config = tuned.peft_config["default"]
        if self._progress is not None:
            config.total_step = self._expected_steps(state.global_step, config.tinit, config.tfinal)
        config.rank_pattern = self._left
        tuned.base_model.update_and_allocate(state.global_step)
        self._left, config.rank_pattern = config.rank_pattern, None

    def _expected_steps(self, step: int, num_first: int, num_final: int) -> int:
        """Estimate the steps of the whole training from the share that is done; exact at its end.

        step: counted from 0. The final steps begin once, with the ranks that are then left.
        """
        assert self._progress is not None, "asked for in epochs only"
        if self._num_steps is not None:
            return self._num_steps
        expected = max(round((step + 1) / self._progress()), step + 1, num_first + num_final + 1)
        if step >= expected - num_final:
            self._num_steps = expected = step + num_final
        return expected

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Warn if the training was too short to lower the ranks."""
        config = kwargs["model"].peft_config["default"]
        if self._left is None and args.should_save:
            fixed = f"tinit + tfinal = {config.tinit + config.tfinal}"
            logger.warning("AdaLoRA: %s left no step of %d to lower the ranks", fixed, state.global_step)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Save the statistics beside the adapter; they are the same on all ranks."""
        if args.should_save:
            allocator = kwargs["model"].base_model.rankallocator
            seen = {"importance": allocator.exp_avg_ipt, "uncertainty": allocator.exp_avg_unc, "left": self._left}
            seen["num_steps"] = self._num_steps
            torch.save(seen, self._run_dir / f"checkpoint-{state.global_step}" / STATE)
