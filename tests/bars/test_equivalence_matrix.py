"""Every tuner x workers x ZeRO stage x offload against the in-process run of tests/ray/test_equivalence.py.

Minutes per tuner, so not part of the suite: pytest tests/bars/test_equivalence_matrix.py
"""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.ray.conftest import assert_same_curve, sft
from tests.ray.test_equivalence import TOLERANCE, TUNERS, layout

# In-process without ZeRO is the reference itself.
LAYOUTS = [
    *((workers, stage, "none") for workers in (0, 1, 2) for stage in (0, 1, 2, 3) if (workers, stage) != (0, 0)),
    *((2, stage, "optimizer") for stage in (1, 2, 3)),
    (2, 3, "all"),
]


@pytest.mark.parametrize("tuner", TUNERS)
@pytest.mark.parametrize(("workers", "stage", "offload"), LAYOUTS)
def test_every_layout_trains_as_one_process_does(
    tuner: str,
    workers: int,
    stage: int,
    offload: str,
    reference: Callable[[str], Path],
    run_dir: Path,
    tiny: tuple[str, ...],
) -> None:
    sft(run_dir, *tiny, *TUNERS[tuner], *layout(workers, stage), "--offload", offload)
    assert_same_curve(run_dir, reference(tuner), TOLERANCE)
