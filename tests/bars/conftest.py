"""The fixtures of tests/ray, for the large matrices."""

from tests.ray.conftest import run_dir, tiny
from tests.ray.test_elastic import two_workers
from tests.ray.test_equivalence import reference

__all__ = ["reference", "run_dir", "tiny", "two_workers"]
