"""What it costs to begin late in an epoch: to the first window at 90 % of it, beside replaying up to there.

    python -m tests.bench.resume_cost [--rows 1000000]

Both from opening the source on; Ray is started before. Bar: five times sooner.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

import ray

from rayswift.data.feed.pipeline import stream_windows
from tests.bench.counting import start_ray
from tests.bench.generated import plans, short_rows

MAX_LENGTH = 1024


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    num_rows = parser.parse_args().rows
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        source = short_rows(work / "rows.jsonl", num_rows)
        start_ray(os.cpu_count() or 1)
        seconds = {"resumed": reach(source, work / "resumed", resumed=True)}
        seconds["replayed"] = reach(source, work / "replayed", resumed=False)
        ray.shutdown()
    print(f"{num_rows:,} rows, first window at 90 %: seconds")  # noqa: T201
    for name, value in seconds.items():
        print(f"{name:<10}{value:>8.1f}")  # noqa: T201
    print(f"{'ratio':<10}{seconds['replayed'] / seconds['resumed']:>8.1f}")  # noqa: T201


def reach(source: Path, work: Path, resumed: bool) -> float:
    """Seconds until the window at 90 % of the epoch is there."""
    began = time.monotonic()
    windows, _ = plans(source, work, 16, max_length=MAX_LENGTH)
    target = windows.num_windows * 9 // 10
    stream = stream_windows(windows, 0, target if resumed else 0)
    for _ in range(1 if resumed else target + 1):
        next(stream)
    seconds = time.monotonic() - began
    stream.close()  # type: ignore[attr-defined]
    return seconds


if __name__ == "__main__":
    main()
