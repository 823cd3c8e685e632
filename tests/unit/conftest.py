"""Shared by all unit tests."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def no_code_of_the_test_stays(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Forget modules and folders that a test wrote and imported: the next test uses the same names."""
    path, modules, written = list(sys.path), set(sys.modules), tmp_path_factory.getbasetemp()
    yield
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        file = getattr(sys.modules[name], "__file__", None)
        if file and written in Path(file).parents:
            del sys.modules[name]
