"""The fixtures of tests/ray, for the large matrices."""

import pytest

from tests.ray.conftest import TINY, WINDOWS, run_dir
from tests.ray.test_elastic import two_workers
from tests.ray.test_equivalence import reference

__all__ = ["reference", "run_dir", "tiny", "two_workers"]


@pytest.fixture(scope="session")
def tiny() -> tuple[str, ...]:
    """That of tests/ray, over several windows of rows."""
    return (*TINY, *WINDOWS)
