"""The Ray Data pipeline: a range over numbers, each made into something by one task, in order.

Windows are the numbers of a training stream: each is read, encoded and packed by one task, a single one where it is
asked for. Ray Data's block borders play no part in what a window holds, and `preserve_order` keeps the windows in
sequence, so parallelism changes the speed of the stream and nothing else.
"""

import logging
import os
import pickle
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from rayswift.data.cache.parts import CachedWindows
from rayswift.data.sequence.windows import Window, Windows
from rayswift.log import UserError

Made = TypeVar("Made")


@dataclass(frozen=True)
class _InTask:
    """What a data task does with its numbers."""

    function_ref: Any
    first: int

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        import ray

        return _made(ray.get(self.function_ref), self.first, batch)


class _InActor:
    """The same in an actor, which keeps the function and what it has loaded."""

    def __init__(self, function: Callable[[int], Any], first: int):
        self._function, self._first = function, first

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        return _made(self._function, self._first, batch)


def _made(function: Callable[[int], Any], first: int, batch: dict[str, Any]) -> dict[str, Any]:
    # Every core has a task of its own: threads of the tokenizer would only get in each other's way.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    return {"made": [pickle.dumps(function(first + int(n)), 5) for n in batch["id"]]}


def make_in_order(
    function: Callable[[int], Made], numbers: range, num_actors: int = 0, num_gpus_per_actor: float = 0
) -> Iterator[Made]:
    """function(n) for each number, made by data tasks in parallel, yielded in order.

    Args:
        function: Goes to the tasks.
        numbers: Its arguments.
        num_actors: Actors that make them in place of tasks: for a function that loads a model and keeps it.
        num_gpus_per_actor: GPUs that each holds.
    """
    if len(numbers) <= 1 and not num_actors:
        yield from map(function, numbers)  # nothing is parallel, so a task would bring nothing
        return
    import ray  # not at the top: a run in this process may do without, and it takes a second to load
    import ray.data
    from ray.exceptions import RayTaskError

    context = ray.data.DataContext.get_current()
    logging.getLogger("ray.data").setLevel(logging.ERROR)  # what fails is raised
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
        made = each.map_batches(_InTask(ray.put(function), numbers.start), batch_size=None)
    try:
        for batch in made.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=2):
            for blob in batch["made"]:
                yield pickle.loads(blob.as_buffer())
    except RayTaskError as error:
        raise (user_error_in(error) or error) from error


@dataclass(frozen=True)
class _MakeWindow:
    windows: Windows
    epoch: int

    def __call__(self, number: int) -> Window:
        return self.windows.make(self.epoch, number)


def stream_windows(windows: Windows, epoch: int, first: int) -> Iterator[Window]:
    """Windows `first`, `first` + 1, ... of an epoch; see `needs_ray`."""
    make, numbers = _MakeWindow(windows, epoch), range(first, windows.num_windows)
    if isinstance(windows, CachedWindows):
        # Reading is so much cheaper than a task that the feed does it itself.
        yield from map(make, numbers)
    else:
        yield from make_in_order(make, numbers)


def needs_ray(windows: Windows) -> bool:
    """Whether data tasks make them: more than one, and not only to be read."""
    return windows.num_windows > 1 and not isinstance(windows, CachedWindows)


def user_error_in(error: BaseException | None) -> UserError | None:
    """The `UserError` at the bottom of what Ray wrapped around it, if there is one."""
    wrapper = sys.modules["ray.exceptions"].RayTaskError if "ray.exceptions" in sys.modules else ()
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        # Ray's wrapper is of the class it wraps, too; but its text is a traceback.
        cause = getattr(error, "cause", None) if isinstance(error, wrapper) else None
        if cause is None and isinstance(error, UserError):
            return error
        error = cause or error.__cause__ or error.__context__
    return None
