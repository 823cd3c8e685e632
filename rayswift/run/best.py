"""The best evaluation of a run, computed from the log history in each checkpoint; pure.

So early stopping and the best model are correct after a resume, also with another metric.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any


def evaluations(history: Sequence[Mapping[str, Any]], metric: str) -> list[tuple[int, float]]:
    """(step, value) of every evaluation with the metric, named with or without `eval_`."""
    key = metric if metric.startswith("eval_") else f"eval_{metric}"
    return [(int(entry["step"]), float(entry[key])) for entry in history if key in entry]


def best_of(values: Sequence[tuple[int, float]], greater_is_better: bool) -> tuple[int, float] | None:
    """The first of the best values; NaN is never best."""
    numbers = [(step, value) for step, value in values if not math.isnan(value)]
    sign = -1 if greater_is_better else 1
    return min(numbers, key=lambda pair: sign * pair[1], default=None)


def num_without_improvement(values: Sequence[tuple[int, float]], greater_is_better: bool) -> int:
    """Evaluations since the best one."""
    best = best_of(values, greater_is_better)
    return len(values) - 1 - values.index(best) if best else len(values)
