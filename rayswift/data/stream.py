"""The Ray Data pipeline: a range over window numbers, each read, encoded and packed by one task, in order.

Ray Data's block borders play no part in what a window holds, and `preserve_order` keeps the windows in sequence, so
parallelism changes the speed of the stream and nothing else.
"""

import logging
import pickle
from collections.abc import Iterator
from typing import Any

import ray
import ray.data
from ray.exceptions import RayTaskError

from rayswift.data.windows import Window, WindowPlan
from rayswift.log import UserError


class _MakeWindow:
    def __init__(self, plan_ref: Any, epoch: int, first: int):
        self._plan_ref, self._epoch, self._first = plan_ref, epoch, first

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        plan: WindowPlan = ray.get(self._plan_ref)
        return {"window": [pickle.dumps(plan.make(self._epoch, self._first + int(n)), 5) for n in batch["id"]]}


def stream_windows(plan: WindowPlan, epoch: int, first: int) -> Iterator[Window]:
    """Windows `first`, `first` + 1, ... of an epoch.

    Raises:
        UserError: as raised by a data task.
    """
    remaining = plan.num_windows - first
    if remaining <= 0:
        return
    context = ray.data.DataContext.get_current()
    logging.getLogger("ray.data").setLevel(logging.ERROR)  # what fails is raised
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    make = _MakeWindow(ray.put(plan), epoch, first)
    windows = ray.data.range(remaining, override_num_blocks=remaining).map_batches(make, batch_size=None)
    try:
        for batch in windows.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=2):
            for blob in batch["window"]:
                yield pickle.loads(blob.as_buffer())
    except RayTaskError as error:
        raise (user_error_in(error) or error) from error


def user_error_in(error: BaseException | None) -> UserError | None:
    """The `UserError` at the bottom of what Ray wrapped around it, if there is one."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, UserError):
            return error
        error = (error.cause if isinstance(error, RayTaskError) else None) or error.__cause__ or error.__context__
    return None
