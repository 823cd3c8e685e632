"""Imports of libraries: nothing is collected meanwhile, and what they made is left out later."""

import gc
import weakref

import pytest

from rayswift import imports


class Node:
    """An object in a cycle."""

    def __init__(self) -> None:
        self.itself = self


def test_nothing_is_collected_and_what_was_made_is_left_out() -> None:
    made = []
    try:
        with imports.of_libraries():
            assert not gc.isenabled()
            made.append(weakref.ref(Node()))
        assert gc.isenabled()
        behind = weakref.ref(Node())
        gc.collect()
        assert behind() is None
        assert made[0]() is not None
    finally:
        gc.unfreeze()


def test_a_failed_import_collects_again() -> None:
    try:
        with pytest.raises(ImportError), imports.of_libraries():
            raise ImportError
        assert gc.isenabled()
    finally:
        gc.unfreeze()


def test_who_does_not_collect_does_not_begin_to() -> None:
    gc.disable()
    try:
        with imports.of_libraries():
            pass
        assert not gc.isenabled()
    finally:
        gc.unfreeze()
        gc.enable()
