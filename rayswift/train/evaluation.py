"""Adds up the sums and counts of evaluation metrics over batches and ranks; never a tensor of the whole data.

A metric of the user (`train.metrics`) is a function of one `EvalBatch` that returns a sum and a count:

    def number_accuracy(batch):
        right = batch.predictions == batch.labels
        numbers = np.isin(batch.labels, NUMBER_TOKENS)
        return {"number_accuracy": (right[numbers].sum(), numbers.sum())}
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rayswift.log import UserError

BUILT_IN = ("loss", "mean_token_accuracy", "entropy")
"""Metrics of every evaluation, each a mean over the trained tokens of all ranks."""

Sums = dict[str, tuple[float, float]]
"""Metric -> (sum, count); its value is sum / count."""


@dataclass(frozen=True)
class EvalBatch:
    """One evaluation batch of one rank, arrays of shape [B, T].

    labels: token ids, -100 if not trained; predictions: the most likely token at the same position, given those
    before it (-100 in the first place, which nothing predicts); weights: loss weight of each token; position_ids: 0
    where a document begins.
    """

    predictions: NDArray[np.int64]
    labels: NDArray[np.int64]
    weights: NDArray[np.float32]
    position_ids: NDArray[np.int64]


Metric = Callable[[EvalBatch], Mapping[str, tuple[float, float]]]


def add(totals: Sums, sums: Mapping[str, tuple[float, float]]) -> None:
    """Add sums and counts to `totals`, in place."""
    for name, (value, count) in sums.items():
        before = totals.get(name, (0.0, 0.0))
        totals[name] = before[0] + value, before[1] + count


def measure(field: str, metric: Metric, batch: EvalBatch) -> Sums:
    """Return the sums and counts of a user's metric for a batch.

    Raises:
        UserError: it did not return a name with a sum and a count for each metric.
    """
    returned: Any = metric(batch)
    try:
        sums = {str(name): (float(value), float(count)) for name, (value, count) in returned.items()}
    except (AttributeError, TypeError, ValueError) as error:
        raise UserError(
            f"train.metrics = {field!r} returned {str(returned)[:200]}, wanted a dict of name: (sum, count)",
            exit_code=1,
        ) from error
    taken = sorted(set(sums) & set(BUILT_IN))
    if taken:
        raise UserError(
            f"train.metrics = {field!r} names {', '.join(taken)}, which is built in; rename it", exit_code=1
        )
    return sums


def values(totals: Sums, prefix: str) -> dict[str, float]:
    """Return the values of the metrics; one with count 0 is left out, except the loss, which is 0."""
    return {
        f"{prefix}_{name}": value / max(count, 1.0 if name == "loss" else count)
        for name, (value, count) in totals.items()
        if count or name == "loss"
    }
