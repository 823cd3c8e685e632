"""Scores of a query's documents -> their loss, and how well they are ordered; pure."""

import torch
from torch.nn import functional

from rayswift.train import evaluation


def list_loss(scores: torch.Tensor, labels: torch.Tensor, listwise: bool) -> torch.Tensor:
    """The loss of one query.

    Args:
        scores: Of its documents, float32 [N].
        labels: 1 for a document that fits the query, else 0, float32 [N].
        listwise: The cross-entropy of a softmax over the documents (ListNet: Cao et al., 2007, eq. 5, its target all
            on those that fit); else the binary cross-entropy of each, their mean.
    """
    if listwise:
        return functional.cross_entropy(scores, labels / labels.sum())
    return functional.binary_cross_entropy_with_logits(scores, labels)


def list_sums(scores: torch.Tensor, labels: torch.Tensor) -> evaluation.Sums:
    """What one query adds to the metrics; nothing where all its documents fit, or none.

    accuracy: whether each document that fits is above each other one; mrr: 1 / rank of the best that fits.
    """
    fitting, others = scores[labels == 1], scores[labels == 0]
    if not len(others) or not len(fitting):
        return {}
    rank = 1 + int((others >= fitting.max()).sum())
    return {"accuracy": (float(fitting.min() > others.max()), 1.0), "mrr": (1 / rank, 1.0)}
