"""The Ray Data pipeline: a range of numbers, one data task for each, with the results in order.

For training the numbers are windows: one task reads, encodes and packs one window. Blocks of Ray Data do not influence
a window's contents, and `preserve_order` keeps the sequence. So parallelism changes only the speed of the stream.
"""

import logging
import os
import pickle
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, TypeVar

from rayswift.data.cache.parts import CachedWindows
from rayswift.data.sequence.windows import Window, Windows
from rayswift.log import UserError

Made = TypeVar("Made")


def _in_task(batch: dict[str, Any], function_ref: Any, first: int) -> dict[str, Any]:
    import ray

    return _InActor(ray.get(function_ref), first)(batch)


class _InActor:
    """An actor that keeps the function and what it has loaded."""

    def __init__(self, function: Callable[[int], Any], first: int):
        self._function, self._first = function, first

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        # Every core has a task of its own, so threads of the tokenizer would slow each other.
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        return {"made": [pickle.dumps(self._function(self._first + int(n)), 5) for n in batch["id"]]}


def make_in_order(
    function: Callable[[int], Made], numbers: range, num_actors: int = 0, num_gpus_per_actor: float = 0
) -> Iterator[Made]:
    """function(n) for each number, computed by data tasks in parallel, in order.

    Args:
        function: Picklable.
        numbers: Its arguments.
        num_actors: Actors that replace the tasks, for a function that loads a model and keeps it.
        num_gpus_per_actor: GPUs of each actor.

    Raises:
        UserError: a data task raised it.
    """
    if len(numbers) <= 1 and not num_actors:
        yield from map(function, numbers)  # a single task would bring no parallelism
        return
    import ray  # not at the top: a run in this process may not need it, and it takes a second to load
    import ray.data
    from ray.exceptions import RayTaskError

    context = ray.data.DataContext.get_current()
    logging.getLogger("ray.data").setLevel(logging.ERROR)  # failures are raised
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    each = ray.data.range(len(numbers), override_num_blocks=len(numbers))
    if num_actors:
        made = each.map_batches(
            _InActor,
            fn_constructor_args=(function, numbers.start),
            concurrency=num_actors,
            num_gpus=num_gpus_per_actor or None,
            batch_size=None,
        )
    else:
        made = each.map_batches(_in_task, fn_args=(ray.put(function), numbers.start), batch_size=None)
    try:
        for batch in made.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=2):
            for blob in batch["made"]:
                yield pickle.loads(blob.as_buffer())
    except RayTaskError as error:
        raise (user_error_in(error) or error) from error


def stream_windows(windows: Windows, epoch: int, first: int) -> Iterator[Window]:
    """Windows `first`, `first` + 1, ... of an epoch."""
    make, numbers = partial(windows.make, epoch), range(first, windows.num_windows)
    # The feed reads cached windows itself, because reading is much cheaper than a task.
    yield from map(make, numbers) if isinstance(windows, CachedWindows) else make_in_order(make, numbers)


def needs_ray(windows: Windows) -> bool:
    """Whether data tasks make the windows: there are several, and they are not cached."""
    return windows.num_windows > 1 and not isinstance(windows, CachedWindows)


def user_error_in(error: BaseException | None) -> UserError | None:
    """The `UserError` that Ray wrapped, if there is one."""
    wrapper = sys.modules["ray.exceptions"].RayTaskError if "ray.exceptions" in sys.modules else ()
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        # Ray's wrapper is also an instance of the wrapped class, but its text is a traceback.
        cause = getattr(error, "cause", None) if isinstance(error, wrapper) else None
        if cause is None and isinstance(error, UserError):
            return error
        error = cause or error.__cause__ or error.__context__
    return None
