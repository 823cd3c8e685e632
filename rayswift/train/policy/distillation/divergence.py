"""Divergences between a student's and a teacher's next tokens; pure, equal to those of TRL's GKD trainer.

Logits are [n, V]: n tokens, V entries. They are compared piece by piece, and each piece is recomputed in the backward
pass, so memory holds the logits and the distributions of one piece.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

_PIECE_ELEMENTS = 1 << 24


@dataclass(frozen=True)
class TopK:
    """The k likeliest tokens of a teacher at each of n positions: ids [n, k] int64; logits [n, k], or
    log-probabilities, which differ from logits by a constant for each position."""

    ids: Tensor
    logits: Tensor

    def __getitem__(self, places: slice) -> "TopK":
        return TopK(self.ids[places], self.logits[places])


def top_k(logits: Tensor, k: int) -> TopK:
    """Return the k likeliest entries of logits [n, V]; all of them if V is smaller."""
    found = logits.topk(min(k, logits.shape[-1]), dim=-1)
    return TopK(found.indices, found.values)


def divergence(student: Tensor, teacher: Tensor | TopK, beta: float, temperature: float) -> Tensor:
    """Return the generalised Jensen-Shannon divergence of each token, [n] float32; arXiv 2306.13649, equation 1.

    Args:
        student: Logits [n, V], with gradient.
        teacher: Logits [n, V]; or only its likeliest tokens, over which both distributions are then normalised.
        beta: 0 is KL(teacher || student), 1 is KL(student || teacher).
        temperature: Divides all logits.
    """
    found = [
        checkpoint(_divergence, student[piece], teacher[piece], beta, temperature, use_reentrant=False)
        for piece in _pieces(student)
    ]
    return torch.cat(found)


def _pieces(logits: Tensor) -> list[slice]:
    size = max(1, _PIECE_ELEMENTS // logits.shape[-1])
    return [slice(begin, begin + size) for begin in range(0, len(logits), size)] or [slice(0, 0)]


def _divergence(student: Tensor, teacher: Tensor | TopK, beta: float, temperature: float) -> Tensor:
    if isinstance(teacher, TopK):
        student, teacher = student.gather(-1, teacher.ids), teacher.logits
    ours = F.log_softmax(student.float() / temperature, dim=-1)
    theirs = F.log_softmax(teacher.float() / temperature, dim=-1)
    if beta in (0, 1):
        first, second = (theirs, ours) if beta == 0 else (ours, theirs)
        return _kl(first, second)
    weight = torch.tensor(beta, dtype=ours.dtype, device=ours.device)
    mixture = torch.logaddexp(ours + torch.log1p(-weight), theirs + torch.log(weight))
    return beta * _kl(theirs, mixture) + (1 - beta) * _kl(ours, mixture)


def _kl(first: Tensor, second: Tensor) -> Tensor:
    """KL(first || second) of log-probabilities [n, V], [n]; a probability of 0 in `first` adds 0."""
    return F.kl_div(second, first, reduction="none", log_target=True).sum(-1)


@torch.no_grad()
def target_logprobs(logits: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """Return the log-probabilities [n] float32 of target tokens [n], from logits [n, V]."""
    return torch.cat(
        [
            -F.cross_entropy(logits[piece].float() / temperature, targets[piece], reduction="none")
            for piece in _pieces(logits)
        ]
    )


@torch.no_grad()
def masses(student: Tensor, teacher: TopK, teacher_logits: Tensor | None, temperature: float) -> tuple[Tensor, Tensor]:
    """Return the probabilities, [n] each, that student and teacher give to the teacher's k likeliest tokens.

    Args:
        student: Logits [n, V].
        teacher: Those tokens.
        teacher_logits: [n, V]; None: `teacher` holds log-probabilities at `temperature`, times that.
        temperature: Divides logits.
    """
    ours = _mass(student.gather(-1, teacher.ids), student, temperature)
    if teacher_logits is None:
        return ours, (teacher.logits.float() / temperature).exp().sum(-1)
    return ours, _mass(teacher.logits, teacher_logits, temperature)


def _mass(part: Tensor, whole: Tensor, temperature: float) -> Tensor:
    parts, wholes = part.float() / temperature, whole.float() / temperature
    return torch.exp(torch.logsumexp(parts, -1) - torch.logsumexp(wholes, -1))
