"""Imports of libraries: nothing is collected meanwhile, and all is as before afterwards."""

import gc
import weakref

import pytest

from rayswift import imports


class Node:
    """An object in a cycle."""

    def __init__(self) -> None:
        self.itself = self


def test_nothing_is_collected_until_the_end() -> None:
    frozen = gc.get_freeze_count()
    with imports.of_libraries():
        assert not gc.isenabled()
        made = weakref.ref(Node())
    assert gc.isenabled()
    gc.collect()
    assert made() is None
    assert gc.get_freeze_count() == frozen  # the exit of a command cleans up


def test_a_failed_import_collects_again() -> None:
    with pytest.raises(ImportError), imports.of_libraries():
        raise ImportError
    assert gc.isenabled()


def test_who_does_not_collect_does_not_begin_to() -> None:
    gc.disable()
    try:
        with imports.of_libraries():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
