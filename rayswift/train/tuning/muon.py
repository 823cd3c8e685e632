"""Muon (Jordan et al., 2024) for the matrices of a model, AdamW for all other parameters.

The step of a matrix has orthogonal rows or columns; its size is that of AdamW's steps ("match_rms_adamw", Liu et al.,
2025, "Muon is Scalable for LLM Training", equation 4), so one learning rate serves both.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from transformers import TrainingArguments

# Matrices of these are tables of vectors, which AdamW trains (Liu et al., 2025, section 2.2).
_HEADS = ("lm_head", "embed_out", "score", "classifier")
_OPTIONS: dict[str, Callable[[str], Any]] = {
    "momentum": float,
    "ns_steps": int,
    "nesterov": lambda word: word.strip().lower() == "true",
}
"""The names that `train.optim_args` may hold, each with its parser."""


class MuonWithAdamW(torch.optim.Optimizer):
    """torch's Muon and AdamW as one optimizer.

    Args:
        groups: Parameter groups, each with one weight decay; each is split in two.
        matrices: `id` of each parameter that Muon trains.
        lr: Learning rate of both.
        betas: Of AdamW.
        eps: Of AdamW.
        muon: Further arguments of torch's Muon.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        *,
        matrices: frozenset[int],
        lr: float,
        betas: tuple[float, float],
        eps: float,
        muon: dict[str, Any],
    ):
        cut: dict[bool, list[dict[str, Any]]] = {True: [], False: []}
        for group in groups:
            for is_muon in cut:
                part = [p for p in group["params"] if (id(p) in matrices) == is_muon]
                if part:
                    cut[is_muon].append({**group, "params": part, "is_muon": is_muon})
        self._parts: list[tuple[bool, torch.optim.Optimizer]] = []
        if cut[True]:
            matrix_steps = torch.optim.Muon(cut[True], lr=lr, adjust_lr_fn="match_rms_adamw", **muon)
            self._parts.append((True, matrix_steps))
        if cut[False]:
            self._parts.append((False, torch.optim.AdamW(cut[False], lr=lr, betas=betas, eps=eps)))
        super().__init__([group for _, part in self._parts for group in part.param_groups], {})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Step both; they share the groups and states of this optimizer, which schedules and checkpoints change."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for is_muon, part in self._parts:
            part.param_groups = [group for group in self.param_groups if group["is_muon"] == is_muon]
            part.state = self.state
            part.step()
        return loss


def recipe(model: torch.nn.Module, args: TrainingArguments) -> tuple[type[MuonWithAdamW], dict[str, Any]]:
    """Return the optimizer and its arguments for HF's Trainer.

    Args:
        model: What is trained.
        args: The run's; `optim_args` may hold momentum, ns_steps and nesterov, checked before.
    """
    muon = {name: _OPTIONS[name](word) for name, word in options(args.optim_args).items()}
    return MuonWithAdamW, {
        "matrices": frozenset(id(parameter) for parameter in matrices(model)),
        "lr": args.learning_rate,
        "betas": (args.adam_beta1, args.adam_beta2),
        "eps": args.adam_epsilon,
        "muon": muon,
    }


def matrices(model: torch.nn.Module) -> list[torch.nn.Parameter]:
    """Return the parameters that Muon trains: matrices, without embeddings and heads."""
    return [
        parameter
        for name, module in model.named_modules()
        if not isinstance(module, torch.nn.Embedding) and name.rpartition(".")[2] not in _HEADS
        for parameter in module.parameters(recurse=False)
        if parameter.requires_grad and parameter.ndim == 2
    ]


def options(optim_args: str | None) -> dict[str, str]:
    """Split `train.optim_args` into names and words: `momentum=0.9,ns_steps=6`."""
    pairs = (pair.partition("=") for pair in (optim_args or "").replace(" ", "").split(",") if pair)
    return {name: word for name, _, word in pairs}
