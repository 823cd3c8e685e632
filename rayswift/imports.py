"""Imports of large libraries, without the search for garbage that takes up to a quarter of their time."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def of_libraries() -> Iterator[None]:
    """Around imports of thousands of modules: nothing is collected, and what is there afterwards never will be.

    Python looks through all objects for garbage each time a quarter more of them exist. Modules make many objects and
    hardly any garbage, and they stay until the process ends. Later collections, during the training, leave them out.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if collects:
            gc.enable()
