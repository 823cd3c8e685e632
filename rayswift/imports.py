"""Imports of large libraries, without the search for garbage that takes up to a quarter of their time."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def of_libraries() -> Iterator[None]:
    """Around imports of thousands of modules: nothing is collected meanwhile.

    Python looks through all objects for garbage each time a quarter more of them exist. Modules make many objects and
    hardly any garbage. Later collections see these objects: a command that froze them would not clean them up at its
    exit (see `engines/heap.py`).
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()
